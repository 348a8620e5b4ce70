"""The parts of a forecast that are compiled, each once for all of its shapes, and run as they are.

A region is a function of the rows of a hidden state. Their number is its only varying size, and
is marked so: another context, horizon, batch or number of samples or variates needs no new code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import torch
import torch._dynamo

from toto_compile_patch.decode import layer as layers
from toto_compile_patch.decode import operators, sampling
from toto_compile_patch.decode.layer import Layer, Rotation, Traceable
from toto_compile_patch.decode.operators import Attend
from toto_compile_patch.decode.sampling import StudentT


class Regions(Protocol):
    """What ``transformer`` and ``forecast`` call for each kind of region."""

    def least_rows(self, packed: bool) -> int:
        """How many rows there must be."""

    def over_time(
        self, layer: Traceable, hidden: torch.Tensor, rotation: Rotation, attend: Attend
    ) -> torch.Tensor:
        """See ``layer.over_time``."""

    def over_variates(self, layer: Traceable, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        """See ``layer.over_variates``."""

    def over_one_variate(self, layer: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        """See ``layer.over_one_variate``."""

    def mean(self, head: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        """See ``sampling.mean``."""

    def choose(self, head: Traceable, hidden: torch.Tensor, uniform: torch.Tensor) -> StudentT:
        """See ``sampling.choose``."""


ROWS_OF_A_PACKED_PRODUCT = 4
"""oneDNN reads a weight faster for as many rows as this than for one or two."""


class Uncompiled:
    """The regions as they stand."""

    def least_rows(self, packed: bool) -> int:
        return ROWS_OF_A_PACKED_PRODUCT if packed else 1

    def over_time(
        self, layer: Traceable, hidden: torch.Tensor, rotation: Rotation, attend: Attend
    ) -> torch.Tensor:
        return layers.over_time(layer.real, hidden, rotation, attend)

    def over_variates(self, layer: Traceable, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        return layers.over_variates(layer.real, hidden, attend)

    def over_one_variate(self, layer: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        return layers.over_one_variate(layer.real, hidden)

    def mean(self, head: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        return sampling.mean(head.real, hidden)

    def choose(self, head: Traceable, hidden: torch.Tensor, uniform: torch.Tensor) -> StudentT:
        return sampling.choose(head.real, hidden, uniform)


class Compiled:
    """The regions compiled, each at its first call.

    Args:
        backend: of ``torch.compile``.
        options: for inductor.
    """

    def __init__(self, backend: Any, options: dict[str, Any]) -> None:
        self._backend = backend
        self._options = options or None

    def least_rows(self, packed: bool) -> int:
        return ROWS_OF_A_PACKED_PRODUCT if packed else 2

    def over_time(
        self, layer: Traceable, hidden: torch.Tensor, rotation: Rotation, attend: Attend
    ) -> torch.Tensor:
        operators.hand_over(layer.linears, attend)
        _any_number_of(hidden, 0)
        _any_number_of(rotation.tables, 1)
        return self._over_time(layer.stand_in, hidden, rotation)

    def over_variates(self, layer: Traceable, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        operators.hand_over(layer.linears, attend)
        _any_number_of(hidden, 0)
        return self._over_variates(layer.stand_in, hidden)

    def over_one_variate(self, layer: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        operators.hand_over(layer.linears)
        _any_number_of(hidden, 0)
        return self._over_one_variate(layer.stand_in, hidden)

    def mean(self, head: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        operators.hand_over(head.linears)
        _any_number_of(hidden, 0)
        return self._mean(head.stand_in, hidden)

    def choose(self, head: Traceable, hidden: torch.Tensor, uniform: torch.Tensor) -> StudentT:
        operators.hand_over(head.linears)
        _any_number_of(hidden, 0)
        _any_number_of(uniform, 0)
        return self._choose(head.stand_in, hidden, uniform)

    @cached_property
    def _over_time(self) -> Callable[..., torch.Tensor]:
        def over_time(layer: Layer, hidden: torch.Tensor, rotation: Rotation) -> torch.Tensor:
            return layers.over_time(layer, hidden, rotation, operators.attend)

        return self._compile(over_time)

    @cached_property
    def _over_variates(self) -> Callable[..., torch.Tensor]:
        def over_variates(layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
            return layers.over_variates(layer, hidden, operators.attend)

        return self._compile(over_variates)

    @cached_property
    def _over_one_variate(self) -> Callable[..., torch.Tensor]:
        return self._compile(layers.over_one_variate)

    @cached_property
    def _mean(self) -> Callable[..., torch.Tensor]:
        return self._compile(sampling.mean)

    @cached_property
    def _choose(self) -> Callable[..., StudentT]:
        return self._compile(sampling.choose)

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(
            function, fullgraph=True, backend=self._backend, options=self._options
        )
        return compiled


def _any_number_of(rows: torch.Tensor, dim: int) -> None:
    torch._dynamo.mark_dynamic(rows, dim)

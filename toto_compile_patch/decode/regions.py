"""The parts of a forecast that are compiled, each once for all of its shapes, and run as they are.

A region is a function of the rows of a hidden state. Their number is its only varying size, and
is marked so: another context, horizon, batch or number of samples or variates needs no new code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch._dynamo

from toto_compile_patch.decode import layer as layers
from toto_compile_patch.decode import operators, sampling
from toto_compile_patch.decode.layer import Rotation, Traceable
from toto_compile_patch.decode.operators import Attend
from toto_compile_patch.decode.rows import Padding
from toto_compile_patch.decode.sampling import StudentT
from toto_compile_patch.tracing import own_code


class Regions(Protocol):
    """What ``transformer`` and ``forecast`` call for each kind of region."""

    def padding(self, packed: bool) -> Padding:
        """How many rows there should be, where weights are packed or not."""

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

    def padding(self, packed: bool) -> Padding:
        return Padding(ROWS_OF_A_PACKED_PRODUCT if packed else 1)

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

    A size of one is a constant to a compiler, so a single row is compiled apart. A series' mean
    forecast is then nothing but reading weights, and where they are packed, compiled code reads the
    plain ones faster.

    Args:
        backend: of ``torch.compile``.
        options: for inductor.
    """

    def __init__(self, backend: Any, options: dict[str, Any]) -> None:
        self._compile = partial(
            torch.compile, fullgraph=True, backend=backend, options=options or None
        )
        self._made: dict[tuple[Any, bool], Callable[..., Any]] = {}

    def padding(self, packed: bool) -> Padding:
        return Padding(ROWS_OF_A_PACKED_PRODUCT if packed else 1, but_not_one=True)

    def over_time(
        self, layer: Traceable, hidden: torch.Tensor, rotation: Rotation, attend: Attend
    ) -> torch.Tensor:
        operators.hand_over(layer.linears, attend)
        if hidden.shape[0] > 1:
            torch._dynamo.mark_dynamic(rotation.tables, 1)
        return self._call(layers.over_time, layer, hidden, rotation, operators.attend)

    def over_variates(self, layer: Traceable, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        operators.hand_over(layer.linears, attend)
        return self._call(layers.over_variates, layer, hidden, operators.attend)

    def over_one_variate(self, layer: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        operators.hand_over(layer.linears)
        return self._call(layers.over_one_variate, layer, hidden)

    def mean(self, head: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        operators.hand_over(head.linears)
        return self._call(sampling.mean, head, hidden)

    def choose(self, head: Traceable, hidden: torch.Tensor, uniform: torch.Tensor) -> StudentT:
        operators.hand_over(head.linears)
        if hidden.shape[0] > 1:
            torch._dynamo.mark_dynamic(uniform, 0)
        chosen: StudentT = self._call(sampling.choose, head, hidden, uniform)
        return chosen

    def _call(self, function: Any, part: Traceable, hidden: torch.Tensor, *others: Any) -> Any:
        one_row = hidden.shape[0] == 1
        compiled = self._made.get((function, one_row))
        if compiled is None:
            # Code of its own: dynamo keeps what it compiled with the code, for all who call it.
            compiled = self._made.setdefault((function, one_row), self._compile(own_code(function)))
        if one_row:
            return compiled(part.for_one_row or part.stand_in, hidden, *others)
        torch._dynamo.mark_dynamic(hidden, 0)
        return compiled(part.stand_in, hidden, *others)

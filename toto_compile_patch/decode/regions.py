"""The parts of a forecast that can be compiled, each once for all of its shapes.

``Regions`` runs them eagerly, ``Compiled`` compiles them.

A region is a function of the rows of a hidden state. Their number is its only varying size, and
is marked so: another context, horizon, batch or number of samples or variates needs no new code.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch._inductor.config as inductor

from toto_compile_patch.decode import compile_report, operators, sampling
from toto_compile_patch.decode import layer as layers
from toto_compile_patch.decode.layer import Past, Traceable
from toto_compile_patch.decode.memory import out_of_memory
from toto_compile_patch.decode.operators import Attend
from toto_compile_patch.decode.rotary import RealRotation, Rotation
from toto_compile_patch.decode.row_layout import Padding
from toto_compile_patch.decode.sampling import StudentT
from toto_compile_patch.errors import in_a_line, is_of_a_signal
from toto_compile_patch.private_names import private
from toto_compile_patch.tracing import own_code

_mark_dynamic = private("torch._dynamo.mark_dynamic")
_RecompileError = private("torch._dynamo.exc.RecompileError")

_ASSERTS = ("size_asserts", "alignment_asserts", "scalar_asserts")

_ONE_ROW_OPTIONS = {name: False for name in _ASSERTS if hasattr(inductor, name)}
"""Inductor asks each tensor for its layout, though dynamo has, and no operator is called whose
result could have another: a tenth of the time of a single row."""

ROWS_OF_A_PACKED_PRODUCT = 4
"""oneDNN reads a weight faster for as many rows as this than for one or two."""


def _unwanted_compilation(error: Exception) -> bool:
    """Whether a user has asked torch to raise instead of compiling again."""
    return isinstance(error, _RecompileError) or "fail_on_recompile" in str(error)


class Regions:
    """The regions, run as they stand.

    Attributes:
        single_rows_apart: whether a layer over time is to be asked for a single row by
            ``over_time_alone``.
        in_real_numbers: whether a layer over time is to be given a RealRotation.
        failure: why they are run as they stand though they were to be compiled; else empty.
    """

    single_rows_apart = False
    in_real_numbers = False
    failure = ""

    def padding(self, packed: bool) -> Padding:
        """How many rows there should be, where weights are packed or not."""
        return Padding(ROWS_OF_A_PACKED_PRODUCT if packed else 1)

    def over_time(
        self, layer: Traceable, hidden: torch.Tensor, rotation: Rotation, attend: Attend
    ) -> torch.Tensor:
        """A layer that attends over time, ``row embed_dim`` to the same."""
        found: torch.Tensor = self._run(layers.over_time, layer, hidden, rotation, attend=attend)
        return found

    def over_time_alone(
        self, layer: Traceable, hidden: torch.Tensor, rotation: Rotation, past: Past
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A layer over time for a single row: ``1 embed_dim``, with its keys and values."""
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._run(
            layers.over_time_alone, layer, hidden, rotation, past
        )
        return found

    def over_variates(self, layer: Traceable, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        """A layer that attends over variates, ``row embed_dim`` to the same."""
        found: torch.Tensor = self._run(layers.over_variates, layer, hidden, attend=attend)
        return found

    def over_one_variate(self, layer: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        """A layer over variates where there is one, ``row embed_dim`` to the same."""
        found: torch.Tensor = self._run(layers.over_one_variate, layer, hidden)
        return found

    def mean(self, head: Traceable, hidden: torch.Tensor) -> torch.Tensor:
        """The mean of each time step of a patch, ``row embed_dim`` to ``row time_steps``."""
        found: torch.Tensor = self._run(sampling.mean, head, hidden)
        return found

    def choose(self, head: Traceable, hidden: torch.Tensor, uniform: torch.Tensor) -> StudentT:
        """The components that uniform numbers choose, ``row time_steps draws`` each."""
        found: StudentT = self._run(sampling.choose, head, hidden, uniform)
        return found

    def _run(
        self,
        region: Any,
        part: Traceable,
        hidden: torch.Tensor,
        *rows: Any,
        attend: Attend | None = None,
    ) -> Any:
        return region(part.real, hidden, *rows, *([attend] if attend else []))


class Compiled(Regions):
    """The regions compiled, each at its first call.

    A size of one is a constant to a compiler, so a single row is compiled apart. A series' mean
    forecast is then nothing but reading weights, and where they are packed, compiled code reads the
    plain ones faster.

    Args:
        backend: of ``torch.compile``.
        options: inductor's; empty for another backend.
    """

    single_rows_apart = True
    in_real_numbers = True

    def __init__(self, backend: Any, options: dict[str, Any]) -> None:
        self._compile = partial(torch.compile, fullgraph=True, backend=backend)
        self._options = options
        self._made: dict[tuple[Any, bool], Callable[..., Any]] = {}
        self._run_before: set[Any] = set()

    def padding(self, packed: bool) -> Padding:
        return Padding(ROWS_OF_A_PACKED_PRODUCT if packed else 1, but_not_one=True)

    def _run(
        self,
        region: Any,
        part: Traceable,
        hidden: torch.Tensor,
        *rows: Any,
        attend: Attend | None = None,
    ) -> Any:
        if self.failure:
            return super()._run(region, part, hidden, *rows, attend=attend)
        kind = region, hidden.shape[0] == 1, hidden.shape[1], hidden.dtype, hidden.device
        report = nullcontext() if kind in self._run_before else compile_report.first_call()
        try:
            with report:
                result = self._run_compiled(region, part, hidden, *rows, attend=attend)
        except Exception as error:
            # A region has no effect but its result, and what it would write again.
            inner = getattr(error, "inner_exception", error)
            if out_of_memory(error) or _unwanted_compilation(error) or is_of_a_signal(inner):
                raise
            self.failure = f"compiling failed ({in_a_line(error)})"
            return super()._run(region, part, hidden, *rows, attend=attend)
        self._run_before.add(kind)
        return result

    def _run_compiled(
        self,
        region: Any,
        part: Traceable,
        hidden: torch.Tensor,
        *rows: Any,
        attend: Attend | None,
    ) -> Any:
        if attend is not None:
            rows = (*rows, operators.attend)
        one_row = hidden.shape[0] == 1
        compiled = self._made.get((region, one_row))
        if compiled is None:
            # Code of its own: dynamo keeps what it compiled with the code, for all who call it.
            options = _ONE_ROW_OPTIONS if one_row and self._options else {}
            made = self._compile(own_code(region), options={**options, **self._options} or None)
            compiled = self._made.setdefault((region, one_row), made)
        if one_row:
            for varying in (part for row in rows if isinstance(row, Past) for part in row):
                _mark_dynamic(varying, 0)
            with operators.handed_over(part.opaque, attend):
                return compiled(part.for_one_row or part.stand_in, hidden, *rows)
        for varying in (hidden, *rows):
            if isinstance(varying, torch.Tensor):
                _mark_dynamic(varying, 0)
            elif isinstance(varying, RealRotation):
                for table in varying:
                    _mark_dynamic(table, 0)
        with operators.handed_over(part.opaque, attend):
            return compiled(part.stand_in, hidden, *rows)

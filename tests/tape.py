"""Operators recorded while they compute, and run again on the same memory, as a CUDA graph does.

A CUDA graph launches the kernels that it saw, with the numbers that they were given then, on the
memory that they had then; no line of Python runs again. So does a Tape, operator by operator. What
is wrong in a replay here is wrong in a CUDA graph's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pretend_gpu import NotOnAGpuError, OnGpu, PretendGpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from toto_compile_patch.decode.recorder import Outputs

aten = torch.ops.aten

ASKS = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
}
"""Operators whose result, or its shape, the host must wait for."""

UNWRITTEN = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty}
"""Operators that give memory with whatever it holds."""


@dataclass(frozen=True)
class Call:
    """An operator's call.

    Attributes:
        operator: which.
        args: what it was given.
        kwargs: likewise, by name.
        results: tensors that it returned in memory of their own.
    """

    operator: Any
    args: Any
    kwargs: Any
    results: tuple[torch.Tensor, ...]

    def again(self) -> None:
        """Compute it again, into the same memory."""
        if self.operator.overloadpacket in UNWRITTEN:
            for result in self.results:
                # What reads it before it is written shows.
                result.fill_(float("nan") if result.is_floating_point() else 77)
            return
        made = tensors_in(self.operator(*self.args, **self.kwargs))
        if self.results:
            for result, computed in zip(self.results, made, strict=True):
                result.copy_(computed)


class Tape(TorchDispatchMode):
    """Records the operators of a ``with`` block.

    Attributes:
        calls: those that compute; a view of memory is the same memory when it is replayed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if operator.overloadpacket in ASKS or _indexes_by_a_mask(operator, args):
            raise NotOnAGpuError(f"{operator}: a question while a graph is captured")
        result = operator(*args, **kwargs)
        given = {memory(part) for part in tensors_in((args, kwargs))}
        made = tensors_in(result)
        own = tuple(part for part in made if memory(part) not in given)
        if operator._schema.is_mutable or own:
            self.calls.append(Call(operator, args, kwargs, own))
        return result

    def replay(self) -> None:
        """Run all operators again."""
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for call in self.calls:
                call.again()

    def read_from_outside(self) -> set[int]:
        """Memory that is read, and that no operator here has given (see ``memory_of``)."""
        own: set[int] = set()
        outside: set[int] = set()
        for call in self.calls:
            read = tensors_in((call.args, call.kwargs))
            outside |= {memory(part) for part in read if not _is_hosts_number(part)} - own
            own |= {memory(part) for part in call.results}
        return outside


class TapeGraph:
    """A tape in place of a CUDA graph."""

    def __init__(self, tape: Tape, generator: torch.Generator) -> None:
        self.tape = tape
        self._generator = generator

    def replay(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)
        self.tape.replay()

    def reset(self) -> None:
        self.tape.calls.clear()


class TapeRecorder:
    """Captures forecasts on a pretended GPU by tapes.

    Attributes:
        tapes: those that were recorded.
    """

    def __init__(self, gpu: PretendGpu) -> None:
        self.tapes: list[Tape] = []
        self._gpu = gpu

    def why_not(self, device: torch.device) -> str:
        return ""

    def record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[TapeGraph, Outputs]:
        generator = torch.Generator()
        self.tapes.append(tape := Tape())
        with self._gpu.capture(), tape:
            outputs = compute(generator)
        # A capture runs nothing.
        for output in outputs:
            output.zero_()
        return TapeGraph(tape, generator), outputs

    def bytes_held(self, device: torch.device) -> int:
        return 0


def memory_of(*parts: Any) -> set[int]:
    """What tells apart the memory of tensors within named tuples, lists and dictionaries."""
    return {memory(part) for part in tensors_in(parts)}


def tensors_in(parts: Any) -> list[torch.Tensor]:
    """All tensors within tuples, lists and dictionaries."""
    return [part for part in tree_iter(parts) if isinstance(part, torch.Tensor)]


def memory(tensor: torch.Tensor) -> int:
    """What tells a tensor's memory from that of others that are alive."""
    # The address of what keeps the memory: without elements, or on the meta device, there is none.
    return tensor.untyped_storage()._cdata


def _is_hosts_number(tensor: torch.Tensor) -> bool:
    """Whether it is a number of the host's, which a kernel is given by value."""
    alone = tensor.untyped_storage().nbytes() == tensor.element_size()
    return alone and tensor.ndim == 0 and not isinstance(tensor, OnGpu)


def _indexes_by_a_mask(operator: Any, args: Any) -> bool:
    packet = operator.overloadpacket
    if packet not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(part.dtype in (torch.bool, torch.uint8) for part in tensors_in(args[1]))

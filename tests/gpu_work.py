"""What a GPU has to do: operators that launch kernels, their arithmetic, and the memory they touch.

Counted from shapes, so that the largest forecast costs nothing (see ``pretend_gpu``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tape import memory, tensors_in
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# They define operators.
from toto_compile_patch.decode import attention as attention
from toto_compile_patch.decode import linear as linear

aten = torch.ops.aten

NO_KERNELS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty}
"""Operators that take memory, and leave it as it is."""

own = torch.ops.toto_compile_patch


def _of_a_product(rows: torch.Tensor, weight: torch.Tensor) -> int:
    return 2 * rows.shape[0] * weight.numel()


FLOPS_OF_OURS: dict[Any, Callable[..., int]] = {
    own.linear_of_few_rows: lambda rows, weight, *_: _of_a_product(rows, weight),
    own.linear_in_three_passes: lambda rows, weight, *_: _of_a_product(rows, weight),
    own.attend_to_few: lambda q, k, v: 4 * q.numel() * k.shape[2],
    own.attend_of_samples: lambda q, k, v, keys, values, own_keys, own_values, step: (
        4 * q.numel() * (keys.shape[-2] + step + 1)
    ),
}
"""Of the operators of our own that multiply matrices."""

READ_AS_MUCH_AS_THEY_GIVE = {aten.embedding, aten.gather, aten.index, aten.index_select}
"""Operators that read some elements of their first operand."""


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: what it is called.
        flops: floating point operations in a second, in float32 without TF32.
        bytes: of memory, read or written in a second.
        launch: seconds that a kernel of a CUDA graph takes at least.
    """

    name: str
    flops: float
    bytes: float
    launch: float


H100 = Card("H100", flops=60e12, bytes=3.35e12, launch=1.5e-6)


class Work(TorchDispatchMode):
    """Counts the work of a ``with`` block.

    Attributes:
        card: on which.
        kernels: operators that compute; some launch more than one kernel.
        in_float64: those that read or write float64.
        flops: floating point operations of matrix products and attention.
        bytes: read and written, each operand once.
        seconds: that they take at least, one after another, where all memory is the card's main
            memory: what fits in its cache is faster.
        by_operator: how many of each.
    """

    def __init__(self, card: Card = H100) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = card
        self.kernels = self.in_float64 = self.flops = self.bytes = 0
        self.seconds = 0.0
        self.by_operator: dict[str, int] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        packet = operator.overloadpacket
        read, made = tensors_in((args, kwargs)), tensors_in(result)
        given = {memory(part) for part in read}
        is_new = any(memory(part) not in given for part in made)
        on_gpu = not any(part.is_cpu for part in made)
        if on_gpu and packet not in NO_KERNELS and (operator._schema.is_mutable or is_new):
            flops = 0
            if packet in FLOPS_OF_OURS:
                flops = FLOPS_OF_OURS[packet](*args)
            if packet in flop_registry:
                flops = flop_registry[packet](*args, **kwargs, out_val=result)
            if packet in READ_AS_MUCH_AS_THEY_GIVE:
                read = [*made, *read[1:]]
            self._add(str(packet), flops, [*read, *made])
        return result

    def _add(self, name: str, flops: int, touched: list[torch.Tensor]) -> None:
        size = sum(_bytes(part) for part in touched)
        self.kernels += 1
        self.by_operator[name] = self.by_operator.get(name, 0) + 1
        self.in_float64 += any(part.dtype is torch.float64 for part in touched)
        self.flops += flops
        self.bytes += size
        card = self.card
        self.seconds += max(card.launch, flops / card.flops, size / card.bytes)


def _bytes(tensor: torch.Tensor) -> int:
    """Of a tensor's elements, those that a view repeats once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1
    for size, stride in sizes:
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()

"""Linear layers in the layouts in which they are fast.

Named tuples, here and in ``layer``: compiled code takes another one of the same kind without being
compiled again, which it does not with dataclasses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import linear

from toto_compile_patch.decode import operators
from toto_compile_patch.private_names import private

_reorder_linear_weight = private("torch.ops.mkldnn._reorder_linear_weight")
_linear_pointwise = private("torch.ops.mkldnn._linear_pointwise")

PLACES_AT_ONCE = 4
"""Places of a weight that are read in turn: a CPU fetches from as many in advance."""


class PlainLinear(NamedTuple):
    """A weight and a bias as upstream keeps them, in its own type or in another."""

    weight: torch.Tensor
    bias: torch.Tensor

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``... features`` to ``... features``."""
        if inputs.dtype == self.weight.dtype:
            return linear(inputs, self.weight, self.bias)
        # A matrix product in fewer bits, between values in more (``precision``).
        product = linear(inputs.to(self.weight.dtype), self.weight, self.bias)
        return product.to(inputs.dtype)


class PackedLinear(NamedTuple):
    """A copy of a weight in oneDNN's layout.

    Attributes:
        weight: the copy.
        bias: the bias.
        original: what it was made of, in the order in which that has its rows.
        out_features: of the product.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    original: PlainLinear
    out_features: int

    @classmethod
    def of(
        cls, weight: torch.Tensor, bias: torch.Tensor, original: PlainLinear | None = None
    ) -> PackedLinear:
        """Pack a weight; whoever has put its rows in another order gives the original as well."""
        packed = _reorder_linear_weight(weight.contiguous())
        return cls(packed, bias, original or PlainLinear(weight, bias), weight.shape[0])

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``... features`` to ``... features``."""
        result: torch.Tensor = _linear_pointwise(
            inputs.to(self.original.weight.dtype), self.weight, self.bias, "none", [], ""
        )
        return result.to(inputs.dtype)


class OneRowLinear(NamedTuple):
    """A matrix-vector product written as sums, for which inductor makes code that reads the weight
    at the full rate of memory; a library's product is slower for one row on a CPU."""

    weight: torch.Tensor
    bias: torch.Tensor

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``1 features`` to ``1 features``."""
        # To a compiler, a view that says where it lies is of memory: it computes the inputs once,
        # and not again for each weight.
        inputs = inputs.as_strided(inputs.shape, inputs.stride())
        parts = [(part * inputs).sum(-1) for part in self.weight.chunk(PLACES_AT_ONCE)]
        return (torch.cat(parts) + self.bias).unsqueeze(0)


class OpaqueLinear(NamedTuple):
    """Stands for a packed layer in compiled code, which cannot hold one."""

    slot: int
    out_features: int

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to ``row features``."""
        return operators.linear(inputs, self.slot, self.out_features)


Linear = PlainLinear | PackedLinear | OneRowLinear | OpaqueLinear

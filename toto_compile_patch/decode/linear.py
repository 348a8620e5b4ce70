"""Linear layers in the layouts in which they are fast.

Each multiplies in its weight's type, which may have fewer bits than the values around it
(``precision``): ``product`` leaves the result in that type, for what takes it as it is, and
``apply`` gives it that of the inputs.

Named tuples, here and in ``layer``: compiled code takes another one of the same kind without being
compiled again, which it does not with dataclasses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import linear, silu

from toto_compile_patch.decode import fused, operators
from toto_compile_patch.decode.precision import exact_products, in_type
from toto_compile_patch.private_names import private

_reorder_linear_weight = private("torch.ops.mkldnn._reorder_linear_weight")
_linear_pointwise = private("torch.ops.mkldnn._linear_pointwise")
_linear_binary = private("torch.ops.mkldnn._linear_pointwise.binary")

PLACES_AT_ONCE = 4
"""Places of a weight that are read in turn: a CPU fetches from as many in advance."""


class PlainLinear(NamedTuple):
    """A weight and a bias as upstream keeps them, in its own type or in another."""

    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the product."""
        return self.weight.dtype

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``... features`` to ``... features``, in the weight's type."""
        return linear(in_type(inputs, self.weight.dtype), self.weight, self.bias)

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``... features`` to ``... features``, in the inputs' type."""
        return _in_type_of(inputs, self.product(inputs), self.weight)


def _in_type_of(inputs: torch.Tensor, product: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # What autocast makes of inputs and weights of one type is left as it is.
    return product if inputs.dtype is weight.dtype else product.to(inputs.dtype)


def _linear_and_sum(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    product = linear(rows, weight, bias)
    return product if residual is None else residual + product


linear_of_few_rows = fused.operator(
    "linear_of_few_rows(Tensor rows, Tensor weight, Tensor bias, Tensor? residual) -> Tensor",
    _linear_and_sum,
)

FEW_ROWS = 16
"""Up to these, a product is nothing but reading the weight, and cuBLAS reads it at a third of the
rate of memory or less."""


def product_of_few_rows(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """A product, and what it is added to, by a kernel of our own; None where that has to be made
    otherwise."""
    operands = (rows, weight, bias, *([] if residual is None else [residual]))
    # Asked first: compiled code is not to depend on how many rows there are.
    if not fused.serves(*operands) or rows.ndim != 2 or rows.shape[0] > FEW_ROWS:
        return None
    if not all(one.is_contiguous() for one in operands):
        return None
    product: torch.Tensor = linear_of_few_rows(rows, weight, bias, residual)
    return product


class GpuLinear(NamedTuple):
    """A weight on a GPU, for few rows with a kernel of our own.

    Where there are more, products in float32 may be made in several parts of the features: cuBLAS
    gives each block of the result to one multiprocessor, and so leaves most of them idle.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to ``row features``, in the weight's type."""
        if (product := product_of_few_rows(inputs, *self)) is not None:
            return product
        rows, (out_features, in_features) = inputs.shape[0], self.weight.shape
        parts = parts_of_a_product(rows, in_features, out_features)
        in_float32 = inputs.dtype is self.weight.dtype is torch.float32
        if parts == 1 or not (in_float32 and exact_products() and self.weight.is_contiguous()):
            return PlainLinear(self.weight, self.bias).product(inputs)
        inputs = inputs.reshape(rows, parts, -1).transpose(0, 1)
        weight = self.weight.view(out_features, parts, -1).permute(1, 2, 0)
        return torch.bmm(inputs, weight).sum(0).add_(self.bias)

    def added_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The sum of a residual and a product, both ``row features``."""
        added = product_of_few_rows(inputs, *self, residual)
        return residual + self.product(inputs) if added is None else added

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to ``row features``, in the inputs' type."""
        return _in_type_of(inputs, self.product(inputs), self.weight)


linear_in_three_passes = fused.operator(
    "linear_in_three_passes(Tensor rows, Tensor weight, Tensor bias, Tensor? residual) -> Tensor",
    _linear_and_sum,
)


class ThreePassLinear(NamedTuple):
    """A weight on a GPU, whose products with many rows are made by tensor cores in three passes.

    Each factor is the sum of two numbers of TF32, which has as few bits as float16 and the range of
    float32. Of their four products the least is left out, and the others are summed in float32:
    the result is as close to the exact one as cuBLAS's is in float32 (H. Ootomo, R. Yokota,
    "Recovering single precision accuracy from Tensor Cores", 2022).
    """

    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def out_features(self) -> int:
        """Of the product."""
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the product."""
        return self.weight.dtype

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to ``row features``, in the weight's type."""
        product = self._in_three_passes(inputs, None)
        return GpuLinear(*self).product(inputs) if product is None else product

    def added_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The sum of a residual and a product, both ``row features``."""
        added = self._in_three_passes(inputs, residual)
        return GpuLinear(*self).added_to(residual, inputs) if added is None else added

    def _in_three_passes(
        self, rows: torch.Tensor, residual: torch.Tensor | None
    ) -> torch.Tensor | None:
        operands = (rows, *self, *([] if residual is None else [residual]))
        many = rows.ndim == 2 and rows.shape[0] > FEW_ROWS
        if not (many and all(one.is_contiguous() for one in operands) and fused.serves(*operands)):
            return None
        product: torch.Tensor = linear_in_three_passes(rows, *self, residual)
        return product

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to ``row features``, in the inputs' type."""
        return _in_type_of(inputs, self.product(inputs), self.weight)


ROWS_OF_A_TILE = 64
"""Rows of the result that cuBLAS gives to a multiprocessor, at least, from some 24 rows on."""


def parts_of_a_product(rows: int, in_features: int, out_features: int) -> int:
    """In how many parts a product on a GPU is made.

    What was fastest of 1, 2, 3, 4, 6, 8 and 12 on an H100, for the shapes of Toto-Open-Base-1.0.

    Args:
        rows: of the inputs.
        in_features: of the weight.
        out_features: of the weight.
    """
    parts = 1
    if in_features >= 4 * out_features and 1 < rows <= 64 * ROWS_OF_A_TILE:
        # 3 where 6 would leave a wave of blocks half empty.
        parts = 3 if 16 < rows / ROWS_OF_A_TILE <= 32 else 6
    elif 24 <= rows <= ROWS_OF_A_TILE:
        parts = 4
    return parts if in_features % parts == 0 else 1


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

    @property
    def dtype(self) -> torch.dtype:
        """Of the product."""
        return self.original.weight.dtype

    @classmethod
    def of(
        cls, weight: torch.Tensor, bias: torch.Tensor, original: PlainLinear | None = None
    ) -> PackedLinear:
        """Pack a weight; whoever has put its rows in another order gives the original as well."""
        packed = _reorder_linear_weight(weight.contiguous())
        return cls(packed, bias, original or PlainLinear(weight, bias), weight.shape[0])

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``... features`` to ``... features``, in the weight's type."""
        return self._followed_by("none", inputs)

    def silu(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of the product, SiLU."""
        return self._followed_by("swish", inputs)

    def times(self, factor: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Of the product and a factor like it, number by number, the product."""
        result: torch.Tensor = _linear_binary(
            in_type(inputs, self.dtype), factor, self.weight, self.bias, "mul"
        )
        return result

    def _followed_by(self, operation: str, inputs: torch.Tensor) -> torch.Tensor:
        # Made of the sums that oneDNN has in float32, before they are rounded or leave the cache.
        result: torch.Tensor = _linear_pointwise(
            in_type(inputs, self.dtype), self.weight, self.bias, operation, [], ""
        )
        return result

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``... features`` to ``... features``, in the inputs' type."""
        return in_type(self.product(inputs), inputs.dtype)


class OneRowLinear(NamedTuple):
    """A matrix-vector product written as sums, for which inductor makes code that reads the weight
    at the full rate of memory; a library's product is slower for one row on a CPU."""

    weight: torch.Tensor
    bias: torch.Tensor

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``1 features`` to ``1 features``, summed in the wider of the two types."""
        # To a compiler, a view that says where it lies is of memory: it computes the inputs once,
        # and not again for each weight.
        inputs = inputs.as_strided(inputs.shape, inputs.stride())
        parts = [(part * inputs).sum(-1) for part in self.weight.chunk(PLACES_AT_ONCE)]
        return (torch.cat(parts) + self.bias).unsqueeze(0)

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """The same."""
        return self.product(inputs)


class OpaqueLinear(NamedTuple):
    """Stands for a layer in compiled code that no compiler can trace.

    Attributes:
        slot: where the layer is found.
        out_features: of the product.
        dtype: of the weight.
    """

    slot: int
    out_features: int
    dtype: torch.dtype

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to ``row features``, in the weight's type."""
        # Converted in compiled code, with what comes before and after.
        return operators.linear(inputs.to(self.dtype), self.slot, self.out_features)

    def apply(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to ``row features``, in the inputs' type."""
        return self.product(inputs).to(inputs.dtype)


def gated_unit(features: torch.Tensor) -> torch.Tensor:
    """Upstream's gated unit, ``row 2 * features``, gate first, to ``row features``."""
    gate, value = features.chunk(2, dim=-1)
    return silu(gate).mul_(value)


class GatedLinear(NamedTuple):
    """A linear layer, and upstream's gated unit of what it gives: a gate, and a value."""

    linear: Linear

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to half as many as the layer gives, in the weight's type."""
        return gated_unit(self.linear.product(inputs))


class PackedGatedLinear(NamedTuple):
    """The same in oneDNN's layout, a layer each, so that the unit is made within their products."""

    gate: PackedLinear
    value: PackedLinear
    original: PlainLinear

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor) -> PackedGatedLinear:
        """Pack a weight, ``2 * features features``, gate first, and its bias."""
        gate, value = zip(weight.chunk(2), bias.chunk(2), strict=True)
        return cls(PackedLinear.of(*gate), PackedLinear.of(*value), PlainLinear(weight, bias))

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """From ``row features`` to half as many as the layer gives, in the weight's type."""
        inputs = in_type(inputs, self.value.dtype)
        return self.value.times(self.gate.silu(inputs), inputs)


Linear = PlainLinear | GpuLinear | ThreePassLinear | PackedLinear | OneRowLinear | OpaqueLinear
Gated = GatedLinear | PackedGatedLinear

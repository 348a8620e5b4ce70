"""One layer of the transformer, as it acts on the rows of a hidden state.

A row is one patch of one series: a position of a context, or one sample's newest patch. All but
attention treats each row alone, so that a layer is the same code for a context and for a decode
step; run as it stands, compiled, or captured in a CUDA graph (see ``runtime``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import rms_norm

from toto_compile_patch.decode import fused
from toto_compile_patch.decode.linear import (
    Gated,
    GatedLinear,
    GpuLinear,
    Linear,
    OneRowLinear,
    OpaqueLinear,
    PackedGatedLinear,
    PackedLinear,
    PlainLinear,
    ThreePassLinear,
    gated_unit,
)
from toto_compile_patch.decode.operators import Attend
from toto_compile_patch.decode.rotary import (
    KEYS,
    QUERIES_KEYS,
    ComplexRotation,
    RealRotation,
    Rotation,
    RotationByPosition,
)

BYTES_AT_ONCE = 2048
"""Of each feature of the rows that go through a feed-forward together on a CPU, so that they stay
in its cache: 512 rows in float32."""


class RMSNorm(NamedTuple):
    """Upstream's RMSNorm (B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019).

    The root of a mean square is the length of a row over the root of its features: one operator
    reads the row, in place of three.

    Attributes:
        scale: of each feature, ``embed_dim``, or None.
        root_eps: the root of what is added to the mean square, a number as a tensor.
    """

    scale: torch.Tensor | None
    root_eps: torch.Tensor

    @classmethod
    def of(cls, scale: torch.Tensor | None, eps: float, like: torch.Tensor) -> RMSNorm:
        """A norm for a model whose weights are like one of them."""
        return cls(scale, like.new_full((), eps**0.5))

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        normed = rows / torch.hypot(length * rows.shape[-1] ** -0.5, self.root_eps)
        if self.scale is None:
            return normed
        if self.scale.dtype is normed.dtype:
            # In memory that is in the cache.
            return normed.mul_(self.scale)
        return normed * self.scale

    def of_sum(self, rows: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A sum of two ``row embed_dim``, and its norm."""
        rows = rows + delta
        return rows, self.apply(rows)


def _sum_and_norm(
    rows: torch.Tensor, delta: torch.Tensor, scale: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return RMSNorm.of(scale, eps, rows).of_sum(rows, delta)


def _norm(rows: torch.Tensor, scale: torch.Tensor | None, eps: float) -> torch.Tensor:
    return RMSNorm.of(scale, eps, rows).apply(rows)


sum_and_norm = fused.operator(
    "sum_and_norm(Tensor rows, Tensor delta, Tensor? scale, float eps) -> (Tensor, Tensor)",
    _sum_and_norm,
)
norm = fused.operator("norm(Tensor rows, Tensor? scale, float eps) -> Tensor", _norm)


class FusedRMSNorm(NamedTuple):
    """The same by a single kernel, in place of five: for a GPU without a compiler.

    Attributes:
        formula: for types that the kernels would round otherwise, under autocast, and for compiled
            code.
        eps: what is added to the mean square.
    """

    formula: RMSNorm
    eps: float

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        scale = self.formula.scale
        if self._has_kernel(rows):
            normed: torch.Tensor = norm(rows, scale, self.eps)
            return normed
        exact = HAS_FUSED_NORM and rows.dtype in (torch.float32, torch.float64)
        if not exact or (scale is not None and scale.dtype is not rows.dtype):
            return self.formula.apply(rows)
        return rms_norm(rows, rows.shape[-1:], scale, self.eps)

    def of_sum(self, rows: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A sum of two ``row embed_dim``, and its norm."""
        if self._has_kernel(rows):
            both: tuple[torch.Tensor, torch.Tensor] = sum_and_norm(
                rows, delta, self.formula.scale, self.eps
            )
            return both
        rows = rows + delta
        return rows, self.apply(rows)

    def _has_kernel(self, rows: torch.Tensor) -> bool:
        scale = self.formula.scale
        return fused.serves(rows, *([] if scale is None else [scale]))


HAS_FUSED_NORM = hasattr(torch.ops.aten, "_fused_rms_norm")
"""Whether torch's own is one kernel: from torch 2.9 on."""


class UnchangedModule(NamedTuple):
    """A module of torch's that is used as it is."""

    module: Any

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        result: torch.Tensor = self.module(rows)
        return result

    def of_sum(self, rows: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A sum of two ``row embed_dim``, and what the module makes of it."""
        rows = rows + delta
        return rows, self.apply(rows)

    def added_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The sum with hidden states, ``row embed_dim``."""
        return hidden + self.apply(rows)


class HeadProjection(NamedTuple):
    """Queries, keys and values of an attention, or some of them, by heads.

    Upstream's ``wQKV`` gives ``(qkv head_dim n_heads)``. What attends wants the features of a head
    side by side: where the weight is a copy anyhow, its rows lie in that order.

    Attributes:
        linear: one linear layer for all of them.
        head_dim: features of a head.
        num_heads: heads.
        heads_first: whether it gives ``(qkv n_heads head_dim)``.
    """

    linear: Linear
    head_dim: int
    num_heads: int
    heads_first: bool

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``row n head head_dim``, with the queries, keys and values that the
        layer gives, in this order."""
        features = self.linear.apply(rows)
        kinds = features.shape[-1] // (self.head_dim * self.num_heads)
        if self.heads_first:
            return features.view(rows.shape[0], kinds, self.num_heads, self.head_dim)
        by_feature = features.view(rows.shape[0], kinds, self.head_dim, self.num_heads)
        return by_feature.transpose(-1, -2).contiguous()

    def rotated(
        self, rows: torch.Tensor, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each ``row embed_dim``; the first two rotated."""
        three = self.apply(rows)
        in_tables = _in_tables(rotation, rows.shape[0])
        queries, keys = in_tables.rotate(three[:, QUERIES_KEYS], QUERIES_KEYS).unbind(1)
        return queries, keys, three[:, 2].flatten(-2)

    def of_linear(self, linear: Linear) -> HeadProjection:
        """The same heads by another linear layer."""
        return self._replace(linear=linear)

    def of_keys(self, rows: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Rotated keys, of a layer that gives nothing else, ``row embed_dim``."""
        in_tables = _in_tables(rotation, rows.shape[0])
        return in_tables.rotate(self.apply(rows), KEYS).squeeze(1)

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``row head head_dim``."""
        return rows.view(rows.shape[0], self.num_heads, self.head_dim)


def _in_tables(rotation: Rotation, rows: int) -> RealRotation | ComplexRotation:
    return rotation.for_rows(rows) if isinstance(rotation, RotationByPosition) else rotation


def _by_heads(
    features: torch.Tensor,
    heads: int,
    heads_first: bool,
    kinds: int,
    first_kind: int,
    cosines: torch.Tensor | None,
    sines: torch.Tensor | None,
) -> torch.Tensor:
    rows, head_dim = features.shape[0], features.shape[1] // (kinds * heads)
    parts = features.view(rows, kinds, *((heads, head_dim) if heads_first else (head_dim, heads)))
    parts = parts if heads_first else parts.transpose(-1, -2)
    by_kind = [part.flatten(1) for part in parts.contiguous().unbind(1)]
    if cosines is not None and sines is not None:
        tables = RotationByPosition(cosines, sines).for_rows(rows)
        for kind in range(first_kind, min(2, first_kind + kinds)):
            own = parts[:, kind - first_kind : kind - first_kind + 1]
            by_kind[kind - first_kind] = tables.rotate(own, slice(kind, kind + 1)).squeeze(1)
    return torch.stack(by_kind)


by_heads = fused.operator(
    "by_heads(Tensor features, int heads, bool heads_first, int kinds, int first_kind, "
    "Tensor? cosines, Tensor? sines) -> Tensor",
    _by_heads,
)


class FusedHeadProjection(NamedTuple):
    """The same, where a single kernel puts the features of a head side by side and rotates them.

    Attributes:
        formula: for other types than float32, under autocast, and for compiled code.
    """

    formula: HeadProjection

    @property
    def linear(self) -> Linear:
        """The linear layer."""
        return self.formula.linear

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.formula.head_dim

    @property
    def num_heads(self) -> int:
        """Heads."""
        return self.formula.num_heads

    def of_linear(self, linear: Linear) -> FusedHeadProjection:
        """The same heads by another linear layer."""
        return FusedHeadProjection(self.formula.of_linear(linear))

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``row n head head_dim``."""
        if not self._has_kernel(rows):
            return self.formula.apply(rows)
        by_kind = self._by_heads(rows, 0, None)
        heads = by_kind.view(*by_kind.shape[:2], self.num_heads, self.head_dim)
        return heads.transpose(0, 1)

    def rotated(
        self, rows: torch.Tensor, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each ``row embed_dim``; the first two rotated."""
        if not (self._has_kernel(rows) and isinstance(rotation, RotationByPosition)):
            return self.formula.rotated(rows, rotation)
        queries, keys, values = self._by_heads(rows, 0, rotation).unbind()
        return queries, keys, values

    def of_keys(self, rows: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Rotated keys, of a layer that gives nothing else, ``row embed_dim``."""
        if not (self._has_kernel(rows) and isinstance(rotation, RotationByPosition)):
            return self.formula.of_keys(rows, rotation)
        return self._by_heads(rows, 1, rotation).squeeze(0)

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``row head head_dim``."""
        return self.formula.heads(rows)

    def _has_kernel(self, rows: torch.Tensor) -> bool:
        return fused.is_side(self.head_dim) and fused.serves(rows)

    def _by_heads(
        self, rows: torch.Tensor, first_kind: int, rotation: RotationByPosition | None
    ) -> torch.Tensor:
        features = self.linear.apply(rows)
        kinds = features.shape[-1] // (self.head_dim * self.num_heads)
        tables = rotation or (None, None)
        heads: torch.Tensor = by_heads(
            features, self.num_heads, self.formula.heads_first, kinds, first_kind, *tables
        )
        return heads


Projection = HeadProjection | FusedHeadProjection


class KeysAndValuesAlone(NamedTuple):
    """Separate projections, for rows that need keys and values without queries, or values only."""

    key: Projection
    value: Projection


class FeedForward(NamedTuple):
    """Upstream's feed-forward: up, a gated linear unit, down; in the weights' type, which is where
    most of a layer's numbers are."""

    up: Gated
    down: Linear

    def added_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The sum with hidden states, ``row embed_dim``."""
        return hidden + self.down.product(self.up.product(rows))


gated = fused.operator("gated(Tensor up) -> Tensor", gated_unit)


class FusedFeedForward(NamedTuple):
    """Upstream's feed-forward with its gated linear unit in one kernel, and where there are few
    rows the sum with hidden states in that of the product: for a GPU without a compiler."""

    up: GatedLinear
    down: GpuLinear | ThreePassLinear

    def added_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The sum with hidden states, ``row embed_dim``."""
        if not fused.serves(rows):
            return FeedForward(*self).added_to(hidden, rows)
        return self.down.added_to(hidden, gated(self.up.linear.product(rows)))


class ChunkedFeedForward(NamedTuple):
    """Upstream's feed-forward on a CPU, some rows after the other.

    Compiled code has it whole behind one operator, where weights are packed.
    """

    up: Gated
    down: PlainLinear | PackedLinear

    @property
    def dtype(self) -> torch.dtype:
        """Of the result."""
        return self.down.dtype

    def added_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The sum with hidden states, ``row embed_dim``, in their memory, while a block is in the
        cache. They have the type of the sum: that of a layer's first one, see ``_after_attention``.
        """
        for some, block in zip(self._blocks(hidden), self._blocks(rows), strict=True):
            some += self._product(block)
        return hidden

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        return torch.cat([self._product(block) for block in self._blocks(rows)])

    def _blocks(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at_once = BYTES_AT_ONCE // self.dtype.itemsize
        return (rows,) if rows.shape[0] <= at_once else rows.split(at_once)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        return self.down.product(self.up.product(rows))


class OpaqueFeedForward(NamedTuple):
    """Stands for a feed-forward in compiled code that no compiler can trace."""

    whole: OpaqueLinear

    def added_to(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The sum with hidden states, ``row embed_dim``."""
        return hidden + self.whole.product(rows)


Norm = RMSNorm | FusedRMSNorm | UnchangedModule
AnyFeedForward = (
    FeedForward | FusedFeedForward | ChunkedFeedForward | OpaqueFeedForward | UnchangedModule
)


class Layer(NamedTuple):
    """One layer of the transformer.

    Attributes:
        over_time: attention over time, else over variates.
        alone: some of what ``project`` does; None where all of it is always wanted.
    """

    over_time: bool
    norm1: Norm
    project: Projection
    out: Linear
    norm2: Norm
    feed_forward: AnyFeedForward
    alone: KeysAndValuesAlone | None


def over_time(
    layer: Layer, hidden: torch.Tensor, rotation: Rotation, attend: Attend
) -> torch.Tensor:
    """A layer that attends over time, ``row embed_dim`` to the same."""
    queries, keys, values = layer.project.rotated(layer.norm1.apply(hidden), rotation)
    return _after_attention(layer, hidden, attend(queries, keys, values))


class Past(NamedTuple):
    """What a single row attends to.

    Attributes:
        keys: of all positions, also of those to come, ``max_len embed_dim``; likewise values.
        seen: which of them precede the row, ``max_len``.
    """

    keys: torch.Tensor
    values: torch.Tensor
    seen: torch.Tensor


def over_time_alone(
    layer: Layer, hidden: torch.Tensor, rotation: Rotation, past: Past
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer that attends over time, for one patch of one series.

    All of it is reading: weights, and the few keys and values, which need no operator of their own.

    Returns:
        ``1 embed_dim``, and this patch's keys and values.
    """
    queries, keys, values = layer.project.rotated(layer.norm1.apply(hidden), rotation)
    heads, values = layer.project.heads, values.to(keys.dtype)
    scores = heads(past.keys * queries).sum(-1).masked_fill(~past.seen.unsqueeze(-1), -torch.inf)
    scores = torch.cat([scores, heads(keys * queries).sum(-1)]) * layer.project.head_dim**-0.5
    weights = scores.softmax(0).unsqueeze(-1)
    attended = (weights[:-1] * heads(past.values)).sum(0, keepdim=True)
    attended = attended + weights[-1:] * heads(values)
    joined = attended.flatten(-2).to(hidden.dtype)
    return _after_attention(layer, hidden, joined), keys, values


def over_variates(layer: Layer, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
    """A layer that attends over variates, ``row embed_dim`` to the same."""
    three = layer.project.apply(layer.norm1.apply(hidden)).flatten(-2)
    queries, keys, values = three.unbind(1)
    return _after_attention(layer, hidden, attend(queries, keys, values))


def over_one_variate(layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
    """A layer over variates where there is one, which takes its own value, whatever the scores;
    ``row embed_dim`` to the same."""
    normed = layer.norm1.apply(hidden)
    project = layer.project if layer.alone is None else layer.alone.value
    return _after_attention(layer, hidden, project.apply(normed)[:, -1].flatten(-2))


def keys_and_values(
    norm: Norm, alone: KeysAndValuesAlone, hidden: torch.Tensor, rotation: Rotation
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer over time adds to its cache, each ``row embed_dim``."""
    normed = norm.apply(hidden)
    return alone.key.of_keys(normed, rotation), alone.value.apply(normed).flatten(1)


def _after_attention(layer: Layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Both residual sums of a pre-norm layer, in the type of the hidden states; the first one is a
    new tensor, and the second may overwrite it."""
    hidden, normed = layer.norm2.of_sum(hidden, layer.out.product(attended))
    return layer.feed_forward.added_to(hidden, normed)


Opaque = PackedLinear | ThreePassLinear | ChunkedFeedForward
"""What no compiler can trace: weights in layouts, and ways to multiply, that it does not know."""


class Traceable(NamedTuple):
    """A layer or a head in the forms that eager and compiled code take.

    Attributes:
        real: the thing itself.
        stand_in: for compiled code, with numbered slots in place of what is opaque to it.
        opaque: that, in the order of the slots.
        for_one_row: for compiled code on a single row: sums over the plain weights in place of
            packed ones; None where none is packed.
    """

    real: Any
    stand_in: Any
    opaque: tuple[Opaque, ...]
    for_one_row: Any

    @classmethod
    def of(cls, real: Any) -> Traceable:
        opaque: list[Opaque] = []

        def in_slots(part: Any) -> Any:
            if isinstance(part, ChunkedFeedForward) and isinstance(part.down, PackedLinear):
                return OpaqueFeedForward(slot(part, part.down.out_features))
            if isinstance(part, (PackedLinear, ThreePassLinear)):
                return slot(part, part.out_features)
            return None

        def slot(part: Opaque, out_features: int) -> OpaqueLinear:
            opaque.append(part)
            return OpaqueLinear(len(opaque) - 1, out_features, part.dtype)

        stand_in = _traceable(real, in_slots)
        packed = any(not isinstance(one, ThreePassLinear) for one in opaque)
        return cls(real, stand_in, tuple(opaque), _traceable(real, _sums) if packed else None)


def _sums(part: Any) -> Any:
    if isinstance(part, PackedGatedLinear):
        return GatedLinear(OneRowLinear(*part.original))
    if isinstance(part, PackedLinear):
        return OneRowLinear(*part.original)
    return None


def _traceable(part: Any, instead: Callable[[Any], Any]) -> Any:
    """Copy a tree of named tuples for compiled code, with no kernels chosen for eager code, and
    something else in place of each part that something is given for."""
    if (other := instead(part)) is not None:
        return other
    if isinstance(part, FusedRMSNorm):
        return part.formula
    if isinstance(part, FusedHeadProjection):
        return _traceable(part.formula, instead)
    if isinstance(part, GpuLinear):
        return PlainLinear(*part)
    if isinstance(part, PlainLinear) or not isinstance(part, tuple):
        return part
    is_form_of_one = isinstance(part, (ChunkedFeedForward, FusedFeedForward))
    kind = FeedForward if is_form_of_one else type(part)
    copied = kind(*(_traceable(field, instead) for field in part))
    if isinstance(copied, HeadProjection) and isinstance(copied.linear, OneRowLinear):
        return copied._replace(heads_first=False)
    return copied

"""One layer of the transformer, as it acts on the rows of a hidden state.

A row is one patch of one series: a position of a context, or one sample's newest patch. All but
attention treats each row alone, so that a layer is the same code for a context and for a decode
step; run as it stands, compiled, or captured in a CUDA graph (see ``runtime``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import rms_norm, silu

from toto_compile_patch.decode.linear import (
    Linear,
    OneRowLinear,
    OpaqueLinear,
    PackedLinear,
    PlainLinear,
    SplitLinear,
)
from toto_compile_patch.decode.operators import Attend

ROWS_AT_ONCE = 512
"""Rows that go through a feed-forward together on a CPU, so that they stay in its cache."""


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
        return normed if self.scale is None else normed * self.scale


class FusedRMSNorm(NamedTuple):
    """The same by a single kernel of torch's, in place of five: for a GPU without a compiler.

    Attributes:
        formula: for types that the kernel would round otherwise, and for compiled code.
        eps: what is added to the mean square.
    """

    formula: RMSNorm
    eps: float

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        scale = self.formula.scale
        exact = rows.dtype in (torch.float32, torch.float64)
        if not exact or (scale is not None and scale.dtype is not rows.dtype):
            return self.formula.apply(rows)
        return rms_norm(rows, rows.shape[-1:], scale, self.eps)


class UnchangedModule(NamedTuple):
    """A module of torch's that is used as it is."""

    module: Any

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        result: torch.Tensor = self.module(rows)
        return result


class RealRotation(NamedTuple):
    """What rotary embedding multiplies each row by (see ``attention.rotation``), in real numbers:
    for GPUs, and for compiled code, since no compiler makes any for complex ones.

    Attributes:
        cosines: of queries and of keys, ``row 2 1 head_dim``; likewise sines.
    """

    cosines: torch.Tensor
    sines: torch.Tensor

    def rotate(self, heads: torch.Tensor, which: slice) -> torch.Tensor:
        """Rotate ``row n head head_dim`` to ``row n embed_dim``: KEYS, or QUERIES_KEYS."""
        cosines, sines = self.cosines[:, which], self.sines[:, which]
        heads = heads.to(cosines.dtype)
        swapped = heads.unflatten(-1, (-1, 2)).flip(-1).view(heads.shape)
        return torch.addcmul(heads * cosines, swapped, sines).flatten(-2)


class ComplexRotation(NamedTuple):
    """The same in complex numbers: for a CPU, in half the passes over memory.

    Attributes:
        turns: what turns the pairs of features, of queries and keys alike, ``row 1 1 head_dim/2``.
        scales: xPos scales of queries and of keys, ``row 2 1 head_dim``.
    """

    turns: torch.Tensor
    scales: torch.Tensor

    def rotate(self, heads: torch.Tensor, which: slice) -> torch.Tensor:
        """Rotate ``row n head head_dim`` to ``row n embed_dim``: KEYS, or QUERIES_KEYS."""
        pairs = torch.view_as_complex(heads.to(self.scales.dtype).unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * self.turns).flatten(-2)
        return turned.mul_(self.scales[:, which]).flatten(-2)


Rotation = RealRotation | ComplexRotation
KEYS, QUERIES_KEYS = slice(1, 2), slice(0, 2)


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
        queries, keys = rotation.rotate(three[:, QUERIES_KEYS], QUERIES_KEYS).unbind(1)
        return queries, keys, three[:, 2].flatten(-2)

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``row head head_dim``."""
        return rows.view(rows.shape[0], self.num_heads, self.head_dim)


class KeysAndValuesAlone(NamedTuple):
    """Separate projections, for rows that need keys and values without queries, or values only."""

    key: HeadProjection
    value: HeadProjection


class FeedForward(NamedTuple):
    """Upstream's feed-forward: up, a gated linear unit, down; in the weights' type, which is where
    most of a layer's numbers are."""

    up: Linear
    down: Linear

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same, in the weights' type."""
        gate, value = self.up.product(rows).chunk(2, dim=-1)
        return self.down.product(silu(gate) * value)


class ChunkedFeedForward(NamedTuple):
    """Upstream's feed-forward, some rows after the other: for a CPU without a compiler."""

    up: Linear
    down: Linear

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same, in the weights' type."""
        if rows.shape[0] <= ROWS_AT_ONCE:
            return self._block(rows)
        return torch.cat([self._block(block) for block in rows.split(ROWS_AT_ONCE)])

    def _block(self, rows: torch.Tensor) -> torch.Tensor:
        gate, value = self.up.product(rows).chunk(2, dim=-1)
        # In place: memory that is in the cache already.
        return self.down.product(silu(gate, inplace=True) * value)


Norm = RMSNorm | FusedRMSNorm | UnchangedModule


class Layer(NamedTuple):
    """One layer of the transformer.

    Attributes:
        over_time: attention over time, else over variates.
        alone: some of what ``project`` does; None where all of it is always wanted.
    """

    over_time: bool
    norm1: Norm
    project: HeadProjection
    out: Linear
    norm2: Norm
    feed_forward: FeedForward | ChunkedFeedForward | UnchangedModule
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
    layer: Layer, hidden: torch.Tensor, rotation: Rotation
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer over time adds to its cache, each ``row embed_dim``."""
    normed = layer.norm1.apply(hidden)
    if layer.alone is None:
        _, keys, values = layer.project.rotated(normed, rotation)
        return keys, values
    keys = rotation.rotate(layer.alone.key.apply(normed), KEYS).squeeze(1)
    return keys, layer.alone.value.apply(normed).flatten(1)


def _after_attention(layer: Layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Both residual sums of a pre-norm layer, in the type of the hidden states."""
    hidden = hidden + layer.out.product(attended)
    return hidden + layer.feed_forward.apply(layer.norm2.apply(hidden))


class Traceable(NamedTuple):
    """A layer or a head in the forms that eager and compiled code take.

    Attributes:
        real: the thing itself.
        stand_in: for compiled code, which cannot hold packed weights: numbered slots instead.
        linears: the packed weights, in the order of the slots.
        for_one_row: for compiled code on a single row: sums over the plain weights instead; None
            where none is packed.
    """

    real: Any
    stand_in: Any
    linears: tuple[PackedLinear, ...]
    for_one_row: Any

    @classmethod
    def of(cls, real: Any) -> Traceable:
        linears: list[PackedLinear] = []

        def in_slots(packed: PackedLinear) -> OpaqueLinear:
            linears.append(packed)
            return OpaqueLinear(len(linears) - 1, packed.out_features, packed.original.weight.dtype)

        def sums(packed: PackedLinear) -> OneRowLinear:
            return OneRowLinear(*packed.original)

        stand_in = _without_packed(real, in_slots)
        one_row = _without_packed(real, sums) if linears else None
        return cls(real, stand_in, tuple(linears), one_row)


def _without_packed(part: Any, instead: Callable[[PackedLinear], Linear]) -> Any:
    """Copy a tree of named tuples for compiled code, with something else in place of each packed
    layer, and no kernels chosen for eager code."""
    if isinstance(part, PackedLinear):
        return instead(part)
    if isinstance(part, FusedRMSNorm):
        return part.formula
    if isinstance(part, SplitLinear):
        return PlainLinear(*part)
    if isinstance(part, PlainLinear) or not isinstance(part, tuple):
        return part
    kind = FeedForward if isinstance(part, ChunkedFeedForward) else type(part)
    copied = kind(*(_without_packed(field, instead) for field in part))
    if isinstance(copied, HeadProjection) and isinstance(copied.linear, OneRowLinear):
        return copied._replace(heads_first=False)
    return copied

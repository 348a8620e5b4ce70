"""One layer of the transformer, as it acts on the rows of a hidden state.

A row is one patch of one series: a position of a context, or one sample's newest patch. All but
attention treats each row alone, so that a layer is the same code for a context and for a decode
step; run as it stands, compiled, or captured in a CUDA graph (see ``runtime``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import silu

from toto_compile_patch.decode.linear import (
    Linear,
    OneRowLinear,
    OpaqueLinear,
    PackedLinear,
    PlainLinear,
)
from toto_compile_patch.decode.operators import Attend

ROWS_AT_ONCE = 512
"""Rows that go through a feed-forward together on a CPU, so that they stay in its cache."""


class RootMeanSquare(NamedTuple):
    """Upstream's RMSNorm (B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019)."""

    scale: torch.Tensor | None
    eps: float

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        normed = rows / torch.sqrt(torch.mean(rows * rows, dim=-1, keepdim=True) + self.eps)
        return normed if self.scale is None else normed * self.scale


class OtherModule(NamedTuple):
    """A module of torch's or xFormers' that is used as it is."""

    module: Any

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        result: torch.Tensor = self.module(rows)
        return result


class HeadsProjection(NamedTuple):
    """Queries, keys and values of an attention, in upstream's layout of heads.

    Upstream's ``wQKV`` gives ``(qkv head_dim n_heads)``: the heads are the innermost axis.

    Attributes:
        query: a linear layer each; likewise key and value.
        fused: one for all three, where that is faster than one after the other.
        head_dim: features of a head.
        num_heads: heads.
    """

    query: Linear
    key: Linear
    value: Linear
    fused: Linear | None
    head_dim: int
    num_heads: int

    def apply(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each ``row embed_dim``."""
        if self.fused is not None:
            query, key, value = self.fused.apply(rows).chunk(3, dim=-1)
            return query, key, value
        return self.query.apply(rows), self.key.apply(rows), self.value.apply(rows)

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``row head_dim head``."""
        return rows.view(rows.shape[0], self.head_dim, self.num_heads)


class FeedForward(NamedTuple):
    """Upstream's feed-forward: up, a gated linear unit, down."""

    up: Linear
    down: Linear

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        gate, value = self.up.apply(rows).chunk(2, dim=-1)
        return self.down.apply(silu(gate) * value)


class FeedForwardInBlocks(NamedTuple):
    """The same for a CPU without a compiler: some rows after the other."""

    up: Linear
    down: Linear

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to the same."""
        if rows.shape[0] <= ROWS_AT_ONCE:
            return self._block(rows)
        return torch.cat([self._block(block) for block in rows.split(ROWS_AT_ONCE)])

    def _block(self, rows: torch.Tensor) -> torch.Tensor:
        gate, value = self.up.apply(rows).chunk(2, dim=-1)
        return self.down.apply(silu(gate).mul_(value))


Norm = RootMeanSquare | OtherModule


class Layer(NamedTuple):
    """One layer of the transformer.

    Attributes:
        over_time: attention over time, else over variates.
    """

    over_time: bool
    norm1: Norm
    project: HeadsProjection
    out: Linear
    norm2: Norm
    feed_forward: FeedForward | FeedForwardInBlocks | OtherModule


class Rotation(NamedTuple):
    """What rotary embedding multiplies each row by (see ``attention.rotation``).

    Attributes:
        tables: of queries' and keys' cosines and sines, ``4 row head_dim 1``.
    """

    tables: torch.Tensor

    def rotate(self, heads: torch.Tensor, cosines: int) -> torch.Tensor:
        """Rotate ``row head_dim head``; ``cosines`` is 0 for queries, 2 for keys."""
        heads = heads.to(self.tables.dtype)
        count, _, num_heads = heads.shape
        swapped = heads.view(count, -1, 2, num_heads).flip(-2).view(heads.shape)
        cosine, sine = self.tables[cosines], self.tables[cosines + 1]
        return torch.addcmul(heads * cosine, swapped, sine).flatten(-2)


QUERIES, KEYS = 0, 2


def over_time(
    layer: Layer, hidden: torch.Tensor, rotation: Rotation, attend: Attend
) -> torch.Tensor:
    """A layer that attends over time, ``row embed_dim`` to the same."""
    queries, keys, values = layer.project.apply(layer.norm1.apply(hidden))
    queries = rotation.rotate(layer.project.heads(queries), QUERIES)
    keys = rotation.rotate(layer.project.heads(keys), KEYS)
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
    queries, keys, values = layer.project.apply(layer.norm1.apply(hidden))
    heads = layer.project.heads
    queries = rotation.rotate(heads(queries), QUERIES)
    keys = rotation.rotate(heads(keys), KEYS)
    values = values.to(keys.dtype)
    scores = heads(past.keys * queries).sum(-2).masked_fill(~past.seen.unsqueeze(-1), -torch.inf)
    scores = torch.cat([scores, heads(keys * queries).sum(-2)]) * layer.project.head_dim**-0.5
    weights = scores.softmax(0).unsqueeze(-2)
    attended = (weights[:-1] * heads(past.values)).sum(0, keepdim=True)
    attended = attended + weights[-1:] * heads(values)
    joined = attended.transpose(-1, -2).flatten(-2).to(hidden.dtype)
    return _after_attention(layer, hidden, joined), keys, values


def over_variates(layer: Layer, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
    """A layer that attends over variates, ``row embed_dim`` to the same."""
    queries, keys, values = layer.project.apply(layer.norm1.apply(hidden))
    return _after_attention(layer, hidden, attend(queries, keys, values))


def over_one_variate(layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
    """The same where there is one variate, which takes its own value, whatever the scores."""
    values = layer.project.heads(layer.project.value.apply(layer.norm1.apply(hidden)))
    return _after_attention(layer, hidden, values.transpose(-1, -2).flatten(-2))


def keys_and_values(
    layer: Layer, hidden: torch.Tensor, rotation: Rotation
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer over time adds to its cache, each ``row embed_dim``."""
    normed = layer.norm1.apply(hidden)
    keys = rotation.rotate(layer.project.heads(layer.project.key.apply(normed)), KEYS)
    return keys, layer.project.value.apply(normed)


def _after_attention(layer: Layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Both residual sums of a pre-norm layer."""
    hidden = hidden + layer.out.apply(attended)
    return hidden + layer.feed_forward.apply(layer.norm2.apply(hidden))


class Traceable(NamedTuple):
    """A layer (or a head) as it is, and as compiled code can take it.

    Attributes:
        real: the thing itself.
        stand_in: the same with an OpaqueLinear for each packed layer.
        linears: the packed layers, by their slots.
        for_one_row: the same with a OneRowLinear for each packed layer; None where none is.
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
            return OpaqueLinear(len(linears) - 1, packed.out_features)

        stand_in = _without_packed(real, in_slots)
        one_row = _without_packed(real, lambda part: OneRowLinear(part.original, part.bias))
        return cls(real, stand_in, tuple(linears), one_row if linears else None)


def _without_packed(part: Any, instead: Callable[[PackedLinear], Linear]) -> Any:
    """Copy a tree of named tuples with something else in place of each packed layer."""
    if isinstance(part, PackedLinear):
        return instead(part)
    if isinstance(part, PlainLinear) or not isinstance(part, tuple):
        return part
    kind = FeedForward if isinstance(part, FeedForwardInBlocks) else type(part)
    return kind(*(_without_packed(field, instead) for field in part))

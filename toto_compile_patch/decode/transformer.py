"""The transformer over a context, and over one new patch of each sample.

Hidden states are rows (see ``rows``): the positions of a context (prefill), or the samples of one
new position (decode step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode.attention import (
    CausalAttention,
    Heads,
    KeysAndValues,
    LastPositionAttention,
    OwnContextAttention,
    SharedContextAttention,
    VariateAttention,
    kept_heads,
    rotation,
)
from toto_compile_patch.decode.layer import Layer, Past, Traceable, keys_and_values
from toto_compile_patch.decode.operators import Attend
from toto_compile_patch.decode.regions import Regions
from toto_compile_patch.decode.rows import Rows


@dataclass(frozen=True)
class ContextCache:
    """What the decode steps read of the context.

    Attributes:
        layers: for each time-wise layer by its index, keys and values,
            ``batch variate head context_len head_dim``.
        length: positions of the context, a prepended label included.
    """

    layers: dict[int, KeysAndValues]
    length: int


@dataclass(frozen=True)
class SuffixCache:
    """Keys and values of the patches that each sample has generated.

    Attributes:
        context: what precedes them.
        samples: of each series.
        layers: for each time-wise layer by its index, keys and values, written by position:
            ``batch variate head samples max_patches head_dim``; for a single sample its context's,
            too, ``batch variate head max_len head_dim``; for a single row, ``max_len embed_dim``.
        single_row: one patch of one series is all that there is at a step.
    """

    context: ContextCache
    samples: int
    layers: dict[int, KeysAndValues]
    single_row: bool

    @classmethod
    def empty(
        cls, context: ContextCache, samples: int, max_patches: int, *, single_row: bool
    ) -> SuffixCache:
        """A cache with room for a number of patches.

        Args:
            context: what precedes them.
            samples: of each series.
            max_patches: how many will be added.
            single_row: lay it out for one patch of one series.
        """

        def buffer(like: torch.Tensor) -> torch.Tensor:
            batch, variates, heads, _, head_dim = like.shape
            if single_row:
                return _with_room(like[0, 0].permute(1, 2, 0).flatten(1), max_patches)
            if samples > 1:
                return like.new_empty(batch, variates, heads, samples, max_patches, head_dim)
            room = like.new_empty(batch, variates, heads, max_patches, head_dim)
            return torch.cat([like, room], dim=3)

        layers = context.layers if max_patches else {}
        buffers = {idx: (buffer(k), buffer(v)) for idx, (k, v) in layers.items()}
        return cls(context, samples, buffers, single_row)

    def attention(self, idx: int, heads: Heads, step: int) -> Attend:
        """How a layer attends at a step."""
        if self.samples == 1:
            return OwnContextAttention(heads, self.layers[idx], self.context.length + step)
        return SharedContextAttention(heads, self.context.layers[idx], self.layers[idx], step)

    def past(self, idx: int, step: int) -> Past:
        """What a single row attends to at a step."""
        keys, values = self.layers[idx]
        return Past(keys, values, _first(self.context.length + step, keys))

    def add_row(self, idx: int, step: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep a single row's keys and values, ``1 embed_dim``."""
        all_keys, all_values = self.layers[idx]
        all_keys[self.context.length + step] = keys[0]
        all_values[self.context.length + step] = values[0]


def prefill(
    layers: tuple[Traceable, ...],
    regions: Regions,
    rotary: Any,
    hidden: torch.Tensor,
    rows: Rows,
    groups: torch.Tensor | None,
    *,
    every_position: bool,
) -> tuple[torch.Tensor, Rows, ContextCache]:
    """Run the transformer over a context, and keep what later patches attend to.

    Past the last layer that reads other positions, only the last one is computed, unless every
    position is wanted.

    Args:
        layers: the transformer's.
        regions: how to run them.
        rotary: upstream's rotary embedding.
        hidden: embedded patches, ``row embed_dim``.
        rows: their layout.
        groups: True where one variate may see another, ``batch seq_len variate variate``.
        every_position: return the last hidden state of all positions, not of the last one.

    Returns:
        Hidden states with their layout, and the cache.
    """
    length = rows.count
    centre = (length - 1) // 2
    positions = rotation(rotary, rows, 0, 1, centre)
    over_time = [idx for idx, layer in enumerate(layers) if layer.real.over_time]
    last_reader = -1 if every_position else max(over_time, default=0)
    cache: dict[int, KeysAndValues] = {}
    for idx, layer in enumerate(layers):
        if idx != last_reader:
            if layer.real.over_time:
                attention = CausalAttention(_heads(layer, rows), cache, idx)
                hidden = regions.over_time(layer, hidden, positions, attention)
            else:
                hidden = over_variates(regions, layer, hidden, rows, groups)
            continue
        everywhere, rows_everywhere = hidden, rows
        rows = rows.with_count(1)
        hidden = rows.flatten(rows_everywhere.unflatten(hidden)[:, :, -1:])
        groups = None if groups is None else groups[:, -1:]
        if layer.real.over_time:
            kept = keys_and_values(layer.real, everywhere, positions)
            cache[idx] = kept_heads(_heads(layer, rows_everywhere), *kept)
            here = rotation(rotary, rows, length - 1, 0, centre)
            if regions.single_rows_apart and rows.series == 1:
                keys, values = (_with_room(part[:length], 1) for part in kept)
                past = Past(keys, values.to(keys.dtype), _first(length - 1, keys))
                hidden, _, _ = regions.over_time_alone(layer, hidden, here, past)
            else:
                last = LastPositionAttention(_heads(layer, rows), cache[idx])
                hidden = regions.over_time(layer, hidden, here, last)
        else:
            hidden = over_variates(regions, layer, hidden, rows, groups)
    return hidden, rows, ContextCache(cache, length)


def decode_step(
    layers: tuple[Traceable, ...],
    regions: Regions,
    rotary: Any,
    hidden: torch.Tensor,
    rows: Rows,
    groups: torch.Tensor | None,
    suffix: SuffixCache,
    step: int,
    *,
    centred_alone: bool,
) -> torch.Tensor:
    """Run the transformer over the ``step``-th generated patch of every sample.

    Args:
        layers: the transformer's.
        regions: how to run them.
        rotary: upstream's rotary embedding.
        hidden: embedded patches, ``row embed_dim``.
        rows: their layout, by samples.
        groups: True where one variate may see another, ``batch 1 variate variate``.
        suffix: keys and values of the context and of the samples' ``step`` patches so far; this
            patch's are added.
        step: 0 for the first patch after the context.
        centred_alone: centre the xPos scale on this position alone, as upstream's cached decode
            does, and not with the context.

    Returns:
        ``row embed_dim``.
    """
    length = suffix.context.length
    position = length + step
    centre = position // 2 if centred_alone else (length - 1) // 2
    here = rotation(rotary, rows, position, 0, centre)
    for idx, layer in enumerate(layers):
        if suffix.single_row and layer.real.over_time:
            past = suffix.past(idx, step)
            hidden, keys, values = regions.over_time_alone(layer, hidden, here, past)
            suffix.add_row(idx, step, keys, values)
        elif layer.real.over_time:
            attention = suffix.attention(idx, _heads(layer, rows), step)
            hidden = regions.over_time(layer, hidden, here, attention)
        else:
            hidden = over_variates(regions, layer, hidden, rows, groups)
    return hidden


def over_variates(
    regions: Regions,
    layer: Traceable,
    hidden: torch.Tensor,
    rows: Rows,
    groups: torch.Tensor | None,
) -> torch.Tensor:
    """A layer over variates, of which there may be one."""
    if rows.variates == 1:
        return regions.over_one_variate(layer, hidden)
    return regions.over_variates(layer, hidden, VariateAttention(_heads(layer, rows), groups))


def _with_room(rows: torch.Tensor, room: int) -> torch.Tensor:
    """``row features``, and more rows of zeros: what is not seen yet is multiplied by 0."""
    return torch.cat([rows, rows.new_zeros(room, rows.shape[1])])


def _first(count: int, rows: torch.Tensor) -> torch.Tensor:
    """True for the first of some rows, ``row``."""
    return torch.arange(rows.shape[0], device=rows.device) < count


def _heads(layer: Traceable, rows: Rows) -> Heads:
    real: Layer = layer.real
    return Heads(rows, real.project.num_heads)

"""The transformer over a context, and over one new patch of each sample.

Hidden states are rows (see ``rows``): the positions of a context (prefill), or the samples of one
new position (decode step).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
from toto_compile_patch.decode.layer import Layer, Past, Rotation, Traceable, keys_and_values
from toto_compile_patch.decode.operators import Attend
from toto_compile_patch.decode.prepared_model import PreparedModel
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
class RowsCache:
    """Keys and values of the patches that each sample has generated.

    Attributes:
        context: what precedes them.
        samples: of each series.
        layers: for each time-wise layer by its index, keys and values, written by position:
            ``batch variate head samples max_patches head_dim``; for a single sample its context's,
            too, ``batch variate head max_len head_dim``.
    """

    context: ContextCache
    samples: int
    layers: dict[int, KeysAndValues]

    @classmethod
    def empty(cls, context: ContextCache, samples: int, max_patches: int) -> RowsCache:
        """A cache with room for a number of patches."""

        def buffer(like: torch.Tensor) -> torch.Tensor:
            batch, variates, heads, _, head_dim = like.shape
            if samples > 1:
                return like.new_empty(batch, variates, heads, samples, max_patches, head_dim)
            room = like.new_empty(batch, variates, heads, max_patches, head_dim)
            return torch.cat([like, room], dim=3)

        layers = context.layers if max_patches else {}
        buffers = {idx: (buffer(k), buffer(v)) for idx, (k, v) in layers.items()}
        return cls(context, samples, buffers)

    def attention(self, idx: int, heads: Heads, step: int) -> Attend:
        """How a layer attends at a step."""
        if self.samples == 1:
            return OwnContextAttention(heads, self.layers[idx], self.context.length + step)
        return SharedContextAttention(heads, self.context.layers[idx], self.layers[idx], step)


@dataclass(frozen=True)
class OneRowCache:
    """The same where there is one path of one series, with its context's before them.

    Attributes:
        context: what precedes them.
        layers: for each time-wise layer by its index, keys and values, ``max_len embed_dim``: views
            of the next two.
        keys: of all those layers, ``layer max_len embed_dim``; likewise values.
    """

    context: ContextCache
    layers: dict[int, KeysAndValues]
    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def empty(cls, context: ContextCache, max_patches: int) -> OneRowCache:
        """A cache with room for a number of patches."""

        def buffer(of_layers: Iterable[torch.Tensor]) -> torch.Tensor:
            rows = torch.stack([heads[0, 0].permute(1, 2, 0).flatten(1) for heads in of_layers])
            return _with_room(rows, max_patches)

        keys, values = (buffer(part) for part in zip(*context.layers.values(), strict=True))
        views = zip(keys.unbind(), values.unbind(), strict=True)
        return cls(context, dict(zip(context.layers, views, strict=True)), keys, values)

    def seen(self, step: int) -> torch.Tensor:
        """Which positions precede a step's, ``max_len``."""
        return _first(self.context.length + step, self.keys.shape[1], self.keys.device)

    def add(self, step: int, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Keep the keys and values of all layers, each ``1 embed_dim``."""
        self.keys[:, self.context.length + step] = torch.cat(keys)
        self.values[:, self.context.length + step] = torch.cat(values)


SuffixCache = RowsCache | OneRowCache


def suffix_cache(
    context: ContextCache, samples: int, max_patches: int, *, one_row: bool
) -> SuffixCache:
    """A cache with room for a number of patches of each sample; laid out for one row on demand."""
    if one_row and max_patches and context.layers:
        return OneRowCache.empty(context, max_patches)
    return RowsCache.empty(context, samples, max_patches)


def prefill(
    model: PreparedModel,
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
        model: the model.
        hidden: embedded patches, ``row embed_dim``.
        rows: their layout.
        groups: True where one variate may see another, ``batch seq_len variate variate``.
        every_position: return the last hidden state of all positions, not of the last one.

    Returns:
        Hidden states with their layout, and the cache.
    """
    with model.precision.of_products(hidden.device):
        return _prefill(model, hidden, rows, groups, every_position)


def _prefill(
    model: PreparedModel,
    hidden: torch.Tensor,
    rows: Rows,
    groups: torch.Tensor | None,
    every_position: bool,
) -> tuple[torch.Tensor, Rows, ContextCache]:
    layers, regions, rotary = model.weights.layers, model.regions, model.rotary
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
                seen = _first(length - 1, length + 1, keys.device)
                past = Past(keys, values.to(keys.dtype), seen)
                hidden, _, _ = regions.over_time_alone(layer, hidden, here, past)
            else:
                last = LastPositionAttention(_heads(layer, rows), cache[idx])
                hidden = regions.over_time(layer, hidden, here, last)
        else:
            hidden = over_variates(regions, layer, hidden, rows, groups)
    return hidden, rows, ContextCache(cache, length)


def decode_step(
    model: PreparedModel,
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
        model: the model.
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
    here = rotation(model.rotary, rows, position, 0, centre)
    with model.precision.of_products(hidden.device):
        if isinstance(suffix, OneRowCache):
            return _one_row_step(model, hidden, rows, groups, here, suffix, step)
        regions = model.regions
        for idx, layer in enumerate(model.weights.layers):
            if layer.real.over_time:
                attention = suffix.attention(idx, _heads(layer, rows), step)
                hidden = regions.over_time(layer, hidden, here, attention)
            else:
                hidden = over_variates(regions, layer, hidden, rows, groups)
        return hidden


def _one_row_step(
    model: PreparedModel,
    hidden: torch.Tensor,
    rows: Rows,
    groups: torch.Tensor | None,
    here: Rotation,
    suffix: OneRowCache,
    step: int,
) -> torch.Tensor:
    regions = model.regions
    seen = suffix.seen(step)
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for idx, layer in enumerate(model.weights.layers):
        if layer.real.over_time:
            past = Past(*suffix.layers[idx], seen)
            hidden, key, value = regions.over_time_alone(layer, hidden, here, past)
            keys.append(key)
            values.append(value)
        else:
            hidden = over_variates(regions, layer, hidden, rows, groups)
    suffix.add(step, keys, values)
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
    """``... row features``, and more rows of zeros: what is not seen yet is multiplied by 0."""
    zeros = rows.new_zeros(*rows.shape[:-2], room, rows.shape[-1])
    return torch.cat([rows, zeros], dim=-2)


def _first(count: int, of: int, device: torch.device) -> torch.Tensor:
    """True for the first of some positions, ``position``."""
    return torch.arange(of, device=device) < count


def _heads(layer: Traceable, rows: Rows) -> Heads:
    real: Layer = layer.real
    return Heads(rows, real.project.num_heads)

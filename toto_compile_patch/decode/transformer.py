"""The transformer over a context (prefill), and over one new patch of each sample (decode step).

Hidden states are rows (see ``row_layout``): the positions of a context, or the samples of one new
position.
"""

from __future__ import annotations

import torch

from toto_compile_patch.decode.attention import (
    CausalAttention,
    Heads,
    KeysAndValues,
    LastPositionAttention,
    VariateAttention,
    kept_heads,
)
from toto_compile_patch.decode.caches import (
    ContextCache,
    OnePathCache,
    SamplesCache,
    SuffixCache,
    preceding,
    with_room,
)
from toto_compile_patch.decode.layer import Layer, Past, Traceable, keys_and_values
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.rotary import Rotation, rotation
from toto_compile_patch.decode.row_layout import RowLayout


def prefill(
    model: PreparedModel,
    hidden: torch.Tensor,
    layout: RowLayout,
    *,
    every_position: bool,
    kept: bool,
) -> tuple[torch.Tensor, RowLayout, ContextCache]:
    """Run the transformer over a context, and keep what later patches attend to.

    Past the last layer that reads other positions, only the last one is computed, unless every
    position is wanted.

    Args:
        model: the model.
        hidden: embedded patches, ``row embed_dim``.
        layout: of the rows, by positions.
        every_position: return the last hidden state of all positions, not of the last one.
        kept: whether more patches follow; else the cache stays empty.

    Returns:
        Hidden states, ``row embed_dim``, with their layout, and the cache.
    """
    length = layout.count
    centre = (length - 1) // 2
    cache: dict[int, KeysAndValues] | None = {} if kept else None
    layers = model.weights.layers
    over_time = [idx for idx, layer in enumerate(layers) if layer.real.over_time]
    last_reader = -1 if every_position else max(over_time, default=0)
    with model.precision.of_products(hidden.device):
        positions = _rotation(model, hidden, layout, range(length), centre)
        for idx, layer in enumerate(layers):
            if idx == last_reader:
                everywhere, everywhere_layout = hidden, layout
                layout = layout.of_last_position()
                hidden = everywhere_layout.last_position(hidden)
            if not layer.real.over_time:
                hidden = over_variates(model, layer, hidden, layout)
            elif idx == last_reader:
                last = layer.real
                rows = keys_and_values(last.norm1, last.alone, everywhere, positions)
                heads = kept_heads(_heads(layer, everywhere_layout), *rows, kept=kept)
                if cache is not None:
                    cache[idx] = heads
                here = positions.at_last_position(everywhere_layout)
                hidden = _at_last_position(model, layer, hidden, layout, here, (rows, heads))
            else:
                attention = CausalAttention(_heads(layer, layout), cache, idx)
                hidden = model.regions.over_time(layer, hidden, positions, attention)
    return hidden, layout, ContextCache(cache or {}, length)


def _at_last_position(
    model: PreparedModel,
    layer: Traceable,
    hidden: torch.Tensor,
    layout: RowLayout,
    here: Rotation,
    everywhere: tuple[KeysAndValues, KeysAndValues],
) -> torch.Tensor:
    """A layer over time at a context's last position, ``row embed_dim`` to the same.

    Args:
        model: the model.
        layer: the layer.
        hidden: of that position.
        layout: of its rows.
        here: its rotation.
        everywhere: keys and values of all positions, as ``row embed_dim`` and as the cache holds
            them.
    """
    rows, cached = everywhere
    if not (model.regions.single_rows_apart and layout.series == 1):
        attention = LastPositionAttention(_heads(layer, layout), cached)
        return model.regions.over_time(layer, hidden, here, attention)
    length = cached[0].shape[-2]
    keys, values = (with_room(part[:length], 1) for part in rows)
    seen = preceding(length - 1, length + 1, keys.device)
    past = Past(keys, values.to(keys.dtype), seen)
    hidden, _, _ = model.regions.over_time_alone(layer, hidden, here, past)
    return hidden


def decode_step(
    model: PreparedModel,
    hidden: torch.Tensor,
    layout: RowLayout,
    suffix: SuffixCache,
    step: int,
    *,
    centred_alone: bool,
) -> torch.Tensor:
    """Run the transformer over the ``step``-th generated patch of every sample.

    Args:
        model: the model.
        hidden: embedded patches, ``row embed_dim``.
        layout: of the rows, by samples.
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
    with model.precision.of_products(hidden.device):
        here = _rotation(model, hidden, layout, range(position, position + 1), centre)
        if isinstance(suffix, OnePathCache):
            return _step_of_one_path(model, hidden, layout, here, suffix, step)
        return _step_of_samples(model, hidden, layout, here, suffix, step)


def _step_of_samples(
    model: PreparedModel,
    hidden: torch.Tensor,
    layout: RowLayout,
    here: Rotation,
    suffix: SamplesCache,
    step: int,
) -> torch.Tensor:
    """A decode step by layers that mix rows in an operator of their own, ``row embed_dim``."""
    for idx, layer in enumerate(model.weights.layers):
        if layer.real.over_time:
            attention = suffix.attention(idx, _heads(layer, layout), step)
            hidden = model.regions.over_time(layer, hidden, here, attention)
        else:
            hidden = over_variates(model, layer, hidden, layout)
    return hidden


def _step_of_one_path(
    model: PreparedModel,
    hidden: torch.Tensor,
    layout: RowLayout,
    here: Rotation,
    suffix: OnePathCache,
    step: int,
) -> torch.Tensor:
    """A decode step of a single row, whose attention is part of its layer, ``1 embed_dim``."""
    seen = suffix.seen(step)
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for idx, layer in enumerate(model.weights.layers):
        if layer.real.over_time:
            past = Past(*suffix.layers[idx], seen)
            hidden, key, value = model.regions.over_time_alone(layer, hidden, here, past)
            keys.append(key)
            values.append(value)
        else:
            hidden = over_variates(model, layer, hidden, layout)
    suffix.add(step, keys, values)
    return hidden


def over_variates(
    model: PreparedModel, layer: Traceable, hidden: torch.Tensor, layout: RowLayout
) -> torch.Tensor:
    """A layer over variates, of which there may be one, ``row embed_dim`` to the same."""
    if layout.variates == 1:
        return model.regions.over_one_variate(layer, hidden)
    attention = VariateAttention(_heads(layer, layout))
    return model.regions.over_variates(layer, hidden, attention)


def _rotation(
    model: PreparedModel, hidden: torch.Tensor, layout: RowLayout, positions: range, centre: int
) -> Rotation:
    in_real_numbers = model.regions.in_real_numbers
    return rotation(
        model.rotary, layout, positions, centre, in_real_numbers=in_real_numbers, like=hidden
    )


def _heads(layer: Traceable, layout: RowLayout) -> Heads:
    real: Layer = layer.real
    return Heads(layout, real.project.num_heads)

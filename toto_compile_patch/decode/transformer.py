"""The transformer over a context, and over one new patch of each sample.

The third axis of a hidden state, ``batch variate n embed_dim``, holds the positions of a context
(prefill) or the samples of one new position (decode step). Norms, feed-forward and attention over
variates treat both alike; only attention over time tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode.attention import (
    Positions,
    attend_causally,
    attend_over_shared_context,
    attend_over_variates,
    heads_first,
    join_heads,
)
from toto_compile_patch.decode.precision import without_autocast
from toto_compile_patch.decode.weights import KEY, QUERY, VALUE, Layer

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


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
        layers: for each time-wise layer by its index, keys and values,
            ``batch variate head samples max_patches head_dim``, written by position.
    """

    layers: dict[int, KeysAndValues]

    @classmethod
    def empty(cls, context: ContextCache, samples: int, max_patches: int) -> SuffixCache:
        def buffer(like: torch.Tensor) -> torch.Tensor:
            return like.new_empty(*like.shape[:3], samples, max_patches, like.shape[-1])

        return cls({idx: (buffer(k), buffer(v)) for idx, (k, v) in context.layers.items()})


def prefill(
    layers: tuple[Layer, ...],
    rotary: Any,
    hidden: torch.Tensor,
    groups: torch.Tensor | None,
    *,
    every_position: bool,
) -> tuple[torch.Tensor, ContextCache]:
    """Run the transformer over a context, and keep what later patches attend to.

    Past the last layer that reads other positions, only the last one is computed, unless every
    position is wanted.

    Args:
        layers: the transformer's.
        rotary: upstream's rotary embedding.
        hidden: embedded patches, ``batch variate seq_len embed_dim``.
        groups: True where one variate may see another, ``batch seq_len variate variate``.
        every_position: return the last hidden state of all positions, not of the last one.

    Returns:
        ``batch variate seq_len embed_dim`` (or ``batch variate 1 embed_dim``), and the cache.
    """
    length = hidden.shape[2]
    centre = (length - 1) // 2
    positions = Positions.of(rotary, 0, length, centre)
    last_position = Positions.of(rotary, length - 1, 1, centre)
    last_reader = max((i for i, layer in enumerate(layers) if layer.over_time), default=-1)
    cache: dict[int, KeysAndValues] = {}
    for idx, layer in enumerate(layers):
        normed = layer.norm1(hidden)
        seen = normed
        here = positions
        if idx >= last_reader and not every_position:
            here = last_position
            hidden, normed = hidden[:, :, -1:], normed[:, :, -1:]
            groups = None if groups is None else groups[:, -1:]
        if not layer.over_time:
            attended = _over_variates(layer, normed, groups)
        else:
            if normed is seen:
                queries, keys, values = layer.project(normed, QUERY, KEY, VALUE)
            else:
                (queries,) = layer.project(normed, QUERY)
                keys, values = layer.project(seen, KEY, VALUE)
            queries = heads_first(here.rotate_queries(queries)).to(values.dtype)
            keys = heads_first(positions.rotate_keys(keys))
            values = heads_first(values)
            cache[idx] = keys.contiguous(), values.to(keys.dtype).contiguous()
            attended = join_heads(attend_causally(queries, keys.to(values.dtype), values))
        hidden = _after_attention(layer, hidden, attended)
    return hidden, ContextCache(cache, length)


def decode_step(
    layers: tuple[Layer, ...],
    rotary: Any,
    hidden: torch.Tensor,
    groups: torch.Tensor | None,
    context: ContextCache,
    suffix: SuffixCache,
    step: int,
    *,
    centred_alone: bool,
) -> torch.Tensor:
    """Run the transformer over the ``step``-th generated patch of every sample.

    Args:
        layers: the transformer's.
        rotary: upstream's rotary embedding.
        hidden: embedded patches, ``batch variate samples embed_dim``.
        groups: True where one variate may see another, ``batch 1 variate variate``.
        context: the context's keys and values; shared by the samples.
        suffix: the samples' own, of ``step`` patches so far; this patch's are added.
        step: 0 for the first patch after the context.
        centred_alone: centre the xPos scale on this position alone, as upstream's cached decode
            does, and not with the context.

    Returns:
        ``batch variate samples embed_dim``.
    """
    position = context.length + step
    centre = position // 2 if centred_alone else (context.length - 1) // 2
    here = Positions.of(rotary, position, 1, centre)
    for idx, layer in enumerate(layers):
        normed = layer.norm1(hidden)
        if layer.over_time:
            queries, keys, values = layer.project(normed, QUERY, KEY, VALUE)
            with without_autocast(hidden.device):
                all_keys, all_values = suffix.layers[idx]
                all_keys[..., step, :] = heads_first(here.rotate_keys(keys))
                all_values[..., step, :] = heads_first(values)
                own = all_keys[..., : step + 1, :], all_values[..., : step + 1, :]
                queries = heads_first(here.rotate_queries(queries))
                attended = attend_over_shared_context(queries, context.layers[idx], own)
            attended = join_heads(attended).to(values.dtype)
        else:
            attended = _over_variates(layer, normed, groups)
        hidden = _after_attention(layer, hidden, attended)
    return hidden


def _over_variates(layer: Layer, normed: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    if normed.shape[1] == 1:
        # A variate that sees itself alone takes its own value, whatever the scores.
        (values,) = layer.project(normed, VALUE)
        return join_heads(heads_first(values))
    queries, keys, values = layer.project(normed, QUERY, KEY, VALUE)
    return attend_over_variates(queries, keys, values, groups)


def _after_attention(layer: Layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Both residual sums of a pre-norm layer."""
    hidden = hidden + layer.out(attended)
    return hidden + layer.feed_forward(layer.norm2(hidden))

"""Keys and values that decode steps attend to: of the context, and of what was generated since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from toto_compile_patch.decode.attention import (
    Heads,
    KeysAndValues,
    LogSumAttention,
    OwnContextAttention,
    SharedContextAttention,
    has_kernel,
    has_log_sums,
)
from toto_compile_patch.decode.operators import Attend


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
class SamplesCache:
    """Keys and values of the patches that each sample has generated.

    Attributes:
        context: what precedes them.
        samples: of each series.
        layers: for each time-wise layer by its index, keys and values, written by position, in the
            shape that its attention takes; for a single sample, where no kernel of our own attends,
            its context's, too, ``series head max_len head_dim``.
    """

    context: ContextCache
    samples: int
    layers: dict[int, KeysAndValues]

    @classmethod
    def empty(cls, context: ContextCache, samples: int, max_patches: int) -> SamplesCache:
        """A cache with room for a number of patches."""

        def buffer(like: torch.Tensor) -> torch.Tensor:
            batch, variates, heads, _, head_dim = like.shape
            if samples > 1 and has_log_sums(like.device):
                # Nothing reads the last patch's but its own step.
                return like.new_empty(max_patches - 1, batch, variates, samples, heads, head_dim)
            if samples > 1 or has_kernel(like):
                return like.new_empty(batch, variates, heads, samples, max_patches, head_dim)
            room = like.new_empty(batch, variates, heads, max_patches, head_dim)
            return torch.cat([like, room], dim=3).flatten(0, 1)

        layers = context.layers if max_patches else {}
        buffers = {idx: (buffer(k), buffer(v)) for idx, (k, v) in layers.items()}
        return cls(context, samples, buffers)

    def attention(self, idx: int, heads: Heads, step: int) -> Attend:
        """How a layer attends at a step."""
        context, suffix = self.context.layers[idx], self.layers[idx]
        if suffix[0].ndim < context[0].ndim:
            # Within one buffer with the context.
            return OwnContextAttention(heads, suffix, self.context.length + step)
        shared = LogSumAttention if has_log_sums(suffix[0].device) else SharedContextAttention
        return shared(heads, context, suffix, step)


@dataclass(frozen=True)
class OnePathCache:
    """For compiled code: the cache of one series, one variate and one sample.

    Keys and values are rows, as the compiled layer reads them; the context's come before those of
    the generated patches.

    Attributes:
        context: what precedes the patches.
        layers: for each time-wise layer by its index, keys and values, ``max_len embed_dim``: views
            of the next two.
        keys: of all those layers, ``layer max_len embed_dim``; likewise values.
    """

    context: ContextCache
    layers: dict[int, KeysAndValues]
    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def empty(cls, context: ContextCache, max_patches: int) -> OnePathCache:
        """A cache with room for a number of patches."""

        def buffer(of_layers: Iterable[torch.Tensor]) -> torch.Tensor:
            rows = torch.stack([heads[0, 0].transpose(0, 1).flatten(1) for heads in of_layers])
            return with_room(rows, max_patches)

        keys, values = (buffer(part) for part in zip(*context.layers.values(), strict=True))
        views = zip(keys.unbind(), values.unbind(), strict=True)
        return cls(context, dict(zip(context.layers, views, strict=True)), keys, values)

    def seen(self, step: int) -> torch.Tensor:
        """True for the positions that precede a step's, ``max_len``."""
        return preceding(self.context.length + step, self.keys.shape[1], self.keys.device)

    def add(self, step: int, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Keep the keys and values of all layers, each ``1 embed_dim``."""
        self.keys[:, self.context.length + step] = torch.cat(keys)
        self.values[:, self.context.length + step] = torch.cat(values)


SuffixCache = SamplesCache | OnePathCache


def suffix_cache(
    context: ContextCache, samples: int, max_patches: int, *, one_path: bool
) -> SuffixCache:
    """A cache with room for a number of patches of each sample; laid out for one path on demand."""
    if one_path and max_patches and context.layers:
        return OnePathCache.empty(context, max_patches)
    return SamplesCache.empty(context, samples, max_patches)


def with_room(rows: torch.Tensor, room: int) -> torch.Tensor:
    """``... row features``, and more rows of zeros: what is not seen yet is multiplied by 0."""
    zeros = rows.new_zeros(*rows.shape[:-2], room, rows.shape[-1])
    return torch.cat([rows, zeros], dim=-2)


def preceding(position: int, positions: int, device: torch.device) -> torch.Tensor:
    """True for the positions before one of them, ``position``."""
    return torch.arange(positions, device=device) < position

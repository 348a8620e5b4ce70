"""Attention over time and over variates.

Queries, keys and values come with the heads as their innermost axis (see ``weights``); ``wO`` takes
them as the outermost of its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from toto_compile_patch.decode.precision import at_least_float32


@dataclass(frozen=True)
class Positions:
    """Rotary tables for some positions, ``seq_len head_dim 1``.

    Queries are rotated by ``position · frequency`` and multiplied by the xPos scale to the power
    ``(position - centre) / scale_base``, keys by its inverse (Y. Sun et al., "A
    Length-Extrapolatable Transformer", 2022). The centre cancels where it is the same for both.
    Upstream takes half the last position of each call, so that in a cached decode each new
    token has a centre of its own, which does not cancel against the context's.
    """

    cosines: torch.Tensor
    sines: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, rotary: Any, first: int, length: int, centre: int) -> Positions:
        """Tables for ``length`` positions from ``first`` on."""
        dtype = at_least_float32(rotary.freqs.dtype)
        position = torch.arange(first, first + length, device=rotary.freqs.device, dtype=dtype)
        angles = torch.outer(position, rotary.freqs.to(dtype)).repeat_interleave(2, dim=-1)
        power = (position - centre) / rotary.scale_base
        scale = rotary.scale.to(dtype) ** power.unsqueeze(-1)
        # The frequencies belong to neighbouring pairs, the scales to two halves.
        scale = torch.cat([scale, scale], dim=-1)
        sign = angles.new_tensor([-1.0, 1.0]).repeat(angles.shape[-1] // 2)
        return cls(*(t.unsqueeze(-1) for t in (angles.cos(), angles.sin() * sign, scale)))

    def rotate_queries(self, queries: torch.Tensor) -> torch.Tensor:
        """Rotate ``... seq_len head_dim head``."""
        return _rotate(queries, self.cosines * self.scale, self.sines * self.scale)

    def rotate_keys(self, keys: torch.Tensor) -> torch.Tensor:
        """Rotate ``... seq_len head_dim head``."""
        return _rotate(keys, self.cosines / self.scale, self.sines / self.scale)


def _rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    heads = heads.to(cosines.dtype)
    swapped = heads.unflatten(-2, (-1, 2)).flip(-2).flatten(-3, -2)
    return torch.addcmul(heads * cosines, swapped, sines)


def heads_first(heads: torch.Tensor) -> torch.Tensor:
    """``batch variate n head_dim head`` to ``batch variate head n head_dim``."""
    return heads.permute(0, 1, 4, 2, 3)


def join_heads(heads: torch.Tensor) -> torch.Tensor:
    """``batch variate head n head_dim`` to ``batch variate n embed_dim``, as ``wO`` takes it."""
    return heads.transpose(2, 3).flatten(-2)


def attend_causally(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """The last queries over all that precede them, ``batch variate head seq_len head_dim``.

    Takes a query for every key, or for the last one alone.
    """
    q, k, v = (heads.flatten(0, 1).contiguous() for heads in (queries, keys, values))
    attended = scaled_dot_product_attention(q, k, v, is_causal=queries.shape[-2] > 1)
    return attended.unflatten(0, queries.shape[:2])


def attend_over_shared_context(
    queries: torch.Tensor,
    context: tuple[torch.Tensor, torch.Tensor],
    suffix: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Each sample over the one context and over its own generated patches: one softmax.

    The context is read once for all samples (B. Athiwaratkun et al., "Bifurcated Attention",
    2024).

    Args:
        queries: ``batch variate head samples head_dim``.
        context: keys and values, ``batch variate head context_len head_dim``.
        suffix: keys and values, ``batch variate head samples suffix_len head_dim``.

    Returns:
        ``batch variate head samples head_dim``.
    """
    keys, values = context
    own_keys, own_values = suffix
    queries = queries * queries.shape[-1] ** -0.5
    scores = torch.cat(
        [
            queries @ keys.transpose(-1, -2),
            (own_keys @ queries.unsqueeze(-1)).squeeze(-1),
        ],
        dim=-1,
    )
    weights = scores.softmax(-1)
    over_context, over_own = weights.split([keys.shape[-2], own_keys.shape[-2]], dim=-1)
    own = (over_own.unsqueeze(-2) @ own_values).squeeze(-2)
    return own + over_context @ values


def attend_over_variates(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: torch.Tensor | None
) -> torch.Tensor:
    """All variates of a group over one another, at each position or in each sample apart.

    Args:
        queries: ``batch variate n head_dim head``; likewise keys and values.
        groups: True where one variate may see another, ``batch #n variate variate``; None: all.

    Returns:
        ``batch variate n embed_dim``.
    """
    batch, variates, count, _, _ = values.shape
    q, k, v = (heads.permute(0, 2, 4, 1, 3).flatten(0, 1) for heads in (queries, keys, values))
    mask = None
    if groups is not None:
        mask = groups.expand(batch, count, variates, variates).flatten(0, 1).unsqueeze(1)
    attended = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    attended = attended.unflatten(0, (batch, count))
    return attended.permute(0, 3, 1, 2, 4).flatten(-2)

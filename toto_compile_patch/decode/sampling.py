"""From a hidden state to the next patch: the distribution's mean, or draws from it."""

from __future__ import annotations

import torch
from torch.distributions import Gamma
from torch.nn.functional import softplus

from toto_compile_patch.decode.scaling import prefix_sums

DF, LOC, SCALE, LOGIT = range(4)


def mixture_mean(raw: torch.Tensor) -> torch.Tensor:
    """The mean of each mixture of Student-Ts.

    Args:
        raw: the head's output, ``... kinds components``.

    Returns:
        ``...``
    """
    locs = raw[..., LOC, :]
    if raw.shape[-2] <= LOGIT:
        return locs.squeeze(-1)
    return (raw[..., LOGIT, :].softmax(-1) * locs).sum(-1)


def draw(raw: torch.Tensor, count: int) -> torch.Tensor:
    """Independent draws from each mixture of Student-Ts: pick a component, then draw once.

    Args:
        raw: the head's output, ``... kinds components``.
        count: draws from each.

    Returns:
        ``... count``
    """
    shape = (*raw.shape[:-2], count)
    if raw.shape[-2] > LOGIT:
        chosen = _choose(raw[..., LOGIT, :], count)
        df, loc, scale = (raw[..., kind, :].gather(-1, chosen) for kind in (DF, LOC, SCALE))
    else:
        df, loc, scale = (raw[..., kind, :].expand(shape) for kind in (DF, LOC, SCALE))
    eps = torch.finfo(raw.dtype).eps
    half_df = (2.0 + softplus(df).clamp_min(eps)) / 2
    normal = torch.randn(shape, dtype=raw.dtype, device=raw.device)
    # A Student-T is a normal over the root of a chi-square over its degrees of freedom.
    gamma = Gamma(half_df, torch.ones_like(half_df), validate_args=False).sample()
    return loc + softplus(scale).clamp_min(eps) * normal * torch.rsqrt(gamma / half_df)


def _choose(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Components by inversion of their cumulative weights, ``... count``."""
    cumulative = prefix_sums(logits.softmax(-1))
    uniform = torch.rand(*logits.shape[:-1], count, dtype=logits.dtype, device=logits.device)
    chosen = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True)
    return chosen.clamp_max(logits.shape[-1] - 1)

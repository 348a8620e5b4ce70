"""From a hidden state to the next patch: the distribution's mean, or draws from it."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from toto_compile_patch.decode.head import FoldedHead
from toto_compile_patch.decode.scaling import prefix_sums
from toto_compile_patch.private_names import private

_standard_gamma = private("torch._standard_gamma")

DF, LOC, SCALE, LOGIT = range(4)

StudentT = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Half the degrees of freedom, location and scale, of one shape."""


def mean(head: FoldedHead, hidden: torch.Tensor) -> torch.Tensor:
    """The mean of each time step of a patch, ``row embed_dim`` to ``row time_steps``."""
    return mixture_mean(head.apply(hidden))


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


def choose(head: FoldedHead, hidden: torch.Tensor, uniform: torch.Tensor) -> StudentT:
    """The components that uniform random numbers choose.

    Args:
        head: the head.
        hidden: ``row embed_dim``.
        uniform: ``row time_steps draws``, in [0, 1).

    Returns:
        Parameters ``row time_steps draws``.
    """
    return chosen_components(head.apply(hidden), uniform)


def chosen_components(raw: torch.Tensor, uniform: torch.Tensor) -> StudentT:
    """Choose a component of each mixture for each draw.

    Args:
        raw: the head's output, ``... kinds components``.
        uniform: ``... draws``, in [0, 1).

    Returns:
        Parameters ``... draws``.
    """
    if raw.shape[-2] > LOGIT:
        cumulative = prefix_sums(raw[..., LOGIT, :].softmax(-1))
        found = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True)
        found = found.clamp_max(cumulative.shape[-1] - 1)
        df, loc, scale = (raw[..., kind, :].gather(-1, found) for kind in (DF, LOC, SCALE))
    else:
        df, loc, scale = (raw[..., kind, :].expand_as(uniform) for kind in (DF, LOC, SCALE))
    eps = torch.finfo(raw.dtype).eps
    half_df = (2.0 + softplus(df).clamp_min(eps)) / 2
    return half_df, loc, softplus(scale).clamp_min(eps)


def draw(student_t: StudentT, generator: torch.Generator | None = None) -> torch.Tensor:
    """One draw from each Student-T: a normal over the root of a chi-square over its degrees of
    freedom.

    Args:
        student_t: parameters ``...``.
        generator: of the random numbers; None: the process's.

    Returns:
        ``...``
    """
    half_df, loc, scale = student_t
    dtype, device = half_df.dtype, half_df.device
    normal = torch.randn(half_df.shape, dtype=dtype, device=device, generator=generator)
    gamma = _standard_gamma(half_df, generator=generator).clamp_min(torch.finfo(dtype).tiny)
    return loc + scale * normal * torch.rsqrt(gamma / half_df)

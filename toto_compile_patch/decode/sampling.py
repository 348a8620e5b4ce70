"""From a hidden state to the next patch: the distribution's mean, or draws from it."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import softplus

from toto_compile_patch.decode import fused
from toto_compile_patch.decode.head import FoldedHead
from toto_compile_patch.decode.scaling import deterministic, prefix_sums

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
        found = _chosen(raw[..., LOGIT, :], uniform).clamp_max(raw.shape[-1] - 1)
        df, loc, scale = (raw[..., kind, :].gather(-1, found) for kind in (DF, LOC, SCALE))
    else:
        df, loc, scale = (raw[..., kind, :].expand_as(uniform) for kind in (DF, LOC, SCALE))
    eps = torch.finfo(raw.dtype).eps
    half_df = (2.0 + softplus(df).clamp_min(eps)) / 2
    return half_df, loc, softplus(scale).clamp_min(eps)


def _chosen(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """How many of the first components have less probability together than a uniform number.

    Args:
        logits: ``... components``.
        uniform: ``... draws``, in [0, 1).

    Returns:
        ``... draws``
    """
    if uniform.is_cuda and uniform.shape[-1] == 1 and not deterministic(uniform):
        return counted(logits, uniform.squeeze(-1)).unsqueeze(-1)
    cumulative = prefix_sums(logits.softmax(-1))
    return torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True)


def counted(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The same for one draw each, ``...``, in the order of memory that suits CUDA.

    CUDA adds up neighbours in memory far more slowly than what is far apart.
    """
    cumulative = logits.movedim(-1, 0).softmax(0).cumsum(0)
    return (cumulative <= uniform * cumulative[-1]).sum(0)


def draw(student_t: StudentT, radius: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """One draw from each Student-T, in polar coordinates.

    As two uniform numbers make a normal one by Box and Muller's formula, they make one of Student's
    by that of R. W. Bailey ("Polar generation of random variates with the t-distribution",
    Mathematics of Computation 62, 1994): ``sqrt(df (u^(-2 / df) - 1)) cos(2 pi v)``. It is exact,
    rejects nothing, and takes as many random numbers whatever the parameters are.

    Args:
        student_t: parameters ``...``.
        radius: uniform random numbers ``...`` in [0, 1).
        angle: likewise.

    Returns:
        ``...``
    """
    half_df, loc, scale = student_t
    # Of 1 - u, which is as uniform and never 0.
    squared = 2 * half_df * torch.expm1(-torch.log1p(-radius) / half_df)
    return loc + scale * squared.sqrt() * torch.cos(2 * math.pi * angle)


def _draws(raw: torch.Tensor, uniform: torch.Tensor, of_each: int) -> torch.Tensor:
    component, radius, angle = uniform.unbind(1)
    shape = radius.shape
    mixtures = raw.reshape(-1, *raw.shape[-2:])
    chosen = chosen_components(mixtures, component.reshape(-1, of_each))
    half_df, loc, scale = (part.reshape(shape) for part in chosen)
    return draw((half_df, loc, scale), radius, angle)


draws = fused.operator("draw(Tensor raw, Tensor uniform, int of_each) -> Tensor", _draws)
"""Draws from mixtures, in one kernel.

Args:
    raw: the head's output, ``mixture kinds components``.
    uniform: what chooses a component, its radius and its angle, ``batch 3 ...``; as many draws of
        each mixture as there are, side by side.
    of_each: draws of each mixture.

Returns:
    ``batch ...``
"""

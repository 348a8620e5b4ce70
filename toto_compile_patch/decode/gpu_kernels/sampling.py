"""Draws from mixtures of Student-Ts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

DRAWS_OF_A_PROGRAM = 128


@triton.jit
def _softplus(value):
    wide = value.to(tl.float64)
    return tl.where(value > 20.0, wide, tl.log(1.0 + tl.exp(wide))).to(tl.float32)


@triton.jit(do_not_specialize=["draws", "of_a_batch", "of_a_mixture"])
def _draw(
    raw, uniform, drawn, draws, of_a_batch, of_a_mixture, components, eps,
    MIXTURE: tl.constexpr, BLOCK: tl.constexpr, COMPONENTS: tl.constexpr,
):  # fmt: skip
    draw = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = draw < draws
    of_batch = uniform + draw // of_a_batch * 3 * of_a_batch + draw % of_a_batch
    kinds: tl.constexpr = 4 if MIXTURE else 3
    place = raw + draw // of_a_mixture * kinds * components
    found = tl.zeros((BLOCK,), tl.int32)
    if MIXTURE:
        component = tl.arange(0, COMPONENTS)[None, :]
        there = inside[:, None] & (component < components)
        logits = tl.load(
            place[:, None] + 3 * components + component, mask=there, other=float("-inf")
        )
        weights = tl.exp(logits - tl.max(logits, 1)[:, None])
        weights = tl.where(component < components, weights, 0.0)
        cumulated = tl.cumsum(weights, 1)
        wanted = tl.load(of_batch, mask=inside, other=0.0) * tl.sum(weights, 1)
        passed = (cumulated <= wanted[:, None]) & (component < components - 1)
        found = tl.sum(passed.to(tl.int32), 1)
    # A NaN stays one.
    df = _softplus(tl.load(place + found, mask=inside, other=0.0))
    half_df = (2.0 + tl.where(df < eps, eps, df)) / 2
    loc = tl.load(place + components + found, mask=inside, other=0.0)
    scale = _softplus(tl.load(place + 2 * components + found, mask=inside, other=0.0))
    scale = tl.where(scale < eps, eps, scale)
    radius = tl.load(of_batch + of_a_batch, mask=inside, other=0.0).to(tl.float64)
    angle = tl.load(of_batch + 2 * of_a_batch, mask=inside, other=0.0).to(tl.float64)
    half = half_df.to(tl.float64)
    squared = 2 * half * (tl.exp(-tl.log(1.0 - radius) / half) - 1.0)
    unit = tl.sqrt(squared) * tl.cos(6.283185307179586 * angle)
    tl.store(drawn + draw, loc + scale * unit.to(tl.float32), mask=inside)


def draw(raw: torch.Tensor, uniform: torch.Tensor, draws_of_a_mixture: int) -> torch.Tensor:
    raw, uniform = raw.contiguous(), uniform.contiguous()
    kinds, components = raw.shape[-2:]
    batch, _, *rest = uniform.shape
    drawn = uniform.new_empty(batch, *rest)
    draws = drawn.numel()
    _draw[(triton.cdiv(draws, DRAWS_OF_A_PROGRAM),)](
        raw,
        uniform,
        drawn,
        draws,
        draws // batch,
        draws_of_a_mixture,
        components,
        torch.finfo(raw.dtype).eps,
        # Its logits are the fourth kind of parameters.
        MIXTURE=kinds > 3,
        BLOCK=DRAWS_OF_A_PROGRAM,
        COMPONENTS=triton.next_power_of_2(components),
    )
    return drawn

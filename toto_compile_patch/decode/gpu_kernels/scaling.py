"""Causal scaling by patches: of a context, and of each patch that is generated."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS_OF_A_PROGRAM = 8
STEPS_AT_ONCE = 1024


@triton.jit
def _at_least(value, bound):
    # A NaN stays one, on either side.
    return tl.where(bound != bound, bound, tl.where(value < bound, bound, value))


@triton.jit
def _at_most(value, bound):
    return tl.where(bound != bound, bound, tl.where(value > bound, bound, value))


@triton.jit
def _deviation(weights, squares, minimum, BESSEL: tl.constexpr):
    count = tl.where(weights < 1.0, 1.0, weights)
    if BESSEL:
        count = tl.where(count - 1.0 < 1.0, 1.0, count - 1.0)
    return tl.sqrt(squares / count + minimum)


@triton.jit(
    do_not_specialize=["steps"],
    # They are the user's at first, and copies in a CUDA graph.
    do_not_specialize_on_alignment=["series", "mask"],
)
def _scale_context(
    series, mask, scaled, patch_stats, state, steps, minimum, factor, BOUNDED: tl.constexpr,
    BESSEL: tl.constexpr, PATCH: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    all_series = tl.num_programs(0).to(tl.int64)
    x_place = series + number * steps
    m_place = mask + number * steps
    block = tl.arange(0, PATCH * PATCHES)
    lower = tl.full((), 0.0, tl.float64)
    upper = lower
    if BOUNDED:
        count = tl.zeros((PATCH * PATCHES,), tl.float64)
        total = tl.zeros((PATCH * PATCHES,), tl.float64)
        for start in range(0, steps, PATCH * PATCHES):
            at = start + block
            inside = at < steps
            x = tl.load(x_place + at, mask=inside, other=0.0).to(tl.float64)
            w = tl.load(m_place + at, mask=inside, other=0).to(tl.float64)
            count += w * w
            total += w * x
        n = tl.sum(count, 0)
        n = tl.where(n < 1.0, 1.0, n)
        mean = tl.sum(total, 0) / n
        # As torch.nan_to_num does.
        mean = tl.where(mean != mean, 0.0, mean)
        greatest = 1.7976931348623157e308
        mean = tl.minimum(tl.maximum(mean, -greatest), greatest)
        squared = tl.zeros((PATCH * PATCHES,), tl.float64)
        for start in range(0, steps, PATCH * PATCHES):
            at = start + block
            inside = at < steps
            x = tl.load(x_place + at, mask=inside, other=0.0).to(tl.float64)
            w = tl.load(m_place + at, mask=inside, other=0).to(tl.float64)
            from_mean = tl.where(inside, (x - mean) * w * w, 0.0)
            squared += from_mean * from_mean
        own = tl.sqrt(tl.sum(squared, 0) / n + minimum)
        lower = own / factor
        lower = tl.where(lower < minimum, minimum, lower)
        upper = own * factor
    weight_before = tl.full((), 0.0, tl.float64)
    total_before = tl.full((), 0.0, tl.float64)
    squares_before = tl.full((), 0.0, tl.float64)
    patch = tl.arange(0, PATCHES)
    is_last = (tl.arange(0, PATCH) == PATCH - 1)[None, :]
    patches = steps // PATCH
    for start in range(0, steps, PATCH * PATCHES):
        at = start + block
        inside = at < steps
        given = tl.load(x_place + at, mask=inside, other=0.0)
        x = given.to(tl.float64)
        w = tl.load(m_place + at, mask=inside, other=0).to(tl.float64)
        weights = weight_before + tl.cumsum(w, 0)
        totals = total_before + tl.cumsum(w * x, 0)
        means = totals / tl.where(weights < 1.0, 1.0, weights)
        earlier = weights - w
        before = (totals - w * x) / tl.where(earlier < 1.0, 1.0, earlier)
        squares = squares_before + tl.cumsum((x - before) * (x - means) * w, 0)
        shape: tl.constexpr = (PATCHES, PATCH)
        loc = tl.sum(tl.where(is_last, tl.reshape(means, shape), 0.0), 1)
        by_patch = tl.sum(tl.where(is_last, tl.reshape(weights, shape), 0.0), 1)
        sum_of_squares = tl.sum(tl.where(is_last, tl.reshape(squares, shape), 0.0), 1)
        scale = _deviation(by_patch, sum_of_squares, minimum, BESSEL)
        if BOUNDED:
            scale = _at_most(_at_least(scale, lower), upper)
        loc32 = loc.to(tl.float32)
        scale32 = scale.to(tl.float32)
        result = (tl.reshape(given, shape) - loc32[:, None]) / scale32[:, None]
        number_of_patch = start // PATCH + patch
        here = number_of_patch < patches
        to = scaled + number * steps + number_of_patch[:, None] * PATCH
        tl.store(to + tl.arange(0, PATCH)[None, :], result, mask=here[:, None])
        # The last patch's alone: one place, for a block of patches.
        last = number_of_patch == patches - 1
        place = patch_stats + number + tl.zeros((PATCHES,), tl.int32)
        tl.store(place, loc32, mask=last)
        tl.store(place + all_series, scale32, mask=last)
        end = at == tl.minimum(start + PATCH * PATCHES, steps) - 1
        weight_before = tl.sum(tl.where(end, weights, 0.0), 0)
        total_before = tl.sum(tl.where(end, totals, 0.0), 0)
        squares_before = tl.sum(tl.where(end, squares, 0.0), 0)
    tl.store(state + number, weight_before)
    tl.store(state + all_series + number, total_before)
    tl.store(state + 2 * all_series + number, squares_before)
    tl.store(state + 3 * all_series + number, lower)
    tl.store(state + 4 * all_series + number, upper)


def scale_context(
    series: torch.Tensor,
    mask: torch.Tensor,
    patch_size: int,
    minimum: float,
    factor: float,
    bessel: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    series, mask = series.contiguous(), mask.contiguous()
    batch, variates, steps = series.shape
    scaled = torch.empty_like(series)
    patch_stats = series.new_empty(2, batch, variates)
    state = series.new_empty(5, batch, variates, dtype=torch.float64)
    # Always as many, so that one compilation serves all lengths.
    patches = max(1, STEPS_AT_ONCE // patch_size)
    _scale_context[(batch * variates,)](
        series,
        mask,
        scaled,
        patch_stats,
        state,
        steps,
        minimum,
        factor,
        BOUNDED=factor > 0,
        BESSEL=bessel,
        PATCH=patch_size,
        PATCHES=patches,
    )
    return scaled, patch_stats, state


@triton.jit(
    do_not_specialize=[
        "rows", "samples", "weight_series", "weight_sample", "total_series", "total_sample",
        "squares_series", "squares_sample",
    ]
)  # fmt: skip
def _scale_patch(
    patch, weight, total, squares, lower_bound, upper_bound, scaled, patch_stats, state,
    rows, samples, weight_series, weight_sample, total_series, total_sample, squares_series,
    squares_sample, minimum, BOUNDED: tl.constexpr, BESSEL: tl.constexpr, PATCH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    series = row // samples
    sample = row % samples
    step = tl.arange(0, PATCH)[None, :]
    place = row[:, None] * PATCH + step
    given = tl.load(patch + place, mask=inside[:, None], other=0.0)
    x = given.to(tl.float64)
    w0 = tl.load(weight + series * weight_series + sample * weight_sample, mask=inside, other=0.0)
    t0 = tl.load(total + series * total_series + sample * total_sample, mask=inside, other=0.0)
    s0 = tl.load(
        squares + series * squares_series + sample * squares_sample, mask=inside, other=0.0
    )
    sums = tl.cumsum(x, 1)
    weights = w0[:, None] + (step + 1).to(tl.float64)
    totals = t0[:, None] + sums
    means = totals / tl.where(weights < 1.0, 1.0, weights)
    earlier = weights - 1.0
    before = (totals - x) / tl.where(earlier < 1.0, 1.0, earlier)
    after_squares = s0 + tl.sum((x - before) * (x - means), 1)
    last = step == PATCH - 1
    after_total = tl.sum(tl.where(last, totals, 0.0), 1)
    after_weight = w0 + PATCH
    loc = after_total / tl.where(after_weight < 1.0, 1.0, after_weight)
    scale = _deviation(after_weight, after_squares, minimum, BESSEL)
    if BOUNDED:
        lower = tl.load(lower_bound + series, mask=inside, other=0.0)
        upper = tl.load(upper_bound + series, mask=inside, other=0.0)
        scale = _at_most(_at_least(scale, lower), upper)
    loc32 = loc.to(tl.float32)
    scale32 = scale.to(tl.float32)
    tl.store(scaled + place, (given - loc32[:, None]) / scale32[:, None], mask=inside[:, None])
    tl.store(patch_stats + row, loc32, mask=inside)
    tl.store(patch_stats + rows + row, scale32, mask=inside)
    tl.store(state + row, after_weight, mask=inside)
    tl.store(state + rows + row, after_total, mask=inside)
    tl.store(state + 2 * rows + row, after_squares, mask=inside)


def scale_patch(
    patch: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    squares: torch.Tensor,
    lower: torch.Tensor | None,
    upper: torch.Tensor | None,
    minimum: float,
    bessel: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    patch = patch.contiguous()
    batch, variates, samples, patch_size = patch.shape
    rows = batch * variates * samples
    scaled = torch.empty_like(patch)
    patch_stats = patch.new_empty(2, batch, variates, samples)
    state = weight.new_empty(3, batch, variates, samples)
    _scale_patch[(triton.cdiv(rows, ROWS_OF_A_PROGRAM),)](
        patch,
        weight,
        total,
        squares,
        weight if lower is None else lower.contiguous(),
        weight if upper is None else upper.contiguous(),
        scaled,
        patch_stats,
        state,
        rows,
        samples,
        *weight.stride()[1:],
        *total.stride()[1:],
        *squares.stride()[1:],
        minimum,
        BOUNDED=lower is not None,
        BESSEL=bessel,
        PATCH=patch_size,
        ROWS=ROWS_OF_A_PROGRAM,
    )
    return scaled, patch_stats, state

"""Kernels for CUDA devices, in Triton: what lies between the products of a forecast, in one pass
each where torch's own operators take up to forty.

A function here launches what the operator of its name computes (see ``fused``); the operator's
formula, beside the code that uses it, says what that is. In float32, but where sums would lose too
much. What varies from forecast to forecast is not compiled in: ``do_not_specialize``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS_OF_A_PROGRAM = 8
DRAWS_OF_A_PROGRAM = 128
NUMBERS_OF_A_PROGRAM = 1024
STEPS_AT_ONCE = 1024


@triton.jit
def _sum_and_norm(
    hidden, delta, scale, total, normed, features, eps, ADDS: tl.constexpr, SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * features
    feature = tl.arange(0, BLOCK)
    inside = feature < features
    row = tl.load(hidden + start + feature, mask=inside, other=0.0)
    if ADDS:
        row += tl.load(delta + start + feature, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + start + feature, row, mask=inside)
    root = tl.sqrt_rn(tl.sum(row * row, 0) / features + eps)
    row = row / root
    if SCALES:
        row *= tl.load(scale + feature, mask=inside, other=0.0)
    tl.store(normed + start + feature, row, mask=inside)


def norm(rows: torch.Tensor, scale: torch.Tensor | None, eps: float) -> torch.Tensor:
    return _summed_and_normed(rows, None, scale, eps)[1]


def sum_and_norm(
    rows: torch.Tensor, delta: torch.Tensor, scale: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _summed_and_normed(rows, delta, scale, eps)


def _summed_and_normed(
    hidden: torch.Tensor, delta: torch.Tensor | None, scale: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = hidden.contiguous()
    delta = None if delta is None else delta.contiguous()
    scale = None if scale is None else scale.contiguous()
    rows, features = hidden.shape
    total = hidden if delta is None else torch.empty_like(hidden)
    normed = torch.empty_like(hidden)
    _sum_and_norm[(rows,)](
        hidden,
        hidden if delta is None else delta,
        hidden if scale is None else scale,
        total,
        normed,
        features,
        eps,
        ADDS=delta is not None,
        SCALES=scale is not None,
        BLOCK=triton.next_power_of_2(features),
    )
    return total, normed


@triton.jit(do_not_specialize=["first", "centre"])
def _rotary_tables(
    frequencies, scales, cosines, sines, first, centre, scale_base, SIZE: tl.constexpr
):  # fmt: skip
    number = tl.program_id(0)
    position = first + number
    feature = tl.arange(0, SIZE)
    # As upstream rounds it; far from zero, only double precision knows its sine.
    angle = position.to(tl.float32) * tl.load(frequencies + feature // 2)
    cosine = tl.cos(angle.to(tl.float64)).to(tl.float32)
    sine = tl.sin(angle.to(tl.float64)).to(tl.float32)
    sine = tl.where(feature % 2 == 0, -sine, sine)
    base = tl.load(scales + feature % (SIZE // 2)).to(tl.float64)
    power = (position - centre).to(tl.float64) / scale_base
    scale = tl.exp(power * tl.log(base)).to(tl.float32)
    place = number * 2 * SIZE + feature
    tl.store(cosines + place, cosine * scale)
    tl.store(sines + place, sine * scale)
    tl.store(cosines + place + SIZE, cosine / scale)
    tl.store(sines + place + SIZE, sine / scale)


def rotary_tables(
    frequencies: torch.Tensor,
    scales: torch.Tensor,
    first: int,
    count: int,
    centre: int,
    scale_base: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    size = 2 * frequencies.shape[0]
    cosines, sines = (frequencies.new_empty(count, 2, size) for _ in range(2))
    given = frequencies.contiguous(), scales.contiguous()
    _rotary_tables[(count,)](
        *given, cosines, sines, first, centre, scale_base, SIZE=size, num_warps=1
    )
    return cosines, sines


@triton.jit(do_not_specialize=["rows", "first_kind", "positions"])
def _by_heads(
    features, cosines, sines, turned, rows, heads, first_kind, positions,
    ROTATES: tl.constexpr, HEADS_FIRST: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    kind = tl.program_id(1)
    kinds = tl.num_programs(1)
    head = tl.arange(0, HEADS)[None, :]
    feature = tl.arange(0, SIZE)[:, None]
    inside = head < heads
    source = features + (row * kinds + kind) * heads * SIZE
    if HEADS_FIRST:
        value = tl.load(source + head * SIZE + feature, mask=inside, other=0.0)
    else:
        value = tl.load(source + feature * heads + head, mask=inside, other=0.0)
    target = turned + (kind * rows + row) * heads * SIZE + head * SIZE + feature
    if ROTATES:
        which = first_kind + kind
        if which < 2:
            other = feature ^ 1
            if HEADS_FIRST:
                beside = tl.load(source + head * SIZE + other, mask=inside, other=0.0)
            else:
                beside = tl.load(source + other * heads + head, mask=inside, other=0.0)
            # One position for all rows, or as many as there are rows of a series.
            place = (row % positions * 2 + which) * SIZE + feature
            value = value * tl.load(cosines + place) + beside * tl.load(sines + place)
    tl.store(target, value, mask=inside)


def by_heads(
    features: torch.Tensor,
    heads: int,
    heads_first: bool,
    kinds: int,
    first_kind: int,
    cosines: torch.Tensor | None,
    sines: torch.Tensor | None,
) -> torch.Tensor:
    features = features.contiguous()
    rows = features.shape[0]
    size = features.shape[1] // (kinds * heads)
    turned = features.new_empty(kinds, rows, heads * size)
    _by_heads[(rows, kinds)](
        features,
        features if cosines is None else cosines.contiguous(),
        features if sines is None else sines.contiguous(),
        turned,
        rows,
        heads,
        first_kind,
        1 if cosines is None else cosines.shape[0],
        ROTATES=cosines is not None,
        HEADS_FIRST=heads_first,
        HEADS=triton.next_power_of_2(heads),
        SIZE=size,
    )
    return turned


@triton.jit(do_not_specialize=["numbers"])
def _gated(up, gated, numbers, width, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = number < numbers
    place = number // width * (2 * width) + number % width
    gate = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(up + place + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(gated + number, gate / (1.0 + tl.exp(-gate)) * value, mask=inside)


def gated(up: torch.Tensor) -> torch.Tensor:
    up = up.contiguous()
    rows, width = up.shape[0], up.shape[1] // 2
    result = up.new_empty(rows, width)
    programs = triton.cdiv(rows * width, NUMBERS_OF_A_PROGRAM)
    _gated[(programs,)](up, result, rows * width, width, BLOCK=NUMBERS_OF_A_PROGRAM)
    return result


@triton.jit(do_not_specialize=["seen", "asked"])
def _attend_to_few(
    queries, keys, values, attended, heads, seen, asked, softmax_scale,
    query_series, query_head, query_row, key_series, key_head, key_row,
    value_series, value_head, value_row,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(asked, QUERIES)
    # In the one axis of a grid that has no limit.
    series = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * QUERIES
    query = first + tl.arange(0, QUERIES)
    feature = tl.arange(0, SIZE)
    key = tl.arange(0, KEYS)
    place = queries + series * query_series + head * query_head
    is_asked = query < asked
    q = tl.load(
        place + query[:, None] * query_row + feature[None, :], mask=is_asked[:, None], other=0.0
    )
    q = q * softmax_scale
    k_place = keys + series * key_series + head * key_head
    v_place = values + series * value_series + head * value_head
    position = query + seen - asked
    greatest = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    summed = tl.zeros((QUERIES, SIZE), tl.float32)
    last = tl.minimum(first + QUERIES + seen - asked, seen)
    for start in range(0, last, KEYS):
        at = start + key
        k = tl.load(
            k_place + at[None, :] * key_row + feature[:, None], mask=(at < seen)[None, :], other=0.0
        )
        score = tl.dot(q, k, input_precision="ieee")
        score = tl.where(at[None, :] <= position[:, None], score, float("-inf"))
        new = tl.maximum(greatest, tl.max(score, 1))
        fade = tl.exp(greatest - new)
        share = tl.exp(score - new[:, None])
        weight = weight * fade + tl.sum(share, 1)
        v = tl.load(
            v_place + at[:, None] * value_row + feature[None, :],
            mask=(at < seen)[:, None],
            other=0.0,
        )
        summed = summed * fade[:, None] + tl.dot(share, v, input_precision="ieee")
        greatest = new
    # Rows of a series side by side, and the heads of a row.
    target = attended + ((series * asked + query[:, None]) * heads + head) * SIZE
    tl.store(target + feature[None, :], summed / weight[:, None], mask=is_asked[:, None])


def attend_to_few(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    series, heads, asked, size = queries.shape
    seen = keys.shape[2]
    attended = queries.new_empty(series, asked, heads, size)
    block = 16
    _attend_to_few[(series * triton.cdiv(asked, block), heads)](
        queries,
        keys,
        values,
        attended,
        heads,
        seen,
        asked,
        size**-0.5,
        *queries.stride()[:3],
        *keys.stride()[:3],
        *values.stride()[:3],
        QUERIES=block,
        KEYS=16 if seen <= 16 else 32,
        SIZE=size,
        num_warps=4,
    )
    return attended


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
    batch, variates, steps = series.shape
    scaled = torch.empty_like(series)
    patch_stats = series.new_empty(2, batch, variates)
    state = series.new_empty(5, batch, variates, dtype=torch.float64)
    # Always as many, so that one compilation serves all lengths.
    patches = max(1, STEPS_AT_ONCE // patch_size)
    _scale_context[(batch * variates,)](
        series.contiguous(),
        mask.contiguous(),
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
    batch, variates, samples, patch_size = patch.shape
    rows = batch * variates * samples
    scaled = torch.empty_like(patch)
    patch_stats = patch.new_empty(2, batch, variates, samples)
    state = weight.new_empty(3, batch, variates, samples)
    _scale_patch[(triton.cdiv(rows, ROWS_OF_A_PROGRAM),)](
        patch.contiguous(),
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


@triton.jit(do_not_specialize=["count"])
def _linear_of_few_rows(
    rows, weight, bias, residual, product, count, out_features, in_features, ADDS: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    # Three axes throughout, so that what is read of the weight stays where it is multiplied.
    row = tl.arange(0, ROWS)[:, None, None]
    out = (tl.program_id(0) * OUT + tl.arange(0, OUT))[None, :, None]
    feature = tl.arange(0, IN)[None, None, :]
    summed = tl.zeros((ROWS, OUT, IN), tl.float32)
    for start in range(0, in_features, IN):
        at = start + feature
        of_weight = tl.load(
            weight + out * in_features + at, mask=(out < out_features) & (at < in_features),
            other=0.0, eviction_policy="evict_first",
        )  # fmt: skip
        given = tl.load(
            rows + row * in_features + at, mask=(row < count) & (at < in_features), other=0.0
        )
        summed += of_weight * given
    result = tl.sum(summed, 2)
    out = tl.program_id(0) * OUT + tl.arange(0, OUT)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    result += tl.load(bias + out, mask=out < out_features, other=0.0)
    inside = (row < count) & (out < out_features)
    place = row * out_features + out
    if ADDS:
        result += tl.load(residual + place, mask=inside, other=0.0)
    tl.store(product + place, result, mask=inside)


def linear_of_few_rows(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    count, in_features = rows.shape
    out_features = weight.shape[0]
    product = rows.new_empty(count, out_features)
    out, width, warps = _block_of_few_rows(count, in_features, out_features)
    _linear_of_few_rows[(triton.cdiv(out_features, out),)](
        rows,
        weight,
        bias,
        rows if residual is None else residual,
        product,
        count,
        out_features,
        in_features,
        ADDS=residual is not None,
        ROWS=triton.next_power_of_2(count),
        OUT=out,
        IN=width,
        num_warps=warps,
    )
    return product


def _block_of_few_rows(count: int, in_features: int, out_features: int) -> tuple[int, int, int]:
    """Features of the result and of the rows in a block, and its warps: what was fastest on an
    H100 for the shapes of Toto-Open-Base-1.0."""
    is_wide, is_deep = out_features >= 2 * in_features, in_features >= 2 * out_features
    if count == 1:
        return (4, 1024, 8) if is_deep else (2, 256, 2)
    if count == 2:
        return 4, 512, 4
    if is_wide and count > 4:
        return 4, 128, (4 if count <= 8 else 8)
    return 2, 256, (4 if count <= 8 else 8)


@triton.jit(do_not_specialize=["samples", "length", "step", "room"])
def _attend_of_samples(
    queries, keys, values, context_keys, context_values, own_keys, own_values, attended,
    heads, samples, length, step, room, softmax_scale,
    SAMPLES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(samples, SAMPLES)
    series = (tl.program_id(0) // blocks).to(tl.int64)
    sample = tl.program_id(0) % blocks * SAMPLES + tl.arange(0, SAMPLES)
    there = (sample < samples)[:, None]
    feature = tl.arange(0, SIZE)
    row = ((series * samples + sample[:, None]) * heads + head) * SIZE + feature[None, :]
    q = tl.load(queries + row, mask=there, other=0.0) * softmax_scale
    of_head = (series * heads + head) * length * SIZE
    key = tl.arange(0, KEYS)
    # The newest patch first: its score is the first greatest.
    own_k = tl.load(keys + row, mask=there, other=0.0)
    own_v = tl.load(values + row, mask=there, other=0.0)
    greatest = tl.sum(q * own_k, 1)
    weight = tl.full((SAMPLES,), 1.0, tl.float32)
    summed = own_v
    own = ((series * heads + head) * samples + sample[:, None]) * room * SIZE + feature[None, :]
    tl.store(own_keys + own + step * SIZE, own_k, mask=there)
    tl.store(own_values + own + step * SIZE, own_v, mask=there)
    for earlier in range(0, step):
        own_k = tl.load(own_keys + own + earlier * SIZE, mask=there, other=0.0)
        own_v = tl.load(own_values + own + earlier * SIZE, mask=there, other=0.0)
        score = tl.sum(q * own_k, 1)
        new = tl.maximum(greatest, score)
        fade, share = tl.exp(greatest - new), tl.exp(score - new)
        weight = weight * fade + share
        summed = summed * fade[:, None] + own_v * share[:, None]
        greatest = new
    for start in range(0, length, KEYS):
        at = start + key
        inside = at < length
        k = tl.load(
            context_keys + of_head + at[None, :] * SIZE + feature[:, None], mask=inside[None, :],
            other=0.0,
        )  # fmt: skip
        score = tl.dot(q, k, input_precision="ieee")
        score = tl.where(inside[None, :], score, float("-inf"))
        new = tl.maximum(greatest, tl.max(score, 1))
        fade = tl.exp(greatest - new)
        share = tl.exp(score - new[:, None])
        weight = weight * fade + tl.sum(share, 1)
        v = tl.load(
            context_values + of_head + at[:, None] * SIZE + feature[None, :],
            mask=inside[:, None], other=0.0,
        )  # fmt: skip
        summed = summed * fade[:, None] + tl.dot(share, v, input_precision="ieee")
        greatest = new
    tl.store(attended + row, summed / weight[:, None], mask=there)


def attend_of_samples(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    context_keys: torch.Tensor,
    context_values: torch.Tensor,
    own_keys: torch.Tensor,
    own_values: torch.Tensor,
    step: int,
) -> torch.Tensor:
    batch, variates, heads, samples, room, size = own_keys.shape
    rows = (queries.contiguous(), keys.contiguous(), values.contiguous())
    attended = torch.empty_like(rows[0])
    # Triton multiplies no fewer rows than 16.
    block = 32 if samples > 16 else 16
    _attend_of_samples[(batch * variates * triton.cdiv(samples, block), heads)](
        *rows,
        context_keys.contiguous(),
        context_values.contiguous(),
        own_keys,
        own_values,
        attended,
        heads,
        samples,
        context_keys.shape[-2],
        step,
        room,
        size**-0.5,
        SAMPLES=block,
        KEYS=32,
        SIZE=size,
        num_warps=4,
    )
    return attended


@triton.jit(do_not_specialize=["count"])
def _linear_in_three_passes(
    rows, weight, bias, residual, product, count, out_features, in_features, ADDS: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time read the same rows and the same features of the weight.
    down, across = tl.cdiv(count, ROWS), tl.cdiv(out_features, OUT)
    program = tl.program_id(0)
    first = program // (GROUP * across) * GROUP
    size = tl.minimum(down - first, GROUP)
    row = (first + program % (GROUP * across) % size) * ROWS + tl.arange(0, ROWS)
    out = program % (GROUP * across) // size * OUT + tl.arange(0, OUT)
    feature = tl.arange(0, IN)
    summed = tl.zeros((ROWS, OUT), tl.float32)
    for start in range(0, in_features, IN):
        at = start + feature
        given = tl.load(
            rows + row[:, None].to(tl.int64) * in_features + at[None, :],
            mask=(row < count)[:, None] & (at < in_features)[None, :], other=0.0,
        )  # fmt: skip
        of_weight = tl.load(
            weight + out[None, :].to(tl.int64) * in_features + at[:, None],
            mask=(out < out_features)[None, :] & (at < in_features)[:, None], other=0.0,
        )  # fmt: skip
        summed = tl.dot(given, of_weight, summed, input_precision="tf32x3")
    summed += tl.load(bias + out, mask=out < out_features, other=0.0)[None, :]
    inside = (row < count)[:, None] & (out < out_features)[None, :]
    place = row[:, None].to(tl.int64) * out_features + out[None, :]
    if ADDS:
        summed += tl.load(residual + place, mask=inside, other=0.0)
    tl.store(product + place, summed, mask=inside)


def linear_in_three_passes(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    count, in_features = rows.shape
    out_features = weight.shape[0]
    product = rows.new_empty(count, out_features)
    # What was fastest on an H100 for the shapes of Toto-Open-Base-1.0.
    is_deep = in_features >= 2 * out_features and count > 1024
    down, across, width, stages = (64, 64, 32, 4) if is_deep else (64, 64, 64, 3)
    _linear_in_three_passes[(triton.cdiv(count, down) * triton.cdiv(out_features, across),)](
        rows,
        weight,
        bias,
        rows if residual is None else residual,
        product,
        count,
        out_features,
        in_features,
        ADDS=residual is not None,
        ROWS=down,
        OUT=across,
        IN=width,
        GROUP=8,
        num_warps=4,
        num_stages=stages,
    )
    return product

"""What lies between the products of a layer: norms, gated units, and heads, rotated."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

NUMBERS_OF_A_PROGRAM = 1024


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

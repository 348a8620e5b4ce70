"""Products with few rows, which are nothing but reading weights, and with many in three passes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


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

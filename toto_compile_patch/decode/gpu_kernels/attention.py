"""Attention over few keys, and of samples to the context that they share and their own patches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


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

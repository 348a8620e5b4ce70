"""Samples that share a context: attention as a CPU makes it and as a GPU does.

Both ways run on a CPU; which of them a forecast takes is decided by its device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch.decode import caches
from toto_compile_patch.decode.attention import (
    Heads,
    attend_by_log_sums,
    attend_over_shared_context,
    has_log_sums,
)
from toto_compile_patch.decode.caches import ContextCache, SamplesCache
from toto_compile_patch.decode.row_layout import Padding, RowLayout

SHAPES = [(1, 1, 2, 1, 1, 1, 2), (2, 3, 5, 4, 8, 7, 3), (1, 2, 32, 3, 64, 64, 5)]
"""Batch, variates, samples, heads, features of a head, positions of the context, own patches."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_are_one_softmax_over_context_and_own_patches(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    batch, variates, samples, heads, features, length, patches = shape
    g = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> torch.Tensor:
        # So large that some weights are nearly 1 and others nearly 0.
        return 3 * torch.randn(sizes, generator=g, dtype=dtype)

    queries = random(batch, variates, heads, samples, features)
    context = tuple(random(batch, variates, heads, length, features) for _ in range(2))
    own = tuple(random(batch, variates, heads, samples, patches, features) for _ in range(2))
    keys, numbers = (
        torch.cat([part.unsqueeze(3).expand(-1, -1, -1, samples, -1, -1), more], dim=-2)
        for part, more in zip(context, own, strict=True)
    )
    scores = (keys * queries.unsqueeze(-2)).sum(-1) * features**-0.5
    wanted = (scores.softmax(-1).unsqueeze(-1) * numbers).sum(-2)

    as_a_gpu = attend_over_shared_context(queries, (context[0], context[1]), (own[0], own[1]))
    keys_of, values_of = ([part.transpose(2, 3) for part in of.unbind(-2)] for of in own)
    by_sample = queries.transpose(2, 3)
    as_a_cpu = attend_by_log_sums(by_sample, (context[0], context[1]), (keys_of, values_of))
    for found in (as_a_gpu, as_a_cpu.transpose(2, 3)):
        tolerance = 1e-12 if dtype is torch.float64 else 2e-4
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("least", [0, 16])
def test_a_step_reads_the_steps_before_it(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    batch, variates, heads, samples, features, length, steps = 2, 3, 2, 2, 4, 5, 4
    g = torch.Generator().manual_seed(1)
    keys, numbers = torch.randn(2, batch, variates, heads, length, features, generator=g)
    context = ContextCache({7: (keys, numbers)}, length)
    # Fewer rows than there are to be, so that rows of zeros follow.
    layout = RowLayout(batch, variates, samples, Padding(least))
    rows = batch * variates * samples
    three = [torch.randn(3, rows, heads * features, generator=g) for _ in range(steps)]

    def attended() -> torch.Tensor:
        cache = SamplesCache.empty(context, samples, steps)
        found = [
            cache.attention(7, Heads(layout, heads), step)(*(layout.pad(part) for part in parts))
            for step, parts in enumerate(three)
        ]
        return torch.stack(found)[:, :rows]

    as_a_cpu = attended()
    monkeypatch.setattr(caches, "has_log_sums", lambda device: False)
    torch.testing.assert_close(as_a_cpu, attended(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("as_a_cpu", [True, False])
def test_the_result_has_the_type_of_values(monkeypatch: pytest.MonkeyPatch, as_a_cpu: bool) -> None:
    """Queries and keys of a model of 16 bits are rotated in 32."""
    if not as_a_cpu:
        monkeypatch.setattr(caches, "has_log_sums", lambda device: False)
    g = torch.Generator().manual_seed(2)
    context = ContextCache({0: tuple(torch.randn(2, 1, 1, 2, 5, 4, generator=g))}, 5)
    steps = torch.randn(2, 3, 6, 8, generator=g).bfloat16().float()

    def attended(dtype: torch.dtype) -> torch.Tensor:
        cache = SamplesCache.empty(context, 6, len(steps))
        heads = Heads(RowLayout(1, 1, 6, Padding(0)), 2)
        found = [
            cache.attention(0, heads, step)(queries, keys, numbers.to(dtype))
            for step, (queries, keys, numbers) in enumerate(steps)
        ]
        return torch.stack(found)

    found, exact = attended(torch.bfloat16), attended(torch.float32)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=1 / 64, atol=1e-3)


@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_samples_as_a_gpu_attends(monkeypatch: pytest.MonkeyPatch, use_kv_cache: bool) -> None:
    model = small_model().model.double()
    inputs = series(5 * PATCH, variates=2, dtype=torch.float64)
    arguments: dict[str, Any] = {"samples": 6, "per_batch": 3, "use_kv_cache": use_kv_cache}
    upstream = values(forecast(model, inputs, 4 * PATCH, **arguments))
    toto_compile_patch.apply("fast_decode", rng="upstream", fallback="error")
    for as_a_cpu in (True, False):
        if not as_a_cpu:
            monkeypatch.setattr(caches, "has_log_sums", lambda device: False)
        found = values(forecast(model, inputs, 4 * PATCH, **arguments))
        torch.testing.assert_close(found, upstream, rtol=1e-9, atol=1e-9)


def test_log_sums_are_a_cpus_alone() -> None:
    assert has_log_sums(torch.device("cpu"))
    assert not has_log_sums(torch.device("cuda"))

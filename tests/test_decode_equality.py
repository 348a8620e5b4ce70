"""The decode path against upstream, on random small models and series."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from random_cases import Case
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch

SLICES = 8


def both(case: Case, samples: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Upstream's forecast and the fast path's, from the same model."""
    model = case.build()
    upstream = case.forecast(model, samples)
    with toto_compile_patch.patched("fast_decode", rng="upstream", fallback="error"):
        fast = case.forecast(model, samples)
    path = toto_compile_patch.last_path()
    assert path is not None
    assert path.taken == "fast"
    assert fast.shape == upstream.shape
    assert fast.dtype == upstream.dtype
    assert fast.device == upstream.device
    return upstream, fast


def tolerance(case: Case, upstream: torch.Tensor, relative: float) -> torch.Tensor:
    """A part of each value and of the series' standard deviation."""
    spread = case.series().series.std().nan_to_num()
    return relative * (upstream.abs() + spread)


def own_error(case: Case, upstream: torch.Tensor) -> float:
    """How far upstream's float32 forecast is from its own in float64."""
    exactly = dataclasses.replace(case, dtype=torch.float64, gentle=True)
    return float((exactly.forecast(exactly.build(), samples=False) - upstream).abs().max())


@pytest.mark.parametrize("part", range(SLICES))
def test_means(part: int, cases: int) -> None:
    for seed in range(part, cases, SLICES):
        case = Case.random(seed)
        upstream, fast = both(case, samples=False)
        exact = case.dtype is torch.float64
        allowed = tolerance(case, upstream, 1e-10 if exact else 1e-5)
        difference = (fast - upstream).abs()
        if not exact and (difference > allowed).any():
            # Some models are chaotic; upstream itself is no more exact than this.
            allowed = torch.full_like(allowed, 2 * own_error(case, upstream))
        assert (difference <= allowed).all(), case


@pytest.mark.parametrize("part", range(SLICES))
def test_same_seed_samples_in_float64(part: int, cases: int) -> None:
    for seed in range(part, cases, SLICES):
        case = dataclasses.replace(Case.random(seed), dtype=torch.float64)
        upstream, fast = both(case, samples=True)
        assert ((fast - upstream).abs() <= tolerance(case, upstream, 1e-9)).all(), case


def test_the_cases_tell_cached_from_uncached_forecasts_apart() -> None:
    """Else equality above would prove little: the two differ in nothing but xPos centres."""
    told = 0
    for seed in range(60):
        case = dataclasses.replace(Case.random(seed), dtype=torch.float64)
        model = case.build()
        cached, uncached = (
            dataclasses.replace(case, use_kv_cache=cached).forecast(model, samples=False)
            for cached in (True, False)
        )
        told += bool(((cached - uncached).abs() > tolerance(case, cached, 1e-7)).any())
    assert told >= 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_means_are_as_close_to_float64_as_upstreams(dtype: torch.dtype) -> None:
    upstream_error = fast_error = 0.0
    for seed in range(12):
        model = small_model(seed).to(dtype).model
        exact_model = small_model(seed).to(dtype).double().model
        inputs = series(8 * (3 + seed), variates=1 + seed % 3, dtype=dtype)
        exact_inputs = inputs._replace(series=inputs.series.double())
        exact = values(forecast(exact_model, exact_inputs, 3 * PATCH))
        upstream = values(forecast(model, inputs, 3 * PATCH))
        with toto_compile_patch.patched("fast_decode", fallback="error"):
            fast = values(forecast(model, inputs, 3 * PATCH))
        assert fast.dtype == upstream.dtype == dtype
        upstream_error += float((upstream.double() - exact).abs().mean())
        fast_error += float((fast.double() - exact).abs().mean())
    assert fast_error <= 1.1 * upstream_error


def test_16_bit_samples_work_on_a_cpu() -> None:
    model = small_model().to(torch.bfloat16).model
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        samples = values(forecast(model, series(40, dtype=torch.bfloat16), 2 * PATCH, 4, 2))
    assert samples.dtype == torch.bfloat16
    assert samples.isfinite().all()


def test_autocast_and_inference_mode() -> None:
    model = small_model().model
    exact = values(forecast(model, series(40), 3 * PATCH))

    def run() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return values(forecast(model, series(40), 3 * PATCH))

    upstream = run()
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        fast = run()
    assert fast.dtype == upstream.dtype
    assert (fast - exact).abs().mean() <= 1.5 * (upstream - exact).abs().mean()
    # What was prepared under inference mode serves outside of it.
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        torch.testing.assert_close(values(forecast(model, series(40), 3 * PATCH)), exact)


def test_deterministic_algorithms() -> None:
    model = small_model().model
    upstream = values(forecast(model, series(40), 3 * PATCH))
    torch.use_deterministic_algorithms(True)
    try:
        with toto_compile_patch.patched("fast_decode", fallback="error"):
            fast = values(forecast(model, series(40), 3 * PATCH))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(fast, upstream, rtol=1e-5, atol=1e-5)


def test_extreme_values_are_replaced_as_upstream_does() -> None:
    """Scales beyond what float16 holds make infinite forecasts, which upstream makes 0."""
    model = small_model().to(torch.float16).model
    with torch.no_grad():
        model.output_distribution.loc_proj.bias.fill_(6e4)
    inputs = series(40, dtype=torch.float16)
    inputs = inputs._replace(series=inputs.series * 100)
    upstream = values(forecast(model, inputs, PATCH))
    assert (upstream == 0).any()
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        fast = values(forecast(model, inputs, PATCH))
    assert torch.equal(fast == 0, upstream == 0)


def test_a_broken_series_raises_what_upstream_raises() -> None:
    model = small_model().model
    inputs = series(40)
    inputs.series[0, 3] = float("nan")

    def complaint() -> Any:
        # Which one depends on whether torch validates distributions.
        with pytest.raises((ValueError, RuntimeError)) as caught:
            forecast(model, inputs, PATCH, 4, 2)
        return caught.type, str(caught.value)[:60]

    upstream = complaint()
    with toto_compile_patch.patched("fast_decode"):
        assert complaint() == upstream


def test_samples_must_divide_into_batches_as_upstreams_must() -> None:
    with (
        toto_compile_patch.patched("fast_decode"),
        pytest.raises(AssertionError, match="num_samples must be divisible"),
    ):
        forecast(small_model().model, series(40), PATCH, 5, 2)

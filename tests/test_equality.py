"""Forecasts with the patches are upstream's forecasts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toto_cases import (
    COMPILE_PATCHES,
    PATCH,
    SCALERS,
    forecast,
    series,
    small_model,
    tiny_model,
    values,
)

import toto_compile_patch

CASES: dict[str, dict[str, Any]] = {
    "base": {},
    "spacewise first": {"spacewise_first": True},
    "no spacewise": {"spacewise_every_n_layers": -1},
    "student t": {
        "output_distribution_classes": ["<class 'model.distribution.StudentTOutput'>"],
        "output_distribution_kwargs": None,
    },
    **{name: {"scaler_cls": f"<class 'model.scaler.{name}'>"} for name in SCALERS},
}


def both(make: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a function returns unpatched and patched."""
    upstream = make()
    with toto_compile_patch.patched(COMPILE_PATCHES):
        return upstream, make()


@pytest.mark.parametrize("use_kv_cache", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_eager_means_are_equal_bit_for_bit(case: str, use_kv_cache: bool) -> None:
    model = small_model(**CASES[case]).model
    inputs = series(45, variates=3, batch=2)
    upstream, patched = both(
        lambda: values(forecast(model, inputs, 3 * PATCH - 1, use_kv_cache=use_kv_cache))
    )
    assert torch.equal(upstream, patched)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_eager_means_in_other_precisions(dtype: torch.dtype) -> None:
    model = small_model().to(dtype).model
    upstream, patched = both(lambda: values(forecast(model, series(40, dtype=dtype), 2 * PATCH)))
    assert upstream.dtype == dtype
    assert torch.equal(upstream, patched)


@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_same_seed_samples_are_equal(use_kv_cache: bool) -> None:
    model = small_model().model
    upstream, patched = both(
        lambda: values(
            forecast(model, series(40, variates=2), 20, 6, per_batch=3, use_kv_cache=use_kv_cache)
        )
    )
    assert upstream.shape == (1, 2, 20, 6)
    assert torch.equal(upstream, patched)


def test_autocast_and_inference_mode() -> None:
    model = small_model().model

    def run() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return values(forecast(model, series(40), 2 * PATCH))

    upstream, patched = both(run)
    assert torch.equal(upstream, patched)


def test_fused_variate_labels() -> None:
    model = small_model().model
    if not hasattr(model, "enable_variate_labels"):
        pytest.skip("variate labels came with toto-ts 0.2.0")
    torch.manual_seed(0)
    model.enable_variate_labels()
    upstream, patched = both(lambda: values(forecast(model, series(40, variates=3), 3 * PATCH)))
    assert torch.equal(upstream, patched)


def assert_compiled_is_close(backend: str, use_kv_cache: bool, samples: int | None) -> None:
    inputs = series(40, variates=2)
    options: dict[str, Any] = {"samples": samples, "per_batch": 2, "use_kv_cache": use_kv_cache}
    upstream = values(forecast(tiny_model().model, inputs, 3 * PATCH, **options))
    toto_compile_patch.apply(COMPILE_PATCHES)
    model = toto_compile_patch.compile(tiny_model().model, backend=backend)
    patched = values(forecast(model, inputs, 3 * PATCH, **options))
    allowed = 1e-5 * (upstream.abs() + inputs.series.std())
    assert ((patched - upstream).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("samples", "use_kv_cache"), [(None, True), pytest.param(4, False, marks=pytest.mark.slow)]
)
def test_traced_forecasts_are_close_to_upstreams_eager_ones(
    samples: int | None, use_kv_cache: bool
) -> None:
    assert_compiled_is_close("aot_eager", use_kv_cache, samples)


@pytest.mark.slow
def test_compiled_forecasts_are_close_to_upstreams_eager_ones() -> None:
    assert_compiled_is_close("inductor", True, 4)


def test_forecasts_go_on_when_patches_change_between_steps() -> None:
    """A cache made unpatched serves patched code, and the other way round."""
    model = small_model().model
    inputs = series(40)
    embedded, id_mask = model.patch_embed(inputs.series[None], inputs.id_mask[None])
    results = []
    for patched_first in (None, True, False):
        if patched_first:
            toto_compile_patch.apply(COMPILE_PATCHES)
        cache = model.allocate_kv_cache(1, 1, 64, torch.device("cpu"), torch.float32)
        with torch.no_grad():
            model.transformer(embedded[:, :, :4], id_mask[..., :4], cache)
            if patched_first is not None:
                (toto_compile_patch.revert if patched_first else toto_compile_patch.apply)()
            results.append(model.transformer(embedded[:, :, 4:], id_mask[..., 4:], cache))
        toto_compile_patch.revert()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.slow
@pytest.mark.parametrize("alone", ["kv_cache", "positional_embedding", "dynamo_config"])
def test_each_patch_alone_leaves_a_compiled_forecast_as_it_is(alone: str) -> None:
    torch._dynamo.reset()
    inputs = series(24)
    upstream = values(forecast(tiny_model().model, inputs, 3 * PATCH))
    toto_compile_patch.apply(alone)
    model = toto_compile_patch.compile(tiny_model().model, backend="eager")
    assert torch.equal(values(forecast(model, inputs, 3 * PATCH)), upstream)

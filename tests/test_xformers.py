"""A model whose feed-forwards are xFormers', as the published one's are where xFormers is there."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch.decode.weights import prepared_weights

pytest.importorskip("xformers", reason="xFormers is not here")

from toto.model import transformer
from xformers.ops.swiglu_op import SwiGLU

HORIZON = 3 * PATCH


def test_the_model_has_them() -> None:
    assert transformer.XFORMERS_SWIGLU_AVAILABLE
    assert type(small_model().model.transformer.layers[0].mlp[0]) is SwiGLU


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_means_are_upstreams(dtype: torch.dtype, compiled: bool, cached: bool) -> None:
    model = small_model().model.to(dtype)
    inputs = series(40, variates=2, batch=2, dtype=dtype)
    upstream = values(forecast(model, inputs, HORIZON, use_kv_cache=cached))
    runtime = "compile" if compiled else "eager"
    with toto_compile_patch.patched("fast_decode", runtime=runtime, fallback="error"):
        fast = values(forecast(model, inputs, HORIZON, use_kv_cache=cached))
        path = toto_compile_patch.last_path()
    assert path is not None
    assert (path.runtime, path.reason) == (runtime, "")
    allowed = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(fast, upstream, rtol=allowed, atol=allowed)


def test_same_seed_samples_in_float64_are_upstreams() -> None:
    model = small_model().model.double()
    inputs = series(40, variates=2, dtype=torch.float64)
    upstream = values(forecast(model, inputs, HORIZON, 6, 3))
    with toto_compile_patch.patched("fast_decode", rng="upstream", fallback="error"):
        fast = values(forecast(model, inputs, HORIZON, 6, 3))
    torch.testing.assert_close(fast, upstream, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_it_is_the_same_model_as_without(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = small_model().model
    monkeypatch.setattr(transformer, "XFORMERS_SWIGLU_AVAILABLE", False)
    native = small_model(seed=1).model
    names = {"mlp.0.w12": "mlp.0", "mlp.0.w3": "mlp.2"}
    state = theirs.state_dict()
    for name in list(state):
        for xformers, torchs in names.items():
            if xformers in name:
                state[name.replace(xformers, torchs)] = state.pop(name)
    native.load_state_dict(state)
    inputs = series(40, variates=2)
    with toto_compile_patch.patched("fast_decode", precision=precision, fallback="error"):
        found = [values(forecast(model, inputs, HORIZON)) for model in (theirs, native)]
        layers = prepared_weights(theirs, precision).layers
    assert torch.equal(*found)
    assert all(hasattr(layer.real.feed_forward, "down") for layer in layers)


@pytest.mark.parametrize(
    ("module", "name"),
    [("toto.model.attention", "memory_efficient_attention"), ("toto.model.util", "rms_norm")],
)
def test_its_functions_that_were_replaced(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module(module), name, lambda *_: None)
    with (
        toto_compile_patch.patched("fast_decode", fallback="error"),
        pytest.raises(toto_compile_patch.FallbackError, match=f"{name} has been replaced"),
    ):
        forecast(small_model().model, series(40), HORIZON)

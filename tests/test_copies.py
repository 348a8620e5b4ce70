"""Copies of models, forecasters and caches, made on one side and used on the other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, tiny_model

import toto_compile_patch

HORIZON = 2 * PATCH
Copy = Callable[[Any], Any]


def sent(value: Any) -> bytes:
    """As joblib, Ray and Spark send what they run."""
    written: bytes = pytest.importorskip("cloudpickle").dumps(value)
    return written


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def loaded(written: bytes) -> Any:
    return torch.load(io.BytesIO(written), weights_only=False)


def same(value: Any) -> Any:
    return value


COPIES: dict[str, tuple[Copy, Copy]] = {
    "copy": (copy.copy, same),
    "deepcopy": (copy.deepcopy, same),
    "pickle": (pickle.dumps, pickle.loads),
    "cloudpickle": (sent, pickle.loads),
    "torch.save": (saved, loaded),
}
"""How a copy is written, and how it is read."""


def side(name: str) -> None:
    if name == "patched":
        toto_compile_patch.apply(fallback="error")
    else:
        toto_compile_patch.revert()


def mean(forecaster: TotoForecaster) -> torch.Tensor:
    found: torch.Tensor = forecaster.forecast(series(40, 2), HORIZON).mean
    return found


SIDES = [("patched", "patched"), ("patched", "unpatched"), ("unpatched", "patched")]


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "compiled"]
)
@pytest.mark.parametrize(("made", "used"), SIDES)
@pytest.mark.parametrize("copied", ["copy", "cloudpickle"])
@pytest.mark.fault(
    injected="copies of a forecaster, by copy and cloudpickle",
    where="made on one side, used on the other, compiled or not",
    observed="it forecasts as the original",
    afterwards="the original does not follow the copy's weights",
)
def test_a_forecaster(copied: str, made: str, used: str, compiled: bool) -> None:
    """It is copied when it has forecast, and its weights have been prepared."""
    original = TotoForecaster(tiny_model().model)
    expected = mean(original)
    if compiled:
        original.model.compile(backend="eager")
    side(made)
    mean(original)
    write, read = COPIES[copied]
    written = write(original)
    side(used)
    twin = read(written)
    for one in (twin, original):
        torch.testing.assert_close(mean(one), expected, rtol=1e-5, atol=1e-4)
    if copied == "copy":
        assert twin.model is original.model
        return
    with torch.no_grad():
        twin.model.unembed.weight.mul_(1.5)
    assert not torch.allclose(mean(twin), expected)
    torch.testing.assert_close(mean(original), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("made", "used"), SIDES)
@pytest.mark.fault(
    injected="weights by torch.save",
    where="saved on one side, loaded on the other into a model that has forecast",
    observed="the forecast is that of the saved model",
    afterwards="no weight of before is used",
)
def test_weights(made: str, used: str) -> None:
    original = TotoForecaster(tiny_model(seed=1).model)
    expected = mean(original)
    side(made)
    mean(original)
    state = loaded(saved(original.model.state_dict()))
    side(used)
    other = TotoForecaster(tiny_model(seed=2).model)
    mean(other)
    assert not other.model.load_state_dict(state).missing_keys
    torch.testing.assert_close(mean(other), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.fault(
    injected="deepcopy, pickle and torch.save of a model or forecaster",
    where="applied or not",
    observed="upstream's TypeError, in the same words",
    afterwards="nothing has changed",
)
def test_what_python_cannot_copy(copied: str) -> None:
    """Upstream's model holds a static method: copies are refused in the same words."""
    toto = tiny_model()
    said = []
    for name in ("unpatched", "patched"):
        side(name)
        for value in (toto, toto.model, TotoForecaster(toto.model)):
            mean(TotoForecaster(toto.model))
            with pytest.raises(TypeError) as caught:
                COPIES[copied][0](value)
            said.append(str(caught.value))
    assert len(set(said)) == 1


def cache() -> Any:
    found = tiny_model().model.allocate_kv_cache(
        1, 2, 8 * PATCH, torch.device("cpu"), torch.float32
    )
    # What Python cannot pickle is upstream's layers.
    found.transformer_layers = []
    return found


def appended(cache: Any, length: int) -> Any:
    generator = torch.Generator().manual_seed(length)
    shape = (2, cache.num_heads, length, cache.embed_dim // cache.num_heads)
    keys = torch.randn(shape, generator=generator)
    cache.append(0, (keys, keys + 1))
    return cache


@pytest.mark.parametrize(("made", "used"), [*SIDES, ("unpatched", "unpatched")])
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.fault(
    injected="copies of a KV cache, by copy, deepcopy, pickle, cloudpickle and torch.save",
    where="made on one side, used on the other",
    observed="it goes on where the original stood, bit for bit",
    afterwards="the class is whichever it was, or the one that stands",
)
def test_a_cache(copied: str, made: str, used: str) -> None:
    """A copy goes on where the original stood, whichever class it is of then."""
    expected = appended(appended(cache(), 3), 2)[0]
    side(made)
    original = appended(cache(), 3)
    write, read = COPIES[copied]
    written = write(original)
    side(used)
    twin = read(written)
    assert twin.seq_len(0) == twin.current_len(0) == 3
    if used == "patched":
        # On the host: compiled code would wait for a tensor, and break.
        assert type(twin.seq_len(0)) is type(twin.current_len(0)) is int
    for found, wanted in zip(appended(twin, 2)[0], expected, strict=True):
        assert torch.equal(found, wanted)
    twin.reset()
    assert twin.seq_len(0) == 0

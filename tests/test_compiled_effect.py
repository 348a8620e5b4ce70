"""Each patch takes effect inside compiled code, and leaves it again.

Every test here fails where dynamo looks through a patch at upstream's code.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from typing import Any

import pytest
import torch
import toto.model.util
from toto.inference.forecaster import TotoForecaster
from toto.model.backbone import TotoBackbone
from toto_cases import COMPILE_PATCHES, PATCH, forecast, series, tiny_model, values

import toto_compile_patch
from toto_compile_patch.tools.compile_health import CompileHealth

UPSTREAM_CACHE = toto.model.util.KVCache


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def compiled_attention() -> tuple[Any, Any, Any]:
    """A compiled time-wise attention, its cache and an input of two patches."""
    model = tiny_model().model
    cache = model.allocate_kv_cache(1, 1, 8 * PATCH, torch.device("cpu"), torch.float32)
    attention = torch.compile(model.transformer.layers[0].attention, backend="eager")
    return attention, cache, torch.randn(1, 1, 2, model.embed_dim)


@torch.no_grad()
def test_kv_cache_in_compiled_code_is_ours() -> None:
    """Positions move on the host, and no graph holds a tensor of positions."""
    toto_compile_patch.apply(["kv_cache"])
    attention, cache, inputs = compiled_attention()
    with CompileHealth() as health:
        for step in range(1, 4):
            attention(0, inputs, None, cache)
            assert cache.seq_len(0) == 2 * step
            assert type(cache.seq_len(0)) is int
    assert type(cache) is not UPSTREAM_CACHE
    guards = " ".join(r.reason for r in health.recompilations)
    assert "_current_idx" not in guards
    assert "kv_cache" not in guards


@torch.no_grad()
def test_unpatched_the_same_is_compiled_against_the_cache() -> None:
    """The test above would notice: upstream's cache, compiled, is guarded on or breaks."""
    attention, cache, inputs = compiled_attention()
    with CompileHealth() as health:
        for _ in range(3):
            attention(0, inputs, None, cache)
    assert type(cache) is UPSTREAM_CACHE
    frames = [r.place.function for r in health.recompilations]
    assert any("append" in frame or "positional" in frame for frame in frames)


@torch.no_grad()
def test_positional_embedding_in_compiled_code_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the cache is not traced: dynamo would turn this probe into a constant."""
    traced = []
    original: Any = UPSTREAM_CACHE.seq_len

    def probe(self: Any, layer_idx: int) -> int:
        traced.append(torch.compiler.is_dynamo_compiling())
        length: int = original(self, layer_idx)
        return length

    monkeypatch.setattr(UPSTREAM_CACHE, "seq_len", probe)
    toto_compile_patch.apply(["positional_embedding"])
    attention, cache, inputs = compiled_attention()
    with CompileHealth() as health:
        for _ in range(3):
            attention(0, inputs, None, cache)
    assert traced == [False] * 3
    assert health.recompilations == []


@torch.no_grad()
@pytest.mark.parametrize("patches", [["positional_embedding"], None])
def test_nothing_below_positional_embedding_is_compiled(patches: Any) -> None:
    toto_compile_patch.apply(patches)
    model = tiny_model().model
    cache = model.allocate_kv_cache(1, 1, 8 * PATCH, torch.device("cpu"), torch.float32)
    attention = model.transformer.layers[0].attention
    embed: Any = torch.compile(attention.positional_embedding, backend="eager")
    q, k, v = (torch.randn(1, 4, 2, 8) for _ in range(3))
    with CompileHealth() as health:
        offsets = [embed(q, k, v, cache, 0)[3] for _ in range(4)]
    assert offsets == [0, 2, 4, 6]
    assert health.graphs == 0
    assert health.recompilations == []


@pytest.mark.slow
@torch.no_grad()
def test_without_a_cache_upstream_is_compiled_whole_as_before() -> None:
    counts = []
    for apply in (False, True):
        torch._dynamo.reset()
        if apply:
            toto_compile_patch.apply(COMPILE_PATCHES)
        toto = tiny_model()
        toto.model.compile(backend="eager")
        with CompileHealth() as health:
            forecast(toto.model, series(40), 2 * PATCH, use_kv_cache=False)
        counts.append(health.counts())
    assert counts[0] == counts[1]
    assert counts[1]["graph_breaks"] == 0


def recompilations_of_a_frame(n: int) -> int:
    """Compile one frame for n constants, and count its recompilations."""

    def frame(x: torch.Tensor, flag: str) -> torch.Tensor:
        return x + len(flag)

    with CompileHealth() as health:
        compiled = torch.compile(frame, backend="eager", dynamic=False)
        for i in range(n):
            compiled(torch.ones(2), str(i))
    return len(health.recompilations)


def test_dynamo_config_holds_in_a_worker_thread() -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    found = []
    thread = threading.Thread(target=lambda: found.append(recompilations_of_a_frame(14)))
    thread.start()
    thread.join()
    toto_compile_patch.revert()
    assert found == [13]
    torch._dynamo.reset()
    assert recompilations_of_a_frame(14) < 13  # upstream's limit of 8


def test_shapes_are_dynamic_for_toto_alone() -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    toto = tiny_model()
    toto.model.compile(backend="eager")
    forecast(toto.model, series(40), 2 * PATCH)
    assert torch._dynamo.config.assume_static_by_default
    other = torch.compile(lambda x: x + 1, backend="eager")
    with CompileHealth() as health:
        other(torch.ones(5))
        other(torch.ones(6))
    assert len(health.recompilations) == 1


def test_a_forecast_leaves_nothing_in_the_threads_context() -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    toto = toto_compile_patch.compile(tiny_model(), backend="eager")
    forecast(toto.model, series(24), 2 * PATCH)
    before = len(contextvars.copy_context())
    for _ in range(5):
        forecast(toto.model, series(24), 2 * PATCH)
    assert len(contextvars.copy_context()) == before


def test_shapes_stay_static_for_who_asks_for_them() -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    toto = tiny_model()
    toto.model.compile(backend="eager", dynamic=False)
    forecast(toto.model, series(40), PATCH)
    with CompileHealth() as health:
        forecast(toto.model, series(48), PATCH)
    assert health.recompilations


def test_a_second_context_length_needs_no_new_code() -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    toto = tiny_model()
    toto.model.compile(backend="eager")
    forecast(toto.model, series(40), 2 * PATCH)
    with CompileHealth() as health:
        forecast(toto.model, series(48), 2 * PATCH)
        forecast(toto.model, series(80), 5 * PATCH)
    assert health.counts() == dict.fromkeys(health.counts(), 0)


@pytest.mark.parametrize("applied_first", [True, False])
def test_toto_compile_compiles_the_backbone(applied_first: bool) -> None:
    toto = tiny_model()
    if applied_first:
        toto_compile_patch.apply(COMPILE_PATCHES, runtime="compile")
        toto.compile(backend="eager")
    else:
        toto.compile(backend="eager")  # upstream: nothing that a forecast calls
        with CompileHealth() as health:
            forecast(toto.model, series(24), PATCH)
        assert health.graphs == 0
        toto_compile_patch.apply(["compile_method"], runtime="compile")
        toto.compile(backend="eager")
    with CompileHealth() as health:
        forecast(toto.model, series(24), PATCH)
    assert health.graphs > 0


def test_a_model_that_the_package_compiled_stays_so_after_revert() -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    toto = toto_compile_patch.compile(tiny_model(), backend="eager")
    forecast(toto.model, series(24), PATCH)
    toto_compile_patch.revert()
    with CompileHealth() as health:
        forecast(toto.model, series(24), PATCH)
    assert health.graphs > 0


def test_the_log_tells_of_compiling_before_and_after(caplog: pytest.LogCaptureFixture) -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    toto = toto_compile_patch.compile(tiny_model(), backend="eager")
    with caplog.at_level(logging.INFO, "toto_compile_patch"):
        for _ in range(3):
            forecast(toto.model, series(24), PATCH)
        told = [record.message.split(":")[0] for record in caplog.records]
        assert told == ["compiling", "compiled"]
        caplog.clear()
        toto_compile_patch.apply("fast_decode", fallback="error")
        for _ in range(3):
            forecast(toto.model, series(24), PATCH)
    told = [record.message.split(":")[0] for record in caplog.records]
    assert told == ["applied", "compiling", "compiled"]


class TestCompile:
    @pytest.mark.parametrize("kind", ["toto", "backbone", "forecaster"])
    def test_compiles_what_the_forecaster_calls(self, kind: str) -> None:
        toto = tiny_model()
        forecaster = TotoForecaster(toto.model)
        given = {"toto": toto, "backbone": toto.model, "forecaster": forecaster}[kind]
        assert toto_compile_patch.compile(given, backend="eager") is given
        with CompileHealth() as health:
            forecaster.forecast(series(24), prediction_length=PATCH)
        assert health.graphs > 0

    def test_mode_comes_from_argument_then_apply_then_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modes = []
        monkeypatch.setattr(TotoBackbone, "compile", lambda self, mode: modes.append(mode))
        model = tiny_model()
        toto_compile_patch.compile(model)
        monkeypatch.setenv("TOTO_COMPILE_PATCH_MODE", "Max-Autotune")
        toto_compile_patch.compile(model)
        toto_compile_patch.apply(mode="default")
        toto_compile_patch.compile(model)
        toto_compile_patch.compile(model, "max-autotune-no-cudagraphs")
        monkeypatch.setenv("TOTO_COMPILE_PATCH", "0")  # A and B are compiled alike
        toto_compile_patch.apply(mode="default")
        toto_compile_patch.compile(model)
        assert modes == [
            "reduce-overhead",
            "max-autotune",
            "default",
            "max-autotune-no-cudagraphs",
            "default",
        ]

    def test_refuses_what_is_not_toto(self) -> None:
        with pytest.raises(TypeError, match="TotoForecaster, not Linear"):
            toto_compile_patch.compile(torch.nn.Linear(1, 1))
        with pytest.raises(ValueError, match="reduce-overhead"):
            toto_compile_patch.compile(tiny_model(), mode="fastest")

    def test_leaves_a_wrapped_model_as_it_is(self) -> None:
        wrapped: Any = torch.compile(tiny_model().model, backend="eager")
        assert toto_compile_patch.compile(wrapped) is wrapped
        assert wrapped._orig_mod._compiled_call_impl is None


def test_warmup_compiles() -> None:
    toto_compile_patch.apply(COMPILE_PATCHES)
    toto = toto_compile_patch.compile(tiny_model(), backend="eager")
    forecaster = TotoForecaster(toto.model)
    seconds = toto_compile_patch.warmup(forecaster, series(24), PATCH, 4, 2)
    assert seconds > 0
    with CompileHealth() as health:
        forecaster.forecast(series(24), prediction_length=PATCH, num_samples=4, samples_per_batch=2)
    assert health.graphs == 0
    with pytest.raises(ValueError, match="runs"):
        toto_compile_patch.warmup(forecaster, series(24), PATCH, runs=0)


@pytest.mark.parametrize("wrapping", ["in place", pytest.param("wrapped", marks=pytest.mark.slow)])
@pytest.mark.fault(
    injected="apply() and revert()",
    where="between forecasts of a compiled model",
    observed="each forecast runs the code that stands",
    afterwards="no compiled code of other patches is left",
)
def test_compiled_models_follow_apply_and_revert(wrapping: str) -> None:
    """A compiled model runs patched code after apply(), upstream's after revert()."""
    toto = tiny_model()
    model: Any = toto.model
    if wrapping == "wrapped":
        model = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    expected = values(forecast(model, series(24), 2 * PATCH))
    for step in range(2):
        if step % 2 == 0:
            toto_compile_patch.apply(COMPILE_PATCHES)
        else:
            toto_compile_patch.revert()
        with CompileHealth() as health:
            found = values(forecast(model, series(24), 2 * PATCH))
        assert torch.equal(found, expected)
        # Recompilations betray whose code runs: upstream compiles the cache's own methods.
        frames = " ".join(r.place.function for r in health.recompilations)
        assert ("append" in frames) == (step % 2 == 1)
        assert health.graphs > 0


def test_nothing_is_dropped_where_nothing_changes() -> None:
    other = torch.compile(lambda x: x + 1, backend="eager")
    toto_compile_patch.apply(COMPILE_PATCHES)
    other(torch.ones(2))
    with CompileHealth() as health:
        toto_compile_patch.apply(COMPILE_PATCHES)
        other(torch.ones(2))
    assert health.graphs == 0


@pytest.mark.fault(
    injected="apply() and revert()",
    where="while another thread is inside compiled code",
    observed="CompiledCodeBusyError in place of a crash",
    afterwards="nothing has changed",
)
def test_patches_do_not_change_while_compiled_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from toto_compile_patch import CompiledCodeBusyError, registry

    inside, leave = threading.Event(), threading.Event()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def linger() -> None:
        inside.set()
        leave.wait(30)

    def body(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        linger()
        return y * 2

    compiled = torch.compile(body, backend="eager")
    leave.set()
    compiled(torch.ones(2))
    leave.clear()
    inside.clear()
    results = []
    thread = threading.Thread(target=lambda: results.append(compiled(torch.ones(2))))
    thread.start()
    inside.wait(30)
    monkeypatch.setattr(registry, "BUSY_TIMEOUT_S", 0.1)
    with pytest.raises(CompiledCodeBusyError, match="a thread stayed"):
        toto_compile_patch.apply(COMPILE_PATCHES)
    assert all(row.state == "not applied" for row in toto_compile_patch.status())
    monkeypatch.setattr(registry, "BUSY_TIMEOUT_S", 30.0)
    threading.Timer(0.2, leave.set).start()
    toto_compile_patch.apply(COMPILE_PATCHES)
    thread.join()
    assert toto_compile_patch.is_applied()
    assert torch.equal(results[0], torch.full((2,), 4.0))

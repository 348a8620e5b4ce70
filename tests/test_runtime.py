"""How the fast path runs: eagerly, or compiled once for every shape."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import pathlib
import random
import signal
import stat
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from random_cases import Case
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto_cases import (
    COMPILE_PATCHES,
    PATCH,
    forecast,
    series,
    small_model,
    tiny_model,
    values,
)

import toto_compile_patch
from toto_compile_patch.decode import compile_call, weights
from toto_compile_patch.decode.precision import Precision
from toto_compile_patch.decode.regions import Compiled, Regions
from toto_compile_patch.path_taken import PathTaken
from toto_compile_patch.tools.compile_health import CompileHealth

HORIZON = 3 * PATCH

REGIONS = 5
"""Layers over time, over variates and over one variate; head of means, head of samples."""

FOR_ONE_ROW = 3
"""Those that a mean forecast of one series on a CPU compiles for its single row."""


def path() -> PathTaken:
    found = toto_compile_patch.last_path()
    assert found is not None
    return found


def compiled_by(backend: Any, **changes: Any) -> Any:
    model = small_model(**changes).model
    model.compile(backend=backend)
    return model


class TestOneCompilationServesAllShapes:
    """Counted by dynamo: with the backend ``eager``, which compiles nothing after tracing."""

    def first_pass(self, model: Any) -> None:
        """Every kind of region once, with many rows and with one."""
        for variates, batch, samples in ((3, 2, 4), (1, 2, 4), (3, 2, None), (1, 1, None)):
            values(forecast(model, series(40, variates, batch), HORIZON, samples, 1))

    def any_shape(self, r: random.Random, model: Any) -> None:
        length = r.choice(range(1, 65)) * PATCH
        inputs = series(length, variates=r.randint(1, 8), batch=r.randint(1, 4))
        horizon = r.choice([1, PATCH, 2 * PATCH + 3, 3 * PATCH, 5 * PATCH])
        values(forecast(model, inputs, horizon, r.choice([None, 1, 2, 7, 16]), 1))
        assert (path().taken, path().runtime) == ("fast", "compile")

    def test_fifty_shapes_need_nothing_after_the_first_pass(self) -> None:
        model = compiled_by("eager")
        toto_compile_patch.apply("fast_decode", fallback="error")
        with CompileHealth() as first:
            self.first_pass(model)
        assert first.graphs == REGIONS + FOR_ONE_ROW
        assert not first.graph_breaks
        assert not first.recompilations
        r = random.Random(0)
        with CompileHealth() as rest:
            for _ in range(50):
                self.any_shape(r, model)
        assert not any(rest.counts().values()), rest.recompilations

    def test_the_layers_of_a_kind_share_their_code(self) -> None:
        model = compiled_by("eager", num_layers=12, spacewise_every_n_layers=3)
        toto_compile_patch.apply("fast_decode", fallback="error")
        with CompileHealth() as health:
            self.first_pass(model)
        assert health.graphs == REGIONS + FOR_ONE_ROW

    def test_another_model_of_the_shape_shares_them_too(self) -> None:
        toto_compile_patch.apply("fast_decode", fallback="error")
        self.first_pass(compiled_by("eager", seed=0))
        with CompileHealth() as health:
            self.first_pass(compiled_by("eager", seed=1))
        assert not any(health.counts().values()), health.recompilations

    def test_a_rolling_backtest_under_fail_on_recompile(self) -> None:
        model = compiled_by("eager")
        toto_compile_patch.apply("fast_decode", fallback="error")
        self.first_pass(model)
        torch.compiler.set_stance("fail_on_recompile")
        try:
            for length in range(20, 20 + 3 * PATCH):
                values(forecast(model, series(length), HORIZON, 4, 2))
        finally:
            torch.compiler.set_stance("default")
        assert path().runtime == "compile"


SOME = (1, 3, 4, 9, 10)
"""Random cases with each scaler, both distributions, labels, known futures, and without a cache."""

SEEDS = pytest.mark.parametrize(
    "seeds",
    [SOME, pytest.param(sorted({*range(12)} - {*SOME}), marks=pytest.mark.slow)],
    ids=["some", "others"],
)


@SEEDS
@pytest.mark.parametrize("one_series", [False, True], ids=["any", "one series"])
def test_means_are_upstreams_when_compiled(one_series: bool, seeds: list[int]) -> None:
    """In float32, where a CPU's weights are packed."""
    for seed in seeds:
        case = dataclasses.replace(Case.random(seed), dtype=torch.float32)
        if one_series:
            case = dataclasses.replace(case, batch=1, variates=1, exogenous=0, known_future=False)
        model = case.build()
        upstream = case.forecast(model, samples=False)
        model.compile(backend="eager")
        with toto_compile_patch.patched("fast_decode", fallback="error"):
            fast = case.forecast(model, samples=False)
        assert path() == PathTaken("fast", runtime="compile")
        spread = case.series().series.std().nan_to_num()
        # Some of these models are chaotic: test_decode_equality bounds such errors.
        assert ((fast - upstream).abs() <= 1e-3 * (upstream.abs() + spread)).all(), case


@SEEDS
@pytest.mark.parametrize("samples", [False, True], ids=["means", "samples"])
def test_forecasts_are_upstreams_when_compiled(samples: bool, seeds: list[int]) -> None:
    for seed in seeds:
        case = dataclasses.replace(Case.random(seed), dtype=torch.float64)
        model = case.build()
        upstream = case.forecast(model, samples)
        model.compile(backend="eager")
        with toto_compile_patch.patched("fast_decode", rng="upstream", fallback="error"):
            fast = case.forecast(model, samples)
        assert path() == PathTaken("fast", runtime="compile")
        spread = case.series().series.std().nan_to_num()
        assert ((fast - upstream).abs() <= 1e-9 * (upstream.abs() + spread)).all(), case


@pytest.mark.parametrize(
    ("samples", "variates", "use_kv_cache"),
    [
        (None, 1, True),
        pytest.param(None, 3, False, marks=pytest.mark.slow),
        pytest.param(6, 1, False, marks=pytest.mark.slow),
        pytest.param(6, 3, True, marks=pytest.mark.slow),
    ],
)
def test_forecasts_are_upstreams_when_compiled_by_inductor(
    samples: int | None, variates: int, use_kv_cache: bool
) -> None:
    model = small_model().model
    inputs = series(5 * PATCH + 3, variates)
    ask: dict[str, Any] = {"samples": samples, "per_batch": 3, "use_kv_cache": use_kv_cache}
    upstream = values(forecast(model, inputs, HORIZON, **ask))
    with toto_compile_patch.patched(
        "fast_decode", rng="upstream", fallback="error", runtime="compile"
    ):
        fast = values(forecast(model, inputs, HORIZON, **ask))
    assert path() == PathTaken("fast", runtime="compile")
    torch.testing.assert_close(fast, upstream, rtol=1e-5, atol=1e-3)


def test_a_seed_gives_the_same_samples_compiled_or_not() -> None:
    model = small_model().model
    inputs = series(40, variates=2)
    toto_compile_patch.apply("fast_decode", fallback="error", runtime="eager")
    plain = values(forecast(model, inputs, HORIZON, 8, 4))
    model.compile(backend="eager")
    toto_compile_patch.apply("fast_decode", fallback="error")
    compiled = values(forecast(model, inputs, HORIZON, 8, 4))
    assert path().runtime == "compile"
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-3)


class TestChoice:
    def taken(self, model: Any, **asked: Any) -> str:
        toto_compile_patch.apply("fast_decode,compile_method", fallback="error", **asked)
        values(forecast(model, series(40), HORIZON))
        return path().runtime

    def test_a_plain_model_runs_eagerly_on_a_cpu(self) -> None:
        assert self.taken(small_model().model) == "eager"

    def test_a_compiled_model_runs_compiled(self) -> None:
        assert self.taken(compiled_by("eager")) == "compile"

    def test_a_wrapped_model_runs_compiled(self) -> None:
        assert self.taken(torch.compile(small_model().model, backend="eager")) == "compile"

    def test_upstreams_readme_line_does_not_compile_on_a_cpu(self) -> None:
        toto = small_model()
        toto_compile_patch.apply("compile_method")
        toto.compile(backend="eager")
        assert self.taken(toto.model) == "eager"
        assert "does not pay on a CPU" in path().reason
        assert self.taken(toto.model, runtime="compile") == "compile"

    def test_what_else_a_user_compiles_is_compiled_there(self) -> None:
        toto = small_model()
        toto_compile_patch.apply("compile_method")
        toto.compile(backend="eager")
        assert self.taken(toto_compile_patch.compile(toto, backend="eager").model) == "compile"
        toto.compile(backend="eager")
        assert self.taken(toto.model) == "compile"

    @pytest.mark.parametrize("insisting", [False, True])
    def test_nor_does_it_compile_upstreams_code(self, insisting: bool) -> None:
        toto = small_model()
        expected = values(forecast(toto.model, series(40), HORIZON))
        seen: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            seen.append(graph)
            return graph.forward

        runtime_wanted = "compile" if insisting else "auto"
        toto_compile_patch.apply(COMPILE_PATCHES, runtime=runtime_wanted)
        toto.compile(backend=backend)
        found = values(forecast(toto.model, series(40), HORIZON))
        assert bool(seen) is insisting
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        toto_compile_patch.revert()
        assert torch.equal(values(forecast(toto.model, series(40), HORIZON)), expected)

    def test_an_argument_wins(self) -> None:
        assert self.taken(compiled_by("eager"), runtime="eager") == "eager"

    def test_so_does_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOTO_COMPILE_PATCH_RUNTIME", "eager")
        assert self.taken(compiled_by("eager")) == "eager"

    def test_the_backend_of_the_call_compiles(self) -> None:
        seen: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            seen.append(graph)
            return graph.forward

        for model in (compiled_by(backend), torch.compile(small_model().model, backend=backend)):
            seen.clear()
            assert self.taken(model) == "compile"
            assert seen
            toto_compile_patch.revert()

    @pytest.mark.parametrize("asked", ["cudagraph", "compile+cudagraph"])
    def test_a_cpu_has_no_cuda_graphs(self, asked: str, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "toto_compile_patch"):
            taken = self.taken(compiled_by("eager"), runtime=asked)
        assert taken == ("compile" if "compile" in asked else "eager")
        assert "no CUDA graphs" in path().reason
        assert path().taken == "fast"

    def test_a_backend_that_only_captures_is_not_a_compiler(self) -> None:
        assert self.taken(compiled_by("cudagraphs")) == "eager"

    @pytest.mark.parametrize("how", ["in place", "wrapped"])
    def test_mode_and_options_of_the_call(self, how: str) -> None:
        def call(**asked: Any) -> compile_call.CompileCall:
            model: Any = small_model().model
            if how == "in place":
                model.compile(**asked)
            else:
                model = torch.compile(model, **asked)
            found = compile_call.compile_call(model)
            assert found is not None
            return found

        assert call() == compile_call.CompileCall("inductor")
        assert call(mode="reduce-overhead").captures
        assert not call(mode="default").captures
        assert dict(call(mode="max-autotune-no-cudagraphs").options)["max_autotune"] is True
        assert dict(call(options={"epilogue_fusion": False}).options) == {"epilogue_fusion": False}
        assert compile_call.compile_call(small_model().model) is None


def no_compiler(graph: Any, inputs: Any) -> Any:
    raise OSError("there is no compiler")


def is_open_to_all(path: str) -> bool:
    """Whether every user may read a file."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in pathlib.Path(path).parents)


class TestACompilerThatFails:
    @pytest.mark.fault(
        injected="a compiler that raises",
        where="the first compiled forecast",
        observed="the forecast is made uncompiled; one line in the log",
        afterwards="right numbers",
    )
    def test_the_forecast_is_made_without_it(self, caplog: pytest.LogCaptureFixture) -> None:
        model = compiled_by(no_compiler)
        toto_compile_patch.apply("fast_decode", fallback="error", runtime="eager")
        plain = values(forecast(model, series(40), HORIZON, 4, 2))
        toto_compile_patch.apply("fast_decode", fallback="error")
        with caplog.at_level(logging.WARNING, "toto_compile_patch"):
            for _ in range(2):
                # A single row is not filled up where it was to be compiled, and rounds otherwise.
                found = values(forecast(model, series(40), HORIZON, 4, 2))
                torch.testing.assert_close(found, plain, rtol=1e-5, atol=0)
                assert (path().taken, path().runtime) == ("fast", "eager")
                assert "compiling failed" in path().reason
        assert len([r for r in caplog.records if "compiling failed" in r.message]) <= 1

    def test_it_is_tried_once(self) -> None:
        tried: list[int] = []

        def backend(graph: Any, inputs: Any) -> Any:
            tried.append(1)
            raise OSError("there is no compiler")

        model = compiled_by(backend)
        toto_compile_patch.apply("fast_decode", fallback="error")
        for _ in range(3):
            values(forecast(model, series(40), HORIZON))
        assert len(tried) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("compiler", "folder"),
        [
            ("/nowhere/g++", ""),
            ("false", ""),
            ("g++", f"{__file__}/cache"),
            ("g++", "read-only"),
        ],
        ids=["no compiler", "one that fails", "no folder for its cache", "one that is read-only"],
    )
    @pytest.mark.fault(
        injected="no compiler, CXX=false, a read-only cache folder, or none",
        where="the first compiled forecast",
        observed="the forecast is made uncompiled; last_path() says why",
        afterwards="right numbers",
    )
    def test_a_machine_that_cannot_compile(
        self, compiler: str, folder: str, tmp_path: pathlib.Path
    ) -> None:
        read_only = folder == "read-only"
        if read_only:
            if os.geteuid() == 0 and not all(map(is_open_to_all, (__file__, torch.__file__))):
                pytest.skip("what is installed here can be read by root alone")
            tmp_path.chmod(0o555)
            tmp_path.parent.chmod(0o755)
        folder = str(tmp_path) if read_only or not folder else folder
        code = (
            "import os, torch._inductor.config, toto_compile_patch\n"
            "from toto_cases import forecast, series, small_model\n"
            # What root may do, nobody else may.
            f"if {read_only} and os.geteuid() == 0:\n"
            "    os.setuid(65534)\n"
            "toto_compile_patch.apply(runtime='compile', fallback='error')\n"
            # Newer torch cannot even be imported without a folder for its cache.
            f"os.environ['TORCHINDUCTOR_CACHE_DIR'] = {folder!r}\n"
            "for _ in range(2):\n"
            "    print(forecast(small_model().model, series(40), 24).mean.isfinite().all())\n"
            "    print(toto_compile_patch.last_path())\n"
        )
        environment = {
            **os.environ,
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
            "CXX": compiler,
        }
        environment["PYTHONPATH"] = os.pathsep.join(
            [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("tensor(True)") == 2
        assert done.stdout.count("runtime='eager'") == 2
        assert done.stdout.count("compiling failed") == 2


class TestWhatIsNoFailureOfTheCompilers:
    """It is raised, where a forecast without the compiler would hide it."""

    @pytest.mark.fault(
        injected="memory ends",
        where="compiled code",
        observed="an error that names memory",
        afterwards="the next forecast is compiled",
    )
    def test_memory_that_ends(self) -> None:
        short = [True]

        def backend(graph: Any, inputs: Any) -> Any:
            def run(*args: Any) -> Any:
                if short:
                    raise torch.OutOfMemoryError("no more")
                return graph.forward(*args)

            return run

        model = compiled_by(backend)
        toto_compile_patch.apply("fast_decode", fallback="error")
        with pytest.raises(torch.OutOfMemoryError, match="no more"):
            forecast(model, series(40), HORIZON)
        assert path().reason.startswith("it raised OutOfMemoryError")
        short.clear()
        forecast(model, series(40), HORIZON)
        assert path() == PathTaken("fast", runtime="compile")

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no such signals")
    @pytest.mark.fault(
        injected="a limit of time, an error that a signal's handler raises",
        where="compiling",
        observed="the compiler's error, which tells of it, as without the patches",
        afterwards="the next forecast is compiled",
    )
    def test_a_limit_of_time(self) -> None:
        armed = [True]

        def slow(graph: Any, inputs: Any) -> Any:
            if armed:
                signal.raise_signal(signal.SIGUSR1)
            return graph

        def out_of_time(*_: Any) -> None:
            raise TimeoutError("it takes too long")

        model = compiled_by(slow)
        toto_compile_patch.apply("fast_decode", fallback="error")
        before = signal.signal(signal.SIGUSR1, out_of_time)
        try:
            with pytest.raises(Exception, match="it takes too long"):
                forecast(model, series(40), HORIZON)
        finally:
            signal.signal(signal.SIGUSR1, before)
        armed.clear()
        forecast(model, series(40), HORIZON)
        assert path() == PathTaken("fast", runtime="compile")

    def test_a_user_who_wants_nothing_compiled_any_more(self) -> None:
        model = compiled_by("eager")
        toto_compile_patch.apply("fast_decode", fallback="error")
        torch.compiler.set_stance("fail_on_recompile")
        try:
            with pytest.raises(RuntimeError, match="fail_on_recompile"):
                forecast(model, series(40), HORIZON)
        finally:
            torch.compiler.set_stance("default")
        forecast(model, series(40), HORIZON)
        assert path() == PathTaken("fast", runtime="compile")


TF32 = """
import sys
import torch
from toto_compile_patch.decode.precision import Precision

backends = torch.backends
places = [backends, backends.cuda.matmul, getattr(backends.mkldnn, "matmul", None)]


def settings():
    found = [getattr(place, "fp32_precision", None) for place in places]
    try:
        found += [torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32]
    except RuntimeError:
        # Torch refuses to tell by the older names what was set by the newer ones.
        pass
    return found


asked = sys.argv[1]
if asked == "high":
    torch.set_float32_matmul_precision("high")
elif asked == "older":
    backends.cuda.matmul.allow_tf32 = True
elif asked == "newer":
    backends.cuda.matmul.fp32_precision = "tf32"
elif asked == "generic":
    backends.fp32_precision = "tf32"
before = settings()
with Precision("tf32").of_products(torch.device("cuda")):
    cuda = backends.cuda.matmul
    assert getattr(cuda, "fp32_precision", None) == "tf32" or cuda.allow_tf32
assert settings() == before, (before, settings())
if hasattr(backends, "fp32_precision") and asked in ("nothing", "generic"):
    # What was inherited is inherited still.
    for value in ("ieee", "tf32"):
        backends.fp32_precision = value
        assert settings()[:3] == [value] * 3, settings()
"""


class TestPrecision:
    def point(self, precision: str, inputs: MaskedTimeseries, model: Any) -> torch.Tensor:
        toto_compile_patch.apply("fast_decode", fallback="error", precision=precision)
        return values(forecast(model, inputs, HORIZON))

    @pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
    def test_sixteen_bits_are_close_and_not_the_same(self, compiled: bool) -> None:
        model, inputs = small_model().model, series(10 * PATCH, variates=2)
        full = self.point("model", inputs, model)
        if compiled:
            model.compile(backend="eager")
        half = self.point("bf16", inputs, model)
        assert path().runtime == ("compile" if compiled else "eager")
        distance = float((full - half).abs().max() / inputs.series.std())
        assert 1e-7 < distance < 2e-2
        assert half.dtype == torch.float32

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_other_models_stay_as_they_are(self, dtype: torch.dtype) -> None:
        model, inputs = small_model().model.to(dtype), series(40, dtype=dtype)
        assert torch.equal(self.point("model", inputs, model), self.point("bf16", inputs, model))

    def test_tf32_is_for_cuda(self) -> None:
        model, inputs = small_model().model, series(40)
        assert torch.equal(self.point("model", inputs, model), self.point("tf32", inputs, model))

    @pytest.mark.parametrize("asked", ["nothing", "high", "older", "newer", "generic"])
    def test_torchs_settings_are_what_they_were_after_tf32(self, asked: str) -> None:
        if asked in ("newer", "generic") and not hasattr(torch.backends, "fp32_precision"):
            pytest.skip("this torch has no such setting")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TF32, asked],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def test_the_last_of_several_threads_puts_torchs_settings_back(self) -> None:
        before = torch.get_float32_matmul_precision()
        assert before != "high"
        first, last = (Precision("tf32").of_products(torch.device("cuda")) for _ in range(2))
        first.__enter__()
        last.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
        last.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == before

    @pytest.mark.parametrize("name", ["attention.wO.weight", "mlp.0.bias"])
    def test_a_changed_weight_is_followed_in_sixteen_bits_too(self, name: str) -> None:
        model, inputs = small_model().model, series(40)
        before = self.point("bf16", inputs, model)
        model.transformer.layers[1].get_parameter(name).data.add_(0.5)
        after = self.point("bf16", inputs, model)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, self.point("model", inputs, model), rtol=0.02, atol=0.2)


def test_a_compiled_forecast_leaves_nothing_with_the_thread() -> None:
    model = compiled_by("eager")
    toto_compile_patch.apply("fast_decode", fallback="error")
    values(forecast(model, series(40, variates=2), HORIZON))
    held = weakref.ref(weights.prepared_weights(model).layers[0].real.out.weight)
    assert held() is not None
    toto_compile_patch.revert()
    gc.collect()
    assert held() is None


def test_few_rows_are_filled_up_where_that_is_faster() -> None:
    compiled = Compiled("eager", {})
    plain = Regions()
    assert [plain.padding(packed=True).missing(n) for n in (1, 3, 4, 9)] == [3, 1, 0, 0]
    assert [compiled.padding(packed=True).missing(n) for n in (1, 3, 4, 9)] == [0, 1, 0, 0]
    for regions in (compiled, plain):
        assert [regions.padding(packed=False).missing(n) for n in (1, 2)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["eager", "compile"])
def test_a_thousand_forecasts_do_not_grow(runtime: str) -> None:
    model = tiny_model().model
    model.compile(backend="eager")
    forecaster = TotoForecaster(model)
    toto_compile_patch.apply("fast_decode", fallback="error", runtime=runtime)
    r = random.Random(0)

    def some(count: int) -> int:
        for _ in range(count):
            inputs = series(r.randint(1, 30 * PATCH), r.randint(1, 4), r.randint(1, 3))
            forecaster.forecast(
                inputs,
                r.randint(1, 4 * PATCH),
                num_samples=r.choice([None, 3]),
                samples_per_batch=1,
            )
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = some(300)
    assert some(1000) - before < 30e6

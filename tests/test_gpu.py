"""What only a GPU can show: CUDA graphs, and forecasts that ask the device nothing on the way."""

from __future__ import annotations

import dataclasses
import gc
import random
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import kernel_checks
import pytest
import torch
import torch._dynamo
from interrupted import Failure, Interrupt, Interrupter, first_places, release_locks
from random_cases import Case
from scipy import stats
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch.decode import ahead, fused, generation
from toto_compile_patch.decode.forecast import MOST_TRIES
from toto_compile_patch.decode.graphs import FIRST_OF_ITS_SHAPE, MOST_GRAPHS
from toto_compile_patch.decode.linear import ThreePassLinear
from toto_compile_patch.decode.precision import has_fast_tf32
from toto_compile_patch.decode.recorder import CudaRecorder, capturing
from toto_compile_patch.decode.weights import prepared_weights
from toto_compile_patch.path_taken import PathTaken
from toto_compile_patch.tools.compile_health import CompileHealth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
CASES = 40
HORIZON = 3 * PATCH
NO_KERNEL_OF_UPSTREAMS = ("last dimension must be contiguous", "no kernel found to launch")

Forecasts = Callable[[], torch.Tensor]


def on_gpu(inputs: MaskedTimeseries, device: torch.device | str = DEVICE) -> MaskedTimeseries:
    return MaskedTimeseries(
        *(part.to(device) if isinstance(part, torch.Tensor) else part for part in inputs)
    )


@dataclasses.dataclass(frozen=True)
class GpuCase(Case):
    """A random case whose model and series are on the GPU."""

    @classmethod
    def random(cls, seed: int) -> GpuCase:
        return cls(**vars(Case.random(seed)))

    def build(self) -> Any:
        return super().build().to(DEVICE)

    def series(self) -> MaskedTimeseries:
        return on_gpu(super().series())

    def forecast(self, model: Any, samples: bool, seed: int = 0) -> torch.Tensor:
        inputs = self.series()
        options: dict[str, Any] = {"use_kv_cache": self.use_kv_cache}
        if self.known_future and "num_exogenous_variables" in MaskedTimeseries._fields:
            g = torch.Generator().manual_seed(self.seed + 2)
            shape = (*inputs.series.shape[:-2], self.exogenous, self.horizon)
            future = torch.randn(shape, generator=g).to(DEVICE, self.dtype)
            options["future_exogenous_variables"] = future
        if samples:
            options |= {"num_samples": self.samples, "samples_per_batch": self.per_batch}
        torch.manual_seed(seed)
        return values(TotoForecaster(model).forecast(inputs, self.horizon, **options))

    def tolerance(self, upstream: torch.Tensor, relative: float) -> torch.Tensor:
        """A part of each value and of the series' standard deviation."""
        return relative * (upstream.abs() + self.series().series.std().nan_to_num())

    def own_error(self, upstream: torch.Tensor) -> float:
        """How far upstream's float32 means are from its own in float64."""
        exactly = dataclasses.replace(self, dtype=torch.float64, gentle=True)
        return float((exactly.forecast(exactly.build(), samples=False) - upstream).abs().max())


def gpu_model(**changes: Any) -> Any:
    return small_model(**changes).model.to(DEVICE)


def mean(model: Any, length: int = 40, horizon: int = HORIZON) -> torch.Tensor:
    return values(forecast(model, on_gpu(series(length, variates=2, batch=2)), horizon))


def samples(model: Any, count: int = 6) -> torch.Tensor:
    return values(forecast(model, on_gpu(series(40, variates=2, batch=2)), HORIZON, count, 3))


def path() -> PathTaken:
    """The last forecast's."""
    found = toto_compile_patch.last_path()
    assert found is not None
    return found


def replayed(make: Forecasts) -> torch.Tensor:
    """A forecast by replay: the first of its shape is not captured, the second is."""
    make()
    make()
    result = make()
    assert path().runtime == "cudagraph", path()
    return result


def captured(**settings: Any) -> toto_compile_patch.patched:
    settings = {"runtime": "cudagraph", "fallback": "error"} | settings
    return toto_compile_patch.patched("fast_decode", **settings)


@pytest.mark.parametrize("runtime", ["eager", "cudagraph"])
def test_means_are_upstreams(runtime: str) -> None:
    compared = 0
    for seed in range(CASES):
        case = GpuCase.random(seed)
        model = case.build()
        try:
            upstream = case.forecast(model, samples=False)
        except RuntimeError as error:
            # Upstream's own masks do not suit some of torch's kernels on a GPU.
            if not any(words in str(error) for words in NO_KERNEL_OF_UPSTREAMS):
                raise
            continue
        compared += 1
        with captured(runtime=runtime):
            found = [case.forecast(model, samples=False) for _ in range(3)]
            assert path().taken == "fast"
            assert path().runtime == runtime, (path(), case)
        exact = case.dtype is torch.float64
        allowed = case.tolerance(upstream, 1e-9 if exact else 1e-4)
        differences = [(fast - upstream).abs() for fast in found]
        if not exact and any((difference > allowed).any() for difference in differences):
            # Some models are chaotic; upstream itself is no more exact than this.
            allowed = torch.full_like(allowed, 2 * case.own_error(upstream))
        for difference in differences:
            assert (difference <= allowed).all(), (float(difference.max()), case)
    assert compared > CASES / 2


def test_same_seed_samples_in_float64_are_upstreams() -> None:
    for seed in range(CASES):
        case = dataclasses.replace(GpuCase.random(seed), dtype=torch.float64)
        model = case.build()
        upstream = case.forecast(model, samples=True)
        with captured(rng="upstream"):
            fast = case.forecast(model, samples=True)
        difference = (fast - upstream).abs()
        assert (difference <= case.tolerance(upstream, 1e-9)).all(), (float(difference.max()), case)


class TestRandomNumbers:
    def test_a_seed_gives_the_same_samples_in_every_runtime(self) -> None:
        model = gpu_model()
        with captured(runtime="eager"):
            eager = samples(model)
        ways = []
        with captured():
            for _ in range(4):
                assert torch.equal(samples(model), eager), path()
                ways.append((path().runtime, path().reason))
        replays = [("cudagraph", "")] * 3
        assert ways == [("eager", FIRST_OF_ITS_SHAPE), *replays]

    def test_replays_go_on_drawing(self) -> None:
        forecaster = TotoForecaster(gpu_model())
        inputs = on_gpu(series(40))
        with captured():
            found = [
                forecaster.forecast(inputs, HORIZON, num_samples=6, samples_per_batch=3).samples
                for _ in range(5)
            ]
            assert path().runtime == "cudagraph", path()
        for before, after in pairwise(found):
            assert not torch.equal(before, after)

    def test_replayed_samples_are_distributed_as_upstreams(self) -> None:
        model = gpu_model()

        def many() -> torch.Tensor:
            found = forecast(model, on_gpu(series(40)), HORIZON, 4000, 1000)
            return values(found).flatten(0, -2)

        upstream = many().double().cpu().numpy()
        with captured():
            fast = replayed(many).double().cpu().numpy()
        chances = [stats.ks_2samp(a, b).pvalue for a, b in zip(fast, upstream, strict=True)]
        assert len(chances) == HORIZON
        assert min(chances) > 1e-4


def test_results_are_copies_and_inputs_stay() -> None:
    model = gpu_model()
    one = on_gpu(series(40, variates=2, batch=2))
    other = one._replace(series=one.series.flip(-1) - 50)
    before = [part.clone() if isinstance(part, torch.Tensor) else part for part in one]
    upstream = values(forecast(model, other, HORIZON))
    with captured():
        first = replayed(lambda: values(forecast(model, one, HORIZON)))
        kept = first.clone()
        second = values(forecast(model, other, HORIZON))
        assert path().runtime == "cudagraph", path()
        assert torch.equal(first, kept)
        first.zero_()
        assert torch.equal(second, values(forecast(model, other, HORIZON)))
    torch.testing.assert_close(second, upstream, rtol=1e-4, atol=1e-4)
    for part, was in zip(one, before, strict=True):
        assert part is was or torch.equal(part, was)


def waits(make: Callable[[], object]) -> int:
    """How often the host waits for the device, as far as torch sees it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            make()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("count", [None, 6], ids=["mean", "samples"])
@pytest.mark.parametrize("runtime", ["eager", "cudagraph"])
def test_a_forecast_asks_the_device_once(runtime: str, count: int | None) -> None:
    forecaster = TotoForecaster(gpu_model())
    inputs = on_gpu(series(40, variates=2, batch=2))

    def make() -> None:
        forecaster.forecast(inputs, HORIZON, num_samples=count, samples_per_batch=3)

    with captured(runtime=runtime):
        for _ in range(3):
            make()
        asked = waits(make)
        assert path().runtime == runtime, path()
    # None at all would mean that nothing was counted: whether a weight has changed must be asked.
    assert asked == 1


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Grows by one with each capture."""
    made: list[torch.device] = []
    record = CudaRecorder.record

    def counted(self: Any, compute: Any, device: torch.device) -> Any:
        made.append(device)
        return record(self, compute, device)

    monkeypatch.setattr(CudaRecorder, "record", counted)
    return made


class TestMemory:
    def test_the_graph_that_was_not_used_for_longest_goes(
        self, captures: list[torch.device]
    ) -> None:
        model = gpu_model()
        oldest, second, *others = range(PATCH, (MOST_GRAPHS + 2) * PATCH, PATCH)
        with captured():
            for length in (oldest, second, *others[:-1]):
                replayed(partial(mean, model, length, PATCH))
            assert path().graphs == len(captures) == MOST_GRAPHS
            mean(model, oldest, PATCH)
            replayed(partial(mean, model, others[-1], PATCH))
            assert path().graphs == MOST_GRAPHS
            assert len(captures) == MOST_GRAPHS + 1
            mean(model, oldest, PATCH)
            assert len(captures) == MOST_GRAPHS + 1
            mean(model, second, PATCH)
            assert len(captures) == MOST_GRAPHS + 2
            assert path().graphs == MOST_GRAPHS

    def test_it_does_not_grow_with_changing_shapes(self, captures: list[torch.device]) -> None:
        model = gpu_model()
        shapes = MOST_GRAPHS + 9
        reserved = []
        with captured():
            for number in range(1, 201):
                mean(model, PATCH * (1 + number % shapes), PATCH)
                if number % 100 == 0:
                    reserved.append(torch.cuda.memory_reserved())
            assert path().graphs == MOST_GRAPHS
        # Each shape is captured anew whenever it comes round, and was then long evicted.
        assert len(captures) == 200 - shapes
        assert reserved[1] <= 1.05 * reserved[0]

    def test_graphs_give_way_where_memory_runs_out(self) -> None:
        model = gpu_model(embed_dim=128, mlp_hidden_dim=256)
        inputs = {batch: on_gpu(series(320, variates=2, batch=batch)) for batch in (64, 128, 256)}

        def make(batch: int) -> torch.Tensor:
            return values(forecast(model, inputs[batch], HORIZON))

        expected = {batch: make(batch) for batch in inputs}
        with captured(runtime="eager"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            make(256)
            # What cuBLAS works in stays.
            enough = torch.cuda.max_memory_reserved() + 3 * 2**24
        with captured():
            for batch in (64, 128):
                replayed(partial(make, batch))
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(enough / torch.cuda.mem_get_info()[1])
            try:
                found = make(256)
                assert (path().taken, path().graphs) == ("fast", 0), path()
                torch.testing.assert_close(found, expected[256], rtol=1e-4, atol=1e-4)
                for batch in (64, 128):
                    found = replayed(partial(make, batch))
                    torch.testing.assert_close(found, expected[batch], rtol=1e-4, atol=1e-4)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)

    def test_revert_frees_the_graphs(self) -> None:
        model = gpu_model()

        def capture_and_revert() -> None:
            with captured():
                replayed(partial(mean, model))
                assert path().graphs == 1

        # What libraries keep for good is there after the first time.
        capture_and_revert()
        before = allocated()
        capture_and_revert()
        assert allocated() <= before
        with captured():
            mean(model)
        assert (path().graphs, path().reason) == (0, FIRST_OF_ITS_SHAPE)

    def test_graphs_go_with_the_model(self) -> None:
        def capture_and_drop() -> None:
            model = gpu_model()
            replayed(partial(mean, model))
            assert path().graphs == 1

        with captured():
            capture_and_drop()
            before = allocated()
            capture_and_drop()
            assert allocated() <= before


def allocated() -> int:
    """Bytes of all tensors that are alive, graphs' among them."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize(
    "name",
    [
        "unembed.weight",
        "output_distribution.loc_proj.bias",
        "transformer.layers.0.attention.wQKV.weight",
        "patch_embed.projection.weight",
    ],
)
def test_a_weight_changed_in_place_is_followed(name: str) -> None:
    model = gpu_model()
    with captured():
        before = replayed(partial(mean, model))
        model.get_parameter(name).data.mul_(1.5)
        found = [mean(model) for _ in range(3)]
        assert path().runtime == "cudagraph", path()
    upstream = mean(model)
    assert not torch.allclose(before, upstream, rtol=1e-5)
    for after in found:
        torch.testing.assert_close(after, upstream, rtol=1e-5, atol=1e-4)


def test_a_weight_put_in_its_place_is_followed() -> None:
    model = gpu_model()
    with captured():
        before = replayed(partial(mean, model))
        layer = model.transformer.layers[0].attention.wO
        layer.weight = torch.nn.Parameter(1.5 * layer.weight)
        after = replayed(partial(mean, model))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, mean(model), rtol=1e-5, atol=1e-4)


def test_weights_that_change_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread trains the model, say: each time that they were prepared, they change."""
    model = gpu_model()
    prepared = []

    def then_change(*args: Any) -> Any:
        prepared.append(prepared_weights(*args))
        model.unembed.weight.data.mul_(1.01)
        return prepared[-1]

    with captured(fallback="warn"):
        monkeypatch.setattr("toto_compile_patch.decode.forecast.prepared_weights", then_change)
        with pytest.warns(toto_compile_patch.FallbackWarning, match="weights changed"):
            found = mean(model)
        monkeypatch.undo()
        assert path().taken == "upstream"
        assert len(prepared) == MOST_TRIES
        torch.testing.assert_close(mean(model), found, rtol=1e-4, atol=1e-4)
        assert path().taken == "fast"


class TestLaunchedAhead:
    """A graph is launched before its forecast is checked."""

    @pytest.fixture
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """Grows with each forecast: whether it was."""
        made: list[bool] = []
        launch = ahead.launch

        def seen(*args: Any) -> Any:
            replay = launch(*args)
            made.append(replay is not None)
            return replay

        monkeypatch.setattr(ahead, "launch", seen)
        return made

    def test_samples_are_those_of_the_seed(self, launched: list[bool]) -> None:
        model = gpu_model()
        with captured(runtime="eager"):
            expected = samples(model)
            after = torch.cuda.get_rng_state()
        launched.clear()
        with captured():
            for _ in range(4):
                assert torch.equal(samples(model), expected)
                assert torch.equal(torch.cuda.get_rng_state(), after)
        assert launched == [False, False, True, True]

    def test_a_refusal_leaves_no_trace(self, launched: list[bool]) -> None:
        model = gpu_model()
        with captured():
            expected = replayed(partial(samples, model))
            hook = model.transformer.layers[0].register_forward_hook(lambda *_: None)
            torch.manual_seed(0)
            before = torch.cuda.get_rng_state()
            with pytest.raises(toto_compile_patch.FallbackError, match="hooks"):
                samples(model)
            assert launched[-1]
            assert torch.equal(torch.cuda.get_rng_state(), before)
            hook.remove()
            assert torch.equal(samples(model), expected)

    def test_memory_that_was_freed_is_not_read(self, launched: list[bool]) -> None:
        model = gpu_model(embed_dim=256, mlp_hidden_dim=1024)
        with captured():
            replayed(partial(mean, model))
            for parameter in model.parameters():
                parameter.data = 1.1 * parameter.data
            torch.cuda.empty_cache()
            found = mean(model)
            assert not launched[-1]
            again = replayed(partial(mean, model))
        expected = mean(model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)


def test_a_forecast_on_a_stream_of_its_own_is_made_eagerly() -> None:
    model = gpu_model()
    with captured():
        expected = replayed(partial(mean, model))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = mean(model)
        torch.cuda.current_stream().wait_stream(stream)
        assert (path().taken, path().runtime) == ("fast", "eager")
        assert "stream of its own" in path().reason
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        mean(model)
        assert path().runtime == "cudagraph", path()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_graph_on_another_gpu_than_the_current_one() -> None:
    other = torch.device(DEVICE, 1)
    model = small_model().model.to(other)
    inputs = on_gpu(series(40, variates=2, batch=2), other)

    def drawn() -> torch.Tensor:
        return values(forecast(model, inputs, HORIZON, 6, 3))

    with captured(runtime="eager"):
        eager = drawn()
    with captured():
        assert torch.equal(replayed(drawn), eager)


def test_threads_forecast_what_they_do_alone() -> None:
    model = gpu_model()
    forecaster = TotoForecaster(model)
    inputs = [on_gpu(series(PATCH * patches)) for patches in (3, 5, 8, 13)]
    with captured(runtime="eager"):
        alone = [forecaster.forecast(each, HORIZON).mean for each in inputs]
    wrong: list[Any] = []

    def work(which: int) -> None:
        try:
            for _ in range(30):
                found = forecaster.forecast(inputs[which], HORIZON).mean
                if not torch.equal(found, alone[which]):
                    wrong.append((which, path()))
            if path().runtime != "cudagraph":
                wrong.append((which, path()))
        except Exception as error:
            wrong.append((which, error))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(len(inputs))]
    with captured():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def many_windows() -> list[MaskedTimeseries]:
    """Of three shapes, mixed."""
    whole = series(PATCH * 30, variates=2)
    stretches = [slice(number, number + PATCH * (3 + number % 3)) for number in range(24)]
    return [on_gpu(part_of(whole, stretch)) for stretch in stretches]


def part_of(inputs: MaskedTimeseries, stretch: slice) -> MaskedTimeseries:
    """Of the time steps of a series."""
    *by_step, interval = (part for part in inputs if isinstance(part, torch.Tensor))
    return MaskedTimeseries(*(part[..., stretch] for part in by_step), interval)


class TestManyWindows:
    def test_means_are_those_of_each_window_alone(self) -> None:
        forecaster, windows = TotoForecaster(gpu_model()), many_windows()
        upstream = [forecaster.forecast(window, HORIZON).mean for window in windows]
        with captured():
            for _ in range(4):
                found = [
                    made.mean
                    for made in toto_compile_patch.forecast_many(forecaster, windows, HORIZON)
                ]
                torch.testing.assert_close(found, upstream, rtol=1e-4, atol=1e-4)
        assert path().runtime == "cudagraph", path()

    def test_samples_are_those_of_each_windows_seed(self) -> None:
        forecaster, windows = TotoForecaster(gpu_model()), many_windows()

        def samples_of(order: list[int]) -> dict[int, torch.Tensor]:
            made = toto_compile_patch.forecast_many(
                forecaster, [windows[n] for n in order], HORIZON, 8, 4, seed=order
            )
            return {number: one.samples for number, one in zip(order, made, strict=True)}

        numbers = list(range(len(windows)))
        with captured(runtime="eager"):
            expected = samples_of(numbers)
        with captured():
            for order in (numbers, numbers[::-1], numbers[::2], numbers[:1]):
                for number, found in samples_of(order).items():
                    torch.testing.assert_close(found, expected[number], rtol=1e-4, atol=1e-4)


@pytest.mark.arithmetic
@pytest.mark.parametrize("check", kernel_checks.CHECKS, ids=lambda check: check.__name__)
def test_kernels_compute_their_formulas(check: Callable[[], None]) -> None:
    assert fused.are_there(0)
    check()


@pytest.mark.arithmetic
@pytest.mark.parametrize("rows", [100, 2000])
@pytest.mark.parametrize("features", [(768, 2304), (3072, 768)])
def test_three_passes_are_as_exact_as_float32(rows: int, features: tuple[int, int]) -> None:
    given, (weight, bias) = torch.randn(rows, features[0], device=DEVICE), gpu_linear(*features)
    exact = torch.nn.functional.linear(given.double(), weight.double(), bias.double())
    cublas = torch.nn.functional.linear(given, weight, bias)
    in_passes = ThreePassLinear(weight, bias).product(given)
    assert not torch.equal(in_passes, cublas)
    assert (in_passes - exact).abs().max() <= 1.5 * (cublas - exact).abs().max()


def gpu_linear(in_features: int, out_features: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(out_features, in_features, device=DEVICE)
    return weight, torch.randn(out_features, device=DEVICE)


def test_without_kernels_forecasts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # With heads as large as the kernels want them.
    model = gpu_model(embed_dim=128, mlp_hidden_dim=256)
    with captured(runtime="eager"):
        ours = mean(model), samples(model)
        monkeypatch.setattr(fused, "are_there", lambda device: False)
        torchs = mean(model), samples(model)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "precision", ["tf32", pytest.param("tf32x3", marks=pytest.mark.arithmetic), "bf16"]
)
def test_less_precision_stays_close(precision: str) -> None:
    if precision == "tf32x3" and not has_fast_tf32(torch.device(DEVICE)):
        pytest.skip("there it is the model's own")
    model = gpu_model(embed_dim=128, mlp_hidden_dim=256)
    inputs = on_gpu(series(160, variates=3, batch=4))

    def means() -> torch.Tensor:
        return values(forecast(model, inputs, HORIZON))

    with captured():
        full = replayed(means)
    with captured(precision=precision):
        less = replayed(means)
    spread = inputs.series.std(dim=-1, keepdim=True)
    assert ((less - full).abs() <= 5e-2 * spread).all()
    assert not torch.equal(less, full)
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
def test_a_compiled_model_is_captured_too() -> None:
    torch._dynamo.reset()
    # With heads as large as the kernels want them.
    model = gpu_model(embed_dim=128, mlp_hidden_dim=256)
    upstream = mean(model)
    model.compile(mode="reduce-overhead")
    with captured(runtime="auto"), CompileHealth() as health:
        found = [mean(model) for _ in range(3)]
        assert path().runtime == "compile+cudagraph", path()
        drawn = [samples(model) for _ in range(3)]
        assert path().runtime == "compile+cudagraph", path()
    assert health.counts()["cudagraph_skips"] == 0
    for fast in found:
        torch.testing.assert_close(fast, upstream, rtol=1e-4, atol=1e-4)
    for again in drawn:
        torch.testing.assert_close(again, drawn[0], rtol=1e-4, atol=1e-4)


@pytest.mark.fault(
    injected="a question to the GPU",
    where="a capture on CUDA",
    observed="forecasts are made without a graph",
    afterwards="right numbers, the usual stream; another shape is captured",
)
def test_a_capture_that_fails_leaves_eager_forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpu_model()
    expected = mean(model)
    decode = generation._decode

    def with_a_question(*args: Any, **kwargs: Any) -> torch.Tensor:
        patches = decode(*args, **kwargs)
        if capturing():
            patches.sum().item()
        return patches

    with captured():
        monkeypatch.setattr(generation, "_decode", with_a_question)
        for _ in range(3):
            torch.testing.assert_close(mean(model), expected, rtol=1e-4, atol=1e-4)
        assert path().runtime == "eager"
        assert "capturing failed" in path().reason
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        monkeypatch.undo()
        replayed(partial(mean, model, length=48))


@pytest.mark.fault(
    injected="a question to the GPU",
    where="the capture of products that goes before one on CUDA",
    observed="that forecast is made without a graph",
    afterwards="the same shape is captured; earlier graphs are replayed",
)
def test_products_whose_capture_fails_are_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpu_model()
    lengths = [PATCH * patches for patches in (3, 5, 8)]
    expected = [mean(model, length) for length in lengths]
    multiply = torch.addmm
    asked: list[bool] = []

    def with_a_question(bias: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        product = multiply(bias, *factors)
        if capturing() and not asked:
            asked.append(True)
            product.sum().item()
        return product

    with captured():
        replayed(partial(mean, model, lengths[0]))
        monkeypatch.setattr(torch, "addmm", with_a_question)
        for _ in range(2):
            mean(model, lengths[1])
        assert "capturing failed" in path().reason
        for length, means in zip(lengths, expected, strict=True):
            found = replayed(partial(mean, model, length))
            torch.testing.assert_close(found, means, rtol=1e-4, atol=1e-4)


def test_what_other_threads_do_spoils_nothing() -> None:
    """They may spoil a capture, which is tried again, or be refused while there is one."""
    model = gpu_model()
    lengths = [PATCH * patches for patches in range(2, 10)]
    expected = [mean(model, length) for length in lengths]
    done = threading.Event()

    def disturb() -> None:
        held = []
        while not done.wait(0.002):
            with suppress(RuntimeError):
                torch.cuda.synchronize()
                held = [torch.full((2**18,), 7.0, device=DEVICE) for _ in range(4)]
                torch.cuda.empty_cache()
        assert all(bool((part == 7.0).all()) for part in held)

    with captured(), ThreadPoolExecutor() as pool:
        disturbing = pool.submit(disturb)
        try:
            for _ in range(4):
                for length, means in zip(lengths, expected, strict=True):
                    torch.testing.assert_close(mean(model, length), means, rtol=1e-4, atol=1e-4)
        finally:
            done.set()
        disturbing.result()
        replayed(partial(mean, model, PATCH * 11))


@pytest.mark.parametrize("error", [Interrupt, Failure], ids=["interrupt", "no memory"])
@pytest.mark.fault(
    injected="an interrupt, or an error for want of memory",
    where="lines of a forecast on CUDA that is captured, and of one that is replayed",
    observed="it is raised",
    afterwards="the next forecasts are right, and replayed; the usual stream; garbage is collected",
)
def test_the_next_forecast_is_right_and_replayed(error: type[BaseException]) -> None:
    model = gpu_model(num_layers=2)
    expected = mean(model)

    def until_captured() -> None:
        toto_compile_patch.refresh(model)
        mean(model)

    def until_replayed() -> None:
        for _ in range(3):
            mean(model)

    with captured(fallback="upstream"):
        for before in (until_captured, until_replayed):
            before()
            lines = first_places(partial(mean, model))
            for place in random.Random(0).sample(lines, 12):
                before()
                interrupter = Interrupter(place, error=error)
                # What fails while the arguments are read is upstream's code to complain of.
                assert not interrupter.run(partial(mean, model)) or error is Failure
                assert interrupter.where
                release_locks()
                found = replayed(partial(mean, model))
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
                assert torch.cuda.current_stream() == torch.cuda.default_stream()
                assert gc.isenabled(), interrupter.where


def test_captures_that_fail_leave_no_memory_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpu_model()
    decode = generation._decode

    def with_a_question(*args: Any, **kwargs: Any) -> torch.Tensor:
        patches = decode(*args, **kwargs)
        if capturing():
            torch.empty(2**24, device=DEVICE).sum().item()
        return patches

    held = []
    with captured():
        monkeypatch.setattr(generation, "_decode", with_a_question)
        for patches in range(1, 9):
            for _ in range(2):
                mean(model, patches * PATCH)
            assert "capturing failed" in path().reason
            torch.cuda.empty_cache()
            held.append(torch.cuda.memory_reserved())
    # A pool that is kept holds 64 MiB each time.
    assert held[-1] < held[0] + 2**26


class TestWhatCublasWorksIn:
    """Torch keeps that memory in a table, by stream, and graphs know its address."""

    def test_a_graph_of_the_users_is_left_alone(self) -> None:
        stream = torch.cuda.Stream()
        factor = torch.randn(512, 512, device=DEVICE)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            # What it works in is of ordinary memory, since the stream has multiplied before.
            expected = factor @ factor
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                found = factor @ factor
        torch.cuda.synchronize()
        with captured():
            replayed(partial(mean, gpu_model()))
            torch.cuda.empty_cache()
            kept = [torch.full((2**22,), 7.0, device=DEVICE) for _ in range(8)]
            found.zero_()
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)
        assert all(bool((part == 7.0).all()) for part in kept)

    @pytest.mark.parametrize("again", [False, True], ids=["one pool", "another pool"])
    def test_replays_go_on_where_the_table_is_cleared(self, again: bool) -> None:
        model = gpu_model(embed_dim=256, mlp_hidden_dim=1024)
        inputs = on_gpu(series(400, variates=3, batch=4))

        def make() -> torch.Tensor:
            return values(forecast(model, inputs, HORIZON))

        with captured():
            expected = replayed(make)
            if again:
                toto_compile_patch.refresh(model)
                replayed(make)
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
            kept = [torch.full((2**22,), 7.0, device=DEVICE) for _ in range(8)]
            for _ in range(3):
                torch.testing.assert_close(make(), expected, rtol=1e-5, atol=1e-5)
                assert path().runtime == "cudagraph", path()
        torch.cuda.synchronize()
        assert all(bool((part == 7.0).all()) for part in kept)


def test_a_pool_of_the_users_may_go() -> None:
    model = gpu_model(embed_dim=64, mlp_hidden_dim=128)
    inputs = on_gpu(series(640, variates=4, batch=16))
    expected = values(forecast(model, inputs, HORIZON))
    with captured():
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool):
            for _ in range(3):
                found = values(forecast(model, inputs, HORIZON))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        del found, pool
        gc.collect()
        torch.cuda.empty_cache()
        for _ in range(2):
            found = values(forecast(model, inputs, HORIZON))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_capture_beside_each_other() -> None:
    devices = [torch.device(DEVICE, number) for number in range(2)]
    lengths = [PATCH * patches for patches in range(2, 9)]

    def of(device: torch.device) -> list[str]:
        model = small_model(num_layers=2).model.to(device)
        paths = []
        for length in lengths:
            inputs = on_gpu(series(length, variates=2, batch=2), device)
            for _ in range(6):
                forecast(model, inputs, HORIZON)
                paths.append(path())
        return [f"{one.runtime} {one.reason}" for one in paths if "failed" in one.reason]

    with captured(), ThreadPoolExecutor() as pool:
        assert [reasons for found in pool.map(of, devices) for reasons in found] == []
    assert gc.isenabled()


def test_settings_of_tf32_stay_as_they_were() -> None:
    model = gpu_model()
    before = torch.get_float32_matmul_precision()
    with captured(precision="tf32"):
        replayed(partial(mean, model))
        mean(model)
        assert (path().runtime, path().graphs) == ("cudagraph", 1)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.arithmetic
def test_weights_prepared_on_another_stream_are_complete() -> None:
    """A thread that finds prepared weights does not wait for the stream that made them."""
    for _ in range(5):
        model = gpu_model(embed_dim=256, mlp_hidden_dim=1024)
        expected = mean(model)
        busy = torch.randn(4096, 4096, device=DEVICE)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with captured(runtime="eager"):
            with torch.cuda.stream(stream):
                for _ in range(20):
                    busy = busy @ busy
                prepared_weights(model)
            found = mean(model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

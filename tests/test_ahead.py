"""CUDA graphs that are launched before their forecast is checked, on a GPU that is none.

Whatever the checks find, the forecast is the one that it would have been without.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from pretend_gpu import DEVICE, PretendGpu
from tape import TapeGraph, TapeRecorder
from torch.autograd import forward_ad
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, small_model

import toto_compile_patch
from toto_compile_patch.decode import ahead, device_checks, graphs, random_numbers, support
from toto_compile_patch.decode import forecast as forecasts
from toto_compile_patch.decode import request as requests
from toto_compile_patch.decode.forecast import ForecastOptions
from toto_compile_patch.decode.modules import ModelParts
from toto_compile_patch.decode.random_numbers import OwnRandomNumbers
from toto_compile_patch.decode.recorder import Outputs
from toto_compile_patch.decode.request import Request
from toto_compile_patch.errors import FallbackError
from toto_compile_patch.patches import fast_decode
from toto_compile_patch.path_taken import PathTaken

SAMPLES = 4
LAUNCH, CHECK, WAIT = "launch", "check", "wait"

AHEAD = [LAUNCH, CHECK, WAIT]
"""What a forecast does, in order, where a graph is launched before the checks; in vain or not."""

AFTERWARDS = [CHECK, LAUNCH, WAIT]
"""Where it is launched after them."""

EAGERLY = [CHECK, WAIT]
"""Where no graph is launched."""


class WatchedGraph:
    def __init__(self, graph: TapeGraph, recorder: WatchedRecorder) -> None:
        self._graph = graph
        self._recorder = recorder

    def replay(self, seed: int | None) -> None:
        assert self._graph.tape.calls, "it was freed"
        self._recorder.events.append(LAUNCH)
        self._recorder.seeds.append(seed)
        self._graph.replay(seed)
        self._recorder.launched()

    def reset(self) -> None:
        self._graph.reset()


class WatchedRecorder(TapeRecorder):
    """Tells what forecasts do.

    Attributes:
        events: launches and checks, and where the device is waited for, in order.
        seeds: of the launches.
        refuses: why nothing can be captured or replayed.
        launched: called after a launch.
    """

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__(gpu)
        self.events: list[str] = []
        self.seeds: list[int | None] = []
        self.refuses = ""
        self.launched: Callable[[], object] = lambda: None

    def why_not(self, device: torch.device) -> str:
        return self.refuses

    def record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Any, Outputs]:
        graph, outputs = super().record(compute, device)
        return WatchedGraph(graph, self), outputs


class Bench:
    """A model on the GPU, and what its forecasts do.

    Attributes:
        model: the backbone.
        forecaster: of it.
        recorder: of its graphs.
        while_checked: called before each check.
        while_waiting: called before the device is waited for.
    """

    def __init__(self, gpu: PretendGpu, recorder: WatchedRecorder) -> None:
        self.gpu = gpu
        self.recorder = recorder
        self.model = gpu.model(small_model(num_layers=2).model)
        self.forecaster = TotoForecaster(self.model)
        self.while_checked: Callable[[], object] = lambda: None
        self.while_waiting: Callable[[], object] = lambda: None

    def request(self, samples: int | None = None, contents: int = 0) -> Request:
        inputs = series(5 * PATCH, variates=2).series.unsqueeze(0)
        return self.gpu.request(
            Request(
                inputs=inputs.roll(contents, -1) + contents,
                padding_mask=torch.ones_like(inputs, dtype=torch.bool),
                id_mask=torch.zeros_like(inputs),
                horizon=2 * PATCH,
                num_samples=samples,
                samples_per_batch=samples or 1,
                use_kv_cache=True,
                future_exogenous=None,
                num_exogenous=0,
            )
        )

    def forecast(self, request: Request, forecaster: Any = None, seed: int = 0) -> torch.Tensor:
        """A forecast as users make it; ``recorder.events`` are its own."""
        stamps = torch.zeros(request.inputs.shape, dtype=torch.int).as_subclass(torch.Tensor)
        arguments: dict[str, Any] = {
            "inputs": request.inputs,
            "prediction_length": request.horizon,
            "timestamp_seconds": stamps,
            "time_interval_seconds": stamps[..., 0],
            "input_padding_mask": request.padding_mask,
            "id_mask": request.id_mask,
            "use_kv_cache": request.use_kv_cache,
        }
        generate = (forecaster or self.forecaster).generate_mean
        if request.num_samples is not None:
            arguments["num_samples"] = arguments["sampling_batch_size"] = request.num_samples
            generate = (forecaster or self.forecaster).generate_samples
        self.recorder.events.clear()
        torch.manual_seed(seed)
        found: torch.Tensor = generate(**arguments)
        return found.as_subclass(torch.Tensor)

    def eagerly(self, request: Request, seed: int = 0, precision: str = "model") -> torch.Tensor:
        """The same forecast without a graph, and without a check."""
        torch.manual_seed(seed)
        options = ForecastOptions(runtime="eager", precision=precision)
        look = lambda: ModelParts.of(self.model)  # noqa: E731
        return forecasts.forecast(self.model, look, request, options)[0].as_subclass(torch.Tensor)

    def ready(self, samples: int | None = None) -> Request:
        """A request whose next forecast is launched ahead."""
        request = self.request(samples)
        for _ in range(3):
            self.forecast(request)
        assert self.events == AHEAD
        return request

    @property
    def events(self) -> list[str]:
        return self.recorder.events

    def goes_on(self, request: Request) -> bool:
        """Whether further forecasts are right, and are launched ahead again."""
        for _ in range(3):
            if not torch.equal(self.forecast(request), self.eagerly(request)):
                return False
        self.forecast(request)
        return self.events == AHEAD


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    toto_compile_patch.apply("fast_decode", fallback="error")
    with PretendGpu() as gpu, ExitStack() as after:
        after.callback(toto_compile_patch.revert)
        recorder = WatchedRecorder(gpu)
        made = Bench(gpu, recorder)
        checked, waited = support.known_parts, device_checks.raise_for

        def known_parts(*args: Any) -> ModelParts:
            recorder.events.append(CHECK)
            made.while_checked()
            return checked(*args)

        def raise_for(outcomes: torch.Tensor) -> None:
            recorder.events.append(WAIT)
            made.while_waiting()
            waited(outcomes)

        monkeypatch.setattr(graphs, "_recorder", recorder)
        monkeypatch.setattr(fast_decode, "known_parts", known_parts)
        monkeypatch.setattr(forecasts, "raise_for", raise_for)
        # Tensors here are of no class of torch's.
        monkeypatch.setattr(requests, "_is_tensor", torch.is_tensor)
        monkeypatch.setattr(support, "_other_weights", lambda *_: None)
        yield made


def path() -> PathTaken:
    found = toto_compile_patch.last_path()
    assert found is not None
    return found


def state() -> list[int]:
    """Where the process's generator stands."""
    found: list[int] = torch.get_rng_state().tolist()
    return found


def is_free(device: torch.device = DEVICE) -> bool:
    """Whether another thread could forecast on a device."""
    free: list[bool] = []

    def ask() -> None:
        lock = graphs._of_devices[device].held
        if lock.acquire(blocking=False):
            lock.release()
            free.append(True)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return bool(free)


@pytest.mark.parametrize("samples", [None, SAMPLES], ids=["mean", "samples"])
class TestNothingIsOtherThanWithoutIt:
    def test_forecasts(self, samples: int | None, bench: Bench) -> None:
        expected = [bench.eagerly(bench.request(samples, contents)) for contents in range(3)]
        bench.ready(samples)
        for contents in (0, 1, 2, 1):
            found = bench.forecast(bench.request(samples, contents))
            assert bench.events == AHEAD
            assert torch.equal(found, expected[contents])
            assert path() == PathTaken("fast", "", "cudagraph", 1, 0)

    def test_what_is_drawn_from_the_process(self, samples: int | None, bench: Bench) -> None:
        request = bench.ready(samples)
        bench.eagerly(request)
        expected = state()
        bench.forecast(request)
        assert bench.events == AHEAD
        assert state() == expected

    def test_forecasts_in_inference_mode(self, samples: int | None, bench: Bench) -> None:
        request = bench.ready(samples)
        with torch.inference_mode():
            found = bench.forecast(request)
        assert bench.events == AHEAD
        assert found.is_inference()
        assert bench.goes_on(request)

    def test_forecasts_of_a_series_with_a_gradient(self, samples: int | None, bench: Bench) -> None:
        request = bench.ready(samples)
        request.inputs.requires_grad_()
        found = bench.forecast(request)
        assert bench.events == AHEAD
        assert not found.requires_grad
        assert bench.goes_on(request)


def test_a_forecaster_of_the_same_backbone_goes_ahead(bench: Bench) -> None:
    request = bench.ready(SAMPLES)
    found = bench.forecast(request, TotoForecaster(bench.model))
    assert bench.events == AHEAD
    assert torch.equal(found, bench.eagerly(request))


def test_another_backbone_does_not(bench: Bench) -> None:
    request = bench.ready()
    other = bench.gpu.model(small_model(seed=1, num_layers=2).model)
    found = bench.forecast(request, TotoForecaster(other))
    assert bench.events == EAGERLY
    assert not torch.equal(found, bench.eagerly(request))


def test_a_model_that_nobody_holds_is_freed(bench: Bench) -> None:
    bench.ready()
    model, calls = weakref.ref(bench.model), bench.recorder.tapes[-1].calls
    del bench.model, bench.forecaster
    gc.collect()
    assert model() is None
    assert not list(graphs._of_models)
    assert calls


Undo = Callable[[], object]


def hooked(bench: Bench) -> Undo:
    return bench.model.transformer.layers[0].register_forward_hook(lambda *_: None).remove


def in_training(bench: Bench) -> Undo:
    bench.model.train()
    return bench.model.eval


def with_replaced_code(bench: Bench) -> Undo:
    kind, own = type(bench.model), type(bench.model).forward
    kind.forward = lambda self, *args, **kwargs: own(self, *args, **kwargs)
    return lambda: setattr(kind, "forward", own)


def with_another_module(bench: Bench) -> Undo:
    layer = bench.model.transformer.layers[0]
    own, layer.mlp = layer.mlp, torch.nn.Identity()
    return lambda: setattr(layer, "mlp", own)


@pytest.mark.parametrize("samples", [None, SAMPLES], ids=["mean", "samples"])
@pytest.mark.parametrize("spoil", [hooked, in_training, with_replaced_code, with_another_module])
def test_a_refusal_leaves_no_trace(
    spoil: Callable[[Bench], Undo], samples: int | None, bench: Bench
) -> None:
    """Upstream's code then draws what it would have drawn."""
    request = bench.ready(samples)
    undo = spoil(bench)
    torch.manual_seed(0)
    before = state()
    with pytest.raises(FallbackError):
        bench.forecast(request)
    assert bench.events == [LAUNCH, CHECK]
    assert state() == before
    assert path().taken == "upstream"
    with pytest.raises(FallbackError):
        bench.forecast(request)
    assert bench.events == [CHECK], "it is not launched in vain again and again"
    undo()
    bench.forecast(request)
    assert bench.events == AFTERWARDS
    assert bench.goes_on(request)


@pytest.mark.usefixtures("checked_distributions")
def test_a_series_that_is_no_number_is_refused_in_upstreams_words(bench: Bench) -> None:
    request = bench.ready()
    broken = replace(request, inputs=request.inputs.clone())
    broken.inputs[0, 0, 3] = torch.nan
    with pytest.raises(ValueError, match="Expected parameter"):
        bench.forecast(broken)
    assert bench.events == AHEAD
    assert bench.goes_on(request)


class TestWhatIsNotLaunched:
    """Where tensors must not be touched, or what the graph would do is known to be wrong."""

    def test_an_argument_that_upstream_refuses(self, bench: Bench) -> None:
        request = bench.ready()
        with pytest.raises(RuntimeError, match="The size of tensor a"):
            bench.forecast(replace(request, padding_mask=request.padding_mask[..., 1:]))
        assert bench.events == []

    def test_what_is_no_model(self, bench: Bench) -> None:
        request = bench.ready()
        bench.forecaster.model = 3
        with pytest.raises(FallbackError, match="not a TotoBackbone"):
            bench.forecast(request)
        assert bench.events == [CHECK]

    def test_forward_derivatives(self, bench: Bench) -> None:
        request = bench.ready()
        with forward_ad.dual_level(), pytest.raises(FallbackError, match="forward-mode"):
            bench.forecast(request)
        assert bench.events == []

    def test_where_the_recorder_says_no(self, bench: Bench) -> None:
        request = bench.ready()
        bench.recorder.refuses = "somebody else is capturing"
        assert torch.equal(bench.forecast(request), bench.eagerly(request))
        assert bench.events == [*EAGERLY, WAIT]
        assert path().reason == bench.recorder.refuses

    def test_random_numbers_of_windows(self, bench: Bench) -> None:
        request = bench.ready(SAMPLES)
        with random_numbers.drawn_for_each((1,)):
            bench.forecast(request)
        assert bench.events == EAGERLY

    def test_upstreams_random_numbers(self, bench: Bench) -> None:
        request = bench.ready(SAMPLES)
        toto_compile_patch.apply("fast_decode", fallback="error", rng="upstream")
        for _ in range(3):
            bench.forecast(request)
            assert bench.events == [CHECK, WAIT, WAIT]

    def test_other_settings(self, bench: Bench) -> None:
        request = bench.ready()
        toto_compile_patch.apply("fast_decode", fallback="error", precision="bf16")
        found = bench.forecast(request)
        assert bench.events == EAGERLY
        assert torch.equal(found, bench.eagerly(request, precision="bf16"))

    def test_other_settings_of_torch(self, bench: Bench) -> None:
        request = bench.ready()
        torch.use_deterministic_algorithms(True)
        try:
            bench.forecast(request)
            assert bench.events == EAGERLY
        finally:
            torch.use_deterministic_algorithms(False)
        bench.forecast(request)
        assert bench.events == AHEAD

    def test_another_shape(self, bench: Bench) -> None:
        request = bench.ready()
        bench.forecast(replace(request, horizon=request.horizon + 1))
        assert bench.events == EAGERLY
        wider = request.padding_mask[:, :1]
        bench.forecast(replace(request, padding_mask=wider))
        assert bench.events == EAGERLY

    def test_a_graph_that_was_freed(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
        request, other = bench.ready(), replace(bench.request(), horizon=PATCH)
        for _ in range(2):
            bench.forecast(other)
        # Its shape was seen before: it is captured at once.
        found = bench.forecast(request)
        assert bench.events == AFTERWARDS
        assert torch.equal(found, bench.eagerly(request))


def in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


def past_torch(weight: torch.Tensor) -> None:
    weight.data.mul_(1.5)


@pytest.mark.parametrize("change", [in_place, past_torch])
@pytest.mark.parametrize("name", ["unembed.weight", "transformer.layers.1.norm1.scale"])
def test_a_weight_that_has_changed_is_followed(
    name: str, change: Callable[[torch.Tensor], None], bench: Bench
) -> None:
    request = bench.ready(SAMPLES)
    before = bench.forecast(request)
    change(bench.model.get_parameter(name))
    found = bench.forecast(request)
    assert bench.events[:2] == [LAUNCH, CHECK]
    assert not torch.equal(found, before)
    assert torch.equal(found, bench.eagerly(request))
    assert bench.goes_on(request)


def other_scale(bench: Bench) -> None:
    bench.model.scaler.minimum_scale = 1e3


def other_rotary(bench: Bench) -> None:
    bench.model.transformer.rotary_emb.scale_base /= 2


def other_norm(bench: Bench) -> None:
    bench.model.transformer.layers[0].norm1.eps = 10.0


def other_parameter(bench: Bench) -> None:
    """The old one is kept, and its memory with it."""
    projection = bench.model.transformer.layers[0].attention.wO
    with torch.no_grad():
        new = bench.gpu.tensor(1.5 * projection.weight.as_subclass(torch.Tensor))
    projection._parameters["weight"] = new


@pytest.mark.parametrize("change", [other_scale, other_rotary, other_norm, other_parameter])
def test_a_model_that_has_changed_is_followed(
    change: Callable[[Bench], None], bench: Bench
) -> None:
    request = bench.ready()
    before = bench.forecast(request)
    change(bench)
    found = bench.forecast(request)
    assert bench.events == AHEAD
    assert path().runtime == "eager"
    assert not torch.equal(found, before)
    assert torch.equal(found, bench.eagerly(request))
    assert bench.goes_on(request)


def test_the_graph_of_another_setting_of_the_model_is_not_taken_for_its_own(bench: Bench) -> None:
    request = bench.ready()
    for scale in (1e3, 0.1, 1e3, 0.1):
        bench.model.scaler.minimum_scale = scale
        expected = bench.eagerly(request)
        for _ in range(3):
            assert torch.equal(bench.forecast(request), expected)
    assert path().graphs > 1
    assert bench.events == AHEAD


class TestMemoryThatAGraphReads:
    """What was freed is never read."""

    def test_a_parameter_that_was_given_other_memory(self, bench: Bench) -> None:
        request = bench.ready()
        weight = bench.model.transformer.layers[0].attention.wO.weight
        weight.data = 1.5 * weight.data
        found = bench.forecast(request)
        assert bench.events == EAGERLY
        assert torch.equal(found, bench.eagerly(request))
        assert bench.goes_on(request)

    def test_a_model_that_was_moved(self, bench: Bench) -> None:
        request = bench.ready()
        bench.model.double()
        assert launched(bench, request) is None

    def test_memory_that_was_given_up(self, bench: Bench) -> None:
        """As FSDP does between two calls."""
        request = bench.ready()
        bench.model.unembed.weight.untyped_storage().resize_(0)
        assert launched(bench, request) is None

    def test_a_buffer_that_was_given_other_memory(self, bench: Bench) -> None:
        request = bench.ready()
        buffer = next(bench.model.buffers())
        buffer.set_(buffer.clone())  # type: ignore[call-overload]
        assert launched(bench, request) is None

    def test_a_parameter_that_was_exchanged_for_one_without_memory(self, bench: Bench) -> None:
        request = bench.ready()
        weight = bench.model.unembed.weight
        sparse = torch.eye(*weight.shape).to_sparse()
        with torch._C.DisableTorchFunction():
            torch.utils.swap_tensors(weight, torch.nn.Parameter(sparse))
        assert launched(bench, request) is None


def launched(bench: Bench, request: Request) -> object:
    """What would be launched for a forecast before it is checked."""
    return ahead.launch(bench.model, request, ForecastOptions(), OwnRandomNumbers(DEVICE))


class TestRandomNumbers:
    def test_another_thread_that_draws_meanwhile(self, bench: Bench) -> None:
        """Its number is not drawn again, and the forecast begins with the next one."""
        request = bench.ready(SAMPLES)
        torch.manual_seed(0)
        torch.rand(1)
        next_seed = OwnRandomNumbers(DEVICE).seed
        expected = state()
        bench.while_checked = lambda: torch.rand(1)
        bench.forecast(request, seed=0)
        assert bench.events == [LAUNCH, CHECK, LAUNCH, WAIT]
        assert bench.recorder.seeds[-2] != bench.recorder.seeds[-1] == next_seed
        assert state() == expected

    def test_the_next_seed_is_the_one_that_is_drawn(self, bench: Bench) -> None:
        numbers = OwnRandomNumbers(DEVICE)
        before = state()
        foreseen = numbers.next_seed
        assert state() == before
        assert numbers.seed == foreseen
        assert numbers.next_seed == foreseen

    def test_a_warmup_draws_nothing(self, bench: Bench) -> None:
        request = bench.ready(SAMPLES)
        torch.manual_seed(0)
        before = state()
        with random_numbers.nothing_drawn():
            bench.forecast(request)
        assert bench.events == AHEAD
        assert bench.recorder.seeds[-1] == 0
        assert state() == before

    def test_a_mean_draws_nothing(self, bench: Bench) -> None:
        request = bench.ready()
        torch.manual_seed(0)
        before = state()
        bench.forecast(request)
        assert bench.recorder.seeds[-1] is None
        assert state() == before

    def test_a_forecast_that_begins_again_keeps_its_own(self, bench: Bench) -> None:
        request = bench.ready(SAMPLES)
        past_torch(bench.model.unembed.weight)
        bench.forecast(request)
        after = state()
        assert bench.events[:3] == AHEAD
        bench.eagerly(request)
        assert state() == after


class TestTheLockOfTheDevice:
    def test_it_is_held_until_the_outputs_are_taken(self, bench: Bench) -> None:
        request = bench.ready()
        free: dict[str, bool] = {}
        bench.recorder.launched = lambda: free.update(launched=is_free())
        bench.while_checked = lambda: free.update(checked=is_free())
        bench.while_waiting = lambda: free.update(waiting=is_free())
        bench.forecast(request)
        assert free == {"launched": False, "checked": False, "waiting": True}
        assert is_free()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    @pytest.mark.parametrize("where", ["launched", "checked"])
    def test_it_is_given_up_where_something_is_raised(
        self, where: str, error: type[BaseException], bench: Bench
    ) -> None:
        request = bench.ready(SAMPLES)
        torch.manual_seed(0)
        before = state()

        def fail() -> None:
            raise error("stop")

        if where == "launched":
            bench.recorder.launched = fail
        else:
            bench.while_checked = fail
        with pytest.raises(error, match="stop"):
            bench.forecast(request)
        assert is_free()
        assert state() == before
        assert path() == PathTaken("fast", f"it raised {error.__name__}: stop")
        bench.recorder.launched = bench.while_checked = lambda: None
        assert bench.goes_on(request)

    def test_it_is_given_up_where_the_forecast_is_refused(self, bench: Bench) -> None:
        request = bench.ready()
        hooked(bench)
        with pytest.raises(FallbackError):
            bench.forecast(request)
        assert is_free()

    @pytest.mark.parametrize("free", ["forget", "revert"])
    def test_another_thread_frees_the_graph_meanwhile(self, free: str, bench: Bench) -> None:
        """It waits for the forecast, which is right whichever of the two is first."""
        request = bench.ready(SAMPLES)
        expected = bench.eagerly(request)
        frees = toto_compile_patch.revert if free == "revert" else graphs.forget
        thread = threading.Thread(target=frees)

        def begin() -> None:
            thread.start()
            thread.join(0.2)

        bench.while_checked = begin
        found = bench.forecast(request)
        thread.join()
        assert bench.events[:2] == [LAUNCH, CHECK]
        assert torch.equal(found, expected)
        assert not bench.recorder.tapes[-1].calls


class TestSignalHandlers:
    """They run in the main thread, between any two of its steps, and may take its locks."""

    def test_one_that_forecasts_by_the_same_graph(self, bench: Bench) -> None:
        request, other = bench.ready(), bench.request(contents=2)
        expected = bench.eagerly(request), bench.eagerly(other)
        handled: list[torch.Tensor] = []

        def handle() -> None:
            bench.while_checked = lambda: None
            handled.append(bench.forecast(other))

        bench.while_checked = handle
        assert torch.equal(bench.forecast(request), expected[0])
        assert torch.equal(handled[0], expected[1])

    def test_one_that_forecasts_by_another_graph(self, bench: Bench) -> None:
        """Graphs share memory: it may write where the outputs of this one were."""
        request, other = bench.ready(), bench.ready(SAMPLES)
        expected = bench.eagerly(request)
        (of_request, _) = graphs._of_models[bench.model]._captured.values()

        def handle() -> None:
            bench.recorder.launched = lambda: None
            bench.forecast(other)
            of_request.outputs[0].fill_(1)

        bench.recorder.launched = handle
        assert torch.equal(bench.forecast(request), expected)

    def test_one_that_frees_the_graph(self, bench: Bench) -> None:
        request = bench.ready()
        expected = bench.eagerly(request)
        bench.while_checked = lambda: forecasts.forget_prepared(bench.model)
        assert torch.equal(bench.forecast(request), expected)
        assert path().runtime == "eager"
        bench.while_checked = lambda: None
        assert bench.goes_on(request)

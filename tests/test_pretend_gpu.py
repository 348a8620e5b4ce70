"""The way of a GPU where there is none: what a CUDA graph replays, and that nothing is asked.

Forecasts are made by the code that makes them on a GPU, with tensors that lie on the host
(``pretend_gpu``); in place of a CUDA graph a tape of its operators is replayed (``tape``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from pretend_gpu import NOWHERE, NotOnAGpuError, PretendGpu
from random_cases import Case
from tape import TapeRecorder, memory_of
from toto_cases import PATCH, series, small_model

import toto_compile_patch
from toto_compile_patch import upstream
from toto_compile_patch.carriers import TOTO
from toto_compile_patch.decode import forecast as forecasts
from toto_compile_patch.decode import graphs
from toto_compile_patch.decode.forecast import ForecastOptions
from toto_compile_patch.decode.modules import ModelParts
from toto_compile_patch.decode.recorder import Outputs
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.runtime import Ran
from toto_compile_patch.decode.support import RefusedError
from toto_compile_patch.decode.weights import prepared_weights
from toto_compile_patch.patches import fast_decode

SLICES = 2
CASES_OF_OTHER_TESTS = 16
"""For each of these there is one mean and one forecast of samples here: they are slower."""

HEAD_IS_FINITE = True
"""The answer to the one question when weights are prepared."""

NOTHING_WRONG = [False, False, False]
"""The answer to the one question of a forecast: which of its checks failed."""


class Made(NamedTuple):
    """A forecast that was made on the host, and what was asked for."""

    request: Request
    result: torch.Tensor


def on_host(case: Case, samples: bool) -> Made:
    """A case's forecast on the host by the fast path."""
    made: list[Made] = []

    def spied(model: Any, look: Any, request: Request, options: Any) -> tuple[Any, Ran]:
        result, ran = forecasts.forecast(model, look, request, options)
        made.append(Made(request, result))
        return result, ran

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_decode, "forecast", spied)
        with toto_compile_patch.patched("fast_decode", fallback="error"):
            case.forecast(case.build(), samples)
    return made[0]


def forecast(
    model: Any, request: Request, options: ForecastOptions | None = None, seed: int = 0
) -> tuple[torch.Tensor, str]:
    """A forecast, for the host to look at, and the runtime that made it."""
    torch.manual_seed(seed)
    options = options or ForecastOptions()
    result, ran = forecasts.forecast(model, lambda: ModelParts.of(model), request, options)
    return result.as_subclass(torch.Tensor), ran.runtime


def with_other_contents(request: Request) -> Request:
    """Another request of the same shape: other values, padding, groups and known future."""
    changed: dict[str, Any] = {
        "inputs": 3.0 - 1.5 * request.inputs.flip(-1),
        "padding_mask": request.padding_mask.flip(-1),
    }
    if (ids := request.id_mask) is not None:
        alternately = torch.arange(ids.shape[1]).view(1, -1, 1) % 2
        changed["id_mask"] = (ids.flip(1) + alternately).to(ids.dtype)
    if (future := request.future_exogenous) is not None:
        changed["future_exogenous"] = future.flip(-1) + 1.0
    return dataclasses.replace(request, **changed)


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    # What apply() would do: decoding knows no class of Toto's before.
    upstream.load(TOTO)
    with PretendGpu() as gpu:
        yield gpu


@pytest.fixture
def recorder(gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    recorder = TapeRecorder(gpu)
    monkeypatch.setattr(graphs, "_recorder", recorder)
    return recorder


@pytest.fixture
def deterministic() -> Iterator[Callable[[bool], None]]:
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("samples", [False, True], ids=["mean", "samples"])
def test_a_replay_forecasts_what_it_is_given(
    samples: bool,
    part: int,
    cases: int,
    recorder: TapeRecorder,
    gpu: PretendGpu,
    deterministic: Any,
) -> None:
    """Exactly: a replay's operators are those that forecast without a graph."""
    for number in range(part, cases // CASES_OF_OTHER_TESTS, SLICES):
        seed = 2 * number + samples
        case, r = Case.random(seed), Random(seed)
        made = on_host(case, samples)
        model = gpu.model(case.build())
        first, second = map(gpu.request, (made.request, with_other_contents(made.request)))
        captured = ForecastOptions(precision=r.choice(["model", "model", "tf32", "bf16"]))
        uncaptured = dataclasses.replace(captured, runtime="eager")
        deterministic(r.random() < 0.2)
        of_first, _ = forecast(model, first, captured)
        of_second, _ = forecast(model, second, uncaptured)
        assert not torch.equal(of_first, of_second), case
        for request, expected in ((first, of_first), (second, of_second), (first, of_first)):
            gpu.asked.clear()
            found, runtime = forecast(model, request, captured)
            assert gpu.asked == [("tolist", NOTHING_WRONG)]
            assert runtime == "cudagraph"
            assert torch.equal(found, expected), case
        assert only_what_is_kept_is_read(model, recorder), case
        assert case.dtype is torch.float32 or is_close(of_first, made), case


def only_what_is_kept_is_read(model: Any, recorder: TapeRecorder) -> bool:
    """Whether the last graph reads no memory but what is kept for it."""
    (kept,) = graphs._of_models[model]._captured.values()
    own = memory_of(kept.inputs.tensors(), kept.weights.held, kept.weights.layers)
    own |= memory_of(kept.weights.head, list(vars(kept.weights.noted).values()))
    return recorder.tapes[-1].read_from_outside() <= own


def is_close(found: torch.Tensor, made: Made) -> bool:
    """Whether the way of a GPU leads where that of a CPU does, in float64: the two differ in who
    chooses components, who rotates, where there is a mask, and who checks."""
    spread = made.request.inputs.std().nan_to_num()
    allowed = 1e-9 * (made.result.abs() + spread)
    return bool(((found - made.result).abs() <= allowed).all())


@pytest.mark.parametrize("samples", [False, True], ids=["mean", "samples"])
def test_a_forecast_of_shapes_alone(samples: bool, cases: int) -> None:
    """On torch's meta tensors, which hold no number that anything could be decided by."""
    for number in range(cases // CASES_OF_OTHER_TESTS // 2):
        case = Case.random(2 * number + samples)
        request, expected = on_host(case, samples)
        with PretendGpu(NOWHERE, answers=[HEAD_IS_FINITE, NOTHING_WRONG]) as gpu:
            found, _ = forecast(
                gpu.model(case.build()), gpu.request(request), ForecastOptions(runtime="eager")
            )
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert [name for name, _ in gpu.asked] == ["__bool__", "tolist"]


@pytest.mark.parametrize(
    "name",
    [
        "unembed.weight",
        "output_distribution.loc_proj.bias",
        "transformer.layers.0.attention.wQKV.weight",
        "transformer.layers.1.norm1.scale",
        "patch_embed.projection.weight",
    ],
)
@pytest.mark.parametrize("replaced", [False, True], ids=["in place", "replaced"])
def test_a_changed_weight_is_followed(
    name: str, replaced: bool, recorder: TapeRecorder, gpu: PretendGpu
) -> None:
    model, request = gpu.model(small_model().model), gpu.request(small_request())
    before = [forecast(model, request)[0] for _ in range(3)][-1]
    weight = model.get_parameter(name)
    if replaced:
        module, _, attribute = name.rpartition(".")
        new = torch.nn.Parameter((1.5 * weight.detach()).clone())
        setattr(model.get_submodule(module), attribute, new)
        weight.detach().fill_(float("nan"))
    else:
        weight.data.mul_(1.5)
    after = [forecast(model, request) for _ in range(3)]
    assert after[-1][1] == "cudagraph"
    expected, _ = forecast(model, request, ForecastOptions(runtime="eager"))
    assert not torch.equal(before, expected)
    for found, _ in after:
        assert torch.equal(found, expected)


def test_weights_that_change_at_each_try_are_upstreams_to_forecast(
    gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread trains the model, say."""
    model, request = gpu.model(small_model().model), gpu.request(small_request())
    tries = []

    def then_change(*args: Any) -> Any:
        tries.append(prepared_weights(*args))
        model.unembed.weight.data.mul_(1.01)
        return tries[-1]

    monkeypatch.setattr(forecasts, "prepared_weights", then_change)
    with pytest.raises(RefusedError, match="weights changed"):
        forecast(model, request, ForecastOptions(runtime="eager"))
    assert len(tries) == forecasts.MOST_TRIES


@pytest.mark.parametrize("num_samples", [None, 4], ids=["mean", "samples"])
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "unprepared"])
@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_within_a_capture_of_the_users_nothing_is_asked(
    precision: str,
    prepared: bool,
    num_samples: int | None,
    gpu: PretendGpu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's own advice is to compute once before, by which the weights are prepared; they may
    have changed since."""
    options = ForecastOptions(precision=precision)
    model = gpu.model(small_model().model)
    request = dataclasses.replace(gpu.request(small_request()), num_samples=num_samples)
    expected, _ = forecast(model, request, dataclasses.replace(options, runtime="eager"))
    if not prepared:
        forecasts.forget_prepared(model)
    gpu.asked.clear()
    with monkeypatch.context() as capture, gpu.capture():
        capture.setattr(torch.cuda, "is_initialized", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        found, ran = forecasts.forecast(model, lambda: ModelParts.of(model), request, options)
    assert not gpu.asked
    assert ran.runtime == "eager"
    assert found.shape == expected.shape
    # It draws as the process's own generator would.
    assert num_samples or torch.equal(found.as_subclass(torch.Tensor), expected)
    # Weights that were made for the capture are not taken for any other forecast.
    again, _ = forecast(model, request, dataclasses.replace(options, runtime="eager"))
    assert torch.equal(again, expected)


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_a_users_own_graph_follows_the_weights(
    precision: str, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives what was prepared before, as torch advises, which nobody may keep alive."""
    options = ForecastOptions(precision=precision, runtime="eager")
    model, request = gpu.model(small_model().model), gpu.request(small_request())
    before, _ = forecast(model, request, options)

    def users(generator: torch.Generator) -> Outputs:
        found, _ = forecasts.forecast(model, lambda: ModelParts.of(model), request, options)
        return found, found.new_zeros(1)

    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_initialized", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        recorder = TapeRecorder(gpu)
        graph, (found, _) = recorder.record(users, request.inputs.device)
    held = (*model.parameters(), *model.buffers(), *request.tensors().values())
    assert recorder.tapes[0].read_from_outside() <= memory_of(*held)
    graph.replay(None)
    assert torch.equal(found.as_subclass(torch.Tensor), before)
    for weight in model.parameters():
        weight.data.mul_(1.25)
    forecasts.forget_prepared(model)
    after, _ = forecast(model, request, options)
    assert not torch.equal(after, before)
    graph.replay(None)
    assert torch.equal(found.as_subclass(torch.Tensor), after)


def small_request() -> Request:
    inputs = series(5 * PATCH, variates=2).series.unsqueeze(0)
    return Request(
        inputs=inputs,
        padding_mask=torch.ones_like(inputs, dtype=torch.bool),
        id_mask=torch.zeros_like(inputs),
        horizon=3 * PATCH,
        num_samples=None,
        samples_per_batch=1,
        use_kv_cache=True,
        future_exogenous=None,
        num_exogenous=0,
    )


class TestTheNet:
    """What would make a CUDA graph fail, or replay something else, is caught."""

    @pytest.mark.parametrize(
        "compute",
        [
            lambda x: x * x.sum().item(),
            lambda x: x + 1 if x.sum() > 0 else x - 1,
            lambda x: x * float(x[0]),
            lambda x: x[: int(x[0])],
            lambda x: x[x > 0],
            lambda x: x[x.argmax()],
            lambda x: x[: x.argmax()],
            lambda x: torch.masked_select(x, x > 0),
            lambda x: x[torch.nonzero(x)[0]],
            lambda x: x * torch.tensor(x.tolist(), device=x.device),
            lambda x: x.cpu(),
            lambda x: x.to("cpu"),
            lambda x: torch.unique(x),
            lambda x: x * torch.ones(3),
            lambda x: x * torch.ones(3).to(x.device),
            lambda x: x.copy_(torch.ones(3)),
            lambda x: x * torch.tensor(2.0, device=x.device),
            lambda x: x * x.new_tensor([2.0]),
            lambda x: x.index_select(0, torch.tensor([1])),
        ],
    )
    def test_what_cannot_be_captured(self, compute: Any, gpu: PretendGpu) -> None:
        x = gpu.tensor(torch.arange(3.0))
        with pytest.raises(NotOnAGpuError):
            TapeRecorder(gpu).record(lambda _: (compute(x), x), x.device)

    def test_a_replay_computes_with_what_it_finds(self, gpu: PretendGpu) -> None:
        assert replayed(gpu, lambda x: x.cumsum(0) + x.view(3, 1).sum()).tolist() == [11, 14, 18]

    def test_a_number_of_the_first_input_stays(self, gpu: PretendGpu) -> None:
        first = 2.0
        assert replayed(gpu, lambda x: x * first).tolist() == [4, 6, 8]

    def test_memory_that_was_never_written_shows(self, gpu: PretendGpu) -> None:
        def compute(x: torch.Tensor) -> torch.Tensor:
            room = x.new_empty(3)
            room[:2] = x[:2]
            return room

        assert replayed(gpu, compute)[2].isnan()

    def test_memory_of_somebody_elses_shows(self, gpu: PretendGpu) -> None:
        x, others = gpu.tensor(torch.ones(3)), gpu.tensor(torch.ones(3))
        recorder = TapeRecorder(gpu)
        recorder.record(lambda _: (x + others, x), x.device)
        assert recorder.tapes[0].read_from_outside() == memory_of(x, others)


def replayed(gpu: PretendGpu, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What was captured from ``0, 1, 2``, replayed for ``2, 3, 4``."""
    x = gpu.tensor(torch.arange(3.0))

    def both(_: torch.Generator) -> Outputs:
        return compute(x), x.clone()

    graph, (found, _) = TapeRecorder(gpu).record(both, x.device)
    x.add_(2.0)
    graph.replay(None)
    return found.as_subclass(torch.Tensor)

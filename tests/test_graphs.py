"""Captured forecasts, as far as a CPU goes: the recorder here computes again where CUDA replays."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.multiprocessing.reductions import StorageWeakRef
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch.decode import context, generation, graphs, runtime
from toto_compile_patch.decode import forecast as forecasts
from toto_compile_patch.decode.recorder import Outputs
from toto_compile_patch.decode.regions import Compiled
from toto_compile_patch.path_taken import PathTaken

HORIZON = 3 * PATCH
CPU = torch.device("cpu")


class Again:
    """Writes to the same outputs at each replay, from the same inputs, as a CUDA graph does."""

    def __init__(self, compute: Callable[[torch.Generator], Outputs], outputs: Outputs) -> None:
        self._compute: Callable[[torch.Generator], Outputs] | None = compute
        self._outputs = outputs

    def replay(self, seed: int | None) -> None:
        assert self._compute is not None, "it was freed"
        generator = torch.Generator().manual_seed(seed or 0)
        for output, computed in zip(self._outputs, self._compute(generator), strict=True):
            output.copy_(computed)

    def reset(self) -> None:
        self._compute = None

    @property
    def freed(self) -> bool:
        return self._compute is None


class CpuRecorder:
    def __init__(self) -> None:
        self.recorded = 0
        self.last: Again | None = None
        self.refuses = ""
        self.fails: BaseException | None = None

    def why_not(self, device: torch.device) -> str:
        return self.refuses

    def record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Again, Outputs]:
        if self.fails:
            raise self.fails
        self.recorded += 1
        outputs = compute(torch.Generator())
        self.last = Again(compute, outputs)
        return self.last, outputs

    def bytes_held(self, device: torch.device) -> int:
        return 1000 * self.recorded


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuRecorder]:
    made = CpuRecorder()
    monkeypatch.setattr(graphs, "_recorder", made)
    monkeypatch.setattr(
        forecasts,
        "choose_runtime",
        lambda *_: runtime.Runtime(runtime.CUDAGRAPH, runtime.UNCOMPILED),
    )
    toto_compile_patch.apply("fast_decode", fallback="error")
    yield made
    toto_compile_patch.revert()


def path() -> PathTaken:
    found = toto_compile_patch.last_path()
    assert found is not None
    return found


def mean(model: Any, length: int = 40, variates: int = 1) -> torch.Tensor:
    return values(forecast(model, series(length, variates), HORIZON))


def test_the_second_forecast_of_a_shape_is_captured(recorder: CpuRecorder) -> None:
    model = small_model().model
    found = [mean(model) for _ in range(4)]
    assert recorder.recorded == 1
    assert path() == PathTaken("fast", "", "cudagraph", 1, 1000)
    assert all(torch.equal(one, found[0]) for one in found)


def test_the_first_is_not(recorder: CpuRecorder) -> None:
    mean(small_model().model)
    assert path().runtime == "eager"
    assert "first" in path().reason
    assert not recorder.recorded


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_nothing_is_compiled_in_a_capture(
    autocast: bool, more: int, threads: int, recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo would ask for the state of CUDA's generator, which must not be asked for there.

    Code is compiled for a number of threads, and may have been for another one before.
    """
    traced = CompileCounter()
    both = runtime.Runtime(runtime.BOTH, Compiled(traced, {}))
    record, before_and_after = recorder.record, []

    def watched(
        compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Again, Outputs]:
        before = traced.frame_count
        recorded = record(compute, device)
        before_and_after.append((before, traced.frame_count))
        return recorded

    monkeypatch.setattr(forecasts, "choose_runtime", lambda *_: both)
    monkeypatch.setattr(recorder, "record", watched)
    model = small_model().model
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = [mean(model, variates=2)]
        torch.set_num_threads(threads + more)
        found += [mean(model, variates=2) for _ in range(2)]
    ((before, after),) = before_and_after
    assert 0 < before == after
    assert path().runtime == "compile+cudagraph"
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_replay_reads_the_series_that_it_is_given(recorder: CpuRecorder) -> None:
    model = small_model().model
    inputs = [series(40, variates=3, batch=2), series(39, variates=3, batch=2)]
    inputs[1] = inputs[1]._replace(id_mask=torch.arange(3.0).view(1, 3, 1).expand(2, 3, 39))
    toto_compile_patch.revert()
    upstream = [values(forecast(model, part, HORIZON)) for part in inputs]
    toto_compile_patch.apply("fast_decode", fallback="error")
    for part in inputs * 2:
        forecast(model, part, HORIZON)
    for part, expected in zip(inputs, upstream, strict=True):
        torch.testing.assert_close(
            values(forecast(model, part, HORIZON)), expected, rtol=1e-5, atol=1e-3
        )
    assert path().runtime == "cudagraph"


def test_random_numbers_are_those_of_the_seed_and_new_ones_without(recorder: CpuRecorder) -> None:
    model = small_model().model
    forecaster = TotoForecaster(model)
    seeded = [values(forecast(model, series(40), HORIZON, 4, 2)) for _ in range(3)]
    assert torch.equal(seeded[0], seeded[1])
    assert torch.equal(seeded[1], seeded[2])
    one, other = (
        forecaster.forecast(series(40), HORIZON, num_samples=4, samples_per_batch=2).samples
        for _ in range(2)
    )
    assert not torch.equal(one, other)
    assert recorder.recorded == 1


def test_results_are_copies(recorder: CpuRecorder) -> None:
    model = small_model().model
    first, second = (mean(model) for _ in range(2))
    kept = second.clone()
    model.transformer.layers[0].attention.wO.bias.data.add_(1.0)
    third = mean(model)
    assert torch.equal(second, kept)
    assert not torch.equal(third, kept)
    assert third.data_ptr() != second.data_ptr() != first.data_ptr()


def test_another_shape_is_another_graph(recorder: CpuRecorder) -> None:
    model = small_model().model
    for _ in range(2):
        for length, variates in ((40, 1), (48, 1), (40, 2)):
            mean(model, length, variates=variates)
    assert recorder.recorded == 3
    assert path().graphs == 3


def test_the_one_unused_for_longest_goes(
    recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    model = small_model().model
    for length in (16, 24, 16, 32):
        mean(model, length)
        mean(model, length)
    assert recorder.recorded == 3
    assert path().graphs == 2
    mean(model, 16)
    assert recorder.recorded == 3
    mean(model, 24)
    assert recorder.recorded == 4


@pytest.mark.fault(
    injected="an error",
    where="a capture",
    observed="the forecast is made without a graph; last_path() says why",
    afterwards="right numbers; after three failures it is not tried again",
)
def test_a_capture_that_fails_leaves_an_eager_forecast(recorder: CpuRecorder) -> None:
    model = small_model().model
    before = mean(model)
    recorder.fails = torch.OutOfMemoryError("no more")
    for _ in range(graphs.MOST_FAILURES):
        assert torch.equal(mean(model), before)
        assert path().runtime == "eager"
        assert "no more" in path().reason
    recorder.fails = None
    assert torch.equal(mean(model), before)
    assert path().runtime == "eager", "it is not tried again and again"
    assert "capturing failed 3 times" in path().reason


@pytest.mark.fault(
    injected="another thread's call",
    where="a capture",
    observed="the forecast is made without a graph",
    afterwards="the next one captures",
)
def test_a_capture_that_another_thread_broke_is_tried_again(recorder: CpuRecorder) -> None:
    model = small_model().model
    before = mean(model)
    recorder.fails = RuntimeError("operation not permitted when stream is capturing")
    assert torch.equal(mean(model), before)
    assert "not permitted" in path().reason
    recorder.fails = None
    assert torch.equal(mean(model), before)
    assert path() == PathTaken("fast", "", "cudagraph", 1, 1000)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.fault(
    injected="an interrupt or an error",
    where="a capture",
    observed="it is raised; last_path() says so",
    afterwards="the next forecast of the shape captures, with right numbers",
)
def test_a_capture_that_is_broken_off_is_begun_again(
    recorder: CpuRecorder, error: type[BaseException]
) -> None:
    model = small_model().model
    before = mean(model)
    recorder.fails = error("stop")
    with pytest.raises(error, match="stop"):
        mean(model)
    assert path() == PathTaken("fast", f"it raised {error.__name__}: stop")
    recorder.fails = None
    assert torch.equal(mean(model), before)
    assert path() == PathTaken("fast", "", "cudagraph", 1, 1000)


@pytest.mark.parametrize(("error", "left"), [(RuntimeError, 1), (torch.OutOfMemoryError, 0)])
@pytest.mark.fault(
    injected="memory ends",
    where="a capture",
    observed="the other graphs are freed",
    afterwards="forecasts go on without",
)
def test_other_graphs_go_where_memory_ran_out(
    recorder: CpuRecorder, error: type[Exception], left: int
) -> None:
    model = small_model().model
    for _ in range(2):
        mean(model)
    mean(model, 16)
    recorder.fails = error("something")
    mean(model, 16)
    assert path().graphs == left


def no_memory_while(held: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have contexts fail for want of memory while graphs hold it; grows with each failure."""
    encode, failures = context.encode, []

    def fail(*args: Any, **kwargs: Any) -> Any:
        if graphs_held := held():
            failures.append(graphs_held)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(*args, **kwargs)

    monkeypatch.setattr(generation, "encode", fail)
    return failures


def graphs_of(*models: Any) -> int:
    kept = [graphs.kept_for(model) for model in models]
    return sum(len(one._captured) for one in kept if one is not None)


@pytest.mark.fault(
    injected="memory ends that graphs hold, another model's among them",
    where="a forecast without a graph",
    observed="all graphs of the device are freed",
    afterwards="the forecast is made, with the same numbers",
)
@pytest.mark.parametrize("drawn", [False, True], ids=["mean", "samples"])
def test_memory_that_graphs_hold_is_given_up_for_a_forecast(
    drawn: bool, recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = (small_model(seed=seed).model for seed in (0, 1))

    def made() -> torch.Tensor:
        count, at_once = (8, 4) if drawn else (None, 10)
        return values(forecast(model, series(24), HORIZON, count, at_once))

    expected = made()
    for one in (model, other):
        mean(one)
        mean(one)
    assert graphs_of(model, other) == 2
    failures = no_memory_while(lambda: graphs_of(model, other), monkeypatch)
    graphs.kept_for(model)._seen.clear()  # type: ignore[union-attr]
    assert torch.equal(made(), expected)
    assert failures == [2]
    assert path().taken == "fast"
    assert not graphs_of(model, other)
    # Without graphs that could be given up, it is an error.
    monkeypatch.setattr(generation, "encode", no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        mean(model, 56)


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_samples_are_not_halved_where_graphs_can_be_given_up(
    recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer at once draw other numbers."""
    model, other = (small_model(seed=seed).model for seed in (0, 1))
    expected = values(forecast(model, series(24), HORIZON, 8, 8))
    mean(other)
    mean(other)
    decode, sizes = generation._decode, []

    def fail(model: Any, request: Any, context: Any, count: int, *args: Any) -> torch.Tensor:
        sizes.append(count)
        if graphs_of(other):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, request, context, count, *args)

    monkeypatch.setattr(generation, "_decode", fail)
    graphs.kept_for(model)._seen.clear()  # type: ignore[union-attr]
    assert torch.equal(values(forecast(model, series(24), HORIZON, 8, 8)), expected)
    assert sizes == [8, 8]


def test_a_replay_without_memory_is_a_forecast_without_a_graph(
    recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model().model
    expected = mean(model)
    mean(model)
    monkeypatch.setattr(Again, "replay", no_memory)
    assert torch.equal(mean(model), expected)
    assert (path().runtime, path().graphs) == ("eager", 0)


@pytest.mark.parametrize("runtime", ["by graph", "eager"])
def test_graphs_of_weights_that_were_converted_go(runtime: str, recorder: CpuRecorder) -> None:
    """They hold the earlier weights, however the next forecast is made."""
    model = small_model().model
    mean(model)
    mean(model)
    held = StorageWeakRef(model.unembed.weight.untyped_storage())
    assert graphs_of(model) == 1
    model.double()
    recorder.refuses = "somebody else is capturing" if runtime == "eager" else ""
    forecast(model, series(40, dtype=torch.float64), HORIZON)
    gc.collect()
    assert not graphs_of(model)
    assert held.expired()


def test_graphs_of_another_device_are_freed_under_its_lock(
    recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread might be capturing there."""
    model = small_model().model
    mean(model)
    mean(model)
    kept = graphs.kept_for(model)
    assert kept is not None
    (captured,) = kept._captured.values()
    elsewhere = torch.device("cuda", 7)
    monkeypatch.setattr(type(captured), "device", property(lambda self: places.get(id(self), CPU)))
    places = {id(captured): elsewhere}
    leave = threading.Thread(target=kept.leave_for, args=(CPU,))
    with graphs.one_at_a_time(elsewhere), monkeypatch.context() as patch:
        leave.start()
        leave.join(0.2)
        assert leave.is_alive()
        # Captures on this device leave that graph alone.
        patch.setattr(graphs.Graphs, "leave_for", lambda *_: None)
        patch.setattr(graphs, "MOST_GRAPHS", 1)
        for length in (16, 24):
            mean(model, length)
            mean(model, length)
        assert next(iter(kept._captured.values())) is captured
        assert graphs_of(model) == 2
    leave.join()
    assert captured not in kept._captured.values()


@pytest.mark.fault(
    injected="a limit of time, an error that a signal's handler raises",
    where="a capture",
    observed="it is raised",
    afterwards="the next forecast of the shape captures",
)
def test_a_limit_of_time_in_a_capture(
    recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_time(*_: Any) -> None:
        raise RuntimeError("it takes too long")

    model = small_model().model
    expected = mean(model)
    before = signal.signal(signal.SIGUSR1, out_of_time)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(recorder, "record", lambda *_: signal.raise_signal(signal.SIGUSR1))
            with pytest.raises(RuntimeError, match="too long"):
                mean(model)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert torch.equal(mean(model), expected)
    assert path().runtime == "cudagraph"


def test_another_models_graphs_go_where_a_capture_has_no_memory(recorder: CpuRecorder) -> None:
    """They share the memory that was too little."""
    model, other = (small_model(seed=seed).model for seed in (0, 1))
    mean(other)
    mean(other)
    mean(model)
    recorder.fails = torch.OutOfMemoryError("no more")
    mean(model)
    assert not graphs_of(other)


def test_where_nothing_can_be_captured(recorder: CpuRecorder) -> None:
    model = small_model().model
    recorder.refuses = "somebody else is capturing"
    for _ in range(3):
        mean(model)
        assert (path().runtime, path().reason) == ("eager", recorder.refuses)


def test_graphs_go_with_the_patch_and_with_changed_weights(recorder: CpuRecorder) -> None:
    model = small_model().model
    mean(model)
    mean(model)
    model.unembed.weight.data.mul_(1.5)
    changed = mean(model)
    assert path().runtime == "eager"
    mean(model)
    last = recorder.last
    assert last is not None
    assert not last.freed
    toto_compile_patch.revert()
    assert last.freed
    torch.testing.assert_close(mean(model), changed, rtol=1e-5, atol=1e-3)
    toto_compile_patch.apply("fast_decode", fallback="error")
    mean(model)
    assert path().graphs == 0


def test_threads_share_a_graph(recorder: CpuRecorder) -> None:
    model = small_model().model
    alone = {length: mean(model, length) for length in (24, 40, 24, 40)}
    wrong: list[int] = []

    def work(length: int) -> None:
        forecaster = TotoForecaster(model)
        for _ in range(20):
            if not torch.equal(forecaster.forecast(series(length), HORIZON).mean, alone[length]):
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(length,)) for length in (24, 40, 24, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert recorder.recorded == 2


def test_shapes_that_came_once_are_forgotten_in_time(
    recorder: CpuRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_SEEN", 2)
    model = small_model().model
    for length in (16, 24, 32, 16):
        mean(model, length)
        assert path().reason == graphs.FIRST_OF_ITS_SHAPE
    mean(model, 32)
    assert path().runtime == "cudagraph"

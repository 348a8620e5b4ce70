"""Whole forecasts captured in CUDA graphs: one launch in place of thousands.

A graph is captured when a forecast of its shape is asked for the second time: one that never
comes again costs nothing, and the first has warmed up all that must not be captured. A forecast
copies its series into the graph's own tensors, replays the graph and copies the result out.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from toto_compile_patch.decode.captured import Captured, Replay
from toto_compile_patch.decode.graph_key import GraphKey, graph_key
from toto_compile_patch.decode.memory import out_of_memory
from toto_compile_patch.decode.precision import TorchSettings, without_autocast_cache
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.random_numbers import (
    GivenRandomNumbers,
    OwnRandomNumbers,
    RandomNumbers,
)
from toto_compile_patch.decode.recorder import CudaRecorder, Outputs, Recorder
from toto_compile_patch.decode.request import Request, RequestShape
from toto_compile_patch.decode.runtime import BOTH, Ran, Runtime
from toto_compile_patch.errors import in_a_line, is_of_a_signal
from toto_compile_patch.locks import Lock

_logger = logging.getLogger("toto_compile_patch")

MOST_GRAPHS = 16
"""Graphs kept for a model; the one that was not used for longest goes first."""

FIRST_OF_ITS_SHAPE = "the first forecast of its shape"

ANOTHER_IS_CAPTURED = "another thread captures a graph"

MOST_SEEN = 256
"""Shapes of single forecasts that are remembered."""

MOST_FAILURES = 3
"""Captures of a shape that are tried: a thread that waits for the device can break one."""

Compute = Callable[[Request, RandomNumbers | None], Outputs]


@dataclass(frozen=True)
class AskedForecast:
    """A forecast that is asked for.

    Attributes:
        model: the model.
        request: series and horizon.
        options: how to forecast.
        runtime: the runtime, which captures CUDA graphs.
        numbers: the forecast's random numbers.
        compute: makes the forecast without a graph.
        ahead: what was launched for it before it was checked, if anything was.
    """

    model: PreparedModel
    request: Request
    options: Any
    runtime: Runtime
    numbers: OwnRandomNumbers
    compute: Compute
    ahead: Replay | None = None

    @property
    def device(self) -> torch.device:
        """Where it is made."""
        return self.request.inputs.device


@dataclass(frozen=True)
class _Seen:
    """What is known of a shape that has no graph.

    Attributes:
        failures: how often capturing failed.
        why: what it said; empty where it has not been tried.
    """

    failures: int = 0
    why: str = ""

    def failed(self, error: RuntimeError) -> _Seen:
        """The same after another failure."""
        failures = self.failures + 1
        tried = "" if failures < MOST_FAILURES else f" {failures} times"
        return _Seen(failures, f"capturing failed{tried} ({in_a_line(error)})")


class Graphs:
    """The graphs of one model.

    Args:
        recorder: captures.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        # A plain dictionary, in the order of their last use: a list of its values can be made while
        # another thread changes it.
        self._captured: dict[GraphKey, Captured] = {}
        self._seen: OrderedDict[GraphKey, _Seen] = OrderedDict()

    def run(self, key: GraphKey, asked: AskedForecast) -> tuple[torch.Tensor, torch.Tensor, Ran]:
        """Forecast by a graph where there is one, else without; keep a new graph where it pays.

        The device's lock is held.

        Args:
            key: all that a graph depends on, but the values of the request's tensors.
            asked: the forecast.
        """
        if why_not := self.why_not(asked.device):
            return self._without(asked, why_not)
        captured = self._captured.get(key)
        if captured is None:
            if key not in self._seen:
                made = self._without(asked, FIRST_OF_ITS_SHAPE)
                # Only now: what must not be done in a capture has been done.
                self._note(key, _Seen())
                return made
            captured = self._capture(key, asked)
        if captured is None:
            return self._without(asked, self._seen[key].why)
        self._captured[key] = self._captured.pop(key)
        captured.may_go_ahead = True
        seed = None if asked.request.num_samples is None else asked.numbers.seed
        replay = asked.ahead
        while replay is None or not replay.is_what(captured, seed):
            replay = captured.replay(asked.request, seed)
        return *replay.results, self._ran(asked.runtime)

    def why_not(self, device: torch.device) -> str:
        """Why nothing can be captured or replayed here and now; else empty."""
        return self._recorder.why_not(device)

    def used_last_for(
        self, request: RequestShape, options: Any, settings: TorchSettings
    ) -> Captured | None:
        """The graph that was used last where as much of its key was as given.

        The device's lock is held.
        """
        wanted = request, options, settings
        for key in reversed(list(self._captured)):
            if (key.request, key.options, key.torch) == wanted:
                return self._captured[key]
        return None

    def clear(self) -> None:
        """Free all graphs."""
        for device in {captured.device for captured in list(self._captured.values())}:
            with one_at_a_time(device):
                self.drop_of(device)

    def are_kept_on(self, device: torch.device) -> bool:
        """Whether there is a graph on a device."""
        return any(captured.device == device for captured in list(self._captured.values()))

    def drop_of(self, device: torch.device) -> None:
        """Free the graphs on a device, whose lock is held."""
        self._drop(device, lambda captured: True)

    def leave_for(self, device: torch.device) -> None:
        """Free the graphs of a model that was moved or converted, which hold its earlier weights.

        No device's lock is held.

        Args:
            device: where the model is now.
        """
        held = list(self._captured.values())
        # Most graphs are of the same weights: these are looked at once.
        every = {captured.weights.number: captured.weights for captured in held}
        moved = {number for number, weights in every.items() if weights.have_moved()}
        left = {one for one in held if one.device != device or one.weights.number in moved}
        for where in {captured.device for captured in left}:
            with one_at_a_time(where):
                self._drop(where, left.__contains__)

    def _drop(self, device: torch.device, which: Callable[[Captured], bool]) -> None:
        """Free graphs on a device, whose lock is held: another one might be capturing elsewhere."""
        for key, captured in list(self._captured.items()):
            if captured.device == device and which(captured):
                del self._captured[key]
                captured.graph.reset()

    def _capture(self, key: GraphKey, asked: AskedForecast) -> Captured | None:
        """Capture a forecast; None where that fails, or failed too often."""
        seen, free = self._seen[key], False
        if seen.failures >= MOST_FAILURES:
            return None
        try:
            # Not waited for: who captures on another GPU may wait for this one's lock.
            free = _captures.held.acquire(blocking=False)
            if free:
                return self._capture_now(key, asked, seen)
            self._note(key, replace(seen, why=ANOTHER_IS_CAPTURED))
            return None
        finally:
            if free:
                _captures.held.release()

    def _capture_now(self, key: GraphKey, asked: AskedForecast, seen: _Seen) -> Captured | None:
        device, weights, options = asked.device, asked.model.weights, asked.options
        # Graphs of weights that have since been prepared anew are never asked for again.
        self._drop(device, lambda old: old.options == options and old.weights is not weights)
        kept = [captured for captured in list(self._captured.values()) if captured.device == device]
        self._drop(device, kept[: max(0, len(kept) - MOST_GRAPHS + 1)].__contains__)
        try:
            before = self._recorder.bytes_held(device)
            own: dict[str, Any] = {
                name: part.clone() for name, part in asked.request.tensors().items()
            }
            inputs = replace(asked.request, **own)
            with without_autocast_cache(device):
                if asked.runtime.name == BOTH:
                    # Code is compiled for the settings of a process. Where they have changed since
                    # the first forecast it is compiled now, and not in the capture.
                    asked.compute(asked.request, asked.numbers)
                graph, outputs = self._recorder.record(
                    lambda generator: asked.compute(inputs, GivenRandomNumbers(generator)), device
                )
            size = max(0, self._recorder.bytes_held(device) - before)
        except RuntimeError as error:
            if is_of_a_signal(error):
                raise
            if out_of_memory(error):
                free(device)
            self._note(key, seen.failed(error))
            return None
        self._captured[key] = Captured(graph, inputs, outputs, weights, options, size)
        return self._captured[key]

    def _without(self, asked: AskedForecast, why: str) -> tuple[torch.Tensor, torch.Tensor, Ran]:
        result, outcomes = asked.compute(asked.request, asked.numbers)
        return result, outcomes, self._ran(asked.runtime.without_graphs(why))

    def _ran(self, runtime: Runtime) -> Ran:
        held = list(self._captured.values())
        unexpected = runtime.reason not in ("", FIRST_OF_ITS_SHAPE, ANOTHER_IS_CAPTURED)
        size = sum(captured.size for captured in held)
        return Ran(runtime.name, runtime.reason, unexpected, len(held), size)

    def _note(self, key: GraphKey, seen: _Seen) -> None:
        self._seen[key] = seen
        self._seen.move_to_end(key)
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)


_of_models: WeakKeyDictionary[Any, Graphs] = WeakKeyDictionary()
_lock = Lock()
_captures = Lock()
"""Held for a capture: what goes before one concerns all GPUs, and so does the garbage collector."""
_of_devices: dict[torch.device, Lock] = {}
_recorder = CudaRecorder()


def run(asked: AskedForecast) -> tuple[torch.Tensor, torch.Tensor, Ran]:
    """Forecast on a GPU by a CUDA graph of the model's, where there is or may be one.

    Returns:
        The forecast, the outcomes of its checks, and how it was made.
    """
    with _lock.held:
        of_this_model = _of_models.setdefault(asked.model.backbone, Graphs(_recorder))
    key = graph_key(asked.model, asked.request, asked.options, asked.runtime)
    with one_at_a_time(asked.device):
        return of_this_model.run(key, asked)


def kept_for(backbone: Any) -> Graphs | None:
    """The graphs of a backbone; None for one that has had none, and for whatever is no module."""
    if not isinstance(backbone, torch.nn.Module):
        return None
    with _lock.held:
        return _of_models.get(backbone)


def forget(backbone: Any = None) -> None:
    """Free the graphs of a backbone; without one, those of all."""
    with _lock.held:
        gone = list(_of_models.values()) if backbone is None else [_of_models.pop(backbone, None)]
        if backbone is None:
            _of_models.clear()
    for graphs in gone:
        if graphs is not None:
            graphs.clear()


def are_kept_on(device: torch.device) -> bool:
    """Whether there are graphs on a device, of whichever model."""
    with _lock.held:
        return any(graphs.are_kept_on(device) for graphs in list(_of_models.values()))


def free(device: torch.device) -> bool:
    """Free the graphs on a device, whose lock is held: those of all models, since they share memory
    that serves nothing else; whether there were any."""
    if not are_kept_on(device):
        return False
    _logger.info("memory ran out on %s: its CUDA graphs are freed", device)
    if device.type == "cuda":
        # Those that were launched go on until then.
        torch.cuda.synchronize(device)
    with _lock.held:
        every = list(_of_models.values())
    for graphs in every:
        graphs.drop_of(device)
    return True


@contextmanager
def one_at_a_time(device: torch.device) -> Iterator[None]:
    """Graphs of a device share memory, and random numbers cannot be drawn beside a capture."""
    with _lock.held:
        lock = _of_devices.get(device) or _of_devices.setdefault(device, Lock())
    with lock.held:
        yield

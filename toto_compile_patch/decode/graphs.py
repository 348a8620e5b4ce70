"""Whole forecasts captured in CUDA graphs: one launch in place of thousands.

A graph is captured when a forecast of its shape is asked for the second time: one that never
comes again costs nothing, and the first has warmed up all that must not be captured. A forecast
copies its series into the graph's own tensors, replays the graph and copies the result out.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch

from toto_compile_patch.decode.modules import tensors_of
from toto_compile_patch.decode.precision import matmul_setting
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.random_numbers import GivenNumbers, Numbers, OwnNumbers
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.runtime import Ran, Runtime
from toto_compile_patch.decode.weights import Weights
from toto_compile_patch.locks import Lock

MOST_GRAPHS = 16
"""Graphs kept for a model; the one that was not used for longest goes first."""

FIRST_OF_ITS_SHAPE = "the first forecast of its shape"

MOST_SEEN = 256
"""Shapes of single forecasts that are remembered."""

Outputs = tuple[torch.Tensor, torch.Tensor]
"""Forecast and answered doubts (see ``doubts``)."""
Compute = Callable[[Request, Numbers | None], Outputs]


class Graph(Protocol):
    """What was captured."""

    def replay(self, seed: int | None) -> None:
        """Compute the outputs again, from what the inputs hold now.

        Args:
            seed: of the random numbers; None: none are drawn.
        """

    def reset(self) -> None:
        """Free it."""


class Recorder(Protocol):
    """Captures computations on one kind of device."""

    def why_not(self, device: torch.device) -> str:
        """Why nothing can be captured or replayed here and now; else empty."""

    def record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Graph, Outputs]:
        """Capture a computation that draws from the generator that it is given.

        Raises RuntimeError where that fails, and leaves no trace.
        """

    def bytes_held(self, device: torch.device) -> int:
        """Memory held by the process."""


@dataclass(frozen=True)
class _CudaGraph:
    """A graph, and the generator of the random numbers that it draws."""

    graph: Any
    generator: torch.Generator

    def replay(self, seed: int | None) -> None:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.graph.replay()

    def reset(self) -> None:
        self.graph.reset()


class CudaRecorder:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}
        self._pools: dict[torch.device, Any] = {}
        self._alive: dict[torch.device, WeakSet[Any]] = {}

    def why_not(self, device: torch.device) -> str:
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return "the forecast is itself being captured"
            if torch.cuda.current_stream() != torch.cuda.default_stream():
                return "the forecast is on a stream of its own"
        return ""

    def record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Graph, Outputs]:
        graph = torch.cuda.CUDAGraph()
        generator = torch.Generator(device)
        graph.register_generator_state(generator)
        with torch.cuda.device(device), _autocast_without_cache(), _nothing_collected():
            # A thread's handle cannot be made during a capture.
            torch.cuda.current_blas_handle()
            stream, pool = self._stream(device), self._pool(device)
            # What cuBLAS works in shall belong to this graph alone, before and after.
            _clear_workspaces()
            try:
                # Torch leaves the capture's stream only where nothing fails.
                with (
                    torch.cuda.stream(stream),
                    # Only this thread's mistakes count: others may go on meanwhile.
                    torch.cuda.graph(
                        graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                    ),
                ):
                    outputs = compute(generator)
            except BaseException:
                self._give_up(device, stream)
                raise
            finally:
                _clear_workspaces()
        self._alive.setdefault(device, WeakSet()).add(graph)
        return _CudaGraph(graph, generator), outputs

    def bytes_held(self, device: torch.device) -> int:
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
            return int(torch.cuda.memory_reserved())

    def _stream(self, device: torch.device) -> Any:
        # Torch's own default is one stream for all devices.
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def _pool(self, device: torch.device) -> Any:
        # Graphs of a device share memory: they never run at once, and their results are copied.
        # A pool that no graph uses any more cannot be used again.
        if device not in self._pools or not self._alive.get(device):
            self._pools[device] = torch.cuda.graph_pool_handle()
        return self._pools[device]

    def _give_up(self, device: torch.device, stream: Any) -> None:
        """After a capture that failed, torch 2.7 goes on giving out the pool's memory, and believes
        its random generator to be captured until a capture succeeds."""
        pool = self._pools.pop(device, None)
        self._alive.pop(device, None)
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        end = end or getattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", None)
        with suppress(RuntimeError, TypeError):
            if end is not None:
                end(device.index or 0, pool)
        with (
            suppress(RuntimeError),
            torch.cuda.stream(stream),
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream),
        ):
            torch.zeros(1, device=device)


def _clear_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _autocast_without_cache() -> Iterator[None]:
    """What autocast caches would be memory of the graph's that others use."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """A graph that is freed while another is captured spoils the capture."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class Asked:
    """A forecast that is asked for.

    Attributes:
        model: the model.
        request: series and horizon.
        options: how to forecast.
        way: the runtime that captures.
        numbers: the forecast's random numbers.
        compute: the forecast.
    """

    model: PreparedModel
    request: Request
    options: Any
    way: Runtime
    numbers: OwnNumbers
    compute: Compute

    @property
    def device(self) -> torch.device:
        """Where it is made."""
        return self.request.inputs.device


@dataclass
class _Captured:
    """A graph with its own inputs and outputs.

    Attributes:
        graph: what to replay.
        inputs: the request whose tensors it reads.
        outputs: what it writes.
        weights: what it also reads, kept alive.
        options: how it forecasts.
        size: bytes that capturing it took.
    """

    graph: Graph
    inputs: Request
    outputs: Outputs
    weights: Weights
    options: Any
    size: int


class Graphs:
    """The graphs of one model.

    Args:
        recorder: captures.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._seen: OrderedDict[Any, str] = OrderedDict()

    def run(self, key: Any, asked: Asked) -> tuple[torch.Tensor, torch.Tensor, Ran]:
        """Forecast by a graph where there is one, else without; keep a new graph where it pays.

        The device's lock is held.

        Args:
            key: all that a graph depends on, but the values of the request's tensors.
            asked: the forecast.
        """
        if why_not := self._recorder.why_not(asked.device):
            return self._without(asked, why_not)
        captured = self._captured.get(key)
        if captured is None:
            if key not in self._seen:
                self._note(key, "")
                return self._without(asked, FIRST_OF_ITS_SHAPE)
            captured = self._capture(key, asked)
        if captured is None:
            return self._without(asked, self._seen[key])
        self._captured.move_to_end(key)
        for name, tensor in _tensors(asked.request).items():
            getattr(captured.inputs, name).copy_(tensor)
        drawn = asked.request.num_samples is not None
        captured.graph.replay(asked.numbers.seed if drawn else None)
        result, answers = (output.clone() for output in captured.outputs)
        return result, answers, self._ran(asked.way)

    def clear(self) -> None:
        """Free all graphs."""
        devices = {captured.inputs.inputs.device for captured in list(self._captured.values())}
        for device in devices:
            with one_at_a_time(device):
                self._drop(lambda captured: True)

    def _drop(self, which: Callable[[_Captured], bool]) -> None:
        for key in [key for key, captured in self._captured.items() if which(captured)]:
            self._captured.pop(key).graph.reset()

    def _capture(self, key: Any, asked: Asked) -> _Captured | None:
        """Capture a forecast; None where that fails, or failed before."""
        if self._seen[key]:
            return None
        device, weights, options = asked.device, asked.model.weights, asked.options
        # Graphs of weights that have since been prepared anew are never asked for again.
        self._drop(lambda old: old.options == options and old.weights is not weights)
        while len(self._captured) >= MOST_GRAPHS:
            self._captured.popitem(last=False)[1].graph.reset()
        try:
            before = self._recorder.bytes_held(device)
            own: dict[str, Any] = {
                name: part.clone() for name, part in _tensors(asked.request).items()
            }
            inputs = replace(asked.request, **own)
            graph, outputs = self._recorder.record(
                lambda generator: asked.compute(inputs, GivenNumbers(generator)), device
            )
            size = max(0, self._recorder.bytes_held(device) - before)
        except RuntimeError as error:
            self._drop(lambda captured: True)
            self._note(key, f"capturing failed ({_first_line(error)})")
            return None
        self._captured[key] = _Captured(graph, inputs, outputs, weights, options, size)
        return self._captured[key]

    def _without(self, asked: Asked, why: str) -> tuple[torch.Tensor, torch.Tensor, Ran]:
        result, answers = asked.compute(asked.request, asked.numbers)
        return result, answers, self._ran(asked.way.without_graphs(why))

    def _ran(self, way: Runtime) -> Ran:
        held = list(self._captured.values())
        unexpected = way.reason not in ("", FIRST_OF_ITS_SHAPE)
        size = sum(captured.size for captured in held)
        return Ran(way.name, way.reason, unexpected, len(held), size)

    def _note(self, key: Any, failure: str) -> None:
        self._seen[key] = failure
        self._seen.move_to_end(key)
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)


_of_models: WeakKeyDictionary[Any, Graphs] = WeakKeyDictionary()
_lock = Lock()
_of_devices: dict[torch.device, Lock] = {}
_recorder = CudaRecorder()


def run(asked: Asked) -> tuple[torch.Tensor, torch.Tensor, Ran]:
    """Forecast on a GPU by a CUDA graph of the model's, where there is or may be one.

    Returns:
        The forecast, the answers to its doubts, and how it was made.
    """
    with _lock.held:
        of_this_model = _of_models.setdefault(asked.model.backbone, Graphs(_recorder))
    return of_this_model.run(_key(asked), asked)


def forget(backbone: Any = None) -> None:
    """Free the graphs of a backbone; without one, those of all."""
    with _lock.held:
        gone = list(_of_models.values()) if backbone is None else [_of_models.pop(backbone, None)]
        if backbone is None:
            _of_models.clear()
    for graphs in gone:
        if graphs is not None:
            graphs.clear()


@contextmanager
def one_at_a_time(device: torch.device) -> Iterator[None]:
    """Graphs of a device share memory, and random numbers cannot be drawn beside a capture."""
    with _lock.held:
        lock = _of_devices.get(device) or _of_devices.setdefault(device, Lock())
    with lock.held:
        yield


def _tensors(request: Request) -> dict[str, torch.Tensor]:
    """The tensors of a request, by name."""
    return {name: part for name, part in vars(request).items() if isinstance(part, torch.Tensor)}


_SETTINGS_OF_SCALERS = (
    "minimum_scale",
    "use_bessel_correction",
    "stabilize_with_global",
    "scale_factor_exponent",
)


def _key(asked: Asked) -> tuple[Any, ...]:
    """All that decides which kernels run, and on which memory, but a request's own."""
    backbone, request = asked.model.backbone, asked.request
    described = {
        name: (part.shape, part.stride(), part.dtype) if isinstance(part, torch.Tensor) else part
        for name, part in vars(request).items()
    }
    kind = request.inputs.device.type
    places = (tensor.data_ptr() for tensor in tensors_of(backbone))
    return (
        tuple(sorted(described.items(), key=lambda item: item[0])),
        asked.options,
        asked.way.name,
        id(asked.way.regions),
        id(asked.model.weights),
        torch.is_autocast_enabled(kind),
        torch.get_autocast_dtype(kind),
        torch.are_deterministic_algorithms_enabled(),
        matmul_setting(),
        type(backbone.scaler),
        *(getattr(backbone.scaler, name, None) for name in _SETTINGS_OF_SCALERS),
        backbone.transformer.rotary_emb.scale_base,
        *places,
    )


def _first_line(error: RuntimeError) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"

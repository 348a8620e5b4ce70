"""How a computation is captured on a device and replayed: the protocol, and CUDA's way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import torch

from toto_compile_patch.private_names import GRAPHS, private, why_without

Outputs = tuple[torch.Tensor, torch.Tensor]
"""A forecast, and the outcomes of its checks (see ``device_checks``)."""

# No comparison of strings: torch's version is of a class of its own.
_REGISTERS_GENERATORS = torch.__version__ < "2.14"
"""Whether a graph must be told of its generator. Newer releases find out, and warn if told."""


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
        if reason := why_without(GRAPHS):
            return reason
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return "the forecast is itself being captured"
            if torch.cuda.current_stream() != torch.cuda.default_stream():
                return "the forecast is on a stream of its own"
        return ""

    def record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Graph, Outputs]:
        with torch.cuda.device(device), _nothing_collected():
            graph = torch.cuda.CUDAGraph()
            generator = torch.Generator(device)
            if _REGISTERS_GENERATORS:
                # Its seed will lie on the current device, whatever the generator's is.
                graph.register_generator_state(generator)
            # A thread's handle cannot be made during a capture.
            torch.cuda.current_blas_handle()
            stream, pool = self._stream(device), self._pool(device)
            # What cuBLAS works in shall belong to this graph alone, before and after.
            _clear_workspaces()
            # Memory that torch holds for others cannot be taken during a capture.
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            try:
                # Not by ``torch.cuda.graph``: it collects garbage, which takes longer than all
                # else, and may leave its stream in force where a capture fails.
                with torch.cuda.stream(stream):
                    # Only this thread's mistakes count: others may go on meanwhile.
                    graph.capture_begin(pool, capture_error_mode="thread_local")
                    outputs = compute(generator)
                    graph.capture_end()
            except BaseException:
                self._give_up(graph, device, stream)
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

    def _give_up(self, graph: Any, device: torch.device, stream: Any) -> None:
        """End a capture that failed.

        Where torch cannot end it, torch goes on giving out the pool's memory, keeps the pool for
        ever, and (2.7) believes its random generator to be captured until a capture succeeds.
        """
        pool = self._pools.pop(device, None)
        self._alive.pop(device, None)
        with torch.cuda.stream(stream):
            try:
                graph.capture_end()
            except RuntimeError:
                _end_by_hand(device, pool)
            with suppress(RuntimeError):
                empty = torch.cuda.CUDAGraph()
                empty.capture_begin(capture_error_mode="thread_local")
                torch.zeros(1, device=device)
                empty.capture_end()


def _end_by_hand(device: torch.device, pool: Any) -> None:
    """Take back what torch's allocator was told when a capture began."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    end = end or getattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", None)
    release = getattr(torch._C, "_cuda_releasePool", None)
    if end is None or release is None:
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    with suppress(RuntimeError, TypeError):
        end(index, pool)
        # The use of a pool is counted: once for this capture, unless the end above was refused.
        release(index, pool)


def _clear_workspaces() -> None:
    private("torch._C._cuda_clearCublasWorkspaces")()


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """A graph that is freed while another is captured spoils the capture."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def capturing() -> bool:
    """Whether what is computed now is being captured in a CUDA graph: nothing may be asked then."""
    # ``is_available()`` asks the driver anew each time.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()

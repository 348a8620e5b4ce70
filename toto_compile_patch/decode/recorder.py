"""How a computation is captured on a device and replayed: the protocol, and CUDA's way."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch

Outputs = tuple[torch.Tensor, torch.Tensor]
"""A forecast, and the outcomes of its checks (see ``device_checks``)."""

# No comparison of strings: torch's version is of a class of its own.
_REGISTERS_GENERATORS = torch.__version__ < "2.14"
"""Whether a graph must be told of its generator. Newer releases find out, and warn if told."""

_NO_CACHE = "PYTORCH_NO_CUDA_MEMORY_CACHING"
"""With this variable torch gives no memory in a capture."""

_ALLOCATOR = "native"
"""The allocator that keeps what a graph was given in a pool, which others may share."""

_BEFORE_OTHERS = -1
"""The priority of the stream that is captured. Torch hands out few streams, again and again: hardly
anybody asks for one of these."""

_Made = TypeVar("_Made")


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


class _Place:
    """Where the graphs of a device are captured, until a capture there fails (see ``is_spent``).

    Args:
        device: the device, which is the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Torch's own default is one stream for all devices.
        self.stream = torch.cuda.Stream(device, priority=_BEFORE_OTHERS)
        self._pool: Any = None
        self._alive: WeakSet[Any] = WeakSet()
        self._before: set[int] = set()
        self._pool_of_products = torch.cuda.graph_pool_handle()
        self._products: Any = None
        self._failed = False

    def is_spent(self) -> bool:
        """Whether graphs must be captured elsewhere, on another stream.

        Torch 2.11 cannot capture again in a pool in which a capture failed. And what cuBLAS works
        in on this stream may be of a pool that goes, where somebody cleared torch's table of it
        during a capture: something is left in that pool then (or a traceback holds a tensor).
        """
        left = self._pool and not self._alive and _in_use(self._pool) - self._before
        return self._failed or bool(left)

    def capture(self, graph: Any, compute: Callable[[], Outputs]) -> Outputs:
        """Capture a forecast in a graph."""
        # Held until the end: where it goes, torch 2.12 to 2.14 clear what its stream works in.
        products = self._capture_products()
        # Graphs share memory: they never run at once, and their results are copied. A pool that no
        # graph uses any more cannot be used again.
        if not self._alive:
            self._pool, self._before = torch.cuda.graph_pool_handle(), set()
        before = _in_use(self._pool) if self._alive else set()
        try:
            outputs = _capture(graph, self.stream, self._pool, self.device, compute)
        except BaseException:
            # Torch may not have let go of the pool: another one is taken next.
            self._alive, self._before = WeakSet(), before
            raise
        finally:
            del products
        if _pool_of(outputs[0]) not in (None, self._pool):
            # Torch 2.7 lets a pool of the user's go first, which nobody holds for the graph.
            self._failed = True
            graph.reset()
            raise RuntimeError("torch.cuda.use_mem_pool() is in force")
        self._alive.add(graph)
        return outputs

    def reset(self, graph: Any) -> None:
        """Free a graph."""
        self._alive.discard(graph)
        graph.reset()

    def _capture_products(self) -> Any:
        """Have cuBLAS work in memory that stays, whoever clears torch's table of it.

        Torch keeps that memory by thread and stream. It is given by the first product that needs it
        and, where that is captured, out of the capture's pool, which lives as long as a graph of
        it. Graphs know its address; a table that is cleared (as torch does for compiled code with
        graphs) gives it back. So products are captured before each forecast, in a pool of their own
        whose first graph is kept with this place: for each thread that captures, some 10 MB of a
        GPU, 35 from H100 on.

        Returns:
            Their graph.
        """
        factor = torch.ones(16, 16, device=self.device)

        def multiply() -> None:
            torch.mm(factor, factor)
            torch.addmm(factor[0], factor, factor)

        # A thread's handle cannot be made during a capture.
        multiply()
        graph = torch.cuda.CUDAGraph()
        # Until it has gone well.
        self._failed = True
        _capture(graph, self.stream, self._pool_of_products, self.device, multiply)
        self._products = self._products or graph
        self._failed = False
        return graph


@dataclass(frozen=True)
class _CudaGraph:
    """A graph.

    Attributes:
        graph: torch's.
        generator: of the random numbers that it draws.
        place: where it was captured, whose memory it needs.
    """

    graph: Any
    generator: torch.Generator
    place: _Place

    def replay(self, seed: int | None) -> None:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.graph.replay()

    def reset(self) -> None:
        self.place.reset(self.graph)


class CudaRecorder:
    """``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self._places: dict[torch.device, _Place] = {}

    def why_not(self, device: torch.device) -> str:
        if _NO_CACHE in os.environ:
            return f"{_NO_CACHE} is set"
        if (backend := torch.cuda.get_allocator_backend()) != _ALLOCATOR:
            return f"torch's memory is given by {backend}, not its own allocator"
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return "the forecast is itself being captured"
            if torch.cuda.current_stream() != torch.cuda.default_stream():
                return "the forecast is on a stream of its own"
        return ""

    def record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Graph, Outputs]:
        with torch.cuda.device(device):
            before = torch.cuda.current_stream(), gc.isenabled()
            try:
                return self._record(compute, device)
            finally:
                # Once more: an interrupt may have hit where a capture did it.
                _put_back(*before)

    def _record(
        self, compute: Callable[[torch.Generator], Outputs], device: torch.device
    ) -> tuple[Graph, Outputs]:
        graph = torch.cuda.CUDAGraph()
        generator = torch.Generator(device)
        if _REGISTERS_GENERATORS:
            # Its seed will lie on the current device, whatever the generator's is.
            graph.register_generator_state(generator)
        # Memory that torch holds for others cannot be taken during a capture.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        place = self._places.get(device)
        if place is None or place.is_spent():
            place = self._places[device] = _Place(device)
        outputs = place.capture(graph, lambda: compute(generator))
        return _CudaGraph(graph, generator, place), outputs

    def bytes_held(self, device: torch.device) -> int:
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
            return int(torch.cuda.memory_reserved())


def _in_use(pool: Any) -> set[int]:
    """Where something of a pool is in use."""
    return {
        block["address"]
        for segment in torch.cuda.memory_snapshot()
        if segment["segment_pool_id"] == pool
        for block in segment["blocks"]
        if block["state"] != "inactive"
    }


def _pool_of(tensor: torch.Tensor) -> Any:
    """The pool of a tensor's memory; None where torch's allocator does not know it."""
    place = tensor.untyped_storage().data_ptr()
    for segment in torch.cuda.memory_snapshot():
        if segment["address"] <= place < segment["address"] + segment["total_size"]:
            return segment["segment_pool_id"]
    return None


def _capture(
    graph: Any, stream: Any, pool: Any, device: torch.device, compute: Callable[[], _Made]
) -> _Made:
    """Capture a computation in a graph; where that fails, leave no capture open."""
    # Not by ``torch.cuda.graph``: it collects garbage, which takes longer than all else, and may
    # leave its stream in force where a capture fails.
    before = torch.cuda.current_stream(), gc.isenabled()
    try:
        torch.cuda.set_stream(stream)
        # A graph that is freed while another one is captured spoils the capture.
        gc.disable()
        # Only this thread's mistakes count: others may go on meanwhile.
        graph.capture_begin(pool, capture_error_mode="thread_local")
        made = compute()
        graph.capture_end()
    except BaseException:
        try:
            graph.capture_end()
        except RuntimeError:
            _end_by_hand(device, pool)
            _capture_nothing(device)
        raise
    finally:
        _put_back(*before)
    return made


def _put_back(stream: Any, collects: bool) -> None:
    """Let a thread go on on its own stream, and garbage be collected if it was."""
    if collects:
        gc.enable()
    torch.cuda.set_stream(stream)


def _capture_nothing(device: torch.device) -> None:
    """After a capture that torch could not end: torch 2.7 believes its random generator to be
    captured until a capture succeeds."""
    with suppress(RuntimeError):
        # Before it begins: there may be no memory for it.
        number = torch.zeros(1, device=device)
        pool, empty = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        empty.capture_begin(pool, capture_error_mode="thread_local")
        try:
            number.zero_()
        finally:
            try:
                empty.capture_end()
            except RuntimeError:
                _end_by_hand(device, pool)


def _end_by_hand(device: torch.device, pool: Any) -> None:
    """Take back what torch's allocator was told when a capture began.

    Else torch goes on giving out the pool's memory, and keeps the pool for ever.
    """
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


def capturing() -> bool:
    """Whether what is computed now is being captured in a CUDA graph: nothing may be asked then."""
    # ``is_available()`` asks the driver anew each time.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()

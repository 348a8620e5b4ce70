"""What torch is told of captures, above all of those that fail, on a GPU that is none.

The stand-ins keep account as torch does: of captures that are open, of pools that are in use, and
of memory that is asked for while a capture is open.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from toto_compile_patch.decode import recorder
from toto_compile_patch.decode.recorder import CudaRecorder, Outputs

# Where the stand-ins compute.
DEVICE = torch.device("cpu")
UNUSED = {"address": 0, "state": "inactive"}
USUAL = -1
"""The stream on which work is done where nobody says otherwise."""


class InvalidatedError(RuntimeError):
    """The capture has been spoilt, and cannot be ended."""


class Cuda:
    """A device.

    Attributes:
        open: the graph that is being captured; None: none is.
        in_use: how many captures use a pool.
        giving_out: the pool that memory is given out of.
        spoilt: whether the open capture cannot be ended.
        captured: pools of the captures that succeeded, in order.
        cannot_end: how many captures, from now on, cannot be ended.
        short: whether there is no memory.
        stream: the current one.
        streams: those that were handed out.
        of_users: memory of a pool of the user's that is in force; None: none is.
        works_in: the pool out of which cuBLAS was given what it works in, by stream; None: it was
            not given in a capture. Whoever clears this gives that memory back.
        generator_captured: whether torch believes its random generator to be captured.
        lost: pools in which a capture failed.
    """

    def __init__(self) -> None:
        self.open: Graph | None = None
        self.in_use: Counter[int] = Counter()
        self.giving_out: int | None = None
        self.spoilt = False
        self.captured: list[int] = []
        self.cannot_end = 0
        self.short = False
        self.stream = USUAL
        self.streams: list[int] = []
        self.works_in: dict[int, int | None] = {}
        self.generator_captured = False
        self.lost: set[int] = set()
        self.of_users: torch.Tensor | None = None
        self._pools = 0

    def new_pool(self) -> int:
        self._pools += 1
        return self._pools

    def end_giving_out(self, device: int, pool: int) -> None:
        if self.giving_out != pool:
            raise RuntimeError("not giving out of this pool")
        self.giving_out = None

    def release(self, device: int, pool: int) -> None:
        self.in_use[pool] -= 1
        assert self.in_use[pool] >= 0

    def new_stream(self, device: Any, priority: int) -> int:
        assert priority < 0
        self.streams.append(len(self.streams))
        return self.streams[-1]

    def set_stream(self, stream: int) -> None:
        self.stream = stream

    def product(self, factor: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        self.works_in.setdefault(self.stream, self.giving_out)
        return factor

    def memory_in_use(self) -> list[dict[str, Any]]:
        """As torch tells it: what cuBLAS works in, and what is of the user's pool."""
        places = [(0, pool) for pool in self.works_in.values()]
        if self.of_users is not None:
            places.append((self.of_users.untyped_storage().data_ptr(), 0))
        return [
            {
                "address": address,
                "total_size": 1,
                "segment_pool_id": pool,
                "blocks": [{"address": pool, "state": "active_allocated"}, UNUSED],
            }
            for address, pool in places
        ]

    def zeros(self, size: int, device: Any) -> torch.Tensor:
        if self.short:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.empty(size).zero_()


class Graph:
    """A graph of a device."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._pool: int | None = None

    def register_generator_state(self, generator: torch.Generator) -> None:
        pass

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert self._cuda.open is None
        assert self._cuda.giving_out is None
        assert capture_error_mode == "thread_local"
        # Torch 2.11 refuses it.
        assert pool not in self._cuda.lost
        self._cuda.open, self._cuda.giving_out = self, pool
        self._cuda.in_use[pool] += 1
        self._cuda.generator_captured = True
        self._pool = pool

    def capture_end(self) -> None:
        cuda = self._cuda
        if cuda.open is not self or self._pool is None:
            raise RuntimeError("nothing is captured")
        if cuda.cannot_end:
            cuda.cannot_end -= 1
            cuda.spoilt = True
        cuda.open = None
        if cuda.spoilt:
            cuda.spoilt = False
            cuda.lost.add(self._pool)
            self._pool = None
            raise InvalidatedError("capture was invalidated")
        cuda.end_giving_out(0, self._pool)
        cuda.generator_captured = False
        cuda.captured.append(self._pool)

    def reset(self) -> None:
        if self._pool is not None:
            self._cuda.release(0, self._pool)
            self._pool = None

    def __del__(self) -> None:
        assert self._cuda.open is not self
        self.reset()


@contextmanager
def nothing(*_: Any) -> Iterator[None]:
    yield


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    made = Cuda()
    monkeypatch.setattr(recorder, "_REGISTERS_GENERATORS", True)
    for name, stand_in in {
        "CUDAGraph": lambda: Graph(made),
        "Stream": made.new_stream,
        "current_device": lambda: 0,
        "current_stream": lambda: made.stream,
        "device": nothing,
        "empty_cache": lambda: None,
        "get_allocator_backend": lambda: "native",
        "graph_pool_handle": made.new_pool,
        "memory_snapshot": made.memory_in_use,
        "set_stream": made.set_stream,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name, function in {
        "_cuda_endAllocateToPool": made.end_giving_out,
        "_cuda_releasePool": made.release,
    }.items():
        monkeypatch.setattr(torch._C, name, function, raising=False)
    for name, stand_in in {
        "addmm": made.product,
        "mm": made.product,
        "zeros": made.zeros,
    }.items():
        monkeypatch.setattr(torch, name, stand_in)
    yield made
    assert made.open is None, "a capture is open"
    assert made.giving_out is None, "memory is given out of a pool"
    assert made.stream == USUAL, "the stream of a capture is the current one"
    assert gc.isenabled(), "no garbage is collected"


def nothing_to_compute(generator: torch.Generator) -> Outputs:
    return torch.empty(1), torch.empty(1)


def test_a_pool_serves_all_graphs_while_one_lives(cuda: Cuda) -> None:
    capturing = CudaRecorder()
    first, _ = capturing.record(nothing_to_compute, DEVICE)
    second, _ = capturing.record(nothing_to_compute, DEVICE)
    (pool,) = set(cuda.captured[1::2])
    first.reset()
    third, _ = capturing.record(nothing_to_compute, DEVICE)
    assert cuda.captured[-1] == pool
    # They are held here, as a traceback in a notebook would hold them.
    second.reset()
    third.reset()
    assert cuda.in_use[pool] == 0
    capturing.record(nothing_to_compute, DEVICE)
    assert cuda.captured[-1] != pool


class TestWhatCublasWorksIn:
    def test_it_is_taken_before_in_a_pool_of_its_own(self, cuda: Cuda) -> None:
        capturing = CudaRecorder()
        graphs = [capturing.record(nothing_to_compute, DEVICE)[0] for _ in range(3)]
        workspaces, forecasts = cuda.captured[::2], cuda.captured[1::2]
        assert len(set(workspaces)) == len(set(forecasts)) == 1
        assert set(workspaces).isdisjoint(forecasts)
        assert len(graphs) == 3

    def test_that_pool_lives_for_good(self, cuda: Cuda) -> None:
        capturing = CudaRecorder()
        for _ in range(3):
            capturing.record(nothing_to_compute, DEVICE)[0].reset()
            assert cuda.in_use == {1: 1} | dict.fromkeys(set(cuda.captured) - {1}, 0)

    def test_it_is_of_that_pool_whatever_becomes_of_the_table(self, cuda: Cuda) -> None:
        capturing = CudaRecorder()

        def forecast(generator: torch.Generator) -> Outputs:
            # A capture of compiled code clears it at any time, torch where a graph is reset.
            torch.mm(*2 * [torch.ones(1, 1)])
            return nothing_to_compute(generator)

        for _ in range(3):
            graph, _ = capturing.record(forecast, DEVICE)
            assert cuda.works_in[cuda.streams[-1]] == 1
            graph.reset()
            cuda.works_in.clear()
        assert len(cuda.streams) == 1
        assert cuda.in_use[1] == 1

    def test_the_graph_of_the_products_lives_until_the_forecast_is_captured(
        self, cuda: Cuda
    ) -> None:
        """Torch 2.12 to 2.14 clear the stream's entries where it goes."""
        capturing, held = CudaRecorder(), []

        def forecast(generator: torch.Generator) -> Outputs:
            held.append(cuda.in_use[1])
            return nothing_to_compute(generator)

        for _ in range(2):
            capturing.record(forecast, DEVICE)
        assert held == [1, 2]

    def test_where_that_fails_another_stream_is_taken(self, cuda: Cuda) -> None:
        capturing = CudaRecorder()
        cuda.cannot_end = 1
        with pytest.raises(InvalidatedError):
            capturing.record(nothing_to_compute, DEVICE)
        assert not cuda.in_use[1]
        capturing.record(nothing_to_compute, DEVICE)
        works_in = cuda.works_in[cuda.streams[-1]]
        assert works_in not in (None, 1)
        assert cuda.in_use[works_in] == 1

    @pytest.mark.parametrize("earlier", [0, 1], ids=["", "beside an earlier graph"])
    @pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
    def test_where_it_is_of_a_pool_that_goes_another_stream_is_taken(
        self, fails: bool, earlier: int, cuda: Cuda
    ) -> None:
        """Somebody clears the table while a forecast is captured."""

        def forecast(generator: torch.Generator) -> Outputs:
            cuda.works_in.clear()
            torch.mm(*2 * [torch.ones(1, 1)])
            cuda.spoilt = fails
            return nothing_to_compute(generator)

        capturing = CudaRecorder()
        graphs = [capturing.record(nothing_to_compute, DEVICE)[0] for _ in range(earlier)]
        with pytest.raises(InvalidatedError) if fails else nothing():
            capturing.record(forecast, DEVICE)[0].reset()
        if not fails:
            for graph in graphs:
                graph.reset()
        assert cuda.works_in == {cuda.streams[0]: 2}
        capturing.record(nothing_to_compute, DEVICE)
        works_in = cuda.works_in[cuda.streams[1]]
        assert works_in is not None
        assert cuda.in_use[works_in] == 1

    def test_a_forecast_that_fails_costs_no_memory(self, cuda: Cuda) -> None:
        def spoilt(generator: torch.Generator) -> Outputs:
            cuda.spoilt = True
            return nothing_to_compute(generator)

        capturing = CudaRecorder()
        for _ in range(3):
            with pytest.raises(InvalidatedError):
                capturing.record(spoilt, DEVICE)
        capturing.record(nothing_to_compute, DEVICE)
        (stream,) = cuda.streams
        assert cuda.works_in[stream] == 1

    def test_a_pool_of_graphs_lives_as_long_as_they_do(self, cuda: Cuda) -> None:
        """A capture of the products that fails takes another pool; earlier graphs need theirs."""
        capturing = CudaRecorder()
        earlier, _ = capturing.record(nothing_to_compute, DEVICE)
        cuda.cannot_end = 1
        with pytest.raises(InvalidatedError):
            capturing.record(nothing_to_compute, DEVICE)
        later, _ = capturing.record(nothing_to_compute, DEVICE)
        assert cuda.in_use[1] == 1
        earlier.reset()
        del earlier
        assert not cuda.in_use[1]
        later.reset()


def test_what_is_given_out_of_a_pool_of_the_users_is_refused(cuda: Cuda) -> None:
    """Nobody would hold that pool for the graph."""
    capturing = CudaRecorder()

    def out_of_the_users(generator: torch.Generator) -> Outputs:
        cuda.of_users = torch.empty(1)
        return cuda.of_users, torch.empty(1)

    with pytest.raises(RuntimeError, match="use_mem_pool"):
        capturing.record(out_of_the_users, DEVICE)
    assert not cuda.in_use[2]
    cuda.of_users = None
    capturing.record(nothing_to_compute, DEVICE)
    assert len(cuda.streams) == 2


@pytest.mark.parametrize("short", [False, True], ids=["", "without memory"])
@pytest.mark.parametrize("spoilt", [False, True], ids=["", "spoilt"])
@pytest.mark.parametrize("cannot_end", [0, 1], ids=["", "the last one, too"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, ValueError, KeyboardInterrupt])
@pytest.mark.fault(
    injected="an error or an interrupt; memory ends; a capture that cannot be ended",
    where="a capture on a stand-in for CUDA",
    observed="it is raised; no capture is left open, no pool in use",
    afterwards="the next one captures",
)
def test_a_capture_that_fails_leaves_none_open(
    error: type[BaseException], cannot_end: int, spoilt: bool, short: bool, cuda: Cuda
) -> None:
    def fail(generator: torch.Generator) -> Outputs:
        cuda.spoilt, cuda.short, cuda.cannot_end = spoilt, short, 0
        if spoilt:
            # After the one that is spoilt.
            cuda.cannot_end = 2 * cannot_end
        raise error("no more")

    capturing = CudaRecorder()
    kept, _ = capturing.record(nothing_to_compute, DEVICE)
    with pytest.raises(error, match="no more"):
        capturing.record(fail, DEVICE)
    assert cuda.open is None
    assert cuda.giving_out is None
    if not short and not cannot_end:
        assert not cuda.generator_captured
    cuda.short, cuda.cannot_end = False, 0
    again, _ = capturing.record(nothing_to_compute, DEVICE)
    # In another pool: torch may not have let go of the one that failed.
    assert cuda.captured[-1] != cuda.captured[1]
    kept.reset()
    again.reset()
    assert +cuda.in_use == {1: 1}


def test_where_torch_keeps_no_memory(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives none in a capture then, or none that graphs could share."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in ("current_stream", "default_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    assert not CudaRecorder().why_not(DEVICE)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert "cudaMallocAsync" in CudaRecorder().why_not(DEVICE)
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    assert CudaRecorder().why_not(DEVICE) == "PYTORCH_NO_CUDA_MEMORY_CACHING is set"

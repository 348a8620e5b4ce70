"""Memory that runs out in the middle: fewer samples at once, or an error that says so."""

from __future__ import annotations

import sys

import forked
import pytest
import torch

from toto_compile_patch.decode.memory import out_of_memory, said_clearly

LIMITED = """
import os, resource, sys
import torch
torch.set_num_threads(1)
import toto_compile_patch
from toto.inference.forecaster import TotoForecaster
from toto_cases import series, small_model

toto_compile_patch.apply(fallback="error")
forecaster = TotoForecaster(small_model(embed_dim=512, mlp_hidden_dim=2048, num_heads=8).model)
forecaster.forecast(series(40), 8, num_samples=4, samples_per_batch=4)

def limited(megabytes, **arguments):
    # In a child each, whose memory the others have not used yet.
    if child := os.fork():
        os.waitpid(child, 0)
        return
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
    try:
        found = forecaster.forecast(**arguments).samples
        print("forecast", tuple(found.shape), flush=True)
    except RuntimeError as error:
        print("memory" if "memory" in str(error) else error, flush=True)
    os._exit(0)
"""

SAMPLES = """
for megabytes in (10, 20, 30):
    limited(megabytes, inputs=series(40), prediction_length=48, num_samples=512,
            samples_per_batch=512)
"""

CONTEXT = """
for megabytes in (0, 4, 16):
    limited(megabytes, inputs=series(400, batch=600), prediction_length=8, num_samples=2,
            samples_per_batch=1)
"""


TOO_MANY = """
limited(4000, inputs=series(40), prediction_length=48, num_samples=10**11,
        samples_per_batch=10**11)
"""

AFTERWARDS = """
expected = forecaster.forecast(series(40), 8).mean
here = series(400, batch=600)

def first_without_then_with(megabytes):
    if child := os.fork():
        os.waitpid(child, 0)
        return
    # The weights are prepared while memory ends, too.
    toto_compile_patch.refresh(forecaster.model)
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
    try:
        forecaster.forecast(here, 8)
        print("forecast", flush=True)
    except RuntimeError as error:
        print("memory" if "memory" in str(error) else error, end=" ", flush=True)
    except MemoryError:
        print("memory", end=" ", flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    found = forecaster.forecast(series(40), 8).mean
    print(torch.equal(found, expected), toto_compile_patch.last_path().taken, flush=True)
    toto_compile_patch.revert()
    found = forecaster.forecast(series(40), 8).mean
    print(torch.allclose(found, expected, rtol=1e-5), toto_compile_patch.is_applied(), flush=True)
    os._exit(0)

for megabytes in (0, 1, 2, 4, 8, 12):
    first_without_then_with(megabytes)
"""


def run(code: str) -> list[str]:
    done = forked.python(LIMITED + code)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="memory cannot be limited so")
class TestALimit:
    @pytest.mark.slow
    @pytest.mark.fault(
        injected="a limit of memory",
        where="the samples of a forecast",
        observed="fewer samples at once",
        afterwards="the forecast is whole",
    )
    def test_samples_are_decoded_in_smaller_chunks(self) -> None:
        """Where oneDNN runs out of memory it says that it could not create a primitive."""
        assert run(SAMPLES) == ["forecast (1, 1, 48, 512)"] * 3

    @pytest.mark.slow
    def test_what_cannot_be_made_smaller_is_said(self) -> None:
        assert run(CONTEXT) == ["memory"] * 3

    @pytest.mark.fault(
        injected="more samples than memory can hold",
        where="a forecast",
        observed="an error that names memory, at once, as upstream raises it",
        afterwards="nothing was computed",
    )
    def test_there_must_be_room_for_the_samples(self) -> None:
        """And not years of fewer samples at once."""
        assert run(TOO_MANY) == ["memory"]

    @pytest.mark.fault(
        injected="a limit of memory, then none",
        where="weights that are prepared, and the context",
        observed="an error that names memory",
        afterwards="the next forecast is bit for bit what it was; revert() works",
    )
    def test_with_memory_again_the_forecast_is_what_it_was(self) -> None:
        """It ends while weights are prepared, or later, as the limit has it."""
        assert run(AFTERWARDS) == ["memory True fast", "True False"] * 6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might come later"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, max allowed: 5.10 GB)"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        MemoryError(),
    ],
)
def test_how_it_is_recognised(error: BaseException) -> None:
    assert out_of_memory(error)
    said = str(said_clearly(error))
    assert "memory" in said or "ALLOC" in said or isinstance(error, MemoryError)


def test_what_it_is_not() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")):
        assert not out_of_memory(error)
        assert said_clearly(error) is error

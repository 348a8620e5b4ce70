"""The forecasts by which the examples count what dynamo compiles, and a process for each count."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from toto_compile_patch.settings import ENV_TOGGLE

if TYPE_CHECKING:
    from toto.inference.forecaster import TotoForecaster

P = ParamSpec("P")
R = TypeVar("R")

_HORIZON = 336


class Call(NamedTuple):
    """A forecast of one variate: context length, horizon, samples (None: mean) and batches."""

    length: int
    horizon: int = _HORIZON
    samples: int | None = None
    per_batch: int = 1


CALLS = [
    *[Call(512)] * 3,
    *[Call(512, 8, 256, 128)] * 2,
    *[Call(512, _HORIZON, 64, 64)] * 2,
    *[Call(length) for length in (640, 704, 768) for _ in range(2)],
]
UNSEEN = [Call(896)]


def timed(forecaster: TotoForecaster, call: Call) -> float:
    """Seconds of one forecast of a random walk."""
    import torch
    from toto.data.util.dataset import MaskedTimeseries

    values = 100 + torch.randn(1, call.length).cumsum(-1)
    inputs = MaskedTimeseries(
        series=values,
        padding_mask=torch.ones_like(values, dtype=torch.bool),
        id_mask=torch.zeros_like(values),
        timestamp_seconds=torch.zeros_like(values, dtype=torch.int),
        time_interval_seconds=torch.full((1,), 3600, dtype=torch.int),
    )
    start = time.perf_counter()
    forecaster.forecast(
        inputs,
        prediction_length=call.horizon,
        num_samples=call.samples,
        samples_per_batch=call.per_batch,
    )
    return time.perf_counter() - start


def in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function where nothing has been compiled or patched, whatever the environment says.

    Raises:
        RuntimeError: it raised, or its process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args, kwargs), daemon=True)
    process.start()
    theirs.close()
    try:
        result, failure = ours.recv()
    except EOFError:
        result, failure = None, "its process died"
    process.join()
    if failure:
        raise RuntimeError(f"{function.__name__}: {failure}")
    answer: R = result
    return answer


def _answer(pipe: Connection, function: Callable[..., R], args: Any, kwargs: Any) -> None:
    _start_afresh()
    try:
        pipe.send((function(*args, **kwargs), ""))
    except Exception:
        pipe.send((None, traceback.format_exc()))


def _start_afresh() -> None:
    os.environ.pop(ENV_TOGGLE, None)
    warnings.filterwarnings("ignore")
    if "TORCH_LOGS" not in os.environ:
        # What dynamo warns of is counted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

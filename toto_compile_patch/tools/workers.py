"""One process for each way of making a forecast, and the parent's handle on it.

A process of its own keeps the counters, the compiled code and the patches of one way from
touching those of another. The modules that a worker needs are imported when it runs: the parent
shows its help and reports a wrong argument without waiting for torch.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toto_compile_patch.settings import variable_of
from toto_compile_patch.tools.series import Floats, Window

if TYPE_CHECKING:
    from toto.data.util.dataset import MaskedTimeseries
    from toto.inference.forecaster import TotoForecaster

    from toto_compile_patch.path_taken import PathTaken

_STDERR = "stderr.txt"
_SECONDS_TO_STOP = 5.0
_LONGEST_MESSAGE = 400


@dataclass(frozen=True)
class Way:
    """A way of running the same forecasts."""

    name: str
    compiled: bool
    patched: bool


EAGER = Way("upstream, eager", compiled=False, patched=False)
COMPILED = Way("upstream, compiled", compiled=True, patched=False)
PATCHED = Way("patched", compiled=False, patched=True)
PATCHED_COMPILED = Way("patched, compiled", compiled=True, patched=True)


@dataclass(frozen=True)
class Job:
    """What all workers do alike.

    Attributes:
        model: what ``models.load`` knows.
        device: a torch device.
        mode: the ``torch.compile`` mode of the compiled ways.
        horizon: steps to forecast.
        samples: paths to draw; 0 asks for the mean forecast.
        samples_per_batch: paths to draw at once.
    """

    model: str
    device: str
    mode: str
    horizon: int
    samples: int
    samples_per_batch: int


QUANTILES = tuple(level / 10 for level in range(1, 10))


@dataclass(frozen=True)
class Question:
    """A forecast to make; ``mean``: without samples, whatever the job says."""

    seed: int
    window: Window
    mean: bool = False


@dataclass(frozen=True)
class Answer:
    """A forecast.

    Attributes:
        seconds: that it took.
        point: the median of the samples, or the mean (``variate horizon``).
        noise: standard error of the median; 0 for a mean forecast (``variate horizon``).
        quantiles: of the samples, at ``QUANTILES``; None for a mean forecast
            (``quantile variate horizon``).
        path: what ``last_path()`` says of it; None where nothing is patched.
    """

    seconds: float
    point: Floats
    noise: Floats
    quantiles: Floats | None
    path: PathTaken | None


@dataclass(frozen=True)
class Account:
    """What a process did in all: counts of dynamo, and its peak memory in bytes."""

    health: dict[str, int]
    peak_bytes: int


@dataclass(frozen=True)
class Failure:
    message: str


class WorkerError(RuntimeError):
    """A worker raised or died; the message names the way and what it last said."""


class Worker:
    """The parent's handle on one way's process."""

    def __init__(self, way: Way, job: Job, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        folder.mkdir()
        self.way = way
        self._folder = folder
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(way, job, folder, theirs))
        with _ctrl_c_ignored():
            self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        self._receive()

    def ask(self, question: Question) -> Answer:
        self._send(question)
        answer: Answer = self._receive()
        return answer

    def finish(self) -> Account:
        """End the forecasts and return what they took in all."""
        self._send(None)
        account: Account = self._receive()
        self._process.join(_SECONDS_TO_STOP)
        return account

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._pipe.close()
        self._process.terminate()
        self._process.join(_SECONDS_TO_STOP)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send(self, message: Question | None) -> None:
        # A worker that is gone may have said why: that is for _receive to find.
        with suppress(OSError):
            self._pipe.send(message)

    def _receive(self) -> Any:
        try:
            reply = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerError(f"{self.way.name}: {self._death()}") from None
        if isinstance(reply, Failure):
            raise WorkerError(f"{self.way.name}: {reply.message}")
        return reply

    def _death(self) -> str:
        self._process.join(_SECONDS_TO_STOP)
        code = self._process.exitcode
        if code is not None and code < 0:
            how = f"its process was killed by {signal.Signals(-code).name}"
        else:
            how = f"its process ended with exit code {code}"
        if code == -9:
            how += ", perhaps for want of memory: try fewer --samples-per-batch"
        last = _last_line(self._folder / _STDERR)
        return f"{how}; its last words: {last}" if last else how


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Let a process that is started here be deaf to Ctrl-C from its first instruction on.

    The terminal sends the signal to the workers too; the parent is the one that ends them.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def serve(way: Way, job: Job, folder: Path, pipe: Connection) -> None:
    """Answer the parent's questions until it has none left or is gone.

    Args:
        way: what this process stands for.
        job: what all of them do.
        folder: an empty directory of its own, for what it prints and what it compiles.
        pipe: the parent's other end.
    """
    _keep_quiet(folder / _STDERR)
    # A compile cache of its own: no way finds what another has compiled.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    # An exit that runs the exit handlers, so that nothing is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        _answer_all(way, job, pipe)
    except Exception as error:
        with suppress(OSError):
            pipe.send(Failure(_in_one_line(error)))
        raise SystemExit(1) from error


def _keep_quiet(path: Path) -> None:
    """Keep what libraries print out of the progress bar, unless somebody asked for a log."""
    warnings.filterwarnings("ignore")
    if not {"TORCH_LOGS", variable_of("log")} & os.environ.keys():
        with path.open("w") as file:
            os.dup2(file.fileno(), sys.stderr.fileno())


def _answer_all(way: Way, job: Job, pipe: Connection) -> None:
    import torch

    from toto_compile_patch.tools import machine
    from toto_compile_patch.tools.compile_health import CompileHealth

    forecaster = _prepare(way, job)
    pipe.send(None)
    with CompileHealth() as health:
        for question in _questions(pipe):
            pipe.send(_forecast(forecaster, question, job))
    pipe.send(Account(health.counts(), machine.peak_bytes(torch.device(job.device))))


def _questions(pipe: Connection) -> Iterator[Question]:
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        if question is None:
            return
        yield question


def _prepare(way: Way, job: Job) -> TotoForecaster:
    from toto.inference.forecaster import TotoForecaster

    import toto_compile_patch
    from toto_compile_patch.tools import models

    if way.patched:
        toto_compile_patch.apply()
    else:
        # What Python does at its start may have applied them.
        toto_compile_patch.revert()
    forecaster = TotoForecaster(models.load(job.model).to(job.device).model)
    if way.patched:
        # Without fast_decode, the patches are for a compiled model.
        if way.compiled or not toto_compile_patch.is_applied("fast_decode"):
            toto_compile_patch.compile(forecaster, mode=job.mode)
    elif way.compiled:
        forecaster.model.compile(mode=job.mode)
    return forecaster


def _forecast(forecaster: TotoForecaster, question: Question, job: Job) -> Answer:
    import torch

    import toto_compile_patch
    from toto_compile_patch.tools import machine

    samples = 0 if question.mean else job.samples
    inputs = _inputs(question.window, job.device)
    torch.manual_seed(question.seed)
    machine.wait_for(torch.device(job.device))
    start = time.perf_counter()
    forecast = forecaster.forecast(
        inputs,
        prediction_length=job.horizon,
        num_samples=samples or None,
        samples_per_batch=job.samples_per_batch,
    )
    machine.wait_for(torch.device(job.device))
    seconds = time.perf_counter() - start
    path = toto_compile_patch.last_path()
    point = forecast.median if samples else forecast.mean
    noise = torch.zeros_like(point)
    if samples > 1:
        # The median's standard error, were the samples normal.
        noise = (math.pi / 2 / samples) ** 0.5 * forecast.std
    quantiles = None
    if forecast.samples is not None:
        quantiles = np.quantile(forecast.samples[0].double().cpu().numpy(), QUANTILES, axis=-1)
    return Answer(seconds, _array(point), _array(noise), quantiles, path)


def _array(tensor: Any) -> Floats:
    """The only series of a batch, in float64."""
    array: Floats = tensor[0].cpu().numpy().astype(np.float64)
    return array


def _inputs(window: Window, device: str) -> MaskedTimeseries:
    """The window as upstream takes it, ``variate series_len``."""
    import torch
    from toto.data.util.dataset import MaskedTimeseries

    series = torch.from_numpy(window.values).to(device)
    seconds = torch.from_numpy(window.seconds).expand(series.shape)
    return MaskedTimeseries(
        series=series,
        padding_mask=torch.from_numpy(window.observed).to(device),
        id_mask=torch.zeros_like(series, dtype=torch.int),
        timestamp_seconds=seconds.to(device),
        time_interval_seconds=torch.full((len(series),), window.interval, device=device),
    )


def _in_one_line(error: Exception) -> str:
    return textwrap.shorten(
        f"{type(error).__name__}: {error}", _LONGEST_MESSAGE, placeholder=" ..."
    )

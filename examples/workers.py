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
from series import Floats, Window

from toto_compile_patch.settings import ENV_LOG

if TYPE_CHECKING:
    from toto.data.util.dataset import MaskedTimeseries
    from toto.inference.forecaster import TotoForecaster

BASE: dict[str, Any] = {
    "patch_size": 64,
    "stride": 64,
    "embed_dim": 768,
    "num_layers": 12,
    "num_heads": 12,
    "mlp_hidden_dim": 3072,
    "dropout": 0.1,
    "spacewise_every_n_layers": 12,
    "scaler_cls": "<class 'model.scaler.CausalPatchStdMeanScaler'>",
    "output_distribution_classes": ["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
    "spacewise_first": False,
    "output_distribution_kwargs": {"k_components": 24},
    "use_memory_efficient_attention": False,
    "stabilize_with_global": True,
    "scale_factor_exponent": 10.0,
}
"""The architecture of Toto-Open-Base-1.0."""

SMALL: dict[str, Any] = {**BASE, "embed_dim": 64, "num_heads": 4, "mlp_hidden_dim": 128}

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
PATCHED = Way("patched", compiled=True, patched=True)


@dataclass(frozen=True)
class Job:
    """What all workers do alike.

    Attributes:
        model: Hugging Face id or checkpoint directory; None for random weights.
        small: whether random weights are those of a small model.
        device: a torch device.
        mode: the ``torch.compile`` mode of the compiled ways.
        horizon: steps to forecast.
        samples: paths to draw; 0 asks for the mean forecast.
        samples_per_batch: paths to draw at once.
    """

    model: str | None
    small: bool
    device: str
    mode: str
    horizon: int
    samples: int
    samples_per_batch: int


@dataclass(frozen=True)
class Question:
    seed: int
    window: Window


@dataclass(frozen=True)
class Answer:
    """Seconds that a forecast took, its point forecast (``horizon``), and that one's own noise.

    The noise is the standard error of the median of the samples; 0 for a mean forecast.
    """

    seconds: float
    point: Floats
    noise: Floats


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

    def finish(self) -> dict[str, int]:
        """End the forecasts and return what dynamo did during all of them."""
        self._send(None)
        counts: dict[str, int] = self._receive()
        self._process.join(_SECONDS_TO_STOP)
        return counts

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
        if code == -signal.SIGKILL:
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
    if not {"TORCH_LOGS", ENV_LOG} & os.environ.keys():
        with path.open("w") as file:
            os.dup2(file.fileno(), sys.stderr.fileno())


def _answer_all(way: Way, job: Job, pipe: Connection) -> None:
    from toto_compile_patch.tools.compile_health import CompileHealth

    forecaster = _prepare(way, job)
    pipe.send(None)
    with CompileHealth() as health:
        for question in _questions(pipe):
            pipe.send(_forecast(forecaster, question, job))
    pipe.send(health.counts())


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

    if way.patched:
        toto_compile_patch.apply()
    forecaster = TotoForecaster(_load_model(job).to(job.device).model)
    if way.patched:
        # fast_decode makes the forecast itself; without it, the patches are for a compiled model.
        if not toto_compile_patch.is_applied("fast_decode"):
            toto_compile_patch.compile(forecaster, mode=job.mode)
    elif way.compiled:
        forecaster.model.compile(mode=job.mode)
    return forecaster


def _load_model(job: Job) -> Any:
    import torch
    from toto.model.toto import Toto

    if job.model is None:
        torch.manual_seed(0)
        return Toto(**(SMALL if job.small else BASE))
    if Path(job.model).is_dir():
        return Toto.load_from_checkpoint(job.model)
    try:
        return Toto.from_pretrained(job.model)
    except Exception as error:
        raise RuntimeError(
            f"cannot load {job.model!r}, which is no directory here, from the Hugging Face Hub: "
            f"{type(error).__name__}: {error}"
        ) from error


def _forecast(forecaster: TotoForecaster, question: Question, job: Job) -> Answer:
    import torch

    inputs = _inputs(question.window, job.device)
    torch.manual_seed(question.seed)
    _wait_for(job.device)
    start = time.perf_counter()
    forecast = forecaster.forecast(
        inputs,
        prediction_length=job.horizon,
        num_samples=job.samples or None,
        samples_per_batch=job.samples_per_batch,
    )
    _wait_for(job.device)
    seconds = time.perf_counter() - start
    point = forecast.median if job.samples else forecast.mean
    noise = torch.zeros_like(point)
    if job.samples > 1:
        # The median's standard error, were the samples normal.
        noise = (math.pi / 2 / job.samples) ** 0.5 * forecast.std
    return Answer(seconds, *(t[0, 0].cpu().numpy().astype(np.float64) for t in (point, noise)))


def _inputs(window: Window, device: str) -> MaskedTimeseries:
    """The window as upstream takes it: one variate, ``variates series_len``."""
    import torch
    from toto.data.util.dataset import MaskedTimeseries

    series = torch.from_numpy(window.values)[None].to(device)
    return MaskedTimeseries(
        series=series,
        padding_mask=torch.from_numpy(window.observed)[None].to(device),
        id_mask=torch.zeros_like(series, dtype=torch.int),
        timestamp_seconds=torch.from_numpy(window.seconds)[None].to(device),
        time_interval_seconds=torch.tensor([window.interval], device=device),
    )


def _wait_for(device: str) -> None:
    """Let the device finish what was asked of it, so that the clock counts all of it."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _in_one_line(error: Exception) -> str:
    return textwrap.shorten(
        f"{type(error).__name__}: {error}", _LONGEST_MESSAGE, placeholder=" ..."
    )

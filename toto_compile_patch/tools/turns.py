"""Several ways of forecasting, each in its process, taking turns: never two at once."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import toto_compile_patch
from toto_compile_patch.tools import machine, models
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.compile_health import CompileHealth
from toto_compile_patch.tools.screen import ProgressLine
from toto_compile_patch.tools.series.single import Floats
from toto_compile_patch.tools.windows import Window
from toto_compile_patch.tools.workers import Worker, WorkerDiedError, WorkerError

if TYPE_CHECKING:
    from toto.inference.forecaster import TotoForecaster

QUANTILES = tuple(level / 10 for level in range(1, 10))

UPSTREAM_CODE = "upstream's code"


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
    """What all ways do alike.

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
        quantiles: of the samples, at ``QUANTILES``; None for a mean forecast
            (``quantile variate horizon``).
        path: what made it, in words, and why it was not the fast path.
    """

    seconds: float
    point: Floats
    quantiles: Floats | None
    path: str


@dataclass(frozen=True)
class Turns:
    """Workers that are asked one after the other, with a line of progress for whoever waits."""

    workers: Sequence[Worker]
    progress: ProgressLine

    def ask(self, worker: Worker, question: Question, doing: str) -> Answer:
        """A forecast by one of them."""
        self.progress.say(f"{doing}: {worker.name}")
        answer: Answer = worker.ask(question)
        self.progress.say("", steps=1)
        return answer

    def ask_all(self, question: Question, doing: str, first: int = 0) -> list[Answer]:
        """A forecast by each, beginning with any of them; answers in the order of the ways."""
        order = np.roll(range(len(self.workers)), -first)
        answers = {i: self.ask(self.workers[i], question, doing) for i in order}
        return [answers[i] for i in sorted(answers)]


@contextmanager
def started(ways: Sequence[Way], job: Job, questions: int) -> Iterator[Turns]:
    """Start a process for each way, and end all of them afterwards.

    Args:
        ways: what they stand for.
        job: what all of them do.
        questions: how many will be asked, for the line of progress.

    Raises:
        UsageError: one of them cannot even begin: its model is not to be had, say.
        WorkerError: one of them died.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressLine(questions + len(ways)))
        workers = []
        for way in ways:
            # A compile cache of its own: no way finds what another has compiled.
            cache = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            environment = {"TORCHINDUCTOR_CACHE_DIR": cache}
            worker = Worker(way.name, forecasts, way, job, environment=environment)
            workers.append(stack.enter_context(worker))
        for worker in workers:
            progress.say(f"loading: {worker.name}")
            try:
                worker.receive()
            except WorkerDiedError:
                # No model is to blame for that.
                raise
            except WorkerError as error:
                raise UsageError(
                    f"cannot load {models.describe(job.model)} ({error}): give a Hugging Face id "
                    "that can be reached, or the directory of a checkpoint"
                ) from None
            progress.say("", steps=1)
        yield Turns(workers, progress)


def forecasts(questions: Iterator[Question], way: Way, job: Job) -> Iterator[Any]:
    """The work of one way: yields None when it can begin, an ``Answer`` for each ``Question``, and
    when there are no more, dynamo's counts and the most memory that the process held, in bytes."""
    forecaster = _forecaster(way, job)
    yield None
    with CompileHealth() as health:
        for question in questions:
            yield _forecast(forecaster, question, way, job)
    yield health.counts(), machine.peak_bytes(torch.device(job.device))


def _forecaster(way: Way, job: Job) -> TotoForecaster:
    # What Python does at its start may have applied them.
    toto_compile_patch.apply() if way.patched else toto_compile_patch.revert()
    model = models.load(job.model).to(job.device).model
    forecaster: TotoForecaster = models.toto_ts().TotoForecaster(model)
    # Without fast_decode, the patches are for a compiled model.
    if way.patched and (way.compiled or not toto_compile_patch.is_applied("fast_decode")):
        toto_compile_patch.compile(forecaster, mode=job.mode)
    elif way.compiled:
        forecaster.model.compile(mode=job.mode)
    return forecaster


def _forecast(forecaster: TotoForecaster, question: Question, way: Way, job: Job) -> Answer:
    samples = 0 if question.mean else job.samples
    device = torch.device(job.device)
    inputs = question.window.inputs().to(device)
    torch.manual_seed(question.seed)
    machine.wait_for(device)
    start = time.perf_counter()
    forecast = forecaster.forecast(
        inputs,
        prediction_length=job.horizon,
        num_samples=samples or None,
        samples_per_batch=job.samples_per_batch,
    )
    machine.wait_for(device)
    seconds = time.perf_counter() - start
    # The only series of a batch.
    point = (forecast.median if samples else forecast.mean)[0].cpu().numpy().astype(float)
    drawn = forecast.samples
    quantiles = None
    if drawn is not None:
        quantiles = np.quantile(drawn[0].double().cpu().numpy(), QUANTILES, axis=-1)
    return Answer(seconds, point, quantiles, _path(way))


def _path(way: Way) -> str:
    path = toto_compile_patch.last_path() if way.patched else None
    if path is None:
        return UPSTREAM_CODE
    what = f"fast path, {path.runtime}" if path.taken == "fast" else UPSTREAM_CODE
    return f"{what} ({path.reason})" if path.reason else what


def warmups(device: str) -> int:
    """Forecasts before the clock counts: a CUDA graph is captured the second time."""
    return 2 if device.startswith("cuda") else 1


def standing_patches() -> list[str]:
    """Names of the patches that ``apply()`` puts in, with the environment as it is.

    Raises:
        UsageError: the environment asks for what does not exist, or toto cannot be patched.
    """
    warnings.filterwarnings("ignore")
    try:
        toto_compile_patch.apply()
    except (ValueError, toto_compile_patch.TotoCompilePatchError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    return [row.name for row in toto_compile_patch.status() if row.state == "applied"]

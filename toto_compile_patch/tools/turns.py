"""Several ways of forecasting, each in its process, taking turns: never two at once."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.models import describe
from toto_compile_patch.tools.workers import Answer, Job, Question, Way, Worker, WorkerError


class LoadError(WorkerError):
    """A way could not even begin: its model is not to be had, say."""


class Turns:
    """Workers that are asked one after the other, with a progress bar for whoever waits."""

    def __init__(self, workers: Sequence[Worker], progress: Progress) -> None:
        self.workers = workers
        self._progress = progress

    def ask(self, worker: Worker, question: Question, doing: str) -> Answer:
        """A forecast by one of them."""
        _describe(self._progress, doing, worker.way)
        answer = worker.ask(question)
        self._progress.advance(self._progress.task_ids[0])
        return answer

    def ask_all(self, question: Question, doing: str, first: int = 0) -> list[Answer]:
        """A forecast by each, beginning with any of them; answers in the order of the ways."""
        order = [(first + i) % len(self.workers) for i in range(len(self.workers))]
        answers = {i: self.ask(self.workers[i], question, doing) for i in order}
        return [answers[i] for i in sorted(answers)]


@contextmanager
def started(ways: Sequence[Way], job: Job, questions: int) -> Iterator[Turns]:
    """Start a process for each way, and end all of them afterwards.

    Args:
        ways: what they stand for.
        job: what all of them do.
        questions: how many will be asked, for the progress bar.

    Raises:
        LoadError: one of them cannot begin.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        progress = stack.enter_context(_progress(questions + len(ways)))
        workers = []
        for way in ways:
            worker = Worker(way, job, Path(folder) / way.name.replace(", ", "-"))
            stack.callback(worker.stop)
            workers.append(worker)
        for worker in workers:
            _describe(progress, "loading", worker.way)
            try:
                worker.wait_until_ready()
            except WorkerError as error:
                raise LoadError(f"cannot load {describe(job.model)}: {error}") from None
            progress.advance(progress.task_ids[0])
        yield Turns(workers, progress)


def warmups(device: str) -> int:
    """Forecasts before the clock counts: a CUDA graph is captured the second time."""
    return 2 if device.startswith("cuda") else 1


def standing_patches() -> list[str]:
    """Names of the patches that ``apply()`` puts in, with the environment as it is.

    Raises:
        UsageError: the environment asks for what does not exist, or toto cannot be patched.
    """
    import toto_compile_patch

    warnings.filterwarnings("ignore")
    try:
        toto_compile_patch.apply()
    except (ValueError, toto_compile_patch.TotoCompilePatchError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    return [row.name for row in toto_compile_patch.status() if row.state == "applied"]


def _describe(progress: Progress, doing: str, way: Way) -> None:
    progress.update(progress.task_ids[0], description=f"{doing}: {way.name}")


def _progress(total: int) -> Progress:
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description:<30}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # The bar is drawn by the machine that is being timed.
        refresh_per_second=2,
    )
    progress.add_task("", total=total)
    return progress

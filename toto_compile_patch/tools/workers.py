"""Work in a process of its own, which shares no patch, compiled code or counter with any other.

Whatever a command runs apart goes through here. A piece of work is a generator: it is given the
questions that it will be asked, and yields its answers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from toto_compile_patch.settings import variable_of

_SECONDS_TO_STOP = 5.0
_LONGEST_MESSAGE = 400


class WorkerError(RuntimeError):
    """A worker raised or died; the message names it and what it last said."""


class WorkerDiedError(WorkerError):
    """A worker's process is gone."""


class Worker(AbstractContextManager["Worker"]):
    """The parent's handle on a process, which ends with the ``with`` block, whatever it does.

    Args:
        name: what messages call it.
        work: a generator function of a module; its first argument is an iterator of questions.
        args: its further arguments.
        environment: variables that hold in the process alone.
    """

    def __init__(
        self,
        name: str,
        work: Callable[..., Iterator[Any]],
        *args: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._stderr = Path(self._folder.name) / "stderr.txt"
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self._stderr, environment or {}, theirs))
        self._process = process
        # Deaf to Ctrl-C from its first instruction on: the terminal sends that to the workers too,
        # and the parent is the one that ends them.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        self._send((work, args))

    def ask(self, question: Any) -> Any:
        """The answer to a question; to None, there being no more, whatever the work ends with.

        Raises:
            WorkerError: there is none.
        """
        self._send(question)
        return self.receive()

    def receive(self) -> Any:
        """The next answer.

        Raises:
            WorkerError: there is none.
        """
        try:
            answer, failure = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerDiedError(f"{self.name}: {self._death()}") from None
        if failure:
            raise WorkerError(f"{self.name}: {failure}")
        return answer

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join(_SECONDS_TO_STOP)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()

    def _send(self, message: Any) -> None:
        # A worker that is gone may have said why: that is for receive to find.
        with suppress(OSError):
            self._pipe.send(message)

    def _death(self) -> str:
        self._process.join(_SECONDS_TO_STOP)
        code = self._process.exitcode
        if code is not None and code < 0:
            how = f"its process was killed by {signal.Signals(-code).name}"
        else:
            how = f"its process ended with exit code {code}"
        if code == -9:
            how += ", perhaps for want of memory: try fewer --samples-per-batch"
        said = self._stderr.read_text(errors="replace").strip() if self._stderr.exists() else ""
        return f"{how}; its last words: {said.splitlines()[-1].strip()}" if said else how


def call_apart(
    function: Callable[..., Any], *args: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """What a module's function returns in a process of its own.

    Raises:
        WorkerError: it raised, or its process died.
    """
    with Worker(function.__name__, _call, function, *args, environment=environment) as worker:
        return worker.receive()


def _call(_: Iterator[Any], function: Callable[..., Any], *args: Any) -> Iterator[Any]:
    yield function(*args)


def _serve(stderr: Path, environment: Mapping[str, str], pipe: Connection) -> None:
    """Answer the parent's questions until it has none left or is gone."""
    _keep_quiet(stderr)
    os.environ.update(environment)
    # An exit that runs the exit handlers, so that nothing is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        work, args = pipe.recv()
        for answer in work(_questions(pipe), *args):
            pipe.send((answer, ""))
    except Exception as error:
        said = textwrap.shorten(
            f"{type(error).__name__}: {error}", _LONGEST_MESSAGE, placeholder=" ..."
        )
        with suppress(OSError):
            pipe.send((None, said))
        raise SystemExit(1) from error
    finally:
        # Exit handlers are not interrupted by another one; a parent that waits in vain kills.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _keep_quiet(stderr: Path) -> None:
    """Keep what libraries print off the screen, unless somebody asked for a log."""
    warnings.filterwarnings("ignore")
    if not {"TORCH_LOGS", variable_of("log")} & os.environ.keys():
        with stderr.open("w") as file:
            os.dup2(file.fileno(), sys.stderr.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _questions(pipe: Connection) -> Iterator[Any]:
    """What the parent asks, until it asks None or is gone."""
    with suppress(EOFError):
        yield from iter(pipe.recv, None)

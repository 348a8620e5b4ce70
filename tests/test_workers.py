"""Processes that commands work in: how they end, and what is heard of them."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toto_compile_patch.tools import workers
from toto_compile_patch.tools.workers import Worker, WorkerDiedError, call_apart


def leave(code: int) -> None:
    """End without a word of Python's."""
    print("first\nno room left", file=sys.stderr, flush=True)
    os._exit(code)


def fall(name: str) -> None:
    """End by a signal."""
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize(
    ("work", "how", "says"),
    [
        (leave, 3, "leave: its process ended with exit code 3; its last words: no room left"),
        (fall, "SIGABRT", "fall: its process was killed by SIGABRT"),
        (
            fall,
            "SIGKILL",
            "fall: its process was killed by SIGKILL, perhaps for want of memory: try fewer "
            "--samples-per-batch",
        ),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_how_a_process_died_is_said(work: Callable[..., None], how: object, says: str) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        call_apart(work, how)
    assert str(caught.value) == says


def stubborn(_: Iterator[object]) -> Iterator[int]:
    """Tell the process, and take no notice of a request to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield os.getpid()
    time.sleep(30)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_a_process_that_does_not_end_when_asked_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SECONDS_TO_STOP", 0.2)
    with Worker("stubborn", stubborn) as worker:
        process = worker.receive()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def tidy(_: Iterator[object], begun: Path, ended: Path) -> Iterator[None]:
    """Leave something to the exit handlers, which they take some time for."""

    def tidy_up() -> None:
        begun.touch()
        time.sleep(0.5)
        ended.touch()

    atexit.register(tidy_up)
    yield


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_a_process_that_is_ending_is_left_to_its_exit_handlers(tmp_path: Path) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with Worker("tidy", tidy, begun, ended) as worker:
        worker.receive()
        patience = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < patience:
            time.sleep(0.01)
    assert ended.exists()


def speak() -> None:
    """Say something as torch's log does."""
    print("a line of a log", file=sys.stderr, flush=True)


@pytest.mark.parametrize(
    ("variable", "is_heard"),
    [("TORCH_LOGS", True), ("TOTO_COMPILE_PATCH_LOG", True), ("TORCH_LOG", False)],
)
def test_a_log_is_heard_by_whoever_asks_for_it(
    variable: str,
    is_heard: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, "info")
    call_apart(speak)
    assert capfd.readouterr().err == "a line of a log\n" * is_heard

"""Which code made this thread's last forecast, or tried to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Path:
    """The way that a forecast took.

    Attributes:
        taken: ``fast`` or ``upstream``; ``unreached`` where ``toto_compile_patch.last_path()``
            knows of no forecast, but of code whose forecasts it cannot see.
        reason: why it was not the fast one, or not in the runtime asked for; and what was raised
            where there is no forecast; else empty.
        runtime: how the fast one ran: ``eager``, ``compile``, ``cudagraph`` or
            ``compile+cudagraph``.
        graphs: CUDA graphs that are kept for the model.
        graph_bytes: memory that they hold.
        cure: what to do to have the fast one; empty where that is for nobody to do.
    """

    taken: str
    reason: str = ""
    runtime: str = ""
    graphs: int = 0
    graph_bytes: int = 0
    cure: str = field(default="", repr=False)


class _PerThread(threading.local):
    last: Path | None = None


_per_thread = _PerThread()


def note(path: Path) -> None:
    """Remember the path of this thread's forecast, once for each forecast that is made."""
    _per_thread.last = path


@contextmanager
def attempt(path: Path) -> Iterator[None]:
    """Remember a path before it is taken, and what was raised on it.

    An earlier forecast is never mistaken for one that failed, or that has not ended.
    """
    _per_thread.last = _told(path, "it has not ended")
    try:
        yield
    except BaseException as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raised = f"it raised {type(error).__name__}: {first_line[:200]}"
        _per_thread.last = _told(path, raised.removesuffix(": "))
        raise
    _per_thread.last = path


def last_path() -> Path | None:
    """The path of the last forecast that this thread made or tried; None before the first.

    Where that forecast raised, the reason says what. It is this thread's and this process's
    alone: a program says nothing of the forecasts that its worker processes make, and a forked
    process knows of none before its own. A call of ``TotoForecaster.forecast`` that upstream
    refuses before it has begun to forecast is not an attempt.
    """
    return _per_thread.last


def _told(path: Path, what: str) -> Path:
    return replace(path, reason=f"{path.reason}; {what}" if path.reason else what)


def _forget() -> None:
    _per_thread.last = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

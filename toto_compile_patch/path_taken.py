"""Which code made this thread's last forecast, or tried to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from toto_compile_patch.errors import in_a_line


@dataclass(frozen=True)
class PathTaken:
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


class _LastPath(threading.local):
    path: PathTaken | None = None


_last_path = _LastPath()


def note(path: PathTaken) -> None:
    """Remember which path this thread's forecast takes."""
    _last_path.path = path


@contextmanager
def attempt(path: PathTaken) -> Iterator[None]:
    """Remember a path before it is taken, and what was raised on it.

    An earlier forecast is never mistaken for one that failed, or that has not ended.
    """
    _last_path.path = _with_remark(path, "it has not ended")
    try:
        yield
    except BaseException as error:
        _last_path.path = _with_remark(path, f"it raised {in_a_line(error)}")
        raise
    _last_path.path = path


def last_noted() -> PathTaken | None:
    """The path of the last forecast that this thread made or tried; None before the first.

    Where that forecast raised, the reason says what. It is this thread's and this process's
    alone: a program says nothing of the forecasts that its worker processes make, and a forked
    process knows of none before its own. A call of ``TotoForecaster.forecast`` that upstream
    refuses before it has begun to forecast is not an attempt.
    """
    return _last_path.path


def _with_remark(path: PathTaken, remark: str) -> PathTaken:
    return replace(path, reason=f"{path.reason}; {remark}" if path.reason else remark)


def _forget() -> None:
    _last_path.path = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

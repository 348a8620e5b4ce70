"""Which code made this thread's last forecast."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Path:
    """The way that a forecast took.

    Attributes:
        taken: ``fast`` or ``upstream``.
        reason: why it was not the fast one; else empty.
    """

    taken: str
    reason: str = ""


class _PerThread(threading.local):
    last: Path | None = None


_per_thread = _PerThread()


def note(path: Path) -> None:
    """Remember the path of this thread's forecast."""
    _per_thread.last = path


def last_path() -> Path | None:
    """The path of the last forecast that this thread made; None before the first."""
    return _per_thread.last

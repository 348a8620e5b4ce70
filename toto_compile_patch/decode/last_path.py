"""Which code made this thread's last forecast."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Path:
    """The way that a forecast took.

    Attributes:
        taken: ``fast`` or ``upstream``.
        reason: why it was not the fast one, or not in the runtime asked for; else empty.
        runtime: how the fast one ran: ``eager``, ``compile``, ``cudagraph`` or
            ``compile+cudagraph``.
        graphs: CUDA graphs that are kept for the model.
        graph_bytes: memory that they hold.
    """

    taken: str
    reason: str = ""
    runtime: str = ""
    graphs: int = 0
    graph_bytes: int = 0


class _PerThread(threading.local):
    last: Path | None = None


_per_thread = _PerThread()


def note(path: Path) -> None:
    """Remember the path of this thread's forecast."""
    _per_thread.last = path


def last_path() -> Path | None:
    """The path of the last forecast that this thread made; None before the first."""
    return _per_thread.last

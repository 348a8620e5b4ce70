"""Locks that neither a fork nor a signal handler can turn into a wait for ever."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet


class Lock:
    """A lock that its holder may take again, and that a fork frees: ``with lock.held:``.

    A signal handler runs in the main thread, between any two of its steps: it must not wait for
    what that thread holds. In a child process that was forked while another thread held the lock,
    there is nobody left to release it: there the lock is a new one.

    Attributes:
        held: what to hold. The lock itself, since an interrupt could come within methods written in
            Python, after it was taken and before that is known, or before it is released.
    """

    def __init__(self) -> None:
        self.held = threading.RLock()
        _locks.add(self)

    def free_after_fork(self) -> None:
        """Become a new lock where a thread that this process lacks holds it."""
        if self.held.acquire(blocking=False):
            # Free, or held by the thread that forked, which goes on and releases it.
            self.held.release()
        else:
            self.held = threading.RLock()


_locks: WeakSet[Lock] = WeakSet()


def _free_all() -> None:
    for lock in list(_locks):
        lock.free_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_all)

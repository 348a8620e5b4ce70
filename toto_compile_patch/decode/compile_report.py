"""What the log says of compiling: a line before, since it takes a while, and its seconds after."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_logger = logging.getLogger("toto_compile_patch")


class _CompiledParts(threading.local):
    parts = 0
    seconds = 0.0


_here = _CompiledParts()


@contextmanager
def first_call() -> Iterator[None]:
    """Surrounds the first call of a part of a forecast, which compiles it."""
    if not _here.parts:
        _logger.info("compiling: the first forecast of a compiled model takes longer")
    start = time.perf_counter()
    try:
        yield
    finally:
        _here.parts += 1
        _here.seconds += time.perf_counter() - start


@contextmanager
def of_forecast() -> Iterator[None]:
    """Surrounds a forecast; says how long its parts took to compile, if any was compiled."""
    _here.parts, _here.seconds = 0, 0.0
    try:
        yield
    finally:
        if _here.parts:
            _logger.info("compiled: %d parts in %.1f s", _here.parts, _here.seconds)
        _here.parts = 0

"""What is said once in a process: lines of the log, and warnings at the user's own line."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import warnings
from types import FrameType

from toto_compile_patch.errors import FallbackWarning

_logger = logging.getLogger("toto_compile_patch")

_PASSED_THROUGH = ("toto_compile_patch", "toto", "torch")
"""Packages whose lines are never the user's, wherever they are installed."""

_LIBRARIES = (sysconfig.get_path("stdlib") + os.sep, "<frozen ")
_PACKAGES = ("site-packages", "dist-packages")

_logged: dict[str, object] = {}
_warned: dict[str, object] = {}


def log_once(message: str) -> None:
    """Log a warning, once in this process."""
    if _is_first(_logged, message, object()):
        _logger.warning("%s", message)


def warn_once(message: str) -> None:
    """Warn at the nearest line that is no library's, once in this process.

    Raises:
        FallbackWarning: where warnings are errors; each time then, for nothing has been said.
    """
    if not _is_first(_warned, message, object()):
        return
    frame = _users_frame(sys._getframe(1))
    try:
        warnings.warn_explicit(
            message,
            FallbackWarning,
            frame.f_code.co_filename,
            frame.f_lineno,
            frame.f_globals.get("__name__"),
            module_globals=frame.f_globals,
        )
    except BaseException:
        del _warned[message]
        raise


def _is_first(said: dict[str, object], message: str, token: object) -> bool:
    """Whether a message has not been said yet; from then on it has.

    One step of a dictionary, and no lock: a forked process might find a lock held for ever.
    """
    return said.setdefault(message, token) is token


def _users_frame(frame: FrameType) -> FrameType:
    """The nearest frame that is no library's; without one, the nearest of another library."""
    nearest: FrameType | None = None
    above: FrameType | None = frame
    while above is not None:
        file = above.f_code.co_filename
        package = str(above.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _PASSED_THROUGH:
            if not file.startswith(_LIBRARIES) and not any(part in file for part in _PACKAGES):
                return above
            nearest = nearest or above
        above = above.f_back
    return nearest or frame

"""The exceptions that users may want to catch, how any error is told in a line, and whose it is."""

from __future__ import annotations

import re
import signal
from functools import partial
from traceback import walk_tb
from types import CodeType, FrameType
from typing import Any

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def in_a_line(error: BaseException) -> str:
    """An error's type and the first line of what it says, uncoloured, cut to 200 characters."""
    lines = _COLOUR.sub("", str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".removesuffix(": ")


def is_of_a_signal(error: BaseException) -> bool:
    """Whether an error was raised by the handler of a signal.

    It may have come at any moment, and has nothing to do with what was going on: it tells of a
    limit of time, say, and is for whoever set that.
    """
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    frames = (frame for one in that_led_to(error) for frame, _ in walk_tb(one.__traceback__))
    return any(frame.f_code in handlers for frame in frames)


def that_led_to(error: BaseException) -> list[BaseException]:
    """An error that was caught, and those that it was raised for or from since then.

    Not those that were being dealt with when the code was called that caught it: they begin further
    out.
    """
    outside: set[FrameType] = set()
    frame = error.__traceback__.tb_frame.f_back if error.__traceback__ else None
    while frame is not None:
        outside.add(frame)
        frame = frame.f_back
    found: list[BaseException] = []
    following: list[BaseException | None] = [error]
    while following:
        one = following.pop()
        if one is None or any(one is other for other in found):
            continue
        if one.__traceback__ is None or one.__traceback__.tb_frame not in outside:
            found.append(one)
            following += [one.__context__, one.__cause__]
    return found


def _code_of(handler: Any) -> CodeType | None:
    """The code that a handler runs: a function, a method, or whatever else can be called."""
    while isinstance(handler, partial):
        handler = handler.func
    if not callable(handler):
        return None
    if not hasattr(handler, "__code__") and not hasattr(handler, "__func__"):
        handler = type(handler).__call__
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


class TotoCompilePatchError(Exception):
    """Base of every error that this package raises on its own account."""


class TotoNotFoundError(TotoCompilePatchError, ImportError):
    """``toto`` (or something that it imports) is not installed."""


class UnsupportedTotoError(TotoCompilePatchError, RuntimeError):
    """The code to be patched is not code that was tested; ``strict=False`` skips such patches.

    ``python -m toto_compile_patch fingerprints`` lists what differs.
    """


class PatchConflictError(TotoCompilePatchError, RuntimeError):
    """Somebody else replaced a patched symbol after us; ``revert(force=True)`` overrides them."""


class CompiledCodeBusyError(TotoCompilePatchError, RuntimeError):
    """A thread stayed inside compiled code, where patches cannot be changed without a crash."""


class FallbackError(TotoCompilePatchError, RuntimeError):
    """The fast path does not make this forecast, and ``apply(fallback="error")`` is in force."""


class UnreachedCarrierWarning(UserWarning):
    """A copy of Toto's code is loaded that ``apply()`` does not patch: it forecasts as before."""


class FallbackWarning(UserWarning):
    """A forecast that the fast path does not know was left to upstream's code.

    It names the reason, and the cure where there is one; once for each reason in a process. It
    belongs to ``apply(fallback="warn")``, the default. Turned into an error (``python -W error``)
    it is raised in place of the forecast, each time. As a rule nothing has been computed by then.
    Only where upstream's code might itself raise an error (unusual arguments, values that are not
    numbers) is it asked for its forecast first, which the warning then drops.
    """

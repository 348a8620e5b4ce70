"""The exceptions that users may want to catch."""

from __future__ import annotations


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
    """A forecast that the fast path does not know, where ``apply(fallback="error")`` holds."""


class UnreachedCarrierWarning(UserWarning):
    """Code of Toto's is loaded that ``apply()`` does not patch: its forecasts are upstream's."""


class FallbackWarning(UserWarning):
    """A forecast that the fast path does not know was left to upstream's code.

    It names the reason, and the cure where there is one; once for each reason in a process. It
    belongs to ``apply(fallback="warn")``, the default. Turned into an error (``python -W error``)
    it is raised in place of the forecast, each time; nothing is half done then. As a rule nothing
    has been computed yet; only where upstream might have had its own word to say first, of
    unusual arguments and values that are not numbers, is the forecast made before, and dropped.
    """

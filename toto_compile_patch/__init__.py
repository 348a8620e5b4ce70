"""Patch Datadog's published Toto in place so that existing pipelines forecast many times faster.

>>> import toto_compile_patch
>>> toto_compile_patch.apply()      # doctest: +SKIP
>>> toto_compile_patch.revert()     # doctest: +SKIP

Importing this package imports neither ``toto`` nor ``torch``; ``apply()`` does.
"""

from toto_compile_patch.api import (
    apply,
    compile,
    forecast_many,
    is_applied,
    last_path,
    patched,
    refresh,
    revert,
    status,
    warmup,
)
from toto_compile_patch.errors import (
    CompiledCodeBusyError,
    FallbackError,
    FallbackWarning,
    PatchConflictError,
    TotoCompilePatchError,
    TotoNotFoundError,
    UnreachedCarrierWarning,
    UnsupportedTotoError,
)
from toto_compile_patch.failed_forecast import FailedForecast
from toto_compile_patch.version import __version__

__all__ = [
    "CompiledCodeBusyError",
    "FailedForecast",
    "FallbackError",
    "FallbackWarning",
    "PatchConflictError",
    "TotoCompilePatchError",
    "TotoNotFoundError",
    "UnreachedCarrierWarning",
    "UnsupportedTotoError",
    "__version__",
    "apply",
    "compile",
    "forecast_many",
    "is_applied",
    "last_path",
    "patched",
    "refresh",
    "revert",
    "status",
    "warmup",
]

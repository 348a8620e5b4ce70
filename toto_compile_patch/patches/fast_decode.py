"""``fast_decode``: forecasts run on ``toto_compile_patch.decode``, where it knows the model.

What it does not know goes to upstream's code, and the reason is logged once.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch

from toto_compile_patch.decode.forecast import (
    NotFiniteError,
    Options,
    forecast_mean,
    forecast_samples,
)
from toto_compile_patch.decode.last_path import Path, note
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.support import backbone_of, why_not
from toto_compile_patch.errors import FallbackError
from toto_compile_patch.settings import in_force
from toto_compile_patch.sites import AttributeSite
from toto_compile_patch.tracing import run_uncompiled
from toto_compile_patch.upstream import BYPASSED, TotoForecaster

_logger = logging.getLogger("toto_compile_patch")


@cache
def sites() -> tuple[AttributeSite, ...]:
    return (
        AttributeSite(TotoForecaster, "generate_mean", _fast_or_upstream, needs=BYPASSED),
        AttributeSite(TotoForecaster, "generate_samples", _fast_or_upstream),
    )


@cache
def _fast_or_upstream(original: Any) -> Any:
    signature = inspect.signature(original)

    @wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        arguments = signature.bind(self, *args, **kwargs).arguments

        def upstream() -> torch.Tensor:
            forecast: torch.Tensor = original(self, *args, **kwargs)
            return forecast

        return _generate(self, arguments, upstream)

    return run_uncompiled(generate)


def _generate(
    forecaster: Any, arguments: dict[str, Any], upstream: Callable[[], torch.Tensor]
) -> torch.Tensor:
    try:
        request = Request.of(arguments)
    except (ValueError, TypeError, AttributeError) as error:
        # Upstream's code complains of such arguments in its own words.
        note(Path("upstream", f"unusual argument: {error}"))
        return upstream()
    backbone = backbone_of(forecaster.model)
    settings = in_force()
    if reason := why_not(forecaster, backbone, request):
        if settings.fallback == "error":
            raise FallbackError(
                f"{reason}; apply(fallback='upstream') lets upstream's code forecast"
            )
        _log_once(reason)
        note(Path("upstream", reason))
        return upstream()
    try:
        if request.num_samples is None:
            forecast = forecast_mean(backbone, request)
        else:
            forecast = forecast_samples(backbone, request, Options(settings.rng))
    except NotFiniteError as error:
        note(Path("upstream", str(error)))
        return upstream()
    note(Path("fast"))
    return forecast


_logged: set[str] = set()


def _log_once(reason: str) -> None:
    if reason not in _logged:
        _logged.add(reason)
        _logger.warning("upstream's code forecasts: %s", reason)

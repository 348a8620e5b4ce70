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

from toto_compile_patch.decode.doubts import NotFiniteError
from toto_compile_patch.decode.forecast import Options, forecast
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
        _log_once(f"upstream's code forecasts: {reason}")
        note(Path("upstream", reason))
        return upstream()
    options = Options(settings.rng, settings.runtime, settings.precision)
    try:
        result, ran = forecast(forecaster.model, backbone, request, options)
    except NotFiniteError as error:
        note(Path("upstream", str(error)))
        return upstream()
    if ran.unexpected:
        _log_once(f"forecasts run in runtime {ran.runtime}: {ran.reason}")
    note(Path("fast", ran.reason, ran.runtime, ran.graphs, ran.graph_bytes))
    return result


_logged: set[str] = set()


def _log_once(message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        _logger.warning("%s", message)

"""``fast_decode``: forecasts run on ``toto_compile_patch.decode``, where it knows the model.

What it does not know goes to upstream's code, and the reason is said once.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

import torch

from toto_compile_patch.decode.compile_call import without_compiling
from toto_compile_patch.decode.device_checks import NotFiniteError
from toto_compile_patch.decode.forecast import ForecastOptions, forecast
from toto_compile_patch.decode.request import Request, check_time_stamps
from toto_compile_patch.decode.support import (
    Refusal,
    RefusedError,
    known_parts,
    not_finite,
    other_mode,
    unusual,
)
from toto_compile_patch.errors import FallbackError, is_of_a_signal
from toto_compile_patch.notices import log_once, warn_once
from toto_compile_patch.path_taken import PathTaken, attempt, note
from toto_compile_patch.settings import in_force
from toto_compile_patch.sites import AttributeSite
from toto_compile_patch.tracing import run_uncompiled
from toto_compile_patch.upstream import TotoCode


class NotFastError(Exception):
    """A forecast would have been upstream's, where none but the fast path's is wanted."""


class _WantedHere(threading.local):
    """Attributes:
    fast_alone: whether this thread wants no forecast but the fast path's.
    """

    fast_alone = False


_here = _WantedHere()


@contextmanager
def fast_or_error() -> Iterator[None]:
    """Have this thread's forecasts raise NotFastError in place of upstream's code, unsaid."""
    before, _here.fast_alone = _here.fast_alone, True
    try:
        yield
    finally:
        _here.fast_alone = before


@cache
def sites(code: TotoCode) -> tuple[AttributeSite, ...]:
    forecaster, needs = code.TotoForecaster, code.bypassed
    return (
        AttributeSite(forecaster, "generate_mean", _fast_or_upstream, needs=needs),
        AttributeSite(forecaster, "generate_samples", _fast_or_upstream),
    )


@cache
def _fast_or_upstream(original: Any) -> Any:
    """Replace a method of ``TotoForecaster``: the fast path forecasts, or else upstream's code."""
    signature = inspect.signature(original)
    parameters = signature.parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}

    @wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        def read() -> Mapping[str, Any]:
            return {**defaults, **signature.bind(self, *args, **kwargs).arguments}

        def upstream() -> torch.Tensor:
            forecast: torch.Tensor = original(self, *args, **kwargs)
            return forecast

        return _generate(self, read, upstream)

    return run_uncompiled(generate)


def _generate(
    forecaster: Any, read: Callable[[], Mapping[str, Any]], upstream: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Make a forecast by the fast path, or by upstream's code where it makes none.

    Args:
        forecaster: the ``TotoForecaster``.
        read: gives the arguments by their names, and raises where they do not fit.
        upstream: makes the forecast by upstream's code.
    """
    with attempt(PathTaken("fast")):
        made = _fast(forecaster, read)
    if isinstance(made, Refusal):
        if _here.fast_alone:
            raise NotFastError(made.reason)
        # Outside of any ``except``: upstream's errors are to look as they always did.
        return _left_to_upstream(made, upstream)
    result, path = made
    note(path)
    return result


def _fast(
    forecaster: Any, read: Callable[[], Mapping[str, Any]]
) -> tuple[torch.Tensor, PathTaken] | Refusal:
    """The fast path's forecast, or why it makes none."""
    if refusal := other_mode():
        return refusal
    backbone = without_compiling(forecaster.model)
    try:
        arguments = read()
        check_time_stamps(arguments)
        labelled = getattr(backbone, "fusion", None) is not None
        request = Request.of(arguments, labelled=labelled)
    except Exception as error:
        if is_of_a_signal(error):
            raise
        # Whatever cannot be read: upstream's code complains of it in its own words.
        return unusual(error)
    settings = in_force()
    options = ForecastOptions(settings.rng, settings.runtime, settings.precision)
    look = partial(known_parts, forecaster, backbone, request)
    try:
        result, ran = forecast(forecaster.model, look, request, options)
    except RefusedError as error:
        return error.refusal
    except NotFiniteError as error:
        return not_finite(error)
    except AssertionError as error:
        if __debug__:
            raise
        # With ``python -O``, upstream's code asserts nothing, and forecasts.
        return Refusal(str(error), "see that each patch is of one group")
    if ran.unexpected:
        log_once(f"forecasts run in runtime {ran.runtime}: {ran.reason}")
    return result, PathTaken("fast", ran.reason, ran.runtime, ran.graphs, ran.graph_bytes)


def _left_to_upstream(refusal: Refusal, upstream: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Upstream's forecast, with the reason said before it is made.

    Where upstream's code may complain in its own words, the reason is said afterwards.
    """
    path = PathTaken("upstream", refusal.reason, cure=refusal.cure)
    with attempt(path):
        if not refusal.upstream_decides:
            _say(refusal)
        note(path)
        result = upstream()
        if refusal.upstream_decides:
            _say(refusal)
    return result


def _say(refusal: Refusal) -> None:
    """Say that upstream's code forecasts, as the user wants to hear it.

    Raises:
        FallbackError: upstream's code is not to forecast.
        FallbackWarning: where the user turns warnings into errors.
    """
    fallback = in_force().fallback
    why = f"{refusal.reason}. To have it fast: {refusal.cure}" if refusal.cure else refusal.reason
    if fallback == "error":
        raise FallbackError(
            f"the fast path does not make this forecast: {why}. To have it made by upstream's "
            "code: apply(fallback='upstream')"
        )
    log_once(f"upstream's code forecasts: {why}")
    if fallback == "warn":
        warn_once(
            f"this forecast is made by upstream's code, no faster than unpatched: {why}. "
            "(apply(fallback='upstream') takes it as it is, and says so in the log alone.)"
        )

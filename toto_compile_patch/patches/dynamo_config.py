"""``dynamo_config``: dynamo settings that a decode loop needs, while the patches are applied.

Scalars are captured, and the recompile limit has room for layers of two kinds and a few shape
classes; both hold in every thread. Shapes are dynamic from the first compilation on, so that a
new context length needs no new code: that holds only inside a compiled forecast with a cache, so
that other models are compiled as before (on torch 2.7, where settings are the process's, unless
another thread compiles one at that moment).

Upstream's own cache, where ``kv_cache`` is not applied, is traced without capturing scalars: torch
2.13 cannot index a list with one, and raises.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, wraps
from typing import Any
from weakref import WeakSet

import torch._dynamo.config as config

from toto_compile_patch.decode import compile_report
from toto_compile_patch.locks import Lock
from toto_compile_patch.sites import AttributeSite, DynamoSettingSite, Site, setting_is_per_thread
from toto_compile_patch.tracing import (
    inside_compiled_call,
    run_uncompiled,
    skip_frame,
    skip_own_frame,
    with_cache,
)
from toto_compile_patch.upstream import TotoCode, code_of

RECOMPILE_LIMIT = 64
"""Room for twelve layers of two kinds in a handful of shape classes."""


@cache
def sites(code: TotoCode) -> tuple[Site, ...]:
    return (
        *_settings(),
        AttributeSite(code.TotoBackbone, "forward", with_cache(3, _with_dynamic_shapes)),
    )


@cache
def _settings() -> tuple[Site, ...]:
    """The settings, which are torch's, whichever carrier forecasts."""
    return (
        DynamoSettingSite("capture_scalar_outputs", lambda found: True),
        DynamoSettingSite("recompile_limit", lambda found: max(found, RECOMPILE_LIMIT)),
    )


def _with_dynamic_shapes(original: Any) -> Any:
    """Upstream's ``forward``, with dynamic shapes where it is called by compiled code."""
    uncompiled_frame = skip_own_frame(original)

    @skip_frame
    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not inside_compiled_call():
            return uncompiled_frame(self, *args, **kwargs)
        first = _say_before(self)
        try:
            with _cached_forecast(self):
                return uncompiled_frame(self, *args, **kwargs)
        finally:
            if first is not None:
                _say_after(first)

    return forward


_called_before: WeakSet[Any] = WeakSet()


# Dynamo would compile what is called here, and break at the log.
@run_uncompiled
def _say_before(backbone: Any) -> AbstractContextManager[None] | None:
    """Say that upstream's code will be compiled, if this is its first call."""
    if backbone in _called_before:
        return None
    _called_before.add(backbone)
    report = compile_report.first_call()
    report.__enter__()
    return report


@run_uncompiled
def _say_after(report: AbstractContextManager[None]) -> None:
    """Say how long the first call took."""
    with compile_report.of_forecast():
        report.__exit__(None, None, None)


_settings_inside = {
    (True, False): config.patch(assume_static_by_default=False),
    (False, True): config.patch(capture_scalar_outputs=False),
    (True, True): config.patch(assume_static_by_default=False, capture_scalar_outputs=False),
    (False, False): nullcontext(),
}
"""What is in force inside a cached forecast, by two questions: are shapes dynamic from the first
compilation on, and are scalars not captured? Made once, since on torch 2.13 each such object leaves
a variable in the thread's context for good."""


class _Scope:
    """Who is inside a cached forecast.

    Attributes:
        depths: of nested calls, by thread.
        settings: what is in force meanwhile; None: nothing.
    """

    def __init__(self) -> None:
        self.depths: dict[int, int] = {}
        self.settings: Any = None


class _ScopeOfAThread(_Scope, threading.local):
    """A scope that each thread has for itself."""


# Where settings are per thread, each has a scope of its own; else all threads share one, and the
# last one out restores the settings.
_scope: _Scope = (
    _ScopeOfAThread() if setting_is_per_thread("assume_static_by_default") else _Scope()
)
_scope_lock = Lock()


@contextmanager
def _cached_forecast(backbone: Any) -> Iterator[None]:
    """Surrounds a forecast with a cache: the first one in puts dynamo's settings in force."""
    thread = threading.get_ident()
    try:
        with _scope_lock.held:
            alone = not _scope.depths
            # Noted first, so that an interrupt leaves nothing in force that nobody takes back.
            _scope.depths[thread] = _scope.depths.get(thread, 0) + 1
            if alone:
                # A user who compiles with dynamic=False has asked for static shapes.
                dynamic = config.automatic_dynamic_shapes
                _scope.settings = _settings_inside[dynamic, _has_upstreams_cache(backbone)]
                _scope.settings.__enter__()
        yield
    finally:
        with _scope_lock.held:
            depth = _scope.depths.pop(thread, 0) - 1
            if depth > 0:
                _scope.depths[thread] = depth
            _leave_if_last()


def _has_upstreams_cache(backbone: Any) -> bool:
    """Whether a backbone makes caches of its carrier's own class."""
    code = code_of(backbone)
    return code is not None and code.module_of(code.TotoBackbone).KVCache is code.KVCache


def _leave_if_last() -> None:
    """Take dynamo's settings back where nobody is inside a cached forecast any more."""
    if not _scope.depths and _scope.settings is not None:
        settings, _scope.settings = _scope.settings, None
        settings.__exit__(None, None, None)


def _forget_other_threads() -> None:
    """In a forked child there is no other thread that would leave."""
    me = threading.get_ident()
    _scope.depths = {thread: depth for thread, depth in _scope.depths.items() if thread == me}
    _leave_if_last()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)

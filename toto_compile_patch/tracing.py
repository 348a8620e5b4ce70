"""Ways to tell dynamo what it may trace: wrappers for methods, none of them visible to a caller.

A plain function stands in for a method in all of them: dynamo looks through a
``wrapt.FunctionWrapper`` at the original and traces that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch

from toto_compile_patch.private_names import MissingName, private

F = TypeVar("F", bound=Callable[..., Any])


def _decorator(path: str) -> Any:
    """A decorator of torch's; one that does nothing where it is missing, and with it every patch
    that needs it."""
    found = private(path)
    return (lambda function: function) if found is MissingName else found


_disable = _decorator("torch._dynamo.disable")
_skip = _decorator("torch._dynamo.decorators.skip")
_skip_code = _decorator("torch._dynamo.eval_frame.skip_code")
_set_eval_frame = private("torch._C._dynamo.eval_frame.set_eval_frame")


def run_uncompiled(function: F) -> F:
    """Wrap a function so that neither it nor anything that it calls is compiled."""
    uncompiled: F = _disable(function)
    return uncompiled


def skip_frame(function: F) -> F:
    """Mark a function so that its own frame is never compiled, while what it calls may be.

    The mark lies on the code object, so the function must own its code (see ``own_code``).
    """
    _skip(function)
    return function


def skip_as_root(function: F) -> F:
    """Mark a function so that no compilation starts at its frame; one under way may inline it."""
    _skip_code(function.__code__)
    return function


def inside_compiled_call() -> bool:
    """Whether frames that are called now would be compiled."""
    # Reading the callback without setting it returns a dead reference on torch 2.7.
    callback = _set_eval_frame(None)
    _set_eval_frame(callback)
    return callback is not None


def own_code(function: FunctionType) -> FunctionType:
    """Return a function that does the same with a code object of its own."""
    twin = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__qualname__ = function.__qualname__
    twin.__module__ = function.__module__
    return twin


def with_cache(position: int, wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a factory of methods that run ``wrap(original)`` for calls that bring a KVCache.

    Args:
        position: index of ``kv_cache`` among the method's positional arguments, after self.
        wrap: makes what runs when there is a cache from the original method.
    """

    @functools.cache
    def build(original: Any) -> Any:
        cached = wrap(original)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            kv_cache = args[position] if len(args) > position else kwargs.get("kv_cache")
            if kv_cache is None:
                return original(self, *args, **kwargs)
            return cached(self, *args, **kwargs)

        return skip_as_root(method)

    return build


def skip_own_frame(original: Any) -> Any:
    """Run a method's own frame uncompiled, and compile what it calls as before."""
    return skip_frame(own_code(original))


@functools.cache
def traced_or_uncompiled(original: Any) -> Any:
    """Leave a method to the frame that traces it, but make no graph of it alone."""
    uncompiled = run_uncompiled(original)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return original(*args, **kwargs)
        return uncompiled(*args, **kwargs)

    return skip_as_root(method)

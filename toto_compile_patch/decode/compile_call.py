"""What a user's own call of ``torch.compile`` asked for, which dynamo does not tell in public."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from toto_compile_patch.private_names import private

_OptimizedModule = private("torch._dynamo.OptimizedModule")
_CudagraphsBackend = private("torch._dynamo.backends.cudagraphs.CudagraphsBackend")

INDUCTORS_GRAPHS = "triton.cudagraphs"
"""Inductor's own graphs: they would record where our caches lie, and we capture the whole."""


@dataclass(frozen=True)
class CompileCall:
    """What somebody's ``torch.compile(model)`` or ``model.compile()`` asked for.

    Attributes:
        backend: inductor's name, or another backend.
        options: inductor's, in which they differ from its defaults.
        captures: CUDA graphs were asked for.
        not_on_a_cpu: it was upstream's ``Toto.compile()`` (see ``CompiledOffACpu``).
    """

    backend: Any
    options: tuple[tuple[str, Any], ...] = ()
    captures: bool = False
    not_on_a_cpu: bool = False


class CompiledOffACpu:
    """Calls a backbone compiled, except on a CPU, where it runs eagerly unless that is insisted on.

    ``Toto.compile()`` compiles nothing upstream, so that it stands in many a script at no cost. On
    a CPU compiled code gains little, and compiling it takes longer than many forecasts.

    Args:
        backbone: the backbone.
        compiled: what ``torch.nn.Module.compile`` made of it.
        insisted: asked at each call on a CPU, whether the user wants compiled code there, too.
    """

    def __init__(
        self, backbone: Any, compiled: Callable[..., Any], insisted: Callable[[], bool]
    ) -> None:
        self.compiled = compiled
        self._backbone = backbone
        self._insisted = insisted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._backbone.unembed.weight.is_cpu and not self._insisted():
            return self._backbone._call_impl(*args, **kwargs)
        return self.compiled(*args, **kwargs)


def without_compiling(model: Any) -> Any:
    """The module behind ``torch.compile(module)``; any other as it is."""
    return model._orig_mod if isinstance(model, _OptimizedModule) else model


def is_compiled(model: Any) -> bool:
    """Whether somebody has asked for a model to be compiled."""
    return isinstance(model, _OptimizedModule) or _compiled_impl(model) is not None


def _compiled_impl(model: Any) -> Any:
    return getattr(model, "_compiled_call_impl", None)


def compile_call(model: Any) -> CompileCall | None:
    """What a model was compiled with; None for one that was not."""
    if isinstance(model, _OptimizedModule):
        compiled: Any = model
    else:
        compiled = _compiled_impl(model)
    habit = isinstance(compiled, CompiledOffACpu)
    if habit:
        compiled = compiled.compiled
    if compiled is None or not hasattr(compiled, "get_compiler_config"):
        return None
    if compiled not in _calls:
        _calls[compiled] = _read_call(compiled)
    call = _calls[compiled]
    return replace(call, not_on_a_cpu=True) if call is not None and habit else call


def _read_call(compiled: Any) -> CompileCall | None:
    config = compiled.get_compiler_config()
    if config is None:
        backend = _backend_of(compiled)
        # It captures what runs eagerly, as we do.
        return None if isinstance(backend, _CudagraphsBackend) else CompileCall(backend)
    plain = private("torch._inductor.config.get_config_copy")()
    changed = {
        name: value
        for name, value in config.items()
        if plain.get(name) != value and name != INDUCTORS_GRAPHS
    }
    return CompileCall("inductor", tuple(sorted(changed.items())), bool(config[INDUCTORS_GRAPHS]))


_calls: WeakKeyDictionary[Any, CompileCall | None] = WeakKeyDictionary()


def _backend_of(compiled: Any) -> Any:
    """The backend behind a compiled function: dynamo wraps it in several callables."""
    context = getattr(compiled, "dynamo_ctx", None)
    found = context.callback if context is not None else _callback_of(compiled)
    inner = found
    while inner is not None:
        found = inner
        inner = getattr(found, "_torchdynamo_orig_backend", None)
        inner = inner or getattr(found, "_torchdynamo_orig_callable", None)
    # What ``torch.compile`` makes of a backend's name cannot be compared or hashed.
    found = getattr(found, "compiler_fn", found)
    return found if found is not None else "inductor"


def _callback_of(compiled: Any) -> Any:
    cells = dict(zip(compiled.__code__.co_freevars, compiled.__closure__ or (), strict=True))
    return cells["callback"].cell_contents if "callback" in cells else None

"""How the arithmetic is run: as it stands, compiled, or captured in a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch._dynamo
import torch._inductor.config as inductor
from torch._dynamo.backends.cudagraphs import CudagraphsBackend

from toto_compile_patch.decode.regions import Compiled, Regions
from toto_compile_patch.locks import Lock

EAGER = "eager"
COMPILE = "compile"
CUDAGRAPH = "cudagraph"
BOTH = "compile+cudagraph"
AUTO = "auto"

_CUDAGRAPHS = "triton.cudagraphs"
"""Inductor's own graphs: they would record where our caches lie, and we capture the whole."""


@dataclass(frozen=True)
class Runtime:
    """A way to run.

    Attributes:
        name: ``eager``, ``compile``, ``cudagraph`` or ``compile+cudagraph``.
        regions: compiled or not.
        reason: why it is not the one that was asked for; else empty.
    """

    name: str
    regions: Regions
    reason: str = ""

    @property
    def captures(self) -> bool:
        return self.name in (CUDAGRAPH, BOTH)

    def without_graphs(self, reason: str = "") -> Runtime:
        """The same, but run anew each time."""
        name = {CUDAGRAPH: EAGER, BOTH: COMPILE}.get(self.name, self.name)
        return Runtime(name, self.regions, reason or self.reason)


@dataclass(frozen=True)
class Ran:
    """How a forecast was made.

    Attributes:
        runtime: the name of the Runtime.
        reason: why it is not the one that was asked for; else empty.
        unexpected: that is not as it should be.
        graphs: CUDA graphs that are kept for this model.
        graph_bytes: memory that they hold.
    """

    runtime: str
    reason: str = ""
    unexpected: bool = False
    graphs: int = 0
    graph_bytes: int = 0


@dataclass(frozen=True)
class CompileCall:
    """What somebody's ``torch.compile(model)`` or ``model.compile()`` asked for.

    Attributes:
        backend: inductor's name, or another backend.
        options: inductor's, in which they differ from its defaults.
        captures: CUDA graphs were asked for.
    """

    backend: Any
    options: tuple[tuple[str, Any], ...] = ()
    captures: bool = False


def choose(wanted: str, model: Any, device: torch.device) -> Runtime:
    """The runtime for a model, which may be compiled or wrapped by ``torch.compile``."""
    call = compile_call(model)
    on_gpu = device.type == "cuda"
    reason = ""
    if wanted == AUTO:
        wanted = CUDAGRAPH if on_gpu else EAGER
        if call is not None:
            wanted = BOTH if on_gpu and call.captures else COMPILE
    elif wanted in (CUDAGRAPH, BOTH) and not on_gpu:
        wanted = COMPILE if wanted == BOTH else EAGER
        reason = f"the model is on {device.type}, where there are no CUDA graphs"
    if wanted not in (COMPILE, BOTH):
        return Runtime(wanted, UNCOMPILED, reason)
    call = call or CompileCall("inductor")
    regions = _compiled(call)
    if regions.failure:
        return Runtime(_uncompiled(wanted), UNCOMPILED, regions.failure)
    return Runtime(wanted, regions, reason)


def compile_call(model: Any) -> CompileCall | None:
    """What a model was compiled with; None for one that was not."""
    if isinstance(model, torch._dynamo.OptimizedModule):
        compiled: Any = model
    else:
        compiled = getattr(model, "_compiled_call_impl", None)
    if compiled is None or not hasattr(compiled, "get_compiler_config"):
        return None
    if compiled not in _calls:
        _calls[compiled] = _read_call(compiled)
    return _calls[compiled]


def _read_call(compiled: Any) -> CompileCall | None:
    config = compiled.get_compiler_config()
    if config is None:
        backend = _backend_of(compiled)
        # It captures what runs eagerly, as we do.
        return None if isinstance(backend, CudagraphsBackend) else CompileCall(backend)
    plain = inductor.get_config_copy()
    changed = {
        name: value
        for name, value in config.items()
        if plain.get(name) != value and name != _CUDAGRAPHS
    }
    return CompileCall("inductor", tuple(sorted(changed.items())), bool(config[_CUDAGRAPHS]))


def ran_uncompiled(ran: Ran, failure: str) -> Ran:
    """What ran, where compiling failed on the way."""
    return replace(ran, runtime=_uncompiled(ran.runtime), reason=failure, unexpected=True)


def forget() -> None:
    """Compile anew, and try again what could not be compiled."""
    with _lock:
        _made.clear()


UNCOMPILED = Regions()

_lock = Lock()
_made: dict[Any, Compiled] = {}
_calls: WeakKeyDictionary[Any, CompileCall | None] = WeakKeyDictionary()


def _uncompiled(name: str) -> str:
    return {COMPILE: EAGER, BOTH: CUDAGRAPH}.get(name, name)


def _key(call: CompileCall) -> Any:
    backend = call.backend
    return backend if isinstance(backend, str) else id(backend), repr(call.options)


def _compiled(call: CompileCall) -> Compiled:
    with _lock:
        if _key(call) not in _made:
            # Said even where it is the default, which an environment variable may change.
            options = {**dict(call.options), _CUDAGRAPHS: False}
            by_inductor = call.backend == "inductor"
            _made[_key(call)] = Compiled(call.backend, options if by_inductor else {})
        return _made[_key(call)]


def _backend_of(compiled: Any) -> Any:
    """The backend behind a compiled function: dynamo wraps it in several callables."""
    context = getattr(compiled, "dynamo_ctx", None)
    found = context.callback if context is not None else _callback_of(compiled)
    for _ in range(8):
        inner = getattr(found, "_torchdynamo_orig_backend", None)
        inner = inner or getattr(found, "_torchdynamo_orig_callable", None)
        if inner is None:
            break
        found = inner
    # What ``torch.compile`` makes of a backend's name cannot be compared or hashed.
    found = getattr(found, "compiler_fn", found)
    return found if found is not None else "inductor"


def _callback_of(compiled: Any) -> Any:
    cells = dict(zip(compiled.__code__.co_freevars, compiled.__closure__ or (), strict=True))
    return cells["callback"].cell_contents if "callback" in cells else None

"""How the arithmetic is run: as it stands, compiled, or captured in a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from toto_compile_patch.decode.compile_call import (
    INDUCTORS_GRAPHS,
    CompileCall,
    compile_call,
    is_compiled,
)
from toto_compile_patch.decode.regions import Compiled, Regions
from toto_compile_patch.locks import Lock
from toto_compile_patch.private_names import COMPILED, why_without

EAGER = "eager"
COMPILE = "compile"
CUDAGRAPH = "cudagraph"
BOTH = "compile+cudagraph"
AUTO = "auto"


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
        """This runtime, but run anew at each forecast, and why."""
        name = {CUDAGRAPH: EAGER, BOTH: COMPILE}.get(self.name, self.name)
        return Runtime(name, self.regions, reason or self.reason)


@dataclass(frozen=True)
class Ran:
    """How a forecast was made.

    Attributes:
        runtime: the name of the Runtime.
        reason: why it is not the one that was asked for; else empty.
        unexpected: whether the reason is to be logged: it is not what was asked for.
        graphs: CUDA graphs that are kept for this model.
        graph_bytes: memory that they hold.
    """

    runtime: str
    reason: str = ""
    unexpected: bool = False
    graphs: int = 0
    graph_bytes: int = 0


def choose_runtime(wanted: str, model: Any, device: torch.device) -> Runtime:
    """The runtime for a model, which may be compiled or wrapped by ``torch.compile``."""
    missing = why_without(COMPILED)
    call = None if missing else compile_call(model)
    on_gpu = device.type == "cuda"
    reason = missing if wanted == AUTO and is_compiled(model) else ""
    if wanted == AUTO:
        wanted = CUDAGRAPH if on_gpu else EAGER
        if call is not None and call.not_on_a_cpu and device.type == "cpu":
            reason = "toto.compile() does not pay on a CPU; apply(runtime='compile') insists on it"
        elif call is not None:
            wanted = BOTH if on_gpu and call.captures else COMPILE
    elif wanted in (CUDAGRAPH, BOTH) and not on_gpu:
        wanted = COMPILE if wanted == BOTH else EAGER
        reason = f"the model is on {device.type}, where there are no CUDA graphs"
    if wanted not in (COMPILE, BOTH):
        return Runtime(wanted, UNCOMPILED, reason)
    if missing:
        return Runtime(_uncompiled(wanted), UNCOMPILED, missing)
    call = call or CompileCall("inductor")
    regions = _compiled(call)
    if regions.failure:
        return Runtime(_uncompiled(wanted), UNCOMPILED, regions.failure)
    return Runtime(wanted, regions, reason)


def ran_uncompiled(ran: Ran, failure: str) -> Ran:
    """What ran, where compiling failed on the way."""
    return replace(ran, runtime=_uncompiled(ran.runtime), reason=failure, unexpected=True)


def forget_compiled() -> None:
    """Compile anew, and try again what could not be compiled."""
    with _lock.held:
        _made.clear()


UNCOMPILED = Regions()

_lock = Lock()
_made: dict[Any, Compiled] = {}


def _uncompiled(name: str) -> str:
    return {COMPILE: EAGER, BOTH: CUDAGRAPH}.get(name, name)


def _key(call: CompileCall) -> Any:
    backend = call.backend
    return backend if isinstance(backend, str) else id(backend), repr(call.options)


def _compiled(call: CompileCall) -> Compiled:
    with _lock.held:
        if _key(call) not in _made:
            # Said even where it is the default, which an environment variable may change.
            options = {**dict(call.options), INDUCTORS_GRAPHS: False}
            by_inductor = call.backend == "inductor"
            _made[_key(call)] = Compiled(call.backend, options if by_inductor else {})
        return _made[_key(call)]

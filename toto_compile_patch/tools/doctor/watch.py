"""Watch a program from within its process: forecasts, calls of compile, and what dynamo did.

Nothing is watched from a place that would change what it sees. Forecasts of upstream's code are
seen from inside the decorator of its own methods, whose identity and source stay as they were;
those of the fast path where it notes them; dynamo by its logs and metrics.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import wrapt

from toto_compile_patch import status
from toto_compile_patch.decode import last_path
from toto_compile_patch.tools.doctor.findings import bearing_variables

if TYPE_CHECKING:
    from toto_compile_patch.tools.compile_health import CompileHealth

_READ_ONCE = "TORCHDYNAMO_"
_GENERATORS = ("generate_mean", "generate_samples")
_MODELS = ("Toto", "TotoBackbone", "TotoForecaster")
_OWN = str(Path(__file__).parent.parent)
_PASSED_THROUGH = (sysconfig.get_path("stdlib"), _OWN, "<")
_PACKAGES = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Forecast:
    """How a forecast was made.

    Attributes:
        path: ``fast`` or ``upstream``.
        reason: why it was not the fast one, or not in the runtime asked for.
        runtime: of the fast one.
        compiled: whether the model that it was asked of is compiled.
        patches: those that stood, where upstream's code forecast.
        autocast: device type of the autocast around it; else empty.
        place: the line that asked for it.
    """

    path: str
    reason: str
    runtime: str
    compiled: bool
    patches: tuple[str, ...]
    autocast: str
    place: str


@dataclass
class CompileCall:
    """A call that was to compile a model.

    Attributes:
        how: ``method`` (``model.compile()``) or ``function`` (``torch.compile(model)``).
        target: class of the model.
        place: the line that called.
        used: whether a forecast was asked of what it made.
    """

    how: str
    target: str
    place: str
    used: bool = False


@dataclass
class Watch:
    """What was seen so far.

    Attributes:
        forecasts: how often a forecast was made in each way, in the order of the first of each.
        first: the number of the first forecast of each way.
        calls: those that were to compile a model.
        compiled_objects: what the calls made, by the id of what a forecaster would hold.
        countable: whether upstream's own forecasts can be seen.
        environment_read: the variables that dynamo found when it was imported.
        health: what dynamo did, once it is imported.
        undecided: of each thread, why the forecast that begins now is upstream's.
    """

    forecasts: dict[Forecast, int] = field(default_factory=dict)
    first: dict[Forecast, int] = field(default_factory=dict)
    calls: list[CompileCall] = field(default_factory=list)
    compiled_objects: list[tuple[weakref.ref[Any], CompileCall]] = field(default_factory=list)
    countable: bool = True
    environment_read: dict[str, str] | None = None
    health: CompileHealth | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    undecided: threading.local = field(default_factory=threading.local)

    def start(self) -> None:
        """Watch each module from the moment of its import."""
        self._watch_fast_path()
        hooks: dict[str, Callable[[Any], None]] = {
            "torch._dynamo.config": lambda module: self._read_environment(),
            "torch._dynamo": self._watch_dynamo,
            "torch.nn.modules.module": self._watch_compile_method,
            "toto.inference.forecaster": self._watch_forecaster,
        }
        for name, hook in hooks.items():
            wrapt.register_post_import_hook(hook, name)

    def observed(self) -> dict[str, Any]:
        """All that was seen, as plain data; ends the watch over dynamo."""
        found: dict[str, Any] = {"counts": None, "countable": self.countable}
        if self.health is not None:
            self.health.__exit__(None, None, None)
            found["counts"] = self.health.counts()
            for name in ("compilations", "breaks", "recompilations", "limits"):
                found[name] = [asdict(entry) for entry in getattr(self.health, name)]
            found["skips"] = self.health.skips
        with self.lock:
            found["forecasts"] = [
                {**asdict(way), "count": count, "first": self.first[way]}
                for way, count in self.forecasts.items()
            ]
            found["calls"] = [asdict(call) for call in self.calls]
        found["environment"] = bearing_variables()
        found["set_too_late"] = self._set_too_late()
        found["applied"] = list(_applied())
        return found

    def _read_environment(self) -> None:
        self.environment_read = bearing_variables()

    def _set_too_late(self) -> list[str]:
        """What dynamo would have read, had it been there when dynamo was imported."""
        if self.environment_read is None:
            return []
        now = {
            name: text for name, text in bearing_variables().items() if name.startswith(_READ_ONCE)
        }
        return [name for name, text in now.items() if self.environment_read.get(name) != text]

    def _watch_dynamo(self, dynamo: Any) -> None:
        from toto_compile_patch.tools.compile_health import CompileHealth

        self.health = CompileHealth()
        self.health.__enter__()
        wrapper = dynamo.eval_frame.OptimizedModule
        wrapper.__init__ = self._watched(wrapper.__init__, "function", lambda self, mod: mod)

    def _watch_compile_method(self, module: Any) -> None:
        module.Module.compile = self._watched(module.Module.compile, "method", lambda self: self)

    def _watched(self, original: Any, how: str, target_of: Callable[..., Any]) -> Any:
        """Note calls of what compiles a model; the first arguments tell which model."""
        count = target_of.__code__.co_argcount

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(args) >= count:
                self._note_call(how, args[0], target_of(*args[:count]))
            return original(*args, **kwargs)

        return call

    def _note_call(self, how: str, made: Any, target: Any) -> None:
        kind = type(target)
        if kind.__name__ in _MODELS and kind.__module__.startswith("toto."):
            call = CompileCall(how, kind.__name__, _asked_from(sys._getframe(2)))
            with self.lock:
                self.calls.append(call)
                self.compiled_objects.append((weakref.ref(made), call))

    def _watch_forecaster(self, module: Any) -> None:
        for name in _GENERATORS:
            decorated = getattr(module.TotoForecaster, name, None)
            names = getattr(getattr(decorated, "__code__", None), "co_freevars", ())
            if "func" not in names:
                self.countable = False
                continue
            cell = decorated.__closure__[names.index("func")]  # type: ignore[union-attr]
            cell.cell_contents = self._watched_forecast(cell.cell_contents)

    def _watched_forecast(self, original: Any) -> Any:
        @functools.wraps(original)
        def generate(forecaster: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            if not torch.compiler.is_compiling():
                reason = getattr(self.undecided, "reason", "")
                self.undecided.reason = ""
                path = last_path.Path("upstream", reason)
                self._note_forecast(path, forecaster, sys._getframe(1))
            return original(forecaster, *args, **kwargs)

        return generate

    def _watch_fast_path(self) -> None:
        note = last_path.note

        def noted(path: last_path.Path) -> None:
            note(path)
            caller = sys._getframe(1)
            if path.taken == "fast":
                self._note_forecast(path, caller.f_locals.get("forecaster"), caller)
            else:
                self.undecided.reason = path.reason

        last_path.note = noted

    def _note_forecast(self, path: last_path.Path, forecaster: Any, frame: FrameType) -> None:
        model = getattr(forecaster, "model", None)
        way = Forecast(
            path.taken,
            path.reason,
            path.runtime,
            _is_compiled(model),
            _applied() if path.taken == "upstream" else (),
            _autocast(),
            _asked_from(frame),
        )
        with self.lock:
            self.first.setdefault(way, sum(self.forecasts.values()))
            self.forecasts[way] = self.forecasts.get(way, 0) + 1
            for made, call in self.compiled_objects:
                call.used = call.used or made() is model


def _applied() -> tuple[str, ...]:
    """The patches that stand, without importing what finds out where nothing can stand."""
    if "toto_compile_patch.registry" not in sys.modules:
        return ()
    return tuple(row.name for row in status() if row.state == "applied")


def _is_compiled(model: Any) -> bool:
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def _autocast() -> str:
    import torch

    types = ("cpu", "cuda")
    return next((kind for kind in types if torch.is_autocast_enabled(kind)), "")


def _asked_from(frame: FrameType | None) -> str:
    """The nearest line that is no library's."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_PASSED_THROUGH) and not any(part in file for part in _PACKAGES):
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""

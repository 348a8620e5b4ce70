"""Watch a program from within its process: forecasts, calls of compile, and what dynamo did.

Nothing is watched from a place that would change what it sees. Forecasts of upstream's code are
seen from inside the decorator of its own methods, whose identity and source stay as they were;
those of the fast path around what decides between the two; dynamo by its logs and metrics.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import wrapt

import toto_compile_patch
from toto_compile_patch import carriers, status
from toto_compile_patch.path_taken import PathTaken, last_noted
from toto_compile_patch.tools.doctor.findings import bearing_variables

if TYPE_CHECKING:
    from toto_compile_patch.tools.compile_health import CompileHealth

_READ_ONCE = "TORCHDYNAMO_"
_GENERATORS = ("generate_mean", "generate_samples")
_MODELS = ("Toto", "TotoBackbone", "TotoForecaster")
_OWN_MAIN = "toto_compile_patch.tools.doctor.child"
_REACHED = "toto"
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_LIBRARIES = ("toto", "torch")


@dataclass(frozen=True)
class Forecast:
    """How a forecast was made.

    Attributes:
        path: ``fast`` or ``upstream``.
        reason: why it was not the fast one, or not in the runtime asked for.
        runtime: of the fast one.
        compiled: whether the model that it was asked of is compiled.
        device: type of the model's device.
        patches: those that stood, where upstream's code forecast.
        autocast: device type of the autocast around it; else empty.
        place: the line that asked for it.
        carrier: whose code made it, where ``apply()`` does not reach that; else empty.
    """

    path: str
    reason: str
    runtime: str
    compiled: bool
    device: str
    patches: tuple[str, ...]
    autocast: str
    place: str
    carrier: str = ""


class _Now(threading.local):
    """Of the forecast that this thread makes now: whether one is being made, and by whose code."""

    within: bool = False
    upstream: bool = False


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
        spans: when each forecast began and ended, in seconds since the epoch.
    """

    forecasts: dict[Forecast, int] = field(default_factory=dict)
    first: dict[Forecast, int] = field(default_factory=dict)
    calls: list[CompileCall] = field(default_factory=list)
    compiled_objects: list[tuple[weakref.ref[Any], CompileCall]] = field(default_factory=list)
    countable: bool = True
    environment_read: dict[str, str] | None = None
    health: CompileHealth | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    spans: list[tuple[float, float]] = field(default_factory=list)
    now: _Now = field(default_factory=_Now)

    def start(self) -> None:
        """Watch each module from the moment of its import."""
        if hasattr(os, "register_at_fork"):
            # A thread that a fork leaves behind may hold it.
            os.register_at_fork(after_in_child=self._take_new_lock)
        hooks: dict[str, Callable[[Any], None]] = {
            "torch._dynamo.config": lambda module: self._read_environment(),
            "torch._dynamo": self._watch_dynamo,
            "torch.nn.modules.module": self._watch_compile_method,
            "toto_compile_patch.patches.fast_decode": self._watch_fast_path,
        }
        for carrier, name in carriers.FORECASTERS.items():
            hooks[name] = functools.partial(self._watch_forecaster, carrier)
        for name, hook in hooks.items():
            wrapt.register_post_import_hook(hook, name)

    def _take_new_lock(self) -> None:
        self.lock = threading.RLock()

    def observed(self) -> dict[str, Any]:
        """All that was seen, as plain data; ends the watch over dynamo."""
        found: dict[str, Any] = {"counts": None, "countable": self.countable}
        if self.health is not None:
            self.health.__exit__(None, None, None)
            found["counts"] = self.health.counts()
            for name in ("compilations", "breaks", "recompilations", "limits"):
                found[name] = [asdict(entry) for entry in getattr(self.health, name)]
            found["skips"] = self.health.skips
            found["seconds"] = self._seconds(self.health)
        with self.lock:
            found["forecasts"] = [
                {**asdict(way), "count": count, "first": self.first[way]}
                for way, count in self.forecasts.items()
            ]
            found["calls"] = [asdict(call) for call in self.calls]
        found["environment"] = bearing_variables()
        found["set_too_late"] = self._set_too_late()
        found["applied"] = list(_applied())
        found["unreached"] = [
            {"name": carrier.name, "folder": carrier.folder, "advice": carrier.advice}
            for carrier in carriers.unreached()
        ]
        return found

    def _seconds(self, health: CompileHealth) -> dict[str, float] | None:
        """What compiling took, and what all forecasts took beside; None where nothing tells."""
        known = [
            (frame.began, frame.seconds)
            for frame in health.compilations
            if frame.began is not None and frame.seconds is not None
        ]
        if not known:
            return None
        with self.lock:
            spans = list(self.spans)
        within = sum(
            seconds
            for began, seconds in known
            if any(start <= began <= end for start, end in spans)
        )
        whole = sum(end - start for start, end in spans)
        return {
            "compiling": round(sum(seconds for _, seconds in known), 3),
            "forecasting": round(max(0.0, whole - within), 3),
        }

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

    def _watch_forecaster(self, carrier: str, module: Any) -> None:
        forecaster = vars(module).get("TotoForecaster")
        if not carriers.makes_forecasts(forecaster):
            # A module that happens to have this name is nothing to count.
            self.countable = self.countable and carrier != _REACHED
            return
        unreached = "" if carrier == _REACHED else carrier
        for name in _GENERATORS:
            decorated = getattr(forecaster, name)
            names = getattr(getattr(decorated, "__code__", None), "co_freevars", ())
            if "func" not in names:
                self.countable = False
                continue
            cell = decorated.__closure__[names.index("func")]
            cell.cell_contents = self._watched_upstream(cell.cell_contents, unreached)

    def _watched_upstream(self, original: Any, carrier: str) -> Any:
        @functools.wraps(original)
        def generate(forecaster: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            if torch.compiler.is_compiling():
                return original(forecaster, *args, **kwargs)
            self.now.upstream = True
            if self.now.within:
                return original(forecaster, *args, **kwargs)
            path = PathTaken("upstream")
            self._note_forecast(path, forecaster, sys._getframe(1), carrier)
            with self._timed():
                return original(forecaster, *args, **kwargs)

        return generate

    def _watch_fast_path(self, module: Any) -> None:
        original = module._generate

        @functools.wraps(original)
        def generate(forecaster: Any, *args: Any, **kwargs: Any) -> Any:
            self.now.upstream = False
            made = False
            try:
                with self._timed():
                    result = original(forecaster, *args, **kwargs)
                made = True
            finally:
                path = last_noted()
                if path is not None and (made or self.now.upstream):
                    self._note_forecast(path, forecaster, sys._getframe(1))
            return result

        module._generate = generate

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Note when a forecast began and ended."""
        outermost, self.now.within = not self.now.within, True
        start = time.time()
        try:
            yield
        finally:
            self.now.within = not outermost
            if outermost:
                with self.lock:
                    self.spans.append((start, time.time()))

    def _note_forecast(
        self, path: PathTaken, forecaster: Any, frame: FrameType, carrier: str = ""
    ) -> None:
        model = getattr(forecaster, "model", None)
        way = Forecast(
            path.taken,
            path.reason,
            path.runtime,
            _is_compiled(model),
            _device_of(model),
            _applied() if path.taken == "upstream" and not carrier else (),
            _autocast(),
            _asked_from(frame),
            carrier,
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


def _device_of(model: Any) -> str:
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return str(getattr(getattr(first, "device", None), "type", ""))


def _asked_from(frame: FrameType | None) -> str:
    """The nearest line that is the user's."""
    libraries = _folders_of_libraries()
    while frame is not None and not _is_users(frame, libraries):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _is_users(frame: FrameType, libraries: tuple[str, ...]) -> bool:
    """Whether a frame is the script's, or of a module that nobody has installed.

    The script is the user's wherever it lies, be it between this package's own files or Toto's.
    """
    file, spec = frame.f_code.co_filename, frame.f_globals.get("__spec__")
    if file.startswith("<"):
        return False
    if frame.f_globals.get("__name__") == "__main__":
        return getattr(spec, "name", None) != _OWN_MAIN
    file = os.path.abspath(file)
    return not file.startswith(libraries) and not any(part in file for part in _INSTALLED)


def _folders_of_libraries() -> tuple[str, ...]:
    """Folders of Python's own modules, of this package, and of what it patches."""
    folders = [sysconfig.get_path("stdlib"), os.path.dirname(os.__file__)]
    folders += toto_compile_patch.__path__
    for name in _LIBRARIES:
        folders += getattr(sys.modules.get(name), "__path__", ())
    for name in carriers.FORECASTERS.values():
        # In a clone's own layout, the script may lie beside the folders of Toto's code.
        file = getattr(sys.modules.get(name), "__file__", None)
        folders += [os.path.dirname(file)] if file else []
    return tuple(os.path.join(os.path.abspath(folder), "") for folder in folders)

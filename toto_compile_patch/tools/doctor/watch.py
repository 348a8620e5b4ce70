"""Watch a program from within its process: forecasts, calls of compile, and what dynamo did.

Nothing is watched from a place that would change what it sees. Forecasts of upstream's code are
seen from inside the decorator of its own methods, whose identity and source stay as they were;
those of the fast path around the methods that it puts in their place; dynamo by its logs and
metrics. What threads note is appended to lists, which neither a thread nor a fork can break.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import wrapt

import toto_compile_patch
from toto_compile_patch import carriers
from toto_compile_patch.path_taken import PathTaken, last_noted
from toto_compile_patch.tools.doctor.findings import bearing_variables

if TYPE_CHECKING:
    from toto_compile_patch.tools.compile_health import CompileHealth

RUNNER = f"{__package__}.run_watched"
"""What runs a user's script, as ``__main__`` before the script is that."""

_READ_ONCE = "TORCHDYNAMO_"
_MODELS = ("Toto", "TotoBackbone", "TotoForecaster")
_LIBRARIES = {*sys.stdlib_module_names, "toto_compile_patch", "toto", "torch"}
_FORECASTERS = carriers.FORECASTERS.values()
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


class SeenForecast(NamedTuple):
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
        cure: what to do to have the fast one.
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
    cure: str = ""
    carrier: str = ""


class _Now(threading.local):
    """Of the forecast that this thread makes now: whether one is being made, and by whose code."""

    within: bool = False
    upstream: bool = False


@dataclass
class Watch:
    """What was seen so far.

    Attributes:
        forecasts: how each forecast was made, in their order.
        spans: when each forecast began and ended, in seconds since the epoch.
        calls: those that were to compile a model: ``how`` (``method``, as ``model.compile()``, or
            ``function``, as ``torch.compile(model)``), ``target`` (the model's class), and
            ``place`` (the line that called).
        countable: whether upstream's own forecasts can be seen.
        environment_read: the variables that dynamo found when it was imported.
        health: what dynamo did, once it is imported.
    """

    forecasts: list[SeenForecast] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    calls: list[dict[str, str]] = field(default_factory=list)
    countable: bool = True
    environment_read: dict[str, str] | None = None
    health: CompileHealth | None = None
    now: _Now = field(default_factory=_Now)

    def start(self) -> None:
        """Watch each module from the moment of its import."""
        hooks: dict[str, Callable[[Any], None]] = {
            "torch._dynamo.config": self._read_environment,
            "torch._dynamo": self._watch_dynamo,
            "torch.nn.modules.module": self._watch_compile_method,
            "toto_compile_patch.patches.fast_decode": self._watch_fast_path,
        }
        for carrier, name in carriers.FORECASTERS.items():
            hooks[name] = functools.partial(self._watch_forecaster, carrier)
        for name, hook in hooks.items():
            wrapt.register_post_import_hook(hook, name)

    def observed(self) -> dict[str, Any]:
        """All that was seen, as plain data; ends the watch over dynamo."""
        health, made = self.health, list(self.forecasts)
        kinds = ("compilations", "breaks", "recompilations", "limits")
        if health is not None:
            health.__exit__(None, None, None)
        read, variables = self.environment_read, bearing_variables()
        return {
            "counts": health and health.counts(),
            "dynamo": {k: [asdict(e) for e in getattr(health, k, ())] for k in kinds},
            "skips": Counter(health.skips if health else ()),
            "seconds": health and self._seconds(health),
            "forecasts": [
                {**way._asdict(), "count": count, "first": made.index(way)}
                for way, count in Counter(made).items()
            ],
            "calls": list(self.calls),
            "countable": self.countable,
            "variables": variables,
            # What dynamo would have read, had it been there when dynamo was imported.
            "set_too_late": [
                name
                for name, text in variables.items()
                if name.startswith(_READ_ONCE) and read is not None and read.get(name) != text
            ],
            "applied": _applied(),
            "unreached": [asdict(carrier) for carrier in carriers.unreached()],
        }

    def _seconds(self, health: CompileHealth) -> dict[str, float] | None:
        """What compiling took, and what all forecasts took beside; None where nothing tells."""
        known = [(f.began, f.seconds) for f in health.compilations if f.began and f.seconds]
        if not known:
            return None
        spans = list(self.spans)
        forecasting = sum(end - start for start, end in spans)
        for began, seconds in known:
            if any(start <= began <= end for start, end in spans):
                forecasting -= seconds
        compiling = sum(seconds for _, seconds in known)
        return {"compiling": round(compiling, 3), "forecasting": round(max(0.0, forecasting), 3)}

    def _read_environment(self, module: Any) -> None:
        self.environment_read = bearing_variables()

    def _watch_dynamo(self, dynamo: Any) -> None:
        from toto_compile_patch.tools.compile_health import CompileHealth

        self.health = CompileHealth()
        self.health.__enter__()
        wrapper = dynamo.eval_frame.OptimizedModule
        wrapper.__init__ = self._watched(wrapper.__init__, "function", 1)

    def _watch_compile_method(self, module: Any) -> None:
        module.Module.compile = self._watched(module.Module.compile, "method", 0)

    def _watched(self, original: Any, how: str, position: int) -> Any:
        """Note calls of what compiles a model, which is the argument at a position."""

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = type(args[position]) if len(args) > position else object
            if kind.__name__ in _MODELS and kind.__module__.startswith("toto."):
                place = _asked_from(sys._getframe(1))
                self.calls.append({"how": how, "target": kind.__name__, "place": place})
            return original(*args, **kwargs)

        return call

    def _watch_forecaster(self, carrier: str, module: Any) -> None:
        forecaster = vars(module).get("TotoForecaster")
        if not carriers.makes_forecasts(forecaster):
            # A module that happens to have this name is nothing to count.
            self.countable = self.countable and carrier != carriers.TOTO
            return
        for decorated in (forecaster.generate_mean, forecaster.generate_samples):
            original = getattr(decorated, "__wrapped__", None)
            for cell in getattr(decorated, "__closure__", None) or ():
                if cell.cell_contents is original is not None:
                    cell.cell_contents = self._watched_upstream(original, carrier)
                    break
            else:
                self.countable = False

    def _watched_upstream(self, original: Any, carrier: str) -> Any:
        @functools.wraps(original)
        def generate(forecaster: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            if not torch.compiler.is_compiling():
                self.now.upstream = True
                if not self.now.within:
                    place = carrier if _is_unreached(carrier) else ""
                    self._note(forecaster, sys._getframe(1), PathTaken("upstream"), place)
                    with self._timed():
                        return original(forecaster, *args, **kwargs)
            return original(forecaster, *args, **kwargs)

        return generate

    def _watch_fast_path(self, module: Any) -> None:
        from toto_compile_patch.patches import fast_decode

        # Each carrier's places are made with what has this name when they are made.
        build = functools.partial(self._watched_fast_path, fast_decode._fast_or_upstream)
        fast_decode._fast_or_upstream = functools.cache(build)

    def _watched_fast_path(self, build: Callable[[Any], Any], original: Any) -> Any:
        """The method that makes a forecast on the fast path, or leaves it to upstream's code."""
        from toto_compile_patch.tracing import run_uncompiled

        method = build(original)

        # Without the marks by which torch would see through this to what it wraps.
        @functools.wraps(method, updated=())
        def generate(forecaster: Any, *args: Any, **kwargs: Any) -> Any:
            self.now.upstream = made = False
            try:
                with self._timed():
                    result = method(forecaster, *args, **kwargs)
                made = True
            finally:
                path = last_noted()
                if path is not None and (made or self.now.upstream):
                    self._note(forecaster, sys._getframe(1), path)
            return result

        return run_uncompiled(generate)

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
                self.spans.append((start, time.time()))

    def _note(self, forecaster: Any, frame: FrameType, path: PathTaken, carrier: str = "") -> None:
        """Note a forecast, which a line of the user's code above a frame asked for."""
        import torch

        from toto_compile_patch.decode.compile_call import is_compiled

        model = getattr(forecaster, "model", None)
        first = next(iter(getattr(model, "parameters", list[Any])()), None)
        seen = SeenForecast(
            path=path.taken,
            reason=path.reason,
            runtime=path.runtime,
            cure=path.cure,
            compiled=is_compiled(model),
            device=str(getattr(getattr(first, "device", None), "type", "")),
            patches=_applied() if path.taken == "upstream" and not carrier else (),
            autocast=next((k for k in ("cpu", "cuda") if torch.is_autocast_enabled(k)), ""),
            place=_asked_from(frame),
            carrier=carrier,
        )
        self.forecasts.append(seen)


def _applied() -> tuple[str, ...]:
    """The patches that stand, without importing what finds out where nothing can stand."""
    if "toto_compile_patch.registry" not in sys.modules:
        return ()
    return tuple(row.name for row in toto_compile_patch.status() if row.state == "applied")


def _asked_from(frame: FrameType) -> str:
    """The nearest line that is the user's."""
    for caller, line in traceback.walk_stack(frame):
        if _is_users(caller):
            return f"{Path(caller.f_code.co_filename).name}:{line}"
    return ""


def _is_unreached(carrier: str) -> bool:
    """Whether a carrier is one that apply() does not patch."""
    return carrier != carriers.TOTO and any(one.name == carrier for one in carriers.unreached())


def _is_users(frame: FrameType) -> bool:
    """Whether a frame is the script's, or of a module that nobody has installed.

    The script is the user's wherever it lies, be it between this package's own files or Toto's.
    """
    file, names = frame.f_code.co_filename, frame.f_globals
    module = str(names.get("__name__"))
    if file.startswith("<"):
        return False
    if module == "__main__":
        return getattr(names.get("__spec__"), "name", None) != RUNNER
    installed = any(part in file for part in _INSTALLED)
    return not installed and module.split(".")[0] not in _LIBRARIES and module not in _FORECASTERS

"""See what dynamo did while a block ran: graphs, breaks, recompilations, limits hit, and why."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch._dynamo.utils import counters, get_compilation_metrics, set_compilation_metrics_limit
from torch._logging._internal import log_state

_COUNTED = ("stats", "graph_break", "inductor")
_METRICS_KEPT = 100_000
_METRICS_KEPT_BY_TORCH = 64

_BREAK_LOGS = (
    "torch._dynamo.symbolic_convert.__graph_breaks",
    "torch._dynamo.convert_frame.__graph_breaks",
)
_LIMIT_LOG = "torch._dynamo.convert_frame"
# Where skipped CUDA graphs are logged: torch 2.7, and newer.
_SKIP_LOGS = (
    "torch._inductor.cudagraph_utils.__perf_hints",
    "torch._inductor.cudagraph_utils.__cudagraphs",
)

_BROKEN = re.compile(r"Graph break .*?in user code at (.+):(\d+)\nGraph Break Reason: (.*)", re.S)
_STACK_LINE = re.compile(r'File "(.+)", line (\d+), in (\S+)')
_LIMIT = re.compile(
    r"hit config\.(\w+) \((\d+)\)\s+function: '(.+)' \((.+):(\d+)\)\s+last reason: (.*)"
)
_NO_REASON_IN_ITSELF = ("Encountered graph break", "Failed to handle graph break")


class Place(NamedTuple):
    """A line of source code; no function where only the line is known, no file where nothing is."""

    file: str
    line: int
    function: str = ""


@dataclass(frozen=True)
class Event:
    """A place where tracing stopped, or a frame that was compiled, or compiled too often.

    Attributes:
        place: the line where tracing stopped, or the frame's function.
        reason: why, in the words of dynamo's log: the guards that failed, say; empty for a frame
            that was compiled for the first time.
        limit: the setting of dynamo's that says what is too often, with its value; else empty.
    """

    place: Place
    reason: str
    limit: str = ""


@dataclass(frozen=True)
class Compilation(Event):
    """One frame that dynamo compiled.

    Attributes:
        graph: whether that gave a graph.
        began: when, in seconds since the epoch; None where this torch does not tell.
        seconds: that it took, with all that the backend did; None where this torch does not tell.
    """

    graph: bool = False
    began: float | None = None
    seconds: float | None = None


@dataclass
class CompileHealth:
    """What dynamo did in a ``with`` block, filled in when that ends; neither nested nor concurrent.

    Attributes:
        graphs: graphs handed to the backend.
        graph_breaks: places where tracing stopped.
        cudagraph_skips: graphs that were not captured as CUDA graphs though asked to be.
        compilations: frames that were compiled.
        breaks: where tracing stopped, and why. A break that dynamo met again while it recovered
            from another may be listed twice, or be missing.
        limits: frames that reached the recompile limit.
        skips: why graphs were not captured as CUDA graphs.
    """

    graphs: int = 0
    graph_breaks: int = 0
    cudagraph_skips: int = 0
    compilations: list[Compilation] = field(default_factory=list)
    breaks: list[Event] = field(default_factory=list)
    limits: list[Event] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)

    def __enter__(self) -> CompileHealth:
        set_compilation_metrics_limit(_METRICS_KEPT)
        self._metrics_before = len(get_compilation_metrics())
        self._before = {name: Counter(counters[name]) for name in _COUNTED}
        self._listening = ExitStack()
        listen = self._listening.enter_context
        listen(_heard(_LIMIT_LOG, self._note_limit))
        for name in _BREAK_LOGS:
            listen(_heard(name, self._note_break, debug=True))
        for name in _SKIP_LOGS:
            listen(_heard(name, self._note_skip))
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        since = {name: Counter(counters[name]) - self._before[name] for name in _COUNTED}
        self.graphs = since["stats"]["unique_graphs"]
        self.graph_breaks = sum(since["graph_break"].values())
        self.cudagraph_skips = since["inductor"]["cudagraph_skips"]
        if not self.breaks:
            # The program set up torch's logs anew: what is left are reasons without places.
            self.breaks = [Event(Place("", 0), why) for why in since["graph_break"].elements()]
        for metrics in get_compilation_metrics()[self._metrics_before :]:
            # A compilation that the limit forbade has no name.
            if metrics.co_name:
                self._note_compilation(metrics)
        set_compilation_metrics_limit(_METRICS_KEPT_BY_TORCH)

    @property
    def recompilations(self) -> list[Compilation]:
        """Frames compiled again because a guard failed."""
        return [compilation for compilation in self.compilations if compilation.reason]

    @property
    def limit_hits(self) -> int:
        """How often a frame reached the recompile limit."""
        return len(self.limits)

    def counts(self) -> dict[str, int]:
        """The counts as plain numbers."""
        return {
            "graphs": self.graphs,
            "graph_breaks": self.graph_breaks,
            "recompilations": len(self.recompilations),
            "limit_hits": self.limit_hits,
            "cudagraph_skips": self.cudagraph_skips,
        }

    def _note_compilation(self, metrics: Any) -> None:
        place = Place(metrics.co_filename, metrics.co_firstlineno, metrics.co_name)
        microseconds = getattr(metrics, "start_time_us", None)
        began = None if microseconds is None else microseconds / 1e6
        seconds = getattr(metrics, "entire_frame_compile_time_s", None)
        graph, reason = bool(metrics.graph_op_count), metrics.recompile_reason or ""
        self.compilations.append(Compilation(place, reason, "", graph, began, seconds))

    def _note_break(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if found := _BROKEN.match(message):
            place, why = Place(found[1], int(found[2])), found[3]
        elif stack := _STACK_LINE.findall(message):
            file, line, function = stack[-1]
            raised = record.exc_info[1] if record.exc_info else None
            place, why = Place(file, int(line), function), str(raised or "the frame was skipped")
        else:
            return
        # The first line that says something of this break.
        lines = (line.strip() for line in why.splitlines())
        said = (line for line in lines if line and not line.startswith(_NO_REASON_IN_ITSELF))
        self.breaks.append(Event(place, next(said, "unknown")))

    def _note_limit(self, record: logging.LogRecord) -> None:
        if found := _LIMIT.search(record.getMessage()):
            limit, value, function, file, line, reason = found.groups()
            place = Place(file, int(line), function)
            self.limits.append(Event(place, reason, f"{limit} = {value}"))

    def _note_skip(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "cudagraph" in message:
            self.skips.append(message.strip().splitlines()[0])


@contextmanager
def _heard(
    logger_name: str, note: Callable[[logging.LogRecord], None], debug: bool = False
) -> Iterator[None]:
    """Note what one logger is told.

    By a filter, not a handler, and so unheard by others: what torch shows stays the same, and
    what it would not show is dropped here.
    """

    def hear(record: logging.LogRecord) -> bool:
        note(record)
        return not debug or log_state.is_artifact_enabled("graph_breaks")

    logger = logging.getLogger(logger_name)
    level = logger.level
    if debug:
        logger.setLevel(logging.DEBUG)
    logger.addFilter(hear)
    yield
    logger.removeFilter(hear)
    if debug:
        logger.setLevel(level)

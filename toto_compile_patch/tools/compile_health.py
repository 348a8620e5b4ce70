"""Count what dynamo did while a block ran: graphs, breaks, recompilations, limits hit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from torch._dynamo.utils import (
    counters,
    get_compilation_metrics,
    set_compilation_metrics_limit,
)

_LIMIT_LOGGER = logging.getLogger("torch._dynamo.convert_frame")
_METRICS_KEPT = 100_000
_METRICS_KEPT_BY_TORCH = 64


@dataclass(frozen=True)
class Recompilation:
    """One recompilation: which frame, and the guards that failed."""

    frame: str
    reason: str


@dataclass
class CompileHealth:
    """Counts of a ``with`` block, filled in when it ends; not for nested or concurrent use.

    Attributes:
        graphs: graphs handed to the backend.
        graph_breaks: places where tracing stopped.
        recompilations: frames compiled again because a guard failed.
        limit_hits: warnings that a frame reached the recompile limit.
        cudagraph_skips: graphs that were not captured as CUDA graphs though asked to be.
    """

    graphs: int = 0
    graph_breaks: int = 0
    recompilations: list[Recompilation] = field(default_factory=list)
    limit_hits: int = 0
    cudagraph_skips: int = 0

    def __enter__(self) -> CompileHealth:
        set_compilation_metrics_limit(_METRICS_KEPT)
        self._metrics_before = len(get_compilation_metrics())
        self._before = _counts()
        self._handler = _LimitHits()
        _LIMIT_LOGGER.addHandler(self._handler)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _LIMIT_LOGGER.removeHandler(self._handler)
        after = _counts()
        self.graphs, self.graph_breaks, self.cudagraph_skips = (
            now - then for now, then in zip(after, self._before, strict=True)
        )
        self.limit_hits = self._handler.count
        self.recompilations = [
            Recompilation(f"{m.co_name} ({m.co_filename}:{m.co_firstlineno})", m.recompile_reason)
            for m in get_compilation_metrics()[self._metrics_before :]
            if m.recompile_reason
        ]
        set_compilation_metrics_limit(_METRICS_KEPT_BY_TORCH)

    def counts(self) -> dict[str, int]:
        """The counts as plain numbers."""
        return {
            "graphs": self.graphs,
            "graph_breaks": self.graph_breaks,
            "recompilations": len(self.recompilations),
            "limit_hits": self.limit_hits,
            "cudagraph_skips": self.cudagraph_skips,
        }


class _LimitHits(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("torch._dynamo hit config.")


def _counts() -> tuple[Any, Any, Any]:
    return (
        counters["stats"]["unique_graphs"],
        sum(counters["graph_break"].values()),
        counters["inductor"]["cudagraph_skips"],
    )

"""What was seen of a script that ran under the doctor's eyes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toto_compile_patch.tools.doctor.findings import Examined
from toto_compile_patch.tools.wording import counted

_COUNTED = {
    "graphs": "graph",
    "graph_breaks": "graph break",
    "recompilations": "recompilation",
    "limit_hits": "recompile limit",
    "cudagraph_skips": "CUDA graph skip",
}


@dataclass
class Function:
    """What dynamo did in one function; resumed parts count with it.

    Attributes:
        name: qualified name.
        place: file and line.
        graphs: that were made of it.
        breaks: in it.
        recompilations: of it.
        limit_hits: recompile limits that it reached.
    """

    name: str
    place: str
    graphs: int = 0
    breaks: int = 0
    recompilations: int = 0
    limit_hits: int = 0


@dataclass
class Group:
    """Breaks, recompilations or limits hit that are alike.

    Attributes:
        reason: in dynamo's words or plainer ones, with N for what varies.
        functions: in which.
        place: the line of a break; else empty.
        values: what N was.
        count: how many.
    """

    reason: str
    functions: list[str] = field(default_factory=list)
    place: str = ""
    values: list[str] = field(default_factory=list)
    count: int = 0


@dataclass(frozen=True)
class Examination(Examined):
    """What was seen of a script, which is healthy if it ran to its end and nothing needs a cure.

    Attributes:
        script: its path.
        exit_code: of its process; negative for a signal.
        error: the exception that ended it; else empty.
        observed: whether anything could be observed: not where its process died.
        torch: the version of torch.
        counts: graphs, graph breaks, recompilations, limit hits and CUDA graph skips; None where
            nothing imported the compiler.
        functions: what dynamo did in each.
        breaks: graph breaks that are alike.
        recompilations: recompilations that are alike.
        limits: the recompile limits hit, and by which function.
        skips: why graphs were not captured as CUDA graphs, and how often.
        forecasts: how many were made in which way.
        calls: those that were to compile a model.
        seconds: what compiling took (``compiling``), and what all forecasts took beside that
            (``forecasting``); None where nothing was compiled, or torch does not tell.
        unreached: copies of Toto's code that are loaded at its end and not reached by apply().
        variables: the environment variables that bear on it, at its end.
        applied: patches that stood at its end.
    """

    script: str
    exit_code: int
    error: str
    observed: bool
    torch: str = ""
    counts: dict[str, int] | None = None
    functions: list[Function] = field(default_factory=list)
    breaks: list[Group] = field(default_factory=list)
    recompilations: list[Group] = field(default_factory=list)
    limits: list[Group] = field(default_factory=list)
    skips: dict[str, int] = field(default_factory=dict)
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] | None = None
    unreached: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)

    @property
    def last_word(self) -> str:
        """What is in the way and what to do next, the gravest first, or that nothing is."""
        if self.healthy and not self.forecasts:
            return f"{self.all_well} To do next: show the doctor a script that forecasts itself."
        return super().last_word

    @property
    def counts_in_words(self) -> dict[str, str]:
        """The counts, as ``1 graph``; none where nothing imported the compiler."""
        return {name: counted(count, _COUNTED[name]) for name, count in (self.counts or {}).items()}

    @property
    def healthy(self) -> bool:
        """Whether the script ran to its end, and nothing waits for a cure."""
        return self.exit_code == 0 and super().healthy

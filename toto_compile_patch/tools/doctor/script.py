"""Run a user's script in a process of its own, watched, and make sense of what was seen."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from toto_compile_patch.tools.doctor.diagnosis import diagnose
from toto_compile_patch.tools.doctor.findings import Finding, problems
from toto_compile_patch.tools.doctor.places import function_at, short

_CHILD = "toto_compile_patch.tools.doctor.child"

_COMPILE_ID = re.compile(r"^\d+/\d+(?:_\d+)?: ")

# What guards that are alike look like: the same in plain words, and what in them varies.
_KINDS = (
    (re.compile(r"tensor '(.+)' size mismatch at index (\d+)\..*"), r"size along axis \2 of N", 1),
    (re.compile(r"\d+ <= (.+)\.size\(\)\[(\d+)\]"), r"size 1 along axis \2 of N", 1),
    (re.compile(r"___check_(?:type|obj)_id\((.+), \d+\)"), r"type of \1", 0),
    (re.compile(r"(\w[\w.\[\]']*) == (-?\d+(?:\.\d+)?)"), r"\1 == N", 2),
)


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

    def add(self, function: str, value: str) -> None:
        """Count one more."""
        self.count += 1
        for items, item in ((self.functions, function), (self.values, value)):
            if item and item not in items:
                items.append(item)


@dataclass(frozen=True)
class Examination:
    """What was seen of a script.

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
        findings: the diagnosis.
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
    unreached: list[dict[str, str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether the script ran to its end, and nothing waits for a cure."""
        return self.exit_code == 0 and not problems(self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"healthy": self.healthy, **asdict(self)}


def examine_script(script: Path, arguments: list[str], keep_stdout: bool = True) -> Examination:
    """Run a script as ``python SCRIPT ARGUMENTS...`` and say what was seen.

    Args:
        script: a Python file.
        arguments: its command line.
        keep_stdout: whether what it prints goes to stdout; else to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", _CHILD, str(report), str(script), *arguments]
        sys.stdout.flush()
        with _ctrl_c_left_to_the_script():
            code = subprocess.run(command, stdout=None if keep_stdout else 2).returncode
        try:
            seen: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            finding = Finding("problem", f"Nothing could be seen: {_death(code)}.")
            return Examination(str(script), code, _death(code), False, findings=[finding])
    return _examination(str(script), code, seen)


@contextmanager
def _ctrl_c_left_to_the_script() -> Iterator[None]:
    """The terminal sends it to the script as well; the report comes when that has ended."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _death(code: int) -> str:
    if code < 0:
        return f"the script's process was killed by {signal.Signals(-code).name}"
    return f"the script's process left without its end (os._exit?), with exit code {code}"


def _examination(script: str, code: int, seen: dict[str, Any]) -> Examination:
    breaks = [_located(entry) for entry in seen.get("breaks", [])]
    recompiled = [_located(entry) for entry in seen.get("recompilations", [])]
    limits = [_located(entry) for entry in seen.get("limits", [])]
    compiled = [_located(entry) for entry in seen.get("compilations", [])]
    skips: dict[str, int] = defaultdict(int)
    for reason in seen.get("skips", []):
        skips[reason] += 1
    found = Examination(
        script=script,
        exit_code=code,
        error=seen["error"],
        observed=True,
        torch=seen["torch"],
        counts=seen["counts"],
        functions=_functions(compiled, breaks, recompiled, limits),
        breaks=_groups(breaks, _break_alike),
        recompilations=_groups(recompiled, _guard_alike),
        limits=_groups(limits, _limit_alike),
        skips=dict(skips),
        forecasts=seen["forecasts"],
        calls=seen["calls"],
        seconds=seen.get("seconds"),
        unreached=seen["unreached"],
        variables=seen["environment"],
        applied=seen["applied"],
    )
    found.findings.extend(diagnose(found, seen["set_too_late"], seen["countable"]))
    return found


def _located(entry: dict[str, Any]) -> dict[str, Any]:
    """The same, with the function's name and a short path."""
    place = entry["place"]
    name = function_at(place["file"], place["line"], place["function"])
    file = short(place["file"])
    return {**entry, "function": name, "file": file, "line": place["line"]}


def _functions(
    compiled: list[dict[str, Any]],
    breaks: list[dict[str, Any]],
    recompiled: list[dict[str, Any]],
    limits: list[dict[str, Any]],
) -> list[Function]:
    found: dict[tuple[str, str], Function] = {}

    def function(entry: dict[str, Any]) -> Function:
        key = entry["function"], entry["file"]
        if key not in found:
            found[key] = Function(key[0], f"{entry['file']}:{entry['line']}")
        return found[key]

    for entry in compiled:
        function(entry).graphs += entry["graph"]
    for entry in breaks:
        function(entry).breaks += 1
    for entry in recompiled:
        function(entry).recompilations += 1
    for entry in limits:
        function(entry).limit_hits += 1
    return sorted(found.values(), key=lambda f: (-f.limit_hits, -f.recompilations, -f.breaks))


_Alike: TypeAlias = "Callable[[dict[str, Any]], tuple[str, str, str]]"
"""Of an entry: the reason and the place that those alike share, and what varies."""


def _groups(entries: list[dict[str, Any]], alike: _Alike) -> list[Group]:
    """Those alike together, the most frequent first."""
    found: dict[tuple[str, str], Group] = {}
    for entry in entries:
        reason, place, value = alike(entry)
        group = found.setdefault((reason, place), Group(reason, place=place))
        group.add(entry["function"], value)
    return sorted(found.values(), key=lambda group: -group.count)


def _break_alike(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["reason"], f"{entry['file']}:{entry['line']}" if entry["file"] else "", ""


def _guard_alike(entry: dict[str, Any]) -> tuple[str, str, str]:
    reason, value = _pattern(_condition(entry["reason"]))
    return reason, "", value


def _limit_alike(entry: dict[str, Any]) -> tuple[str, str, str]:
    reason, value = _pattern(_condition(entry["reason"]))
    return f"{entry['limit']} = {entry['value']}; last guard: {reason}", "", value


def _pattern(condition: str) -> tuple[str, str]:
    """A guard with N for what varies, and that."""
    for pattern, plain, varies in _KINDS:
        if found := pattern.fullmatch(condition):
            return found.expand(plain), found[varies] if varies else ""
    return condition, ""


def _condition(reason: str) -> str:
    """The guard that failed, without the compilation's number and the line that it came from."""
    lines = reason.split("#")[0].splitlines()
    return _COMPILE_ID.sub("", lines[0] if lines else reason).strip()

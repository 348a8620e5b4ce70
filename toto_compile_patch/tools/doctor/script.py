"""Run a user's script in a process of its own, watched, and make sense of what was seen."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from toto_compile_patch.tools.doctor.diagnosis import diagnose
from toto_compile_patch.tools.doctor.environment import version
from toto_compile_patch.tools.doctor.examination import Examination, Function, Group
from toto_compile_patch.tools.doctor.findings import finding
from toto_compile_patch.tools.doctor.places import function_at, short
from toto_compile_patch.tools.doctor.watch import RUNNER

_COLUMNS = {"compilations": "graphs", "breaks": "breaks"}
_COLUMNS |= {"recompilations": "recompilations", "limits": "limit_hits"}
_COMPILE_ID = re.compile(r"^\d+/\d+(?:_\d+)?: ")

# What guards that are alike look like: the same in plain words, and what in them varies.
_KINDS = (
    (re.compile(r"tensor '(.+)' size mismatch at index (\d+)\..*"), r"size along axis \2 of N", 1),
    (re.compile(r"\d+ <= (.+)\.size\(\)\[(\d+)\]"), r"size 1 along axis \2 of N", 1),
    (re.compile(r"___check_(?:type|obj)_id\((.+), \d+\)"), r"type of \1", 0),
    (re.compile(r"(\w[\w.\[\]']*) == (-?\d+(?:\.\d+)?)"), r"\1 == N", 2),
)


def examine_script(script: Path, arguments: list[str], keep_stdout: bool = True) -> Examination:
    """Run a script as ``python SCRIPT ARGUMENTS...`` and say what was seen.

    Args:
        script: a Python file.
        arguments: its command line.
        keep_stdout: whether what it prints goes to stdout; else to stderr.
    """
    with tempfile.TemporaryDirectory() as folder, _ctrl_c_left_to_the_script():
        report = Path(folder) / "report.json"
        watched = [sys.executable, "-m", RUNNER, str(report), str(script), *arguments]
        sys.stdout.flush()
        code = subprocess.run(watched, stdout=None if keep_stdout else 2).returncode
        seen = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    if seen is None:
        died = f"the script's process left without its end (os._exit?), with exit code {code}"
        if code < 0:
            died = f"the script's process was killed by {signal.Signals(-code).name}"
        findings = [finding("nothing seen", death=died)]
        return Examination(str(script), code, died, False, findings=findings)
    return _examination(str(script), code, **seen)


@contextmanager
def _ctrl_c_left_to_the_script() -> Iterator[None]:
    """The terminal sends it to the script as well; the report comes when that has ended."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _examination(
    script: str,
    exit_code: int,
    dynamo: dict[str, list[dict[str, Any]]],
    set_too_late: list[str],
    countable: bool,
    **seen: Any,
) -> Examination:
    entries = {kind: [_located(entry) for entry in found] for kind, found in dynamo.items()}
    found = Examination(
        script,
        exit_code,
        observed=True,
        torch=version("torch"),
        functions=_functions(entries),
        breaks=_groups(entries["breaks"], _break_alike),
        recompilations=_groups(entries["recompilations"], _guard_alike),
        limits=_groups(entries["limits"], _guard_alike),
        **seen,
    )
    found.findings.extend(diagnose(found, set_too_late, countable))
    return found


def _located(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with its function's name and a short path in the place of its own."""
    file, line, function = entry["place"]
    name = function_at(file, line, function)
    return {**entry, "function": name, "file": short(file), "line": line}


def _functions(entries: dict[str, list[dict[str, Any]]]) -> list[Function]:
    found: dict[tuple[str, str], Function] = {}
    for kind, column in _COLUMNS.items():
        for entry in entries[kind]:
            name, file = entry["function"], entry["file"]
            function = found.setdefault((name, file), Function(name, f"{file}:{entry['line']}"))
            more = entry["graph"] if column == "graphs" else 1
            setattr(function, column, getattr(function, column) + more)
    return sorted(found.values(), key=lambda f: (-f.limit_hits, -f.recompilations, -f.breaks))


_Alike: TypeAlias = "Callable[[dict[str, Any]], tuple[str, str, str]]"
"""Of an entry: the reason and the place that those alike share, and what varies."""


def _groups(entries: list[dict[str, Any]], alike: _Alike) -> list[Group]:
    """Those alike together, the most frequent first."""
    found: dict[tuple[str, str], Group] = {}
    for entry in entries:
        reason, place, value = alike(entry)
        group = found.setdefault((reason, place), Group(reason, place=place))
        group.count += 1
        for items, item in ((group.functions, entry["function"]), (group.values, value)):
            if item and item not in items:
                items.append(item)
    return sorted(found.values(), key=lambda group: -group.count)


def _break_alike(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["reason"], f"{entry['file']}:{entry['line']}" if entry["file"] else "", ""


def _guard_alike(entry: dict[str, Any]) -> tuple[str, str, str]:
    """A guard with N for what varies, and that; before it, the limit that it made dynamo reach.

    Without the compilation's number and the line that the guard came from.
    """
    lines = entry["reason"].split("#")[0].splitlines() or [entry["reason"]]
    condition = _COMPILE_ID.sub("", lines[0]).strip()
    limit = f"{entry['limit']}; last guard: " if entry["limit"] else ""
    for pattern, plain, varies in _KINDS:
        if found := pattern.fullmatch(condition):
            return limit + found.expand(plain), "", found[varies] if varies else ""
    return limit + condition, "", ""

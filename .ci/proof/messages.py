#!/usr/bin/env python3
"""What the package says to users where something is amiss: found by running the tests.

    python .ci/proof/messages.py record [PYTEST'S ARGUMENTS]   run tests and note what was said
    python .ci/proof/messages.py                               exit code 1 where a place was silent

A place is where the source makes an error, a warning, a refusal of the fast path, a line of the
log or a line on standard error. To hear them wherever they are made, in processes that tests start
too, the tests run in a copy of the repository, in which what each place says goes through
``messages_recorder.py``. Without arguments of pytest, the fast tests run, and all is noted anew;
with some, what those tests hear replaces what was known of the same places.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = ROOT / "toto_compile_patch"
RESULTS = HERE / "results" / "messages.json"
RECORDER = HERE / "messages_recorder.py"

FAST = ["-m", "not slow", "-q"]
EXAMPLES = 2
"""So many messages of a place are shown: most have one, and a few pass on what others say."""

_MADE = re.compile(r"Refusal|finding|[A-Z]\w*Error")
"""What says something wherever it is made, raised at once or handed on."""

KINDS = {"Refusal": "FallbackWarning, FallbackError, log", "finding": "doctor"}
"""How users hear of what has another name here."""

CAUGHT_WITHIN = {
    "decode/device_checks.py": "starts the forecast over, or leaves it to upstream's code",
    "decode/request.py _expect": "leaves the forecast to upstream's code",
    "patches/fast_decode.py _generate": "has forecast_many forecast windows one by one",
    "private_names.py": "is a name that this torch lacks, which status() tells",
    "decode/prepared_model.py": "guards what the package itself asks of a model that it knows",
}
"""Places whose errors the package catches itself, and what it does then."""


# Where something is said ------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where the source says something.

    Attributes:
        file: of the package.
        function: its qualified name.
        number: which place of that function, from 1 on.
        kind: what is made there: the name of an error or warning, or how else it is said.
        node: what makes it.
        called: it is a function that is called with what is said, and no value.
    """

    file: str
    function: str
    number: int
    kind: str
    node: ast.Call
    called: bool

    @property
    def name(self) -> str:
        """By which it is known while lines move."""
        return f"{self.file} {self.function} {self.number}"


def places() -> list[Place]:
    """All places of the package, by file and line."""
    return [place for file in sorted(PACKAGE.rglob("*.py")) for place in places_of(file)]


def places_of(file: Path) -> Iterator[Place]:
    """The places of a file."""
    numbers: Counter[str] = Counter()
    for function, node, is_raised in _calls(ast.parse(file.read_bytes()), ()):
        if found := _kind(node, is_raised):
            kind, called = found
            numbers[function] += 1
            within = file.as_posix().rpartition("/toto_compile_patch/")[2]
            yield Place(within, function, numbers[function], kind, node, called)


def _calls(node: ast.AST, function: tuple[str, ...]) -> Iterator[tuple[str, ast.Call, bool]]:
    """Every call below a node: the qualified name of its function, and whether it is raised."""
    for child in ast.iter_child_nodes(node):
        within = function
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            within = (*function, child.name)
        if isinstance(child, ast.Call):
            yield ".".join(within), child, isinstance(node, ast.Raise)
        yield from _calls(child, within)


def _kind(call: ast.Call, is_raised: bool) -> tuple[str, bool] | None:
    """What a call says, and whether it is a function that says its argument; None: nothing."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if not call.args:
        return None
    if name in ("warnings.warn", "warnings.warn_explicit"):
        return ast.unparse(call.args[1]), False
    if name == "_logger.warning":
        # Its lines of information ask nothing of anybody.
        return "log", True
    if name == "print" and any(ast.unparse(word.value) == "sys.stderr" for word in call.keywords):
        return "standard error", True
    if name == "self.exit":
        return "exit code 2", True
    if (is_raised and last != "SystemExit") or _MADE.fullmatch(last):
        return KINDS.get(last, last), False
    return None


# Tests that hear it -----------------------------------------------------------------------------


def record(arguments: list[str]) -> int:
    """Run tests, and keep what was said."""
    with TemporaryDirectory() as folder:
        copy, heard = Path(folder) / "copy", Path(folder) / "heard"
        left_out = shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=left_out)
        for file in (copy / "toto_compile_patch").rglob("*.py"):
            file.write_bytes(_with_recorder(file, heard))
        paths = [str(copy), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths).rstrip(os.pathsep)}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(arguments or FAST)]
        code = subprocess.run(command, cwd=copy, env=environment).returncode
        lines = heard.read_text().splitlines() if heard.exists() else []
    _keep([json.loads(line) for line in lines], all_anew=not arguments)
    return code


def _with_recorder(file: Path, heard: Path) -> bytes:
    """A file of the package in which every place tells the recorder; no line moves."""
    recorder = (
        "(lambda names: exec(__import__('pathlib').Path("
        f"{str(RECORDER)!r}).read_text(), names) or names)({{'HEARD': {str(heard)!r}}})"
    )
    edits: list[tuple[int, int, int, str]] = []
    for place in places_of(file):
        call = place.node
        # Of a warning what it says alone: the frame that calls decides which line is warned of.
        node = call.args[0] if place.kind.endswith("Warning") else call
        if place.called:
            edits.append((*_start(call), 0, f"{recorder}['call']({place.name!r}, "))
            edits.append((*_end(call.func), len("("), ", "))
        else:
            edits.append((*_start(node), 0, f"{recorder}['note']({place.name!r}, "))
            edits.append((*_end(node), 0, ")"))
    lines = file.read_bytes().splitlines(keepends=True)
    for line, column, length, text in sorted(edits, reverse=True):
        found = lines[line - 1]
        lines[line - 1] = found[:column] + text.encode() + found[column + length :]
    return b"".join(lines)


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _keep(said: list[dict[str, str]], all_anew: bool) -> None:
    """Write down, for each place, what it said and in which test."""
    heard: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for one in sorted(said, key=lambda one: (one["test"], one["text"])):
        if one["test"]:
            text = one["text"] = readable(one["text"])
            heard[one["place"]].setdefault(_alike(text), one)
    found: dict[str, list[dict[str, str]]] = {} if all_anew else _results()["said"]
    known = {place.name: place for place in places()}
    for name, several in heard.items():
        if name not in known:
            # The source has changed since these tests began.
            continue
        found[name] = [
            {"kind": one["kind"] or known[name].kind, "text": one["text"], "test": one["test"]}
            for one in list(several.values())[:EXAMPLES]
        ]
    results = {
        "date": str(date.today()),
        "python": python_version(),
        "torch": version("torch"),
        "toto": version("toto-ts"),
        "said": {name: found[name] for name in known if name in found},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def readable(text: str) -> str:
    """A message without what is of one machine and one run."""
    text = re.sub(r"(?:(?<=file://)|(?<![\w:/.]))/(?:[^\s/:'\",()]+/)+", "/.../", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x...", text)
    return " ".join(text.split())


def _alike(text: str) -> str:
    """What messages that differ by names and numbers alone have in common."""
    return re.sub(r"'[^']*'|\d+", "", text)


def _results() -> dict[str, Any]:
    """What was recorded; nothing yet, where there is no file."""
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    return results


# What becomes of it -----------------------------------------------------------------------------


def table() -> str:
    """Every place of the package, what it says, and a test that hears it."""
    results = _results()
    lines = ["| made in | as | what is said | heard by |", "| --- | --- | --- | --- |"]
    for name in (place.name for place in places()):
        several = [] if why_caught(name) else _whole(results["said"].get(name, []))
        where = " ".join(name.split()[:2])
        for one in several[:EXAMPLES]:
            said = one["text"].replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| {where} | {one['kind']} | {said} | {_test(one['test'])} |")
    legend = (
        f"{len(lines) - 2} messages; torch {results['torch']}, toto-ts {results['toto']}, "
        f"Python {results['python']}, {results['date']}."
    )
    return "\n".join([*lines, "", legend])


def _whole(several: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without what was tried and caught: the end of another message, whose beginning names what is
    read."""
    texts = [one["text"] for one in several]
    return [
        one
        for one in several
        if not any(text != one["text"] and text.endswith(one["text"]) for text in texts)
    ]


def _test(name: str) -> str:
    """A test's name without its parameters."""
    return name.removeprefix("tests/").partition("[")[0].replace(".py::", " ").replace("::", ".")


def why_caught(name: str) -> str:
    """What the package does with what is made at a place, if no user hears of it."""
    return next((why for start, why in CAUGHT_WITHIN.items() if name.startswith(start)), "")


def silent() -> list[Place]:
    """The places that a user may hear and no test has heard."""
    said = _results()["said"]
    return [place for place in places() if place.name not in said and not why_caught(place.name)]


def main() -> int:
    """Record, or check."""
    if sys.argv[1:2] == ["record"]:
        return record(sys.argv[2:])
    missing = silent()
    for place in missing:
        print(f"{place.file}:{place.node.lineno} {place.function}: {place.kind}: no test hears it")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())

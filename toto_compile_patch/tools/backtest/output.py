"""The folder of a backtest: parts, errors, and what is needed to go on after a kill.

A file is whole or not there, and a part is there only after its errors. So the parts that are
there say what is done.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.parts import Part
from toto_compile_patch.tools.backtest.place import Place
from toto_compile_patch.tools.backtest.regular import Problem
from toto_compile_patch.tools.backtest.survey import Plan
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.version import __version__

_PART = re.compile(r"part-(\d{6,})\.parquet")
_HEADINGS = ("item_id", "window", "kind", "message")


class Folder(Place):
    """The output of a run: its parts, their errors, and its scores."""

    def done(self) -> set[int]:
        """Indices of the parts that are there."""
        names = self._names() if self.exists() else []
        return {int(found[1]) for name in names if (found := _PART.fullmatch(name))}

    def write(self, part: Part) -> None:
        """Write a part, and its errors before it.

        Raises:
            UsageError: it cannot be written.
        """
        if part.problems:
            self._write(_errors(part.index), _csv(part.problems))
        file = io.BytesIO()
        pq.write_table(part.table, file)
        self._write(_part(part.index), file.getvalue())

    def parts(self, count: int, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of the parts, one after the other."""
        for index in range(count):
            with self._files.open(self._at(_part(index)), "rb") as file:
                yield pq.ParquetFile(file).read(columns)

    def problems(self) -> Iterator[Problem]:
        """Everything that was not forecast, and why."""
        for name in sorted(name for name in self._names() if name.startswith("errors-")):
            with self._files.open(self._at(name), "rt", newline="", encoding="utf-8") as file:
                for item, window, kind, message in list(csv.reader(file))[1:]:
                    yield Problem(item, int(window) if window else None, kind, message)

    def finish(self, scores: dict[str, Any]) -> None:
        """Write what holds of all parts.

        Raises:
            UsageError: it cannot be written.
        """
        self._write("errors.csv", _csv(tuple(self.problems())))
        self._write("scores.json", (json.dumps(scores, indent=2) + "\n").encode())


def manifest_of(job: Job, file: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """What is kept of a run, so that it can go on."""
    return {
        "version": __version__,
        "file": file,
        "options": job.as_json(),
        "plan": asdict(plan),
    }


def check_same(manifest: dict[str, Any], job: Job, file: dict[str, Any], path: str) -> Plan:
    """Whether a run can go on with these options, and how much work it was.

    Raises:
        UsageError: it was begun with others, or of another file, or by another version.
    """
    begun = manifest["version"]
    if begun != __version__:
        raise UsageError(
            f"--resume: {path} was begun by version {begun} of this package, and this is "
            f"{__version__}: install that one, or begin anew in another folder"
        )
    if manifest["file"] != file:
        raise UsageError(
            f"--resume: {path} was begun with another file, or with another state of it "
            f"({_described(manifest['file'])}, and now {_described(file)}): begin anew in another "
            "folder"
        )
    then, now = manifest["options"], json.loads(json.dumps(job.as_json()))
    for name in now:
        if then.get(name) != now[name]:
            option = "the environment" if name == "settings" else f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--resume: {path} was begun with {option} {_said(then.get(name))}, and this is "
                f"{_said(now[name])}: give the same, or begin anew in another folder"
            )
    return Plan(**manifest["plan"])


def _described(file: dict[str, Any]) -> str:
    return f"{file['name']}, {file['size']} bytes, of {file['state']}"


def _said(value: object) -> str:
    if isinstance(value, list):
        return ", ".join("=".join(one) if isinstance(one, list) else str(one) for one in value)
    return "not given" if value is None else str(value)


def _part(index: int) -> str:
    return f"part-{index:06d}.parquet"


def _errors(index: int) -> str:
    return f"errors-{index:06d}.csv"


def _csv(problems: tuple[Problem, ...]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADINGS)
    for one in problems:
        window = "" if one.window is None else one.window
        cells = (one.item, str(window), one.kind, one.message)
        writer.writerow([" ".join(cell.splitlines()) for cell in cells])
    return text.getvalue().encode()

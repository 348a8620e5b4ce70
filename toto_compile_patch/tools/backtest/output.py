"""The folder of a backtest: parts, errors, and what is needed to go on after a kill.

A file is whole or not there, and a part is there only after its errors. So the parts that are
there say what is done.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.parts import Part
from toto_compile_patch.tools.backtest.regular import Problem
from toto_compile_patch.tools.backtest.survey import Plan
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.version import __version__

_PART = re.compile(r"part-(\d{6,})\.parquet")
_MANIFEST = "run.json"
_HEADINGS = ("item_id", "window", "kind", "message")

_PUT_WHOLE = frozenset(
    ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"),
)
"""Protocols of stores in which a file appears only when it is whole."""


class Folder:
    """The output of a run.

    Args:
        path: as it was given: of this machine, or any that fsspec knows.

    Raises:
        UsageError: nothing is known of such a place.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._files, self._root = fsspec.core.url_to_fs(path)
        except (ImportError, ValueError, OSError) as error:
            raise UsageError(f"--output {path}: {error}") from None

    def check_new(self, may_exist: bool = False) -> None:
        """Whether a run can be begun there.

        Args:
            may_exist: whether it may be there already, with no run in it.

        Raises:
            UsageError: there is something already, or no leave to write.
        """
        if self.exists() and not may_exist:
            raise UsageError(
                f"--output {self.path} exists already: choose another folder, or go on with the "
                "run that was begun there by --resume"
            )
        if not isinstance(self._files, LocalFileSystem):
            return
        place = Path(self._root).absolute()
        above = next(one for one in (place, *place.parents) if one.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(f"--output {self.path} cannot be written: {_CHOOSE}")

    def exists(self) -> bool:
        """Whether there is anything of that name."""
        with self._usable(_CHOOSE):
            return bool(self._files.exists(self._root))

    def manifest(self) -> dict[str, Any] | None:
        """What is known of the run that was begun here; None: there was none.

        Raises:
            UsageError: the folder holds something else.
        """
        try:
            found: dict[str, Any] = json.loads(self._files.cat_file(self._at(_MANIFEST)))
        except FileNotFoundError:
            if self.exists() and self._names():
                raise UsageError(
                    f"--output {self.path} is not the folder of a run (it holds no {_MANIFEST}): "
                    "choose another one"
                ) from None
            return None
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {self.path}/{_MANIFEST}: {error}") from None
        return found

    def begin(self, manifest: dict[str, Any]) -> None:
        """Make the folder; what a kill has left half-written in it goes.

        Raises:
            UsageError: it cannot be made.
        """
        with self._usable(_CHOOSE):
            self._files.makedirs(self._root, exist_ok=True)
        for name in self._names():
            if name.startswith("."):
                with suppress(OSError):
                    self._files.rm_file(self._at(name))
        self._write(_MANIFEST, json.dumps(manifest, indent=2).encode())

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

    def _names(self) -> list[str]:
        with self._usable(_CHOOSE):
            self._files.invalidate_cache()
            return [posixpath.basename(name) for name in self._files.ls(self._root, detail=False)]

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _write(self, name: str, content: bytes) -> None:
        """Write a file, which is then whole or not there, whenever this process is killed."""
        place = self._at(name)
        with self._usable(_GO_ON):
            if self._puts_whole():
                self._files.pipe_file(place, content)
                return
            # Of a name that readers of folders pass over.
            beside = self._at(f".{name}.{secrets.token_hex(4)}")
            try:
                if isinstance(self._files, LocalFileSystem):
                    _write_through(beside, content)
                    os.replace(beside, place)
                else:
                    self._files.pipe_file(beside, content)
                    self._files.mv(beside, place)
            except BaseException:
                with suppress(OSError):
                    self._files.rm_file(beside)
                raise

    def _puts_whole(self) -> bool:
        names = self._files.protocol
        return bool({names} & _PUT_WHOLE if isinstance(names, str) else {*names} & _PUT_WHOLE)

    @contextmanager
    def _usable(self, cure: str) -> Iterator[None]:
        """Say in one line why the folder cannot be read or written."""
        try:
            yield
        except OSError as error:
            said = error.strerror or error
            raise UsageError(f"--output {self.path} cannot be written: {said}: {cure}") from None


_CHOOSE = "choose another one"
_GO_ON = "what is there stays good, and once there is room, --resume goes on from it"


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


def _write_through(place: str, content: bytes) -> None:
    """Write a file so that it is on the disk before it gets its name."""
    with open(place, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

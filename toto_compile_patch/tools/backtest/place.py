"""A folder that a backtest keeps its files in, on this machine or anywhere that fsspec knows.

Needs neither torch nor pandas: it is asked whether a run can be begun before these are imported.
"""

from __future__ import annotations

import json
import os
import posixpath
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from toto_compile_patch.tools.checks import UsageError

MANIFEST = "run.json"
"""The file by which a run goes on."""

_PUT_WHOLE = frozenset(
    ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"),
)
"""Protocols of stores in which a file appears only when it is whole."""


class Place:
    """Where the output of a run is.

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
            # An import error names what such an address takes.
            cure = f"install that, or {_CHOOSE}" if isinstance(error, ImportError) else _CHOOSE
            raise UsageError(f"--output {path} cannot be used ({error}): {cure}") from None

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
            found: dict[str, Any] = json.loads(self._files.cat_file(self._at(MANIFEST)))
        except FileNotFoundError:
            if self.exists() and self._names():
                raise UsageError(
                    f"--output {self.path} is not the folder of a run (it holds no {MANIFEST}): "
                    "choose another one"
                ) from None
            return None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot read {self.path}/{MANIFEST} ({error}): begin anew in another folder"
            ) from None
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
        self._write(MANIFEST, json.dumps(manifest, indent=2).encode())

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


_CHOOSE = "choose another folder"
_GO_ON = "what is there stays good, and once there is room, --resume goes on from it"


def _write_through(place: str, content: bytes) -> None:
    """Write a file so that it is on the disk before it gets its name."""
    with open(place, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

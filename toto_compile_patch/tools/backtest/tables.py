"""Parquet and CSV files, read chunk after chunk, wherever fsspec finds them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import fsspec
import pandas as pd

from toto_compile_patch.tools.checks import UsageError

_ROWS = 65_536
"""Of a chunk."""


class Table(Protocol):
    """A file of rows.

    Attributes:
        path: as it was given.
        columns: their names.
    """

    path: str
    columns: tuple[str, ...]

    def chunks(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Some of its columns, in the order of the rows.

        Raises:
            UsageError: the file cannot be read.
        """
        ...


def open_table(path: str) -> Table:
    """A Parquet file if it is named ``.parquet`` or ``.pq``, else a CSV file with a header.

    Raises:
        UsageError: it is not there, or not such a file.
    """
    if path.endswith((".parquet", ".pq")):
        return _Parquet(path)
    return _Csv(path)


def identity(path: str) -> dict[str, Any]:
    """What tells one state of a file from another: name, size, and when it was written, or its
    etag.

    Raises:
        UsageError: the file is not there.
    """
    with _readable(path):
        files, place = fsspec.core.url_to_fs(path)
        found = files.info(place)
    if found.get("type") == "directory":
        raise UsageError(f"{path} is a folder: give the path of a CSV or Parquet file")
    keys = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
    mark = next((found[key] for key in keys if found.get(key)), None)
    return {"name": place.rpartition("/")[2], "size": found.get("size"), "state": str(mark)}


class _Parquet:
    def __init__(self, path: str) -> None:
        self.path = path
        with self._opened() as file:
            self.columns = tuple(map(str, file.schema_arrow.names))

    def chunks(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        with self._opened() as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                # In the order asked for; without the index that pandas may have kept.
                yield batch.select(list(columns)).to_pandas(ignore_metadata=True)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow.parquet

        with _readable(self.path), fsspec.open(self.path, "rb") as stream:
            yield pyarrow.parquet.ParquetFile(stream)


class _Csv:
    """Cells are read as text, so that a bad one can be named instead of changing a type."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_checked = False
        how = {"compression": "infer", "newline": "", "encoding": "utf-8-sig"}
        with _readable(path), fsspec.open(path, "rt", **how) as stream:
            self.columns = tuple(next(csv.reader(stream), ()))
        if not self.columns:
            raise UsageError(f"{path} is empty: give a table with a header line")
        if len(self.columns) == 1 and (mark := _separator(self.columns[0])):
            raise UsageError(f"{path} is separated by {mark!r}: separate the cells by commas")

    def chunks(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        # Where some columns alone are asked for, pandas takes no notice of cells too many.
        some = list(columns) if self._is_checked else None
        how = {"dtype": str, "keep_default_na": False, "usecols": some, "encoding": "utf-8-sig"}
        with _readable(self.path), pd.read_csv(self.path, chunksize=_ROWS, **how) as chunks:
            for chunk in chunks:
                if not isinstance(chunk.index, pd.RangeIndex):
                    raise UsageError(
                        f"{self.path} has rows with more cells than its header line: name every "
                        "column there"
                    )
                yield chunk[list(columns)]
        self._is_checked = True


def _separator(header: str) -> str | None:
    return next((mark for mark in ";\t|" if mark in header), None)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Say in one line why a file cannot be read."""
    try:
        yield
    except UsageError:
        raise
    except FileNotFoundError:
        problem = f"there is no file {path}"
    except IsADirectoryError:
        problem = f"{path} is a folder"
    except (OSError, ImportError) as error:
        problem = f"cannot read {path}: {getattr(error, 'strerror', None) or _said(error)}"
    except (ValueError, csv.Error) as error:
        kind = "Parquet" if path.endswith((".parquet", ".pq")) else "CSV (in UTF-8, with a header)"
        problem = f"{path} cannot be read as {kind} ({_said(error)})"
    else:
        return
    raise UsageError(f"{problem}: give the path of a CSV or Parquet file")


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

"""Parquet and CSV files, read chunk after chunk, wherever fsspec finds them."""

from __future__ import annotations

import csv
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from toto_compile_patch.tools.checks import UsageError, pip_install
from toto_compile_patch.tools.series.dialect import HEAD_BYTES, dialect_of

_ROWS = 65_536
"""Of a chunk."""

_FEWEST_LINES = 3
"""By which the dialect of a CSV file is told."""

_SAMPLE_ROWS, _SAMPLE_CELLS = 20_000, 2_000_000
"""By which the columns of a file are judged, at most."""


class Table(Protocol):
    """A file of rows.

    Attributes:
        path: as it was given.
        columns: their names.
        separator: of the cells of a CSV file; empty where there is none.
        told: what of its dialect is not what most files have, in words.
    """

    path: str
    columns: tuple[str, ...]
    separator: str
    told: list[str]

    def chunks(self, columns: Sequence[str], rows: int | None = None) -> Iterator[pd.DataFrame]:
        """Some of its columns, in the order of the rows.

        Args:
            columns: their names.
            rows: of a chunk; None: as many as suit.

        Raises:
            UsageError: the file cannot be read.
        """
        ...


def open_table(path: str) -> Table:
    """A Parquet file if it is named ``.parquet`` or ``.pq``, else a CSV file.

    Raises:
        UsageError: it is not there, or not such a file.
    """
    table: Table = _Parquet(path) if path.endswith((".parquet", ".pq")) else _Csv(path)
    if not table.columns:
        raise UsageError(f"{path} has no column of numbers, text or times: give another table")
    if len(set(table.columns)) < len(table.columns):
        raise UsageError(f"{path} has columns of one name: {listed(table.columns)}: rename one")
    return table


def sample(table: Table) -> pd.DataFrame:
    """The first rows of all columns, by which they are judged.

    Raises:
        UsageError: the file cannot be read.
    """
    rows = max(64, min(_SAMPLE_ROWS, _SAMPLE_CELLS // len(table.columns)))
    for chunk in table.chunks(table.columns, rows):
        return chunk
    return pd.DataFrame(columns=list(table.columns), dtype=str)


def identity(path: str) -> dict[str, Any]:
    """What tells one state of a file from another: name, size, and when it was written, or its
    etag.

    Raises:
        UsageError: the file is not there.
    """
    with _readable(path):
        import fsspec

        files, place = fsspec.core.url_to_fs(path)
        found = files.info(place)
    if found.get("type") == "directory":
        raise UsageError(f"{path} is a folder: give the path of a CSV or Parquet file")
    keys = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
    mark = next((found[key] for key in keys if found.get(key)), None)
    return {"name": place.rpartition("/")[2], "size": found.get("size"), "state": str(mark)}


_MOST_LISTED = 20


def listed(names: Sequence[str]) -> str:
    """Names for a message, if there are not too many."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


class _Parquet:
    separator = ""

    def __init__(self, path: str) -> None:
        self.path = path
        self.told: list[str] = []
        with self._opened() as file:
            fields = [field for field in file.schema_arrow if _is_usable(field)]
        self.columns = tuple(field.name for field in fields)
        self._decimals = {one.name for one in fields if str(one.type).startswith("decimal")}

    def chunks(self, columns: Sequence[str], rows: int | None = None) -> Iterator[pd.DataFrame]:
        with self._opened() as file:
            for batch in file.iter_batches(batch_size=rows or _ROWS, columns=list(columns)):
                # In the order asked for; an index that pandas kept is a column like the others.
                frame = batch.select(list(columns)).to_pandas(ignore_metadata=True)
                for name in self._decimals.intersection(columns):
                    frame[name] = pd.to_numeric(frame[name])
                yield frame

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with _readable(self.path), _opened(self.path) as stream:
            # Whoever reads CSV files alone need not have it.
            import pyarrow.parquet

            yield pyarrow.parquet.ParquetFile(stream)


def _is_usable(field: Any) -> bool:
    """Whether a column holds numbers, text or times."""
    from pyarrow import types

    unusable = (types.is_nested, types.is_binary, types.is_large_binary, types.is_duration)
    kinds = (*unusable, types.is_fixed_size_binary, types.is_null, types.is_time, types.is_boolean)
    return not any(is_one(field.type) for is_one in kinds)


class _Csv:
    """Cells are read as text, so that a bad one can be named instead of changing a type."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_checked = False
        with _readable(path), _opened(path) as stream:
            head, more = b"", b"more"
            while more and (len(head) < HEAD_BYTES or head.count(b"\n") < _FEWEST_LINES):
                more = stream.read(HEAD_BYTES)
                head += more
        with _readable(path):
            self._dialect = dialect_of(head, not more, path)
        self.columns = self._dialect.columns
        self.separator = self._dialect.separator
        self.told = self._dialect.told

    def chunks(self, columns: Sequence[str], rows: int | None = None) -> Iterator[pd.DataFrame]:
        how = {
            "sep": self.separator,
            "encoding": self._dialect.encoding,
            "skiprows": 1 if self._dialect.is_told else 0,
            "header": 0 if self._dialect.has_header else None,
            "names": list(self.columns),
            "dtype": str,
            "keep_default_na": False,
            "skipinitialspace": True,
            # Where some columns alone are asked for, pandas takes no notice of cells too many.
            "usecols": list(columns) if self._is_checked else None,
        }
        with _readable(self.path), pd.read_csv(self.path, chunksize=rows or _ROWS, **how) as chunks:
            for chunk in chunks:
                if not isinstance(chunk.index, pd.RangeIndex):
                    raise UsageError(f"{self.path} {_TOO_MANY_CELLS}")
                yield chunk[list(columns)]
        self._is_checked = True


_TOO_MANY_CELLS = (
    "has rows with more cells than its header line: name every column there, and if commas are "
    "decimal marks, separate the cells by semicolons"
)


def _opened(path: str) -> Any:
    """A file's bytes, unpacked; fsspec takes a tenth of a second, so that plain files of this
    machine are opened without it."""
    if "://" not in path and "::" not in path and Path(path).suffix.lower() in _PLAIN:
        return Path(path).expanduser().open("rb")
    import fsspec

    return fsspec.open(path, "rb", compression="infer")


_PLAIN = (".csv", ".tsv", ".txt", ".parquet", ".pq")


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
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise UsageError(f"cannot read {path} without {missing}: {pip_install(missing)}") from None
    except ImportError as error:
        # It names what an address or a packed file takes, or what was built for another numpy.
        raise UsageError(
            f"cannot read {path} ({_said(error)}): install what that names, or give a plain file "
            "of this machine"
        ) from None
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror or _said(error)}"
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is in {error.encoding}, but not all of it: save it in UTF-8"
        ) from None
    except (EOFError, zlib.error, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise UsageError(f"{path} cannot be unpacked ({_said(error)}): fetch it again") from None
    except (pd.errors.ParserError, csv.Error) as error:
        if "Expected" in str(error):
            raise UsageError(f"{path} {_TOO_MANY_CELLS}") from None
        raise UsageError(
            f"{path} cannot be read as CSV ({_said(error)}): close the quotation mark that is left "
            "open"
        ) from None
    except ValueError as error:
        kind = "Parquet" if path.endswith((".parquet", ".pq")) else "CSV"
        problem = f"{path} cannot be read as {kind} ({_said(error)})"
    else:
        return
    raise UsageError(f"{problem}: give the path of a CSV or Parquet file")


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

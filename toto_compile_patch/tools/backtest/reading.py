"""A file's series, one after the other, of which never more than one is held."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.backtest.layout import Columns
from toto_compile_patch.tools.backtest.tables import Table
from toto_compile_patch.tools.backtest.times import Times
from toto_compile_patch.tools.checks import UsageError

Doubles = npt.NDArray[np.float64]

_WIDE_BYTES = 2**28
"""Of the columns of a wide file that are held at once."""

_GAPS = ("", "na", "n/a", "nan", "<na>", "null", "none", "#n/a", "-")
"""What a cell of a CSV file says where there is no number."""


@dataclass(frozen=True)
class RawSeries:
    """The rows of one series, as they stand in the file.

    Attributes:
        item: its id.
        row: data row of its first value.
        times: of the rows, in whatever order.
        values: the target, then what is known ahead, NaN in the gaps (``variate rows``).
    """

    item: str
    row: int
    times: pd.DatetimeIndex
    values: Doubles


class Reader:
    """Reads the series of a file, as often as it is asked.

    Args:
        table: the file.
        columns: what its columns are.

    Attributes:
        timezone: of its times; None where they have none, and before they are read.
    """

    def __init__(self, table: Table, columns: Columns) -> None:
        self._table, self._columns = table, columns
        self.timezone: str | None = None

    def series(self) -> Iterator[RawSeries]:
        """Every series, in the order of the file.

        Raises:
            UsageError: the file cannot be read, or a cell of it is not what it should be.
        """
        return self._wide() if self._columns.wide else self._long()

    def _long(self) -> Iterator[RawSeries]:
        seen: set[str] = set()
        held: list[RawSeries] = []
        for run in self._runs():
            if held and held[0].item != run.item:
                yield _joined(held)
                held = []
            if not held and run.item in seen:
                raise UsageError(
                    f"{self._table.path}: series {run.item!r} comes again in data row {run.row}: "
                    f"sort the file by {self._columns.id} and {self._columns.time}"
                )
            seen.add(run.item)
            held.append(run)
        if held:
            yield _joined(held)

    def _runs(self) -> Iterator[RawSeries]:
        """Rows of one series that follow each other in a chunk of the file."""
        columns, times = self._columns, Times(self._table.path, self._columns.time)
        row = 1
        for chunk in self._table.chunks(columns.of_a_row):
            if chunk.empty:
                continue
            ids = self._ids(chunk, row)
            read = self._zoned(times.read(chunk[columns.time], row))
            names = (*columns.targets, *columns.known)
            values = np.stack([self._numbers(chunk[name], row) for name in names])
            edges = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
            for start, stop in itertools.pairwise(edges):
                part = slice(start, stop)
                yield RawSeries(str(ids[start]), row + start, read[part], values[:, part])
            row += len(chunk)

    def _ids(self, chunk: pd.DataFrame, row: int) -> npt.NDArray[np.object_]:
        if self._columns.id is None:
            return np.full(len(chunk), self._columns.targets[0], object)
        cells = chunk[self._columns.id]
        unknown = (cells.isna() | (cells.astype(str) == "")).to_numpy()
        if unknown.any():
            raise UsageError(
                f"column {cells.name!r} of {self._table.path}, data row "
                f"{row + int(unknown.argmax())}: the id of the series is missing: fill it in"
            )
        return cells.astype(str).to_numpy(object)

    def _wide(self) -> Iterator[RawSeries]:
        columns, path = self._columns, self._table.path
        reader = Times(path, columns.time)
        times, row = pd.DatetimeIndex([]), 1
        parts = []
        for chunk in self._table.chunks([columns.time]):
            parts.append(self._zoned(reader.read(chunk[columns.time], row)))
            row += len(chunk)
        if parts:
            times = parts[0].append(parts[1:])
        known = self._read_columns(columns.known, len(times))
        together = max(1, _WIDE_BYTES // (8 * max(1, len(times))))
        for first in range(0, len(columns.targets), together):
            names = columns.targets[first : first + together]
            for name, target in zip(names, self._read_columns(names, len(times)), strict=True):
                yield _trimmed(RawSeries(name, 1, times, np.vstack([target[None], known])))

    def _read_columns(self, names: tuple[str, ...], rows: int) -> Doubles:
        found, row = np.empty((len(names), rows)), 1
        for chunk in self._table.chunks(names) if names else ():
            for values, name in zip(found, names, strict=True):
                values[row - 1 : row - 1 + len(chunk)] = self._numbers(chunk[name], row)
            row += len(chunk)
        return found

    def _numbers(self, cells: pd.Series, row: int) -> Doubles:
        column = f"column {cells.name!r} of {self._table.path}"
        if getattr(cells.dtype, "kind", "") in "mM":
            raise UsageError(f"{column} holds times: name another column")
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float, na_value=np.nan)
        empty = np.isnan(numbers)
        if empty.any():
            # Text, or nothing at all?
            left = cells[empty]
            words = left.astype(str).str.strip().str.lower()
            text = (left.notna() & ~words.isin(_GAPS)).to_numpy()
            if text.any():
                at = int(text.argmax())
                raise UsageError(
                    f"{column}, data row {row + int(np.flatnonzero(empty)[at])}: "
                    f"{str(left.iloc[at])!r} is not a number: name another column, or leave the "
                    "cell empty if it is a gap"
                )
        return np.asarray(numbers, float)

    def _zoned(self, times: pd.DatetimeIndex) -> pd.DatetimeIndex:
        if times.tz is not None:
            import pyarrow

            self.timezone = str(pyarrow.lib.tzinfo_to_string(times.tz))
        return times


def _joined(runs: list[RawSeries]) -> RawSeries:
    first, *more = runs
    if not more:
        return first
    times = first.times.append([run.times for run in more])
    return RawSeries(first.item, first.row, times, np.hstack([run.values for run in runs]))


def _trimmed(series: RawSeries) -> RawSeries:
    """Without the gaps before and after: columns of a wide file begin and end at other times."""
    known = np.flatnonzero(~np.isnan(series.values[0]))
    if not len(known):
        return series
    part = slice(int(known[0]), int(known[-1]) + 1)
    return RawSeries(series.item, 1 + part.start, series.times[part], series.values[:, part])

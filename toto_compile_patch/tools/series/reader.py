"""A file's series, one after the other, of which never more than one is held."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.layout import Layout
from toto_compile_patch.tools.series.notation import Doubles
from toto_compile_patch.tools.series.order import in_order

_WIDE_BYTES = 2**28
"""Of the columns of a wide file that are held at once."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        id: that names the series; None: the file holds one series, or each target is one.
        time: that gives the times.
        targets: to be forecast: one, or in a wide file one for each series.
        known: known ahead.
        wide: whether each target is a series.
    """

    id: str | None
    time: str
    targets: tuple[str, ...]
    known: tuple[str, ...]
    wide: bool

    @property
    def of_a_row(self) -> list[str]:
        """Those of a row of a long file."""
        return [*([self.id] if self.id else []), self.time, *self.targets, *self.known]


@dataclass(frozen=True)
class RawSeries:
    """The rows of one series.

    Attributes:
        item: its id.
        row: data row that it begins with.
        times: of the rows, sorted.
        values: the target, then what is known ahead, NaN in the gaps (``variate rows``).
        was_sorted: whether they stood in another order.
    """

    item: str
    row: int
    times: pd.DatetimeIndex
    values: Doubles
    was_sorted: bool = False


class Reader:
    """Reads the series of a file, as often as it is asked.

    Args:
        layout: of the file.
        columns: those to read.

    Attributes:
        timezone: of its times; None where they have none, and before they are read.
    """

    def __init__(self, layout: Layout, columns: Columns) -> None:
        self._layout, self._columns = layout, columns
        self._table = layout.table
        self.timezone: str | None = None

    @property
    def is_calendar(self) -> bool:
        """Whether its times are times, and no count of steps."""
        return self._layout.writing is not None and self._layout.writing.is_calendar

    @property
    def notes(self) -> str:
        """What was found out about the file, in words."""
        columns, writing = self._columns, self._layout.writing
        written = f" ({writing.words})" if writing and writing.words else ""
        roles = [f"times in column {columns.time}{written}"]
        if columns.id is not None:
            roles.append(f"series named by column {columns.id}")
        if not columns.wide:
            roles.append(f"to forecast: column {columns.targets[0]}")
        return "; ".join([*self._layout.told(columns.targets), *roles])

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
                yield self._in_order(_joined(held))
                held = []
            if not held and run.item in seen:
                raise UsageError(
                    f"{self._table.path}: series {run.item!r} comes again in data row {run.row}: "
                    f"sort the file by {self._columns.id} and {self._columns.time}"
                )
            seen.add(run.item)
            held.append(run)
        if held:
            yield self._in_order(_joined(held))

    def _runs(self) -> Iterator[RawSeries]:
        """Rows of one series that follow each other in a chunk of the file."""
        columns, row = self._columns, 1
        for chunk in self._table.chunks(columns.of_a_row):
            if chunk.empty:
                continue
            rows = range(row, row + len(chunk))
            ids = self._ids(chunk, rows)
            read = self._times(chunk, rows)
            names = (*columns.targets, *columns.known)
            values = np.stack([self._layout.read_numbers(chunk[name], rows) for name in names])
            edges = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
            for start, stop in itertools.pairwise(edges):
                part = slice(start, stop)
                yield RawSeries(str(ids[start]), row + start, read[part], values[:, part])
            row += len(chunk)

    def _ids(self, chunk: pd.DataFrame, rows: range) -> npt.NDArray[np.object_]:
        if self._columns.id is None:
            return np.full(len(chunk), self._columns.targets[0], object)
        return self._layout.read_ids(chunk[self._columns.id], rows)

    def _times(self, chunk: pd.DataFrame, rows: range) -> pd.DatetimeIndex:
        times = self._layout.read_times(chunk[self._columns.time], rows)
        if times.tz is not None:
            import pyarrow

            self.timezone = str(pyarrow.lib.tzinfo_to_string(times.tz))
        return times

    def _wide(self) -> Iterator[RawSeries]:
        columns, row = self._columns, 1
        times, parts = pd.DatetimeIndex([]), []
        for chunk in self._table.chunks([columns.time]):
            parts.append(self._times(chunk, range(row, row + len(chunk))))
            row += len(chunk)
        if parts:
            times = parts[0].append(parts[1:])
        known = self._read_columns(columns.known, len(times))
        together = max(1, _WIDE_BYTES // (8 * max(1, len(times))))
        for first in range(0, len(columns.targets), together):
            names = columns.targets[first : first + together]
            for name, target in zip(names, self._read_columns(names, len(times)), strict=True):
                raw = RawSeries(name, 1, times, np.vstack([target[None], known]))
                yield _trimmed(self._in_order(raw))

    def _in_order(self, series: RawSeries) -> RawSeries:
        what = f"{self._table.path}, series {series.item!r}"
        times, values, was_sorted = in_order(series.times, series.values, what)
        return replace(series, times=times, values=values, was_sorted=was_sorted)

    def _read_columns(self, names: tuple[str, ...], length: int) -> Doubles:
        found, rows = np.empty((len(names), length)), range(1, 1)
        for chunk in self._table.chunks(names) if names else ():
            rows = range(rows.stop, rows.stop + len(chunk))
            for values, name in zip(found, names, strict=True):
                values[rows.start - 1 : rows.stop - 1] = self._layout.read_numbers(
                    chunk[name], rows
                )
        return found


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
    return replace(series, times=series.times[part], values=series.values[:, part])

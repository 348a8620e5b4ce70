"""One series of a file: columns that are sampled at the same times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.layout import Layout, Wanted
from toto_compile_patch.tools.series.order import in_order
from toto_compile_patch.tools.series.steps import even, named_step, season_of, seconds_between
from toto_compile_patch.tools.series.tables import listed, open_table
from toto_compile_patch.tools.wording import counted

Floats = npt.NDArray[np.floating[Any]]

LARGEST = float(np.finfo(np.float32).max) / 2
"""Upstream takes a value of that size for a defect, and replaces it."""

_FEWEST_ROWS = 16
"""Of a file that windows can be cut from."""

_PARQUETS_INDEX = re.compile(r"__index_level_\d+__")
_SECOND = 10**9


@dataclass(frozen=True)
class Series:
    """Variables sampled at the same times.

    Attributes:
        source: name of the file.
        columns: names of the columns.
        values: the numbers, NaN in the gaps and where a row is missing (``variate rows``).
        seconds: time of each row, in seconds since 1970, or its index (``rows``).
        interval: seconds between two rows, at the median; 1 where no column gives times.
        timed: whether a column gives the times.
        rows_of_file: rows that were read; time steps that have none are not among them.
        notes: what was found out about the file, in words: its dialect, and its times.
    """

    source: str
    columns: tuple[str, ...]
    values: Floats
    seconds: npt.NDArray[np.int64]
    interval: int
    timed: bool
    rows_of_file: int
    notes: tuple[str, str] = ("", "")

    @property
    def rows(self) -> int:
        """How many time steps there are, with those whose row is missing."""
        return self.values.shape[-1]

    def season(self, context: int) -> int:
        """Steps after which it is likely to repeat itself, fewer than a context has; 1: unknown."""
        if not self.timed:
            return 1
        return season_of(self.interval, float(np.diff(self.seconds).mean()), context)

    @property
    def gaps(self) -> int:
        """How many values are missing in the rows."""
        return int(np.isnan(self.values).sum())


def read_series(
    path: Path,
    columns: Sequence[str] = (),
    wanted: Wanted | None = None,
    item: str | None = None,
) -> Series:
    """Read columns, whose empty cells are gaps, and the times of the rows if there are any.

    Rows are sorted by time, and rows that are missing are filled in as gaps, if most are there.

    Args:
        path: a Parquet file if it is named ``.parquet`` or ``.pq``, else a CSV file.
        columns: their names; none: the only column of numbers beside the times.
        wanted: what the user says of the file.
        item: the series to read, where a column names several.

    Raises:
        UsageError: the file cannot be read, or a column is missing or holds no usable series.
    """
    table, wanted = open_table(str(path)), wanted or Wanted()
    layout = Layout(table, replace(wanted, others=tuple(columns)))
    names = tuple(dict.fromkeys(columns)) or (layout.only_number("column"),)
    for name in names:
        layout.named("column", name)
    frame = _rows_of(layout, names, item)
    if len(frame) < _FEWEST_ROWS:
        raise UsageError(
            f"{path} has {counted(len(frame), 'row')}; at least {_FEWEST_ROWS} are needed: "
            "give a longer series"
        )
    values = np.stack([_numbers(layout, frame[name]) for name in names])
    series = Series(path.name, names, values, np.arange(len(frame)), 1, False, len(frame))
    dialect = ", ".join(layout.told(names))
    if layout.time is None:
        return replace(series, notes=(dialect, "no column: rows are used in order"))
    return _timed(series, layout, frame[layout.time], dialect)


def _rows_of(layout: Layout, names: Sequence[str], item: str | None) -> pd.DataFrame:
    """The rows of the series, by their place in the file."""
    path, id = layout.table.path, layout.id if layout.id not in names else None
    needed = list(dict.fromkeys([*filter(None, (id, layout.time)), *names]))
    frame = pd.concat(layout.table.chunks(needed), ignore_index=True)
    if id is None:
        if item is not None:
            raise UsageError(f"{path}: name the column of --item {item} with --id")
        return frame
    ids = pd.Series(layout.read_ids(frame[id], range(1, len(frame) + 1)))
    items = list(dict.fromkeys(ids))
    if item is None:
        if len(items) == 1:
            return frame
        raise UsageError(
            f"{path} holds {counted(len(items), 'series', 'series')}, named by column {id!r}: "
            f"choose one with --item: {listed(items)}"
        )
    if item not in items:
        raise UsageError(
            f"{path} has no --item {item} in column {id!r}: choose one that is there: "
            f"{listed(items)}"
        )
    return frame[ids == item]


def _numbers(layout: Layout, cells: pd.Series) -> Floats:
    column = f"column {cells.name!r} of {layout.table.path}"
    # Rows of one series are not always together.
    numbers = layout.read_numbers(cells, cells.index + 1)
    bad = np.abs(numbers) >= LARGEST
    if bad.any():
        at = int(bad.argmax())
        raise UsageError(
            f"{column}, data row {cells.index[at] + 1}: {cells.iloc[at]!r} is no number that a "
            "model can take: choose another --column, or leave the cell empty if it is a gap"
        )
    values = np.unique(numbers[~np.isnan(numbers)])
    if len(values) < 2:
        what = f"nothing but {values[0]:g}" if len(values) else "nothing but gaps"
        raise UsageError(f"{column} holds {what}: choose another with --column")
    return numbers


def _timed(series: Series, layout: Layout, cells: pd.Series, dialect: str) -> Series:
    """With the times that a column gives: in their order, and at even steps if it has such."""
    what = f"column {cells.name!r} of {layout.table.path}"
    times, values, was_sorted = in_order(
        layout.read_times(cells, cells.index + 1), series.values, what
    )
    writing = layout.writing
    name = "the index" if _PARQUETS_INDEX.fullmatch(str(cells.name)) else f"column {cells.name}"
    told = [name + (f" ({writing.words})" if writing and writing.words else "")]
    if writing and writing.is_calendar:
        told.append(named_step(times))
        grid = even(times, None)
        if grid is not None and len(grid) <= 2 * len(times):
            if missing := len(grid) - len(times):
                told.append(f"{counted(missing, 'missing row')} filled in as gaps")
            filled = np.full((len(values), len(grid)), np.nan)
            filled[:, grid.get_indexer(times)] = values
            times, values = grid, filled
        else:
            told.append("unevenly spaced: rows are used in order, ignoring the time between them")
    if was_sorted:
        told.append("sorted")
    return replace(
        series,
        values=values,
        seconds=times.asi8 // _SECOND,
        interval=seconds_between(times),
        timed=bool(writing and writing.is_calendar),
        notes=(dialect, ", ".join(told)),
    )

"""Number columns of a CSV or Parquet file, cut into the windows of a rolling-origin backtest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.floating[Any]]

TIME_COLUMNS = ("time", "timestamp", "datetime", "date", "ds")

# Upstream takes a value of half of float32's range or more for a defect and replaces it.
_LARGEST = float(np.finfo(np.float32).max) / 2

_FEWEST_ROWS = 16
"""Of a file that windows can be cut from."""


class SeriesError(ValueError):
    """The file or series cannot be used; the message says what to do about it."""


@dataclass(frozen=True)
class Series:
    """Variables sampled at the same times.

    Attributes:
        source: name of the file.
        columns: names of the columns.
        values: the numbers, NaN in the gaps (``variate rows``).
        seconds: time of each row, in seconds since 1970, or its index (``rows``).
        interval: seconds between two rows, at the median; 1 where no column gives times.
        timed: whether a column gives the times.
    """

    source: str
    columns: tuple[str, ...]
    values: Floats
    seconds: npt.NDArray[np.int64]
    interval: int
    timed: bool

    @property
    def rows(self) -> int:
        return self.values.shape[-1]

    @property
    def gaps(self) -> int:
        return int(np.isnan(self.values).sum())

    @property
    def skips(self) -> int:
        """How many times a row is missing between two that follow each other."""
        return int((np.diff(self.seconds) > 1.5 * self.interval).sum())

    @property
    def std(self) -> Floats:
        """Standard deviation of each column (``variate``)."""
        return np.asarray(np.nanstd(self.values, axis=-1))


@dataclass(frozen=True)
class Shape:
    """How a backtest is cut: windows whose origins lie a horizon apart."""

    windows: int
    context: int
    horizon: int


@dataclass(frozen=True)
class Window:
    """One forecast to make, and what came true.

    Attributes:
        values: the context without gaps (``variate context``).
        observed: False where a value of the context stands in for a gap (``variate context``).
        seconds: time of each step of the context (``context``).
        interval: seconds between two steps.
        truth: what followed, NaN where nobody knows (``variate horizon``).
    """

    values: npt.NDArray[np.float32]
    observed: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.int64]
    interval: int
    truth: Floats


def read_series(path: Path, columns: Sequence[str] = ()) -> Series:
    """Read columns, whose empty cells are gaps, and the times of the rows if there are any.

    Args:
        path: a Parquet file if it is named ``.parquet`` or ``.pq``, else a CSV file with a header.
        columns: their names; none: the only column beside the times.

    Raises:
        SeriesError: the file cannot be read, or a column is missing or holds no usable series.
    """
    table = _read_table(path)
    columns = tuple(dict.fromkeys(columns)) or _only_column(table, path)
    if missing := [name for name in columns if name not in table.columns]:
        raise SeriesError(
            f"{path} has no column {missing[0]!r}; name one with --column: {_listed(table.columns)}"
        )
    if len(table) < _FEWEST_ROWS:
        raise SeriesError(
            f"{path} has {_counted(len(table), 'row')}; a backtest needs at least {_FEWEST_ROWS}: "
            "give a longer series"
        )
    time_column = _time_column(table)
    times = _times(table, time_column, path)
    return Series(
        source=path.name,
        columns=columns,
        values=np.stack([_numbers(table[name], path) for name in columns]),
        seconds=np.floor(times).astype(np.int64),
        interval=max(1, round(float(np.median(np.diff(times))))),
        timed=time_column is not None,
    )


def cut_windows(series: Series, shape: Shape) -> list[Window]:
    """Cut windows whose origins lie a horizon apart; the last one's truth ends the series.

    A gap in a context repeats the last value before it; where there is none it is 0, as
    upstream's own padding is.

    Raises:
        SeriesError: the series is too short, or a context holds nothing but gaps.
    """
    needed = shape.context + shape.windows * shape.horizon
    if series.rows < needed:
        raise SeriesError(
            f"{series.source} has {_counted(series.rows, 'row')}, but --context {shape.context} "
            f"and --windows {shape.windows} of --horizon {shape.horizon} need {needed}: "
            "ask for less of them"
        )
    filled = pd.DataFrame(series.values.T).ffill().fillna(0.0).to_numpy(np.float32).T
    first = series.rows - shape.horizon * shape.windows
    unknown = np.isnan(series.values[:, first:]).all(axis=-1)
    if unknown.any():
        raise SeriesError(
            f"column {series.columns[int(unknown.argmax())]!r} of {series.source} holds nothing "
            f"but gaps from data row {first + 1} on, where it is to be forecast: ask for more "
            "--windows, or choose another --column"
        )
    return [_window(series, filled, first + i * shape.horizon, shape) for i in range(shape.windows)]


def _window(series: Series, filled: npt.NDArray[np.float32], origin: int, shape: Shape) -> Window:
    past, future = slice(origin - shape.context, origin), slice(origin, origin + shape.horizon)
    observed = ~np.isnan(series.values[:, past])
    if not observed.any(axis=-1).all():
        column = series.columns[int(observed.any(axis=-1).argmin())]
        raise SeriesError(
            f"column {column!r} of {series.source} holds nothing but gaps in data rows "
            f"{past.start + 1} to {past.stop}, a context: take a longer --context, other "
            "--windows, or another --column"
        )
    return Window(
        values=np.ascontiguousarray(filled[:, past]),
        observed=observed,
        seconds=series.seconds[past],
        interval=series.interval,
        truth=series.values[:, future],
    )


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = _read_parquet(path) if path.suffix in (".parquet", ".pq") else _read_csv(path)
    except SeriesError:
        raise
    except FileNotFoundError:
        raise SeriesError(
            f"there is no file {path}: give the path of a CSV or Parquet file"
        ) from None
    except OSError as error:
        raise SeriesError(
            f"cannot read {path}: {error.strerror or _first(error)}: "
            "give the path of a CSV or Parquet file"
        ) from None
    except ValueError as error:
        raise SeriesError(
            f"{path} is not a table with a header line ({_first(error)}): "
            "give the path of a CSV (in UTF-8) or Parquet file"
        ) from None
    if len(set(table.columns)) < len(table.columns):
        raise SeriesError(f"{path} has columns of one name: {_listed(table.columns)}: rename one")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """Everything as text, so that a bad cell can be named instead of changing the type."""
    table = pd.read_csv(path, dtype=str)
    if not isinstance(table.index, pd.RangeIndex):
        raise SeriesError(
            f"{path} has rows with more cells than its header line: name every column there"
        )
    separator = next((mark for mark in ";\t|" if mark in str(table.columns[0])), None)
    if separator and len(table.columns) == 1:
        raise SeriesError(f"{path} is separated by {separator!r}: separate the cells by commas")
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise SeriesError(
            f"cannot read {path}: pandas finds no engine for Parquet that works here: install a "
            f"pyarrow that fits numpy {np.__version__}, or give a CSV file"
        ) from None
    table.columns = table.columns.map(str)
    if isinstance(table.index, pd.DatetimeIndex) and _time_column(table) is None:
        table = table.rename_axis(index="time").reset_index()
    elif not isinstance(table.index, pd.RangeIndex | pd.DatetimeIndex):
        raise SeriesError(
            f"{path} has an index that is not its times: make its levels columns (reset_index), "
            "one row for each time"
        )
    return table


def _only_column(table: pd.DataFrame, path: Path) -> tuple[str, ...]:
    names = [name for name in table.columns if name != _time_column(table)]
    if len(names) == 1:
        return (names[0],)
    raise SeriesError(
        f"{path}: name what to forecast with --column, once for each: {_listed(table.columns)}"
    )


def _numbers(cells: pd.Series, path: Path) -> Floats:
    if _is_time(cells):
        raise SeriesError(f"column {cells.name!r} of {path} holds times: choose another --column")
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float, na_value=np.nan)
    bad = cells.notna().to_numpy() & ~(np.abs(numbers) < _LARGEST)
    if bad.any():
        row = int(bad.argmax())
        raise SeriesError(
            f"column {cells.name!r} of {path}, data row {row + 1}: {str(cells.iloc[row])!r} is not "
            "a number: choose another --column, or leave the cell empty if it is a gap"
        )
    values = np.unique(numbers[~np.isnan(numbers)])
    if len(values) < 2:
        what = f"nothing but {values[0]:g}" if len(values) else "nothing but gaps"
        raise SeriesError(
            f"column {cells.name!r} of {path} holds {what}: choose another with --column"
        )
    return np.asarray(numbers)


def _time_column(table: pd.DataFrame) -> str | None:
    return next((name for name in table.columns if name.lower() in TIME_COLUMNS), None)


def _times(table: pd.DataFrame, name: str | None, path: Path) -> Floats:
    """Seconds since 1970 of every row, or the row's index where no column gives times."""
    if name is None:
        return np.arange(len(table), dtype=float)
    seconds = _seconds(table[name])
    if np.isnan(seconds).any():
        row = int(np.isnan(seconds).argmax())
        raise SeriesError(
            f"column {name!r} of {path}, data row {row + 1}: {str(table[name].iloc[row])!r} is not "
            "a time: correct it, or rename the column if it does not give times"
        )
    if (np.diff(seconds) <= 0).any():
        row = int((np.diff(seconds) <= 0).argmax()) + 1
        raise SeriesError(
            f"column {name!r} of {path}, data rows {row} and {row + 1}: times must increase: "
            "sort the rows by time and leave one for each time, or rename the column if it does "
            "not give the times"
        )
    return seconds


def _is_time(cells: pd.Series) -> bool:
    return getattr(cells.dtype, "kind", "") == "M"


def _seconds(cells: pd.Series) -> Floats:
    if not _is_time(cells):
        numbers = pd.to_numeric(cells, errors="coerce")
        if numbers.notna().mean() > 0.5:
            seconds = np.asarray(numbers, float)
            if not _are_dates(seconds):
                return seconds / _parts_of_a_second(seconds)
            cells = numbers.astype("Int64").astype(str)
    with warnings.catch_warnings():
        # What pandas warns of here ends as an error that names the row.
        warnings.simplefilter("ignore")
        times = pd.to_datetime(cells, utc=True, errors="coerce")
    return np.asarray((times - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), float)


def _are_dates(numbers: Floats) -> bool:
    """Whether numbers are dates written as YYYYMMDD."""
    day, month = numbers % 100, numbers // 100 % 100
    year = numbers // 10_000
    return bool(
        np.all((year >= 1800) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1))
        and np.all(day <= 31)
    )


def _parts_of_a_second(numbers: Floats) -> float:
    """In what unit numbers count from 1970: seconds, or a thousandth, millionth, billionth."""
    size = float(np.nanmax(np.abs(numbers)))
    return next((unit for unit in (1e9, 1e6, 1e3) if size > 1e8 * unit), 1.0)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

"""A number column of a CSV file, cut into the windows of a rolling-origin backtest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
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


class SeriesError(ValueError):
    """The file or series cannot be used; the message says what to do about it."""


@dataclass(frozen=True)
class Series:
    """One regularly sampled variable.

    Attributes:
        source: name of the file.
        column: name of the column.
        values: the numbers, NaN in the gaps (``rows``).
        seconds: time of each row, in seconds since 1970, or its index (``rows``).
        interval: seconds between two rows.
    """

    source: str
    column: str
    values: Floats
    seconds: npt.NDArray[np.int64]
    interval: int

    @property
    def gaps(self) -> int:
        return int(np.isnan(self.values).sum())

    @property
    def std(self) -> float:
        return float(np.nanstd(self.values))


@dataclass(frozen=True)
class Window:
    """One forecast to make, and what came true.

    Attributes:
        values: the context without gaps (``context``).
        observed: False where a value of the context stands in for a gap (``context``).
        seconds: time of each step of the context (``context``).
        interval: seconds between two steps.
        truth: what followed, NaN where nobody knows (``horizon``).
    """

    values: npt.NDArray[np.float32]
    observed: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.int64]
    interval: int
    truth: Floats


def read_series(path: Path, column: str) -> Series:
    """Read one column, whose empty cells are gaps, and the times of its rows if there are any.

    Raises:
        SeriesError: the file cannot be read, or the column is missing or holds no usable series.
    """
    table = _read_table(path)
    if column not in table.columns:
        raise SeriesError(
            f"{path} has no column {column!r}; name one with --column: {_listed(table.columns)}"
        )
    times = _times(table, path)
    steps = np.diff(times)
    return Series(
        source=path.name,
        column=column,
        values=_numbers(table[column], path),
        seconds=np.floor(times).astype(np.int64),
        interval=max(1, round(float(np.median(steps)))) if len(steps) else 1,
    )


def cut_windows(series: Series, windows: int, context: int, horizon: int) -> list[Window]:
    """Cut windows whose origins lie a horizon apart; the last one's truth ends the series.

    A gap in a context repeats the last value before it; where there is none it is 0, as
    upstream's own padding is.

    Raises:
        SeriesError: the series is too short, or a context holds nothing but gaps.
    """
    rows, needed = len(series.values), context + windows * horizon
    if rows < needed:
        raise SeriesError(
            f"{series.source} has {rows} rows, but --context {context} and --windows {windows} "
            f"of --horizon {horizon} need {needed}: ask for less of them"
        )
    filled = pd.Series(series.values).ffill().fillna(0.0).to_numpy(np.float32)
    return [
        _window(series, filled, rows - horizon * (windows - i), context, horizon)
        for i in range(windows)
    ]


def _window(
    series: Series, filled: npt.NDArray[np.float32], origin: int, context: int, horizon: int
) -> Window:
    past, future = slice(origin - context, origin), slice(origin, origin + horizon)
    observed = ~np.isnan(series.values[past])
    if not observed.any():
        raise SeriesError(
            f"column {series.column!r} of {series.source} holds nothing but gaps in data rows "
            f"{past.start + 1} to {past.stop}, a context: take a longer --context, other "
            "--windows, or another --column"
        )
    return Window(
        values=filled[past],
        observed=observed,
        seconds=series.seconds[past],
        interval=series.interval,
        truth=series.values[future],
    )


def _read_table(path: Path) -> pd.DataFrame:
    """Read everything as text, so that a bad cell can be named instead of changing the type."""
    try:
        table = pd.read_csv(path, dtype=str)
    except FileNotFoundError:
        raise SeriesError(f"there is no file {path}: give --csv the path of a CSV file") from None
    except OSError as error:
        raise SeriesError(
            f"cannot read {path}: {error.strerror or error}: give --csv the path of a CSV file"
        ) from None
    except ValueError as error:
        raise SeriesError(
            f"{path} is not a table with a header line ({_first(error)}): "
            "give --csv the path of a CSV file"
        ) from None
    return table


def _numbers(cells: pd.Series, path: Path) -> Floats:
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float)
    bad = cells.notna().to_numpy() & ~(np.abs(numbers) < _LARGEST)
    if bad.any():
        row = int(bad.argmax())
        raise SeriesError(
            f"column {cells.name!r} of {path}, data row {row + 1}: {cells.iloc[row]!r} is not a "
            "number: choose another --column, or leave the cell empty if it is a gap"
        )
    values = np.unique(numbers[~np.isnan(numbers)])
    if len(values) < 2:
        what = f"nothing but {values[0]:g}" if len(values) else "nothing but gaps"
        raise SeriesError(
            f"column {cells.name!r} of {path} holds {what}: choose another with --column"
        )
    return np.asarray(numbers)


def _times(table: pd.DataFrame, path: Path) -> Floats:
    """Seconds since 1970 of every row, or the row's index where no column gives times."""
    name = next((name for name in table.columns if name.lower() in TIME_COLUMNS), None)
    if name is None:
        return np.arange(len(table), dtype=float)
    seconds = _seconds(table[name])
    if np.isnan(seconds).any():
        row = int(np.isnan(seconds).argmax())
        raise SeriesError(
            f"column {name!r} of {path}, data row {row + 1}: {table[name].iloc[row]!r} is not a "
            "time: correct it, or rename the column if it does not give times"
        )
    if (np.diff(seconds) <= 0).any():
        row = int((np.diff(seconds) <= 0).argmax()) + 1
        raise SeriesError(
            f"column {name!r} of {path}, data rows {row} and {row + 1}: times must increase: "
            "sort the rows by time and leave one for each time"
        )
    return seconds


def _seconds(cells: pd.Series) -> Floats:
    numbers = pd.to_numeric(cells, errors="coerce")
    if numbers.notna().mean() > 0.5:
        return np.asarray(numbers, float)
    with warnings.catch_warnings():
        # What pandas warns of here ends as an error that names the row.
        warnings.simplefilter("ignore")
        times = pd.to_datetime(cells, utc=True, errors="coerce")
    return np.asarray((times - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), float)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

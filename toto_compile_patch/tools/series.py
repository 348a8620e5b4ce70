"""Number columns of a CSV or Parquet file, cut into the windows of a rolling-origin backtest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.models import toto_ts

if TYPE_CHECKING:
    from toto.data.util.dataset import MaskedTimeseries

Floats = npt.NDArray[np.floating[Any]]

TIME_COLUMNS = ("time", "timestamp", "datetime", "date", "ds")

# Upstream takes a value of half of float32's range or more for a defect and replaces it.
_LARGEST = float(np.finfo(np.float32).max) / 2

_FEWEST_ROWS = 16
"""Of a file that windows can be cut from."""


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
        """How many there are."""
        return self.values.shape[-1]

    @property
    def gaps(self) -> int:
        """How many values are missing in the rows."""
        return int(np.isnan(self.values).sum())

    @property
    def skips(self) -> int:
        """How many times a row is missing between two that follow each other."""
        return int((np.diff(self.seconds) > 1.5 * self.interval).sum())


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

    @property
    def known(self) -> Floats:
        """The context, NaN in its gaps (``variate context``)."""
        return np.where(self.observed, self.values.astype(float), np.nan)

    def inputs(self) -> MaskedTimeseries:
        """The context as upstream takes it, ``variate series_len``, on the CPU."""
        series = torch.from_numpy(self.values)
        made: MaskedTimeseries = toto_ts().MaskedTimeseries(
            series=series,
            padding_mask=torch.from_numpy(self.observed),
            id_mask=torch.zeros_like(series, dtype=torch.int),
            timestamp_seconds=torch.from_numpy(self.seconds).expand(series.shape),
            time_interval_seconds=torch.full((len(series),), self.interval),
        )
        return made


def read_series(path: Path, columns: Sequence[str] = ()) -> Series:
    """Read columns, whose empty cells are gaps, and the times of the rows if there are any.

    Args:
        path: a Parquet file if it is named ``.parquet`` or ``.pq``, else a CSV file with a header.
        columns: their names; none: the only column beside the times.

    Raises:
        UsageError: the file cannot be read, or a column is missing or holds no usable series.
    """
    table = _read_table(path)
    time_column = _time_column(table)
    listed = ", ".join(table.columns)
    if not columns:
        columns = [name for name in table.columns if name != time_column]
        if len(columns) != 1:
            raise UsageError(
                f"{path}: name what to forecast with --column, once for each: {listed}"
            )
    columns = tuple(dict.fromkeys(columns))
    if missing := [name for name in columns if name not in table.columns]:
        raise UsageError(f"{path} has no column {missing[0]!r}; name one with --column: {listed}")
    if len(table) < _FEWEST_ROWS:
        raise UsageError(
            f"{path} has {_rows(len(table))}; a backtest needs at least {_FEWEST_ROWS}: "
            "give a longer series"
        )
    times = np.arange(len(table), dtype=float)
    if time_column is not None:
        times = _times(table[time_column], path)
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
        UsageError: the series is too short, or a context holds nothing but gaps.
    """
    needed = shape.context + shape.windows * shape.horizon
    if series.rows < needed:
        raise UsageError(
            f"{series.source} has {_rows(series.rows)}, but --context {shape.context} "
            f"and --windows {shape.windows} of --horizon {shape.horizon} need {needed}: "
            "ask for less of them"
        )
    filled = pd.DataFrame(series.values.T).ffill().fillna(0.0).to_numpy(np.float32).T
    first = series.rows - shape.horizon * shape.windows
    _check_known(
        series,
        slice(first, None),
        f"from data row {first + 1} on, where it is to be forecast: "
        "ask for more --windows, or choose another --column",
    )
    return [_window(series, filled, first + i * shape.horizon, shape) for i in range(shape.windows)]


def _window(series: Series, filled: npt.NDArray[np.float32], origin: int, shape: Shape) -> Window:
    past, future = slice(origin - shape.context, origin), slice(origin, origin + shape.horizon)
    _check_known(
        series,
        past,
        f"in data rows {past.start + 1} to {past.stop}, a context: take a longer "
        "--context, other --windows, or another --column",
    )
    return Window(
        values=np.ascontiguousarray(filled[:, past]),
        observed=~np.isnan(series.values[:, past]),
        seconds=series.seconds[past],
        interval=series.interval,
        truth=series.values[:, future],
    )


def _check_known(series: Series, rows: slice, where: str) -> None:
    unknown = np.isnan(series.values[:, rows]).all(axis=-1)
    if unknown.any():
        column = series.columns[int(unknown.argmax())]
        raise UsageError(f"column {column!r} of {series.source} holds nothing but gaps {where}")


def _read_table(path: Path) -> pd.DataFrame:
    parquet = path.suffix in (".parquet", ".pq")
    try:
        # A CSV file as text, so that a bad cell can be named instead of changing the type.
        table = pd.read_parquet(path) if parquet else pd.read_csv(path, dtype=str)
    except ImportError:
        raise UsageError(
            f"cannot read {path}: pandas finds no engine for Parquet that works here: install a "
            f"pyarrow that fits numpy {np.__version__}, or give a CSV file"
        ) from None
    except (OSError, ValueError) as error:
        said, utf8 = str(error).strip().partition("\n")[0], ""
        if isinstance(error, FileNotFoundError):
            problem = f"there is no file {path}"
        elif isinstance(error, OSError):
            problem = f"cannot read {path}: {error.strerror or said}"
        else:
            problem, utf8 = f"{path} is not a table with a header line ({said})", " (in UTF-8)"
        raise UsageError(f"{problem}: give the path of a CSV{utf8} or Parquet file") from None
    table.columns = table.columns.map(str)
    if not table.columns.is_unique:
        raise UsageError(f"{path} has columns of one name: {', '.join(table.columns)}: rename one")
    if isinstance(table.index, pd.DatetimeIndex) and _time_column(table) is None:
        return table.rename_axis(index="time").reset_index()
    if not isinstance(table.index, pd.RangeIndex | pd.DatetimeIndex):
        raise UsageError(
            f"{path} has an index that is not its times: make its levels columns (reset_index), "
            "one row for each time"
            if parquet
            else f"{path} has rows with more cells than its header line: name every column there"
        )
    separator = next((mark for mark in ";\t|" if mark in table.columns[0]), None)
    if separator and len(table.columns) == 1 and not parquet:
        raise UsageError(f"{path} is separated by {separator!r}: separate the cells by commas")
    return table


def _numbers(cells: pd.Series, path: Path) -> Floats:
    column = f"column {cells.name!r} of {path}"
    if _is_time(cells):
        raise UsageError(f"{column} holds times: choose another --column")
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float, na_value=np.nan)
    bad = cells.notna().to_numpy() & ~(np.abs(numbers) < _LARGEST)
    if bad.any():
        raise UsageError(
            f"{column}, {_cell(cells, bad)} is not a number: choose another --column, or leave "
            "the cell empty if it is a gap"
        )
    values = np.unique(numbers[~np.isnan(numbers)])
    if len(values) < 2:
        what = f"nothing but {values[0]:g}" if len(values) else "nothing but gaps"
        raise UsageError(f"{column} holds {what}: choose another with --column")
    return np.asarray(numbers)


def _time_column(table: pd.DataFrame) -> str | None:
    return next((name for name in table.columns if name.lower() in TIME_COLUMNS), None)


def _times(cells: pd.Series, path: Path) -> Floats:
    """Seconds since 1970 of every row."""
    seconds = _seconds(cells)
    unknown, falls = np.isnan(seconds), np.diff(seconds) <= 0
    if unknown.any():
        raise UsageError(
            f"column {cells.name!r} of {path}, {_cell(cells, unknown)} is not a time: correct it, "
            "or rename the column if it does not give times"
        )
    if falls.any():
        row = int(falls.argmax()) + 1
        raise UsageError(
            f"column {cells.name!r} of {path}, data rows {row} and {row + 1}: times must increase: "
            "sort the rows by time and leave one for each time, or rename the column if it does "
            "not give the times"
        )
    return seconds


def _seconds(cells: pd.Series) -> Floats:
    if not _is_time(cells):
        numbers = pd.to_numeric(cells, errors="coerce").astype(float)
        dates = pd.to_datetime(numbers.map("{:.0f}".format), format="%Y%m%d", errors="coerce")
        if dates.notna().mean() > 0.5:
            cells = dates
        elif numbers.notna().mean() > 0.5:
            # Seconds since 1970, or their thousandths, millionths or billionths.
            size = numbers.abs().max()
            unit = next((unit for unit in (1e9, 1e6, 1e3) if size > 1e8 * unit), 1.0)
            return np.asarray(numbers / unit, float)
    with warnings.catch_warnings():
        # What pandas warns of here ends as an error that names the row.
        warnings.simplefilter("ignore")
        times = pd.to_datetime(cells, utc=True, errors="coerce")
    return np.asarray((times - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), float)


def _is_time(cells: pd.Series) -> bool:
    return getattr(cells.dtype, "kind", "") == "M"


def _cell(cells: pd.Series, bad: npt.NDArray[np.bool_]) -> str:
    """The first bad cell, by its row and what it holds."""
    row = int(bad.argmax())
    return f"data row {row + 1}: {str(cells.iloc[row])!r}"


def _rows(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"

"""Times of rows: how cells are read as times, and the even steps that times lie on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.checks import UsageError

Longs = npt.NDArray[np.int64]

_DAY = 86_400 * 10**9

_STRETCHES = (24, 12, 6, 3)
"""Rows in which a calendar's frequency is looked for, where some rows are missing."""

_TRIES = 8
"""Stretches of each length that are looked at."""


class Times:
    """Reads a column of times. How it is written is decided by its first rows, for all of it: a
    day shall not be taken for a month in one row, and for a day in another.

    Args:
        path: of the file, for messages.
        column: name of the column.
    """

    def __init__(self, path: str, column: str) -> None:
        self._what = f"column {column!r} of {path}"
        self._read: Callable[[pd.Series], Any] | None = None
        self._like = ""

    def read(self, cells: pd.Series, row: int) -> pd.DatetimeIndex:
        """The times in cells, of which the first one's data row is given.

        Raises:
            UsageError: a cell is no time.
        """
        with warnings.catch_warnings():
            # What pandas warns of here ends as an error that names the row.
            warnings.simplefilter("ignore")
            if self._read is None and len(cells):
                self._read, self._like = _way_of(cells)
            found = pd.DatetimeIndex(self._read(cells) if self._read else [])
        unknown = np.asarray(found.isna())
        if unknown.any():
            at = int(unknown.argmax())
            raise UsageError(
                f"{self._what}, data row {row + at}: {str(cells.iloc[at])!r} is not a time"
                f"{self._like}: correct it, or name the column of times with --time"
            )
        return found.as_unit("ns")


def _way_of(cells: pd.Series) -> tuple[Callable[[pd.Series], Any], str]:
    """How cells are read as times, and what a message says of it."""
    if getattr(cells.dtype, "kind", "") == "M":
        return (lambda given: given), ""
    numbers = pd.to_numeric(cells, errors="coerce")
    if numbers.notna().all():
        return _way_of_numbers(numbers)
    first = str(cells.iloc[0]).strip()
    form = _format_of(first)
    zoned = _zoned(first)

    def read(given: pd.Series) -> Any:
        found = pd.to_datetime(given, format=form, utc=True, errors="coerce")
        return found if zoned else found.dt.tz_localize(None)

    return read, f" like {first!r}" if form else ""


def _way_of_numbers(numbers: pd.Series) -> tuple[Callable[[pd.Series], Any], str]:
    """Dates as 20240131; else seconds since 1970, or thousandths, millionths or billionths."""
    days = pd.to_datetime(numbers.astype(str), format="%Y%m%d", errors="coerce")
    if days.notna().all():
        form = {"format": "%Y%m%d", "errors": "coerce"}
        return (lambda given: pd.to_datetime(given.astype(str), **form)), " like 20240131"
    size = float(numbers.abs().max())
    units = (("ns", 1e17), ("us", 1e14), ("ms", 1e11))
    unit = next((unit for unit, least in units if size > least), "s")

    def read(given: pd.Series) -> Any:
        return pd.to_datetime(pd.to_numeric(given, errors="coerce"), unit=unit, errors="coerce")

    return read, f" in {unit} since 1970"


def _format_of(first: str) -> str | None:
    with suppress(ValueError):
        pd.to_datetime(first, format="ISO8601")
        return "ISO8601"
    guess: str | None = pd.tseries.api.guess_datetime_format(first)
    return guess


def _zoned(first: str) -> bool:
    with suppress(ValueError):
        return pd.Timestamp(first).tzinfo is not None
    return False


def even(times: pd.DatetimeIndex, freq: str | None) -> pd.DatetimeIndex | None:
    """The even steps that times lie on, with those that are missing.

    Args:
        times: increasing.
        freq: the step, as pandas writes it; None: the usual distance, if most are of that length
            and all are multiples of it, or else a calendar's (business days, months, ...).

    Returns:
        None where the times do not lie on them.
    """
    if freq is not None:
        return _reaching(times, pd.tseries.frequencies.to_offset(freq))
    steps = np.diff(times.asi8)
    if len(steps) == 0 or (steps == steps[0]).all():
        return times
    found = (_reaching(times, steps) for steps in _candidates(times, steps))
    return next((grid for grid in found if grid is not None), None)


def _candidates(times: pd.DatetimeIndex, steps: Longs) -> Iterator[Any]:
    """Steps to try: the times themselves, or pandas' offsets, which are slow."""
    usual = _usual(steps)
    business = usual == _DAY and bool((times.weekday < 5).all())
    if usual is not None and not business:
        first, last = times.asi8[0], times.asi8[-1]
        if (last - first) / usual <= _most(len(times)):
            grid = pd.DatetimeIndex(np.arange(first, last + 1, usual))
            yield grid if times.tz is None else grid.tz_localize("UTC").tz_convert(times.tz)
    if times.tz is None:
        yield _business_days(times) if business else _months(times)
    for stretch in _stretches(times):
        with suppress(ValueError, TypeError):
            if found := pd.infer_freq(stretch):
                yield pd.tseries.frequencies.to_offset(found)


def _usual(lengths: Longs) -> int | None:
    """The usual length, if half are of it and all are multiples of it."""
    found, counts = np.unique(lengths, return_counts=True)
    usual = int(found[counts.argmax()])
    if usual <= 0 or 2 * counts.max() < len(lengths) or (lengths % usual).any():
        return None
    return usual


def _business_days(times: pd.DatetimeIndex) -> pd.DatetimeIndex:
    every = times.to_numpy()
    days = every.astype("M8[D]")
    grid = np.arange(days[0], days[-1] + 1)
    return pd.DatetimeIndex(grid[np.is_busday(grid)].astype("M8[ns]") + (every[0] - days[0]))


def _months(times: pd.DatetimeIndex) -> pd.DatetimeIndex | None:
    """Months, quarters, years: so long after the start of a month, or before its end."""
    all_times = times.to_numpy()
    for ahead in (0, 1):
        months = all_times.astype("M8[M]") + ahead
        rest = all_times - months.astype("M8[ns]")
        usual = _usual(np.diff(months.astype(np.int64)))
        if (rest == rest[0]).all() and usual is not None:
            grid = np.arange(months[0], months[-1] + 1, usual)
            return pd.DatetimeIndex(grid.astype("M8[ns]") + rest[0])
    return None


def _stretches(times: pd.DatetimeIndex) -> Iterator[pd.DatetimeIndex]:
    yield times
    for length in _STRETCHES:
        starts = range(0, len(times) - length + 1, max(1, len(times) // _TRIES))
        yield from (times[start : start + length] for start in starts)


def _reaching(times: pd.DatetimeIndex, steps: Any) -> pd.DatetimeIndex | None:
    """Steps from the first time to the last, if all times lie on them."""
    if steps is None:
        return None
    if not isinstance(steps, pd.DatetimeIndex):
        with suppress(ValueError, TypeError):
            length = pd.Timedelta(steps).value
            if (times.asi8[-1] - times.asi8[0]) / length > _most(len(times)):
                return None
        steps = pd.date_range(times[0], times[-1], freq=steps, unit="ns")
    return steps if len(steps) <= _most(len(times)) and times.isin(steps).all() else None


def _most(rows: int) -> int:
    """Steps that so many rows may be spread over: a gap is filled, not a file of gaps made."""
    return 100 * rows + 10_000

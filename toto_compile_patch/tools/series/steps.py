"""The even steps that times lie on, and what people call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Longs = npt.NDArray[np.int64]

_SECOND = 10**9
_DAY_SECONDS = 86_400
_DAY = _DAY_SECONDS * _SECOND

_STRETCHES = (24, 12, 6, 3)
"""Rows in which a calendar's frequency is looked for, where some rows are missing."""

_TRIES = 8
"""Stretches of each length that are looked at."""

_NAMES = {
    1: "every second",
    60: "every minute",
    3_600: "hourly",
    _DAY_SECONDS: "daily",
    7 * _DAY_SECONDS: "weekly",
}
_UNITS = ((_DAY_SECONDS, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))
_MONTHS = ((28, 31, "monthly"), (90, 92, "quarterly"), (365, 366, "yearly"))


def seconds_between(times: pd.DatetimeIndex) -> int:
    """The usual distance of two times or more, the median, in whole seconds, and at least one."""
    return max(1, round(float(np.median(np.diff(times.asi8))) / _SECOND))


def _milliseconds_between(times: pd.DatetimeIndex) -> float:
    return float(np.median(np.diff(times.asi8))) / 1e6


def named_step(times: pd.DatetimeIndex) -> str:
    """What people call the usual distance of two times or more: hourly, monthly, every 15 days."""
    if (short := _milliseconds_between(times)) < 999:
        return f"every {short:g} milliseconds, which Toto takes for a second"
    seconds = seconds_between(times)
    days = seconds / _DAY_SECONDS
    if seconds == _DAY_SECONDS and bool((times.weekday < 5).all()) and len(times) > 5:
        return "on business days"
    if seconds in _NAMES:
        return _NAMES[seconds]
    if named := next((name for low, high, name in _MONTHS if low <= days <= high), None):
        return named
    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
    return f"every {seconds // size} {unit}"


def season_of(interval: int, spacing: float, context: int) -> int:
    """Steps after which a series is likely to repeat itself; 1 where that is anybody's guess.

    Args:
        interval: seconds between two steps, at the median.
        spacing: the same at the mean: more, where weekends are left out.
        context: steps that a season must be shorter than.
    """
    if interval < _DAY_SECONDS:
        season = round(_DAY_SECONDS / interval)
    elif interval == _DAY_SECONDS:
        # Five where weekends are left out.
        season = round(7 * _DAY_SECONDS / spacing)
    else:
        days = interval / _DAY_SECONDS
        known = ((7, 52), (30, 12), (91, 4))
        season = next((s for length, s in known if abs(days / length - 1) < 0.1), 1)
    return season if season < context else 1


def even(times: pd.DatetimeIndex, freq: str | pd.Timedelta | None) -> pd.DatetimeIndex | None:
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

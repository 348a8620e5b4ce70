"""Numbers that are times: dates written without marks, seconds since 1970, Excel's days, counts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools.series.notation import Doubles
from toto_compile_patch.tools.series.writing import Writing

_NAMES = frozenset(
    (
        *("time", "timestamp", "datetime", "date", "ds", "ts", "t", "dt", "epoch", "stamp", "when"),
        *("day", "hour", "week", "month", "year", "yr", "fy", "fecha", "hora"),
        *("heure", "jour", "mois", "tag", "jahr", "monat", "woche", "stunde"),
        *("dato", "tid", "tijd"),
    )
)
"""What columns of times are called, in some languages, as one of the words of their names."""

_ENDINGS = ("datum", "zeit", "stempel", "timestamp", "datetime")
_COUNTS = ("ds", "time", "timestamp", "t", "step")
_CALLED_TIMES = frozenset(
    (
        *("time", "timestamp", "datetime", "date", "epoch", "stamp"),
        *("zeit", "uhrzeit", "fecha", "dato", "tid", "tijd"),
    )
)
_CALLED_ENDINGS = ("datum", "stempel", "timestamp", "datetime")
_WORD = re.compile(r"[A-Z]?[a-zéèû]+|[A-Z]+(?![a-z])")

_FIGURES = {"%Y%m%d%H%M%S": 14, "%Y%m%d%H%M": 12, "%Y%m%d%H": 10, "%Y%m%d": 8, "%Y%m": 6, "%Y": 4}
_FIRST_YEAR, _FIRST_MONTHS_YEAR, _LAST_YEAR = 1700, 1900, 2150

# Seconds since 1970: the least and the greatest that are taken for such.
_UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
_SHORT = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}
_EARLIEST = {"seconds": 1e8, "milliseconds": 1e8, "microseconds": 8e8, "nanoseconds": 8e8}
_LATEST = 4.2e9
_MODERN = 6.3e8
"""Seconds since 1970 in 1990: before, numbers of a column of another name are no times."""

_EXCELS_DAYS = (20_000, 80_000)
_FEWEST_IN_DOUBT = 8
"""Numbers of which one may say that they look like times."""

# What years, their fractions, Excel's days of 1982 to 2064 and Julian days lie between.
_EVEN_RANGES = ((_FIRST_YEAR, _LAST_YEAR), (30_000, 60_000), (2_400_000, 2_500_000))
_DOUBTFUL_FIGURES = {
    **{"%Y%j": 7, "%d%m%Y": 8, "%m%d%Y": 8},
    **{"%y%m%d": 6, "%d%m%y": 6, "%m%d%y": 6, "%G%V": 6},
}
_FARTHEST_START = 10
"""Steps after which a count of them begins, at most."""


def names_times(name: str) -> bool:
    """Whether a column's name says that it holds times, by the last of one or two words."""
    words = [word.lower() for word in _WORD.findall(name)]
    return len(words) < 3 and any(w in _NAMES or w.endswith(_ENDINGS) for w in words[-1:])


def is_called_times(name: str) -> bool:
    """Whether a column's name means points in time, and not a part or a length of time."""
    words = [word.lower() for word in _WORD.findall(name)]
    return len(words) == 1 and (words[0] in _CALLED_TIMES or words[0].endswith(_CALLED_ENDINGS))


def may_be_times(numbers: pd.Series) -> bool:
    """Whether numbers that were not told to be times look like some: they rise or fall as years,
    days since 1900, dates without marks or seconds since 1970 do."""
    values = numbers.to_numpy(float)
    if len(values) < _FEWEST_IN_DOUBT or not np.isfinite(values).all() or not numbers.is_unique:
        return False
    low, high = float(values.min()), float(values.max())
    if any(first <= low and high <= last for first, last in _EVEN_RANGES) and _is_even(values):
        return True
    steps = np.diff(values)
    if (steps > 0).all() or (steps < 0).all():
        for scale in _UNITS.values():
            if _MODERN * scale <= low and high <= _LATEST * scale:
                return True
    if low < 0 or high >= 10**8 or (values != np.floor(values)).any():
        return False
    return any(_is_even(_days(values, *form)) for form in _DOUBTFUL_FIGURES.items())


def _is_even(values: Doubles) -> bool:
    """Whether numbers only rise or only fall, and by one step for the most part."""
    steps = np.diff(values)
    _, counts = np.unique(np.round(steps, 6), return_counts=True)
    return bool((steps > 0).all() or (steps < 0).all()) and 2 * counts.max() >= len(steps)


def _days(values: Doubles, form: str, figures: int) -> Doubles:
    """The days since 1970 that whole numbers are in a form, NaN where one is no such day."""
    # A week alone is no day.
    words = [f"{value:0{figures}.0f}" + "1" * form.endswith("V") for value in values]
    form += "%u" * form.endswith("V")
    times = pd.to_datetime(pd.Series(words), format=form, errors="coerce")
    return ((times - pd.Timestamp(0)) / pd.Timedelta(days=1)).to_numpy(float)


def writing_of_numbers(numbers: pd.Series, name: str, is_told: bool) -> Writing | None:
    """Tell which times numbers are.

    In a column whose name does not say so they must be written like nothing else, or lie as evenly
    as only times do.

    Args:
        numbers: of the column.
        name: of the column.
        is_told: whether the user says that it holds times.

    Returns:
        None where they are none.
    """
    values = numbers.to_numpy(float)
    if not np.isfinite(values).all() or not len(values):
        return None
    is_named, is_whole = is_told or names_times(name), bool((values == np.floor(values)).all())
    step = _even_step(values)
    if is_whole and (written := _in_figures(numbers, values, is_named, step)):
        return written
    if since := _since_1970(values, is_named, step):
        return since
    low, high = float(values.min()), float(values.max())
    if is_named and step is not None and _EXCELS_DAYS[0] < low and high < _EXCELS_DAYS[1]:
        return Writing("Excel's days", True, _excels_days)
    may_count = is_named and (numbers.is_unique or name.lower() in _COUNTS)
    may_count = may_count and step is not None and _are_counted(values, step)
    if may_count and step is not None and 0 <= low <= _FARTHEST_START * step:
        # A second for each step: it tells the order, and nothing of hours or days.
        return Writing("a count of steps", False, _in_seconds(step))
    return None


def _even_step(values: Doubles) -> float | None:
    """The step by which numbers rise or fall for the most part, as they stand, or when sorted if
    none is there twice; None: there is no such step."""
    candidates = [values] if len(np.unique(values)) < len(values) else [values, np.sort(values)]
    for ordered in candidates:
        steps, counts = np.unique(np.round(np.diff(ordered), 6), return_counts=True)
        if len(steps) and 2 * counts.max() >= len(values) - 1 and steps[counts.argmax()] != 0:
            return abs(float(steps[counts.argmax()]))
    return None


def _are_counted(values: Doubles, step: float) -> bool:
    """Whether numbers follow each other as they stand, or are whole steps apart: 31.01, a day and a
    month, is neither before 1.02."""
    steps = np.diff(values)
    wholes = steps / step
    return bool((steps > 0).all() or (steps < 0).all() or np.allclose(wholes, wholes.round()))


def _in_figures(
    numbers: pd.Series, values: Doubles, is_named: bool, step: float | None
) -> Writing | None:
    for form, figures in _FIGURES.items():
        scale = 10.0 ** (figures - 4)
        # Of six figures, 170101 may be a day as well.
        first = _FIRST_YEAR if figures != 6 else _FIRST_MONTHS_YEAR
        inside = first * scale <= values.min() and values.max() < _LAST_YEAR * scale
        if inside and (figures > 6 or (step == 1 and (is_named or figures > 4))):
            writing = Writing(form, True, _figures_parser(form))
            if not pd.isna(writing.parse(numbers)).any():
                return writing
    return None


def _since_1970(values: Doubles, is_named: bool, step: float | None) -> Writing | None:
    for unit, scale in _UNITS.items():
        seconds = values / scale
        if _EARLIEST[unit] <= seconds.min() and seconds.max() <= _LATEST:
            even = step is not None and step / scale >= 60 and seconds.min() >= _MODERN
            if is_named or even:
                parse = _in_seconds(1.0) if unit == "seconds" else _in_units(_SHORT[unit])
                return Writing(f"{unit} since 1970", True, parse)
    return None


def _figures_parser(form: str) -> Any:
    def parse(given: pd.Series) -> pd.Series:
        figures = pd.to_numeric(given, errors="coerce").map("{:.0f}".format)
        return pd.to_datetime(figures, format=form, errors="coerce")

    return parse


def _in_units(unit: str) -> Any:
    def parse(given: pd.Series) -> pd.Series:
        return pd.to_datetime(pd.to_numeric(given, errors="coerce"), unit=unit, errors="coerce")

    return parse


def _in_seconds(step: float) -> Any:
    """Of numbers that grow by a step each second, whose fractions are rounded."""

    def parse(given: pd.Series) -> pd.Series:
        numbers = pd.to_numeric(given, errors="coerce")
        return pd.to_datetime((numbers / step * 1e6).round(), unit="us", errors="coerce")

    return parse


def _excels_days(given: pd.Series) -> pd.Series:
    days = pd.to_numeric(given, errors="coerce")
    # Of a day in parts, the rest is rounding.
    return pd.to_datetime(days, unit="D", origin="1899-12-30", errors="coerce").dt.round("s")

"""Columns of times: how their cells are written, told by all of them and not by each for itself.

A day shall not be taken for a month in one row, and for a day in another.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.notation import GAPS, is_text

_YEARS = (1700, 2261)
"""That pandas' nanoseconds reach, in whole."""

_EPOCHS = (("s", 1e8), ("ms", 1e11), ("us", 1e14), ("ns", 1e17))
"""Units of numbers since 1970, and the least of each: all of them begin in 1973."""

_DAY_OR_MONTH = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(.*)")
_CLOCKS = ("", "%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p")
_ZONE = re.compile(r":\d\d(?:[.,]\d+)?\s*(?:Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)$", re.IGNORECASE)
_QUARTER = re.compile(r"\d{4}[ -]?[qQ][1-4]")


@dataclass(frozen=True)
class Writing:
    """How the times of a column are written.

    Attributes:
        words: that, for people; empty where it is ISO 8601, or a column of times.
        is_calendar: False where the column counts steps, and tells no time.
        parse: makes times of cells, NaT where a cell is written otherwise.
    """

    words: str
    is_calendar: bool
    parse: Callable[[pd.Series], Any]

    def read(self, cells: pd.Series, rows: Sequence[int], what: str) -> pd.DatetimeIndex:
        """The times in cells.

        Args:
            cells: of the column.
            rows: their data rows, counted from 1.
            what: the column, for messages.

        Raises:
            UsageError: a cell is no time, or some have a time zone and others none.
        """
        with warnings.catch_warnings():
            # What pandas warns of here ends as an error that names the row.
            warnings.simplefilter("ignore")
            found = pd.DatetimeIndex(self.parse(cells))
        unknown = np.asarray(found.isna())
        if unknown.any():
            at = int(unknown.argmax())
            like = f" written as {self.words}" if self.words else ""
            raise UsageError(
                f"{what}, data row {rows[at]}: {str(cells.iloc[at])!r} is not a time{like}: "
                "correct it, or name the column of times with --time"
            )
        return found.as_unit("ns")


def writing_of(cells: pd.Series, is_named: bool, form: str | None, what: str) -> Writing | None:
    """Tell how the times of a column are written, by as many of its cells as are at hand.

    Args:
        cells: of the column.
        is_named: whether its name says that it holds times: then a cell or two may be none, and
            numbers need not look like times in any other way.
        form: of the times, as ``strptime`` has it, where the user says so.
        what: the column, for messages.

    Returns:
        None where it holds no times.

    Raises:
        UsageError: the cells may be one time or another.
    """
    if not is_text(cells):
        kind = getattr(cells.dtype, "kind", "")
        if kind == "M":
            return Writing("", True, lambda given: given)
        return None if kind == "m" else _of_numbers(cells.dropna(), is_named)
    words = _words(cells)
    words = words[~words.str.lower().isin(GAPS)]
    if words.empty:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form is not None:
            given = _of_form(form, zoned="%z" in form)
            return given if _most(given, words) else None
        numbers = pd.to_numeric(words, errors="coerce")
        if 2 * numbers.notna().sum() > len(words):
            return _of_numbers(numbers.dropna(), is_named)
        return next((each for each in _of_text(words, what) if _most(each, words)), None)


def _words(cells: pd.Series) -> pd.Series:
    return cells.dropna().astype(str).str.strip()


def _most(writing: Writing, words: pd.Series) -> bool:
    return 2 * int(pd.DatetimeIndex(writing.parse(words)).notna().sum()) > len(words)


def _of_text(words: pd.Series, what: str) -> Iterator[Writing]:
    """The ways in which text may be written, likely ones first."""
    zoned = words.str.contains(_ZONE)
    if zoned.any() and not zoned.all():
        one, other = words[zoned].iloc[0], words[~zoned].iloc[0]
        if _most(_of_form("ISO8601", zoned=True), words):
            raise UsageError(
                f"{what} has times with a time zone and times without, {one!r} and {other!r}: "
                "write all of them alike"
            )
    yield _of_form("ISO8601", zoned=bool(zoned.all()))
    parts = words.str.extract(_DAY_OR_MONTH)
    parts = parts[parts[0].notna()]
    if 2 * len(parts) > len(words):
        yield _of_days_and_months(parts, words, what)
    guess = pd.tseries.api.guess_datetime_format(words.iloc[0])
    if guess is not None and re.search("%[bB]", guess):
        yield _of_form(guess, zoned="%z" in guess)
    if words.str.fullmatch(_QUARTER).mean() > 0.5:
        yield Writing("quarters", True, _quarters)


def _of_form(form: str, zoned: bool) -> Writing:
    def parse(given: pd.Series) -> Any:
        words = given.astype(str).str.strip()
        if not zoned:
            # pandas would take no notice of a zone that some of them have.
            words = words.mask(words.str.contains(_ZONE))
        found = pd.to_datetime(words, format=form, utc=True, errors="coerce")
        return found if zoned else found.dt.tz_localize(None)

    return Writing("" if form == "ISO8601" else form, True, parse)


def _of_days_and_months(parts: pd.DataFrame, words: pd.Series, what: str) -> Writing:
    """Which of two numbers is the day: for all cells, by those in which one exceeds 12."""
    first, second = (pd.to_numeric(parts[place]) for place in (0, 2))
    mark, year = parts[1].iloc[0], "%Y" if parts[3].iloc[0][2:] else "%y"
    day_first, month_first = bool((first > 12).any()), bool((second > 12).any())
    example = words[parts.index[0]]
    if day_first and month_first:
        one, other = words[first[first > 12].index[0]], words[second[second > 12].index[0]]
        raise UsageError(
            f"{what} has days before months and months before days, {one!r} and {other!r}: "
            "write all of them alike, best as 2024-12-31"
        )
    # Nobody writes dots after months.
    if not day_first and not month_first and mark != ".":
        forms = [f"%d{mark}%m{mark}{year}", f"%m{mark}%d{mark}{year}"]
        raise UsageError(
            f"{what}: no day is above 12, so {example!r} may be day or month first: say which, "
            f"with --time-format {forms[0]!r} or {forms[1]!r}, followed by what stands after it"
        )
    date = f"%m{mark}%d" if month_first else f"%d{mark}%m"
    zone = "%z" if words.str.contains(_ZONE).all() else ""
    clocks = [f"{date}{mark}{year}{f' {clock}{zone}' if clock else ''}" for clock in _CLOCKS]
    # Midnight is often left out, and the rest of the form is there in other rows.
    forms = [form for form in clocks if _in_one_of(words, [form], zone).notna().any()]
    return Writing(forms[-1] if forms else date, True, lambda given: _in_one_of(given, forms, zone))


def _in_one_of(given: pd.Series, forms: Sequence[str], zone: str) -> pd.Series:
    cells = given.astype(str).str.strip().str.replace(r"(?<=\d)(T|,? +)(?=\d)", " ", regex=True)
    found = pd.Series(pd.NaT, cells.index, dtype=f"datetime64[ns{', UTC' if zone else ''}]")
    for form in forms:
        found = found.fillna(pd.to_datetime(cells, format=form, errors="coerce", utc=bool(zone)))
    return found


def _quarters(given: pd.Series) -> Any:
    words = given.astype(str).str.strip()
    good = words.str.fullmatch(_QUARTER)
    plain = words.str.replace(r"[ -]?[qQ]", "Q", regex=True).where(good)
    return pd.PeriodIndex(plain, freq="Q").to_timestamp()


def _of_numbers(numbers: pd.Series, is_named: bool) -> Writing | None:
    """Dates as 20240131, months as 202401, years; seconds since 1970, or their thousandths,
    millionths or billionths; or a count of steps."""
    values = numbers.to_numpy(float)
    if not len(values) or not np.isfinite(values).all():
        return None
    is_whole, counts = bool((values == np.floor(values)).all()), _counts(values)
    low, high = float(values.min()), float(values.max())
    for form, unit in (("%Y%m%d", 10_000), ("%Y%m", 100), ("%Y", 1)):
        if is_whole and _YEARS[0] * unit <= low and high < (_YEARS[1] + 1) * unit:
            writing = _of_digits(form)
            if (unit > 1 or counts) and not pd.isna(writing.parse(numbers)).any():
                return writing
    if low >= _EPOCHS[0][1] and (counts or is_named):
        return _since_1970(next(unit for unit, least in reversed(_EPOCHS) if high >= least))
    if is_named and is_whole and counts:
        return Writing("a count of steps", False, _since_1970("s").parse)
    return None


def _counts(values: Any) -> bool:
    """Whether numbers grow by the same step for the most part, as they stand or when sorted."""
    for ordered in (values, np.sort(values)):
        steps, numbers = np.unique(np.diff(ordered), return_counts=True)
        # Sorted values lie densely if they are many of a few: then some are alike.
        if len(steps) and steps[numbers.argmax()] > 0 and 2 * numbers.max() >= len(values) - 1:
            return True
    return False


def _of_digits(form: str) -> Writing:
    def parse(given: pd.Series) -> Any:
        digits = pd.to_numeric(given, errors="coerce").map("{:.0f}".format)
        return pd.to_datetime(digits, format=form, errors="coerce")

    return Writing(form, True, parse)


def _since_1970(unit: str) -> Writing:
    def parse(given: pd.Series) -> Any:
        numbers = pd.to_numeric(given, errors="coerce")
        return pd.to_datetime(numbers, unit=unit, errors="coerce")

    names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    return Writing(f"{names[unit]} since 1970", True, parse)

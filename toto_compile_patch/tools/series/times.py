"""Columns of times: how their cells are written, told by all of them and not by each for itself.

A day shall not be taken for a month in one row, and for a day in another.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.notation import NUMBER_WITH_A_UNIT, is_text, words_of
from toto_compile_patch.tools.series.numeric_times import may_be_times as numbers_may_be_times
from toto_compile_patch.tools.series.numeric_times import writing_of_numbers
from toto_compile_patch.tools.series.writing import Writing

_CLOCKS = (
    *("", "%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I %p"),
    *("%H.%M", "%H.%M.%S"),
)
_DATES = (
    *("%Y/%m/%d", "%Y-%m-%d", "%Y.%m.%d", "%Y. %m. %d."),
    *("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%d %b %y", "%d. %B %Y"),
    *("%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%a %b %d %Y", "%a, %d %b %Y"),
)
_MONTHS = (
    *("%b %Y", "%B %Y", "%b-%Y", "%b-%y", "%b %y", "%Y-%b", "%Y %b", "%Y %B"),
    *("%m/%Y", "%m-%Y", "%YM%m", "%Y M%m", "%Y-M%m"),
)
_MONTH_AND_YEAR = {
    "%m.%Y": r"(0?[1-9]|1[0-2])\.(18|19|20|21)\d\d",
    "%m,%Y": r"(0?[1-9]|1[0-2]),(18|19|20|21)\d\d",
    "%Y.%m": r"(18|19|20|21)\d\d\.(0[1-9]|1[0-2])",
    "%Y,%m": r"(18|19|20|21)\d\d,(0[1-9]|1[0-2])",
}
"""Months that may be taken for numbers with decimals."""

_BEGINS_AS_A_DATE = re.compile(r"\d{1,4}([./ -])\d{1,2}\1(?:\d{1,4}\b.*)?")
_DECIMAL_COMMA = re.compile(r"^\s*(\d+),(\d+)\s*$")
_THREE_NUMBERS = re.compile(r"(\d{1,2})([./ -])(\d{1,2})\2(\d{4}|\d{2})(?:[T ,].*)?")
_ZONE = re.compile(r":\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d(?::?\d\d)?)$", re.IGNORECASE)
_OFFSET = re.compile(r"([+-]\d\d(?::?\d\d)?)$")
_QUARTER = re.compile(r"(?:(\d{4})[ -]?Q([1-4])|Q([1-4])[ -/]?(\d{4}))", re.IGNORECASE)
_MONTH_OR_QUARTER = re.compile(r"(\d{4})[-/ ]([1-4])")
_WEEK = re.compile(r"(\d{4})-?W(\d\d)", re.IGNORECASE)
_INTERVAL = re.compile(r"(\d\S*(?: \S+)?) - \d.*|(\d{4}-\d\d-\d\d)/\d{4}-\d\d-\d\d")

_MOST = 0.9
"""The share of its cells that differ in a column that may hold times."""

_MONTHS_IN_DOUBT = 5
"""In so many rows, months would reach May."""

_YEARS_AHEAD = 20
"""A year of two figures that lies further ahead than this may be one of the last century."""


def writing_of(
    cells: pd.Series, name: str, form: str | None, what: str, is_told: bool
) -> Writing | None:
    """Tell how the times of a column are written, by as many of its cells as are at hand.

    Args:
        cells: of the column.
        name: of the column: numbers are taken for times more readily if it says so.
        form: of the times, as ``strptime`` has it, where the user says so.
        what: the column, for messages.
        is_told: whether the user says that the column holds times.

    Returns:
        None where it holds no times.

    Raises:
        UsageError: the cells may be one time or another.
    """
    if getattr(cells.dtype, "kind", "") == "M":
        return Writing("", True, lambda given: given)
    with warnings.catch_warnings():
        # What pandas warns of here ends as an error that names the row.
        warnings.simplefilter("ignore")
        words = words_of(cells) if is_text(cells) else cells.dropna()
        if words.empty:
            return None
        if len(words) > 1 and words.nunique() == 1:
            # The same for all rows.
            return None
        if form is not None:
            given = _of_given_form(form)
            return given if _most(given, words) else None
        if is_text(cells) and (month := _month_and_year(words)):
            return _of_form(month, zoned=False)
        numbers = _numbers(words)
        if 2 * numbers.notna().sum() > len(words):
            found = writing_of_numbers(numbers.dropna(), name, is_told)
            return found and replace(found, parse=lambda given: found.parse(_numbers(given)))
        return next((each for each in _of_text(words, what) if _most(each, words)), None)


def check_format(form: str | None) -> None:
    """Whether a form of times is one.

    Raises:
        UsageError: it is none, or names no year.
    """
    if form is None:
        return
    cure = "write it as strptime has it, such as %d.%m.%Y or %Y-%m-%d %H:%M"
    if not re.search("%[YyGcx]", form):
        raise UsageError(f"--time-format {form!r} names no year: {cure}")
    try:
        pd.to_datetime(pd.Series(["x"]), format=form, errors="coerce")
    except (ValueError, re.error):
        raise UsageError(f"--time-format {form!r} is no form of times: {cure}") from None


def may_be_times(cells: pd.Series) -> bool:
    """Whether a column looks as if it held times, however they are written: numbers that go on as
    times do, or text whose cells differ for the most part, all hold figures and are no numbers."""
    if getattr(cells.dtype, "kind", "") in "mMb":
        return False
    words = words_of(cells) if is_text(cells) else cells.dropna()
    numbers = _numbers(words)
    if numbers.notna().all() or not is_text(cells):
        return numbers_may_be_times(numbers)
    if len(words) < 2 or not words.str.contains(r"\d").all():
        return False
    if 2 * words.str.fullmatch(_BEGINS_AS_A_DATE).sum() > len(words):
        # A day without its year comes again.
        return bool((words != words.shift()).mean() > _MOST)
    are_numbers = 2 * words.str.fullmatch(NUMBER_WITH_A_UNIT).sum() >= len(words)
    return words.nunique() > _MOST * len(words) and not are_numbers


def are_numbers(cells: pd.Series) -> bool:
    """Whether some cells of a column are numbers, so that other numbers may be times."""
    return bool(_numbers(words_of(cells) if is_text(cells) else cells).notna().any())


def first_unlike(form: str, cells: pd.Series) -> tuple[int, str] | None:
    """The first cell of a column that says something and is no time of a form, and its data row;
    None where there is no such cell."""
    words = words_of(cells)
    unlike = words[pd.isna(_of_given_form(form).parse(words))]
    return None if unlike.empty else (int(unlike.index[0]) + 1, str(unlike.iloc[0]))


def _most(writing: Writing, words: pd.Series) -> bool:
    return 2 * int(pd.isna(writing.parse(words)).sum()) < len(words)


def _of_given_form(form: str) -> Writing:
    def parse(given: pd.Series) -> pd.Series:
        # As spreadsheets and pandas write whole numbers beside gaps.
        words = given.astype(str).str.strip().str.replace(r"^(\d+)\.0$", r"\1", regex=True)
        found = pd.to_datetime(words, format=form, utc=True, errors="coerce")
        return found if "%z" in form else found.dt.tz_localize(None)

    return Writing(form, True, parse)


def _plain(given: pd.Series) -> pd.Series:
    """Cells without what does not belong to a time: of intervals the beginning, one space in
    place of several, and zones that need no name as an offset."""
    words = given.astype(str).str.strip()
    words = words.str.replace(_INTERVAL, lambda found: found[1] or found[2], regex=True)
    words = words.str.replace(r"\s+", " ", regex=True)
    return words.str.replace(r"(:\d\d(?:\.\d+)?) ?(?:UTC|GMT)$", r"\1Z", regex=True)


def _of_text(words: pd.Series, what: str) -> Iterator[Writing]:
    """The ways in which text may be written, likely ones first."""
    words = _plain(words)
    zoned = words.str.contains(_ZONE)
    if zoned.any() and not zoned.all():
        one, other = words[zoned].iloc[0], words[~zoned].iloc[0]
        read = pd.to_datetime(words, format="ISO8601", utc=True, errors="coerce")
        if read.notna().mean() > 0.5:
            raise UsageError(
                f"{what} has times with a time zone and times without, {one!r} and {other!r}: "
                "write all of them alike"
            )
    if zoned.all() and (local := _of_local_days(words)) is not None:
        yield local
    _check_months_or_quarters(words, what)
    yield _of_form("ISO8601", zoned=bool(zoned.all()))
    parts = words.str.extract(f"^{_THREE_NUMBERS.pattern}$").dropna()
    if 2 * len(parts) > len(words):
        yield _of_three_numbers(parts, words, bool(zoned.all()), what)
        return
    for date in _DATES:
        if forms := _forms(date, words, bool(zoned.all())):
            yield _checked(_of_forms(forms, bool(zoned.all())), words, what)
    for form in _MONTHS:
        writing = _of_form(form, zoned=False)
        if _most(writing, words) and not _are_days(writing.parse(words)):
            yield _checked(writing, words, what)
    if words.str.fullmatch(_QUARTER).mean() > 0.5:
        yield Writing("quarters", True, _quarters)
    if words.str.fullmatch(_WEEK).mean() > 0.5:
        yield Writing("weeks", True, _weeks)


def _numbers(words: pd.Series) -> pd.Series:
    """Numbers, with decimal dots or commas; NaN where a cell is none."""
    if is_text(words):
        words = words.astype(str).str.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    return pd.to_numeric(words, errors="coerce")


def _month_and_year(words: pd.Series) -> str | None:
    """The form in which what may be numbers are months: they go on from month to month or from
    quarter to quarter, or have a 0 before the month."""
    words = words.astype(str)
    for form, pattern in _MONTH_AND_YEAR.items():
        if not words.str.fullmatch(pattern).all():
            continue
        times = pd.to_datetime(words, format=form)
        steps, counts = np.unique(np.diff(times.dt.year * 12 + times.dt.month), return_counts=True)
        if words.str.startswith("0").any():
            return form
        if len(steps) and 2 * counts.max() >= len(words) - 1:
            return form if abs(steps[counts.argmax()]) in (1, 3) else None
    return None


def _are_days(times: pd.Series) -> bool:
    """Whether years of two figures are days of a month: from row to row they change, and not the
    month."""
    years = np.abs(np.diff(times.dropna().dt.year))
    return len(years) > 0 and float(np.median(years)) >= 1 and times.dt.month.nunique() > 1


def _checked(writing: Writing, words: pd.Series, what: str) -> Writing:
    if "%y" in writing.words:
        _check_century(writing.parse(words), words, what)
    return writing


def _of_form(form: str, zoned: bool) -> Writing:
    words = "" if form == "ISO8601" else form
    return Writing(words, True, lambda given: _parsed(_plain(given), form, zoned))


def _of_local_days(words: pd.Series) -> Writing | None:
    """Of times with offsets that differ, and one time of day: days, months, ... of a place."""

    def local(given: pd.Series) -> pd.Series:
        plain = _plain(given)
        without = plain.where(plain.str.contains(_ZONE)).str.replace(_OFFSET, "", regex=True)
        return pd.to_datetime(without, format="ISO8601", errors="coerce")

    times = local(words)
    offsets = words.str.extract(_OFFSET, expand=False)
    one_clock = (times.dt.normalize() + (times.iloc[0] - times.iloc[0].normalize()) == times).all()
    if offsets.nunique() < 2 or not one_clock:
        return None
    return Writing("days of a place, without their offsets", True, local)


def _parsed(words: pd.Series, form: str, zoned: bool) -> pd.Series:
    # pandas would take no notice of a zone, or of its lack, where it is told to read both.
    has_zone = words.str.contains(_ZONE)
    if form == "ISO8601" or "%z" in form:
        words = words.where(has_zone == zoned)
    found = pd.to_datetime(words, format=form, utc=True, errors="coerce")
    return found if zoned else found.dt.tz_localize(None)


def _forms(date: str, words: pd.Series, zoned: bool) -> list[str]:
    """The forms of a date, followed by a time of day or not, in which there is a cell."""
    zone = "%z" if zoned else ""
    forms = [f"{date} {clock}{zone}" if clock else date for clock in _CLOCKS]
    return [form for form in forms if _in_one_of(words, [form], zoned).notna().any()]


def _of_forms(forms: Sequence[str], zoned: bool) -> Writing:
    # Midnight is often left out, and the rest of the form is there in other rows.
    return Writing(forms[-1], True, lambda given: _in_one_of(_plain(given), forms, zoned))


def _in_one_of(words: pd.Series, forms: Sequence[str], zoned: bool) -> pd.Series:
    words = words.str.replace(r"(?<=\d)(T|, ?)(?=\d)", " ", regex=True)
    found = pd.Series(pd.NaT, words.index, dtype=f"datetime64[ns{', UTC' if zoned else ''}]")
    for form in forms:
        found = found.fillna(pd.to_datetime(words, format=form, errors="coerce", utc=zoned))
    return found


def _of_three_numbers(parts: pd.DataFrame, words: pd.Series, zoned: bool, what: str) -> Writing:
    """Which of three numbers is the day: for all cells, by those in which it can be no other."""
    mark, is_short = parts[1].iloc[0], len(parts[3].iloc[0]) == 2
    year = "%y" if is_short else "%Y"
    orders = [("%d", "%m", year), ("%m", "%d", year), *([("%y", "%m", "%d")] if is_short else [])]
    found = {}
    for order in orders:
        if forms := _forms(mark.join(order), words, zoned):
            found[order] = forms, _in_one_of(words[parts.index], forms, zoned)
    complete = {order: one for order, one in found.items() if one[1].notna().all()}
    if not complete:
        _check_one_order(parts, words, what)
        # Cells that are no times are named when they are read.
        most = max((one[1].notna().sum() for one in found.values()), default=0)
        complete = {order: one for order, one in found.items() if one[1].notna().sum() == most}
    found = complete
    if len(found) > 1:
        found = _in_order(found) or found
    if len(found) > 1 and mark == "." and orders[0] in found:
        # Nobody writes dots after months, and few after years of two figures.
        found = {orders[0]: found[orders[0]]}
    if len(found) > 1:
        either = " or ".join(repr(each[-1]) for each, _ in found.values())
        raise UsageError(
            f"{what}: {words.iloc[0]!r} and all others may be read in more than one way: say which "
            f"with --time-format {either}"
        )
    nothing = [mark.join(orders[0])], pd.Series(dtype="M8[ns]")
    forms, times = next(iter(found.values()), nothing)
    if is_short:
        _check_century(times, words, what)
    return _of_forms(forms, zoned)


def _check_one_order(parts: pd.DataFrame, words: pd.Series, what: str) -> None:
    first, second = (pd.to_numeric(parts[place]) for place in (0, 2))
    if (first > 12).any() and (second > 12).any():
        one, other = (words[part[part > 12].index[0]] for part in (first, second))
        raise UsageError(
            f"{what} has days before months and months before days, {one!r} and {other!r}: write "
            "all of them alike, best as 2024-12-31"
        )


def _in_order(found: dict[Any, Any]) -> dict[Any, Any]:
    """Those ways of reading in which times only rise, or only fall."""
    kept = {}
    for order, one in found.items():
        steps = np.diff(one[1].dropna().astype("int64"))
        if (steps >= 0).all() or (steps <= 0).all():
            kept[order] = one
    return kept


def _check_century(times: pd.Series, words: pd.Series, what: str) -> None:
    ahead = times.dt.year > datetime.date.today().year + _YEARS_AHEAD
    if ahead.any():
        raise UsageError(
            f"{what}: the years of {words[ahead[ahead].index[0]]!r} and others may be of this "
            "century or of the last: write them with four figures"
        )


def _check_months_or_quarters(words: pd.Series, what: str) -> None:
    parts = words.str.extract(f"^{_MONTH_OR_QUARTER.pattern}$").dropna()
    if len(parts) < len(words) or len(words) < _MONTHS_IN_DOUBT:
        return
    quarters = pd.to_numeric(parts[0]) * 4 + pd.to_numeric(parts[1])
    if 2 * (np.abs(np.diff(quarters)) == 1).sum() >= len(words) - 1:
        raise UsageError(
            f"{what}: {words.iloc[0]!r} and all others may be quarters or months: write them as "
            "2024-Q1 or as 2024-01"
        )


def _quarters(given: pd.Series) -> pd.Series:
    parts = given.astype(str).str.strip().str.extract(f"^{_QUARTER.pattern}$", re.IGNORECASE)
    years, quarters = parts[0].fillna(parts[3]), parts[1].fillna(parts[2])
    months = pd.to_numeric(quarters, errors="coerce") * 3 - 2
    return pd.to_datetime(years + months.map("-{:.0f}".format), format="%Y-%m", errors="coerce")


def _weeks(given: pd.Series) -> pd.Series:
    parts = given.astype(str).str.strip().str.extract(f"^{_WEEK.pattern}$", re.IGNORECASE)
    return pd.to_datetime(parts[0] + parts[1] + "1", format="%G%V%u", errors="coerce")

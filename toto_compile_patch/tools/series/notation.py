"""How the numbers of a column are written: which mark stands before the decimals, and which
between thousands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.checks import UsageError

Doubles = npt.NDArray[np.float64]

GAPS = frozenset(
    (
        *("", "na", "n/a", "n.a.", "#n/a", "nan", "-nan", "<na>", "null", "none", "\\n"),
        *("missing", "unavailable", "unknown", "-", "--", "---", ".", "..", "?"),
        *("#value!", "#ref!", "#div/0!"),
    )
)
"""What a cell of a CSV file says, in lower case, where there is no number."""

_SPACES = " \u00a0\u202f'\u2019"
"""Marks that stand between thousands, and nowhere else in a number."""

_SIGN, _EXPONENT = r"[-+\u2212]?", r"([eE][-+]?\d+)?"
_NUMBER = re.compile(rf"{_SIGN}[\d.,{_SPACES}]*\d[\d.,{_SPACES}]*{_EXPONENT}")
NUMBER_WITH_A_UNIT = re.compile(r"[^\w\s]{0,2}\s?[-+]?\d[\d.,' ]*\s?[^\d\s]{0,6}")
_ONE_MARK = re.compile(rf"{_SIGN}(\d*)([.,])(\d*){_EXPONENT}")
_DOUBTFUL = re.compile(rf"\s*{_SIGN}[1-9]\d{{0,2}}[.,]\d{{3}}\s*")
_GROUPS = re.compile(rf"{_SIGN}\d{{1,3}}(?:([.,])\d{{3}})(?:\1\d{{3}})*(?:([.,])\d*)?{_EXPONENT}")


@dataclass(frozen=True)
class Notation:
    """How numbers are written in a column.

    Attributes:
        decimal: the mark before the decimals.
        is_settled: whether there was a mark to tell it by.
        is_grouped: whether marks stand between thousands.
    """

    decimal: str = "."
    is_settled: bool = True
    is_grouped: bool = False

    @property
    def told(self) -> str:
        """What of it is not what most files have, in words."""
        if self.decimal == ",":
            return "decimal commas"
        return "marks between thousands" if self.is_grouped else ""

    def numbers(self, cells: pd.Series) -> Doubles:
        """Numbers, NaN where a cell holds none, or one that may be read in two ways."""
        if not is_text(cells):
            return _parsed(cells)
        if self.decimal == ",":
            return _parsed(self._cleaned(cells))
        numbers = _parsed(cells)
        empty = np.isnan(numbers)
        if empty.any():
            numbers[empty] = _parsed(self._cleaned(cells[empty]))
        if not self.is_settled:
            doubtful = cells.astype(str).str.fullmatch(_DOUBTFUL)
            numbers[doubtful.to_numpy()] = np.nan
        return numbers

    def _cleaned(self, cells: pd.Series) -> pd.Series:
        """Cells that are numbers, as Python writes them."""
        words = cells.astype(str).str.strip()
        grouping = ("." if self.decimal == "," else ",") + _SPACES
        whole = rf"{_SIGN}(\d{{1,3}}([{grouping}]\d{{3}})+|\d*)"
        good = words.str.fullmatch(rf"{whole}({re.escape(self.decimal)}\d*)?{_EXPONENT}")
        clean = words.str.replace(rf"[{grouping}]", "", regex=True)
        return clean.str.replace(self.decimal, ".").str.replace("\u2212", "-").where(good)


def _parsed(cells: pd.Series) -> Doubles:
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float, na_value=np.nan)
    return np.array(numbers, float)


_GLANCE = 64
"""Cells that are looked at before all are."""

_CLOCK = re.compile(r"([01]?\d|2[0-3])[.,][0-5]\d")
_MOST_JUDGED = 20_000
"""Cells by which the notation of a column is told."""


def is_text(cells: pd.Series) -> bool:
    """Whether a column may hold text, and not numbers or times alone."""
    return not (pd.api.types.is_numeric_dtype(cells) or getattr(cells.dtype, "kind", "") in "mM")


def words_of(cells: pd.Series) -> pd.Series:
    """The cells of a column of text that say something, without space around them."""
    words = cells.dropna().astype(str).str.strip()
    return words[~words.str.lower().isin(GAPS)]


def notation_of(
    cells: pd.Series,
    asked: str | None,
    siblings: Callable[[], set[str]],
    has_doubt: bool,
    what: str,
) -> Notation:
    """Tell how the numbers of a column are written.

    Args:
        cells: of the column.
        asked: the decimal mark, where the user says which it is.
        siblings: the decimal marks that columns of the file prove, asked where this one proves
            none.
        has_doubt: whether dots may stand between thousands, as is the custom of such files.
        what: the column, for messages.

    Raises:
        UsageError: they are written in two ways, or may mean one number or another.
    """
    if not is_text(cells) or (asked is None and _are_plainly_dots(cells)):
        return Notation()
    words = words_of(cells)
    words = words[words.str.fullmatch(_NUMBER)]
    is_grouped = bool(words.str.contains(rf"[,{_SPACES}]").any())
    if asked is not None:
        return Notation(asked, is_grouped=is_grouped)
    marked = words[words.str.contains("[.,]")].unique()[:_MOST_JUDGED]
    proven, doubtful = _decimals_in(marked)
    if len(proven) > 1:
        raise UsageError(
            f"{what} has numbers written in two ways, {proven[',']!r} and {proven['.']!r}: "
            "write all of them alike, or say with --decimal which mark stands before the decimals"
        )
    if proven or not doubtful:
        return Notation(next(iter(proven), "."), bool(len(marked)), is_grouped)
    if len(others := siblings()) == 1:
        return Notation(next(iter(others)), is_grouped=is_grouped)
    # Three figures after a dot are decimals where nothing speaks for thousands.
    has_whole = len(marked) < words.nunique()
    if "," in doubtful or has_doubt or has_whole:
        raise UsageError(why_doubtful(doubtful.get(",") or doubtful["."], what))
    return Notation(is_grouped=is_grouped)


def why_doubtful(cell: str, what: str) -> str:
    """Why a number may be one or another, and what to do."""
    without = re.sub(r"[.,]", "", cell)
    return (
        f"{what}: {cell!r} may be {without} or {cell.replace(',', '.')}: say which mark stands "
        "before the decimals, --decimal . or --decimal ,"
    )


def is_doubtful(cell: str) -> bool:
    """Whether a number may have three decimals as well as thousands."""
    return bool(_DOUBTFUL.fullmatch(cell))


def _are_plainly_dots(cells: pd.Series) -> bool:
    """Whether all cells but gaps are numbers as Python writes them, and some of the first prove
    what their dots are: of most files in little time."""
    numbers = pd.to_numeric(cells, errors="coerce")
    if not cells[numbers.isna()].astype(str).str.strip().str.lower().isin(GAPS).all():
        return False
    with_dots = cells[cells.str.contains(".", regex=False, na=False)].head(_GLANCE)
    return "." in _decimals_in(with_dots.str.strip())[0]


def proven_decimals(cells: pd.Series) -> set[str]:
    """The decimal marks of a column's numbers, beyond doubt."""
    if not is_text(cells):
        return set()
    words = words_of(cells)
    numbers = words[words.str.fullmatch(_NUMBER)]
    marked = numbers[numbers.str.contains("[.,]")].unique()[:_MOST_JUDGED]
    is_clock = len(marked) > 0 and all(map(_CLOCK.fullmatch, marked))
    if 2 * len(numbers) <= len(words) or is_clock:
        return set()
    return set(_decimals_in(marked)[0])


def _decimals_in(cells: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """By decimal mark: a cell that proves it; by mark: a cell that may be read in two ways."""
    proven: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    other = {".": ",", ",": "."}
    for cell in cells:
        word = re.sub(rf"[{_SPACES}]", "", cell)
        if alone := _ONE_MARK.fullmatch(word):
            before, mark, after = alone[1], alone[2], alone[3]
            if not alone[4] and len(after) == 3 and 1 <= len(before) <= 3 and before[0] != "0":
                doubtful.setdefault(mark, cell)
            else:
                proven.setdefault(mark, cell)
        elif (groups := _GROUPS.fullmatch(word)) and groups[2] != groups[1]:
            proven.setdefault(other[groups[1]], cell)
    return proven, doubtful

"""How numbers are written: which mark stands before the decimals, and which between thousands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.checks import UsageError

Doubles = npt.NDArray[np.float64]

GAPS = frozenset(
    ("", "na", "n/a", "#n/a", "nan", "-nan", "<na>", "null", "none", "missing", "-", ".", "?")
)
"""What a cell of a CSV file says, in lower case, where there is no number."""

_SPACES = " \u00a0\u202f'\u2019"
"""Marks that stand between thousands, and nowhere else in a number."""

_SIGN, _EXPONENT = r"[-+\u2212]?", r"([eE][-+]?\d+)?"
_NUMBER = re.compile(rf"{_SIGN}[\d.,{_SPACES}]*\d[\d.,{_SPACES}]*{_EXPONENT}")
_ONE_MARK = re.compile(rf"{_SIGN}(\d*)([.,])(\d*){_EXPONENT}")
_GROUPS = re.compile(rf"{_SIGN}\d{{1,3}}(?:([.,])\d{{3}})(?:\1\d{{3}})*(?:([.,])\d*)?{_EXPONENT}")


@dataclass(frozen=True)
class Notation:
    """How numbers are written in a file.

    Attributes:
        decimal: the mark before the decimals.
        is_plain: whether all numbers are written as Python writes them.
    """

    decimal: str = "."
    is_plain: bool = True

    @property
    def told(self) -> list[str]:
        """What of it is not what most files have, in words."""
        if self.decimal == ",":
            return ["decimal commas"]
        return [] if self.is_plain else ["marks between thousands"]

    def numbers(self, cells: pd.Series) -> Doubles:
        """Numbers, NaN where a cell holds none."""
        if not self.is_plain and is_text(cells):
            words = cells.astype(str).str.strip()
            grouping = ("." if self.decimal == "," else ",") + _SPACES
            whole = rf"{_SIGN}(\d{{1,3}}([{grouping}]\d{{3}})+|\d*)"
            good = words.str.fullmatch(rf"{whole}({re.escape(self.decimal)}\d*)?{_EXPONENT}")
            clean = words.str.replace(rf"[{grouping}]", "", regex=True)
            clean = clean.str.replace(self.decimal, ".").str.replace("\u2212", "-")
            cells = clean.where(good)
        return np.asarray(
            pd.to_numeric(cells, errors="coerce").to_numpy(float, na_value=np.nan), float
        )


def is_text(cells: pd.Series) -> bool:
    """Whether a column may hold text, and not numbers or times alone."""
    return not (pd.api.types.is_numeric_dtype(cells) or getattr(cells.dtype, "kind", "") in "mM")


def notation_of(table: pd.DataFrame, separator: str, asked: str | None, path: str) -> Notation:
    """Tell how numbers are written by those of a file.

    Args:
        table: some of its rows.
        separator: of its cells.
        asked: the decimal mark, where the user says which it is.
        path: of the file, for messages.

    Raises:
        UsageError: they are written in two ways, or may mean one number or another.
    """
    cells = [cell for name in table for cell in _marked(table[name])]
    grouped = any(re.search(rf"[,{_SPACES}]", cell) for cell in cells)
    if asked is not None:
        return Notation(asked, is_plain=asked == "." and not grouped)
    proven, doubtful = _decimals_in(cells)
    if len(proven) > 1:
        raise UsageError(
            f"{path} has numbers written in two ways, {proven[',']!r} and {proven['.']!r}: "
            "write all of them alike, or say with --decimal which mark stands before the decimals"
        )
    if proven:
        (decimal,) = proven
        return Notation(decimal, is_plain=decimal == "." and not grouped)
    # Dots are decimal points where nothing speaks for another custom.
    if "," in doubtful or ("." in doubtful and separator == ";"):
        cell = doubtful.get(",") or doubtful["."]
        without = re.sub(r"[.,]", "", cell)
        raise UsageError(
            f"{path}: {cell!r} may be {without} or {cell.replace(',', '.')}: say which mark stands "
            "before the decimals, --decimal . or --decimal ,"
        )
    return Notation(is_plain=not grouped)


def _marked(cells: pd.Series) -> Iterable[str]:
    """Numbers with marks in them, of a column that holds numbers for the most part."""
    if not is_text(cells):
        return []
    words = cells.dropna().astype(str).str.strip()
    words = words[~words.str.lower().isin(GAPS)]
    numbers = words[words.str.fullmatch(_NUMBER)]
    if 2 * len(numbers) <= len(words):
        return []
    found: Iterable[str] = numbers[numbers.str.contains(rf"[.,{_SPACES}]")].unique()
    return found


def _decimals_in(cells: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """By decimal mark: a cell that proves it; by mark: a cell that may be read in two ways."""
    proven: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    for cell in cells:
        word = re.sub(rf"[{_SPACES}]", "", cell)
        other = {".": ",", ",": "."}
        if alone := _ONE_MARK.fullmatch(word):
            before, mark, after = alone[1], alone[2], alone[3]
            if len(after) == 3 and 1 <= len(before) <= 3 and before[0] != "0":
                doubtful.setdefault(mark, cell)
            else:
                proven.setdefault(mark, cell)
        elif (groups := _GROUPS.fullmatch(word)) and groups[2] != groups[1]:
            proven.setdefault(other[groups[1]], cell)
    return proven, doubtful

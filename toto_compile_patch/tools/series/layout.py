"""Which column of a file is what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.notation import GAPS, Doubles, Notation, is_text, notation_of
from toto_compile_patch.tools.series.tables import Table, listed, sample
from toto_compile_patch.tools.series.times import Writing, writing_of

IDS = ("item_id", "unique_id", "series_id", "id")
TIMES = ("timestamp", "ds", "time", "datetime", "date", "ts", "epoch")
TARGETS = ("target", "y", "value")

_UNNAMED = re.compile(r"column \d+|Unnamed: \d+|index|__index_level_\d+__", re.IGNORECASE)


@dataclass(frozen=True)
class Wanted:
    """What the user says of a file; None and nothing: it is to be found out.

    Attributes:
        id: column that names the series.
        time: column of times.
        time_format: of the times, as ``strptime`` has it.
        decimal: mark before the decimals, a dot or a comma.
    """

    id: str | None = None
    time: str | None = None
    time_format: str | None = None
    decimal: str | None = None


class Layout:
    """What a file's columns hold, judged by its first rows.

    Args:
        table: the file.
        wanted: what the user says of it.

    Attributes:
        table: the file.
        first: those rows.
        notation: how numbers are written.
        id: column that names the series; None: there is none.
        guessed_id: whether that follows from its name alone.
        time: column that gives the times; None: there is none.
        writing: of the times; None: there are none.

    Raises:
        UsageError: the file cannot be read, or not in one way alone.
    """

    def __init__(self, table: Table, wanted: Wanted) -> None:
        self.table, self._wanted = table, wanted
        self.first = sample(table)
        if self.first.empty:
            raise UsageError(f"{table.path} has no rows: give a longer file")
        self.notation: Notation = notation_of(
            self.first, table.separator, wanted.decimal, table.path
        )
        self.time: str | None = None
        self.writing: Writing | None = None
        if found := self._find_times():
            self.time, self.writing = found
        self.guessed_id = wanted.id is None
        self.id = known(table.columns, IDS) if wanted.id is None else self.named("id", wanted.id)

    @property
    def told(self) -> list[str]:
        """What was found of its dialect, in words."""
        return [*self.table.told, *self.notation.told]

    def named(self, option: str, name: str) -> str:
        """A column's name, as given.

        Raises:
            UsageError: the file has no such column.
        """
        if name not in self.table.columns:
            raise UsageError(
                f"{self.table.path} has no column {name!r}: correct --{option}; it has "
                f"{listed(self.table.columns)}"
            )
        return name

    def numbers(self) -> list[str]:
        """The columns that hold numbers, for the most part; without times, ids and counts."""
        found = []
        for name in self.table.columns:
            cells = self.first[name]
            if name in (self.time, self.id) or self.is_count(name):
                continue
            if is_text(cells):
                cells = cells[~cells.astype(str).str.strip().str.lower().isin(GAPS)]
            known = ~pd.isna(self.notation.numbers(cells))
            if len(cells) == 0 or 2 * known.sum() > len(cells):
                found.append(name)
        return found

    def read_numbers(self, cells: pd.Series, rows: Sequence[int]) -> Doubles:
        """Numbers of a column, NaN in its gaps.

        Args:
            cells: of the column.
            rows: their data rows, counted from 1.

        Raises:
            UsageError: a cell is neither a number nor a gap.
        """
        column = f"column {cells.name!r} of {self.table.path}"
        if getattr(cells.dtype, "kind", "") in "mM":
            raise UsageError(f"{column} holds times: name another column")
        numbers = self.notation.numbers(cells)
        empty = np.isnan(numbers)
        if empty.any() and is_text(cells):
            left = cells[empty]
            words = left.astype(str).str.strip().str.lower()
            text = (left.notna() & ~words.isin(GAPS)).to_numpy()
            if text.any():
                at = int(text.argmax())
                raise UsageError(
                    f"{column}, data row {rows[int(np.flatnonzero(empty)[at])]}: "
                    f"{str(left.iloc[at])!r} is not a number: name another column, or leave the "
                    "cell empty if it is a gap"
                )
        return numbers

    def read_times(self, cells: pd.Series, rows: Sequence[int]) -> pd.DatetimeIndex:
        """Times of the column that gives them.

        Args:
            cells: of the column.
            rows: their data rows, counted from 1.

        Raises:
            UsageError: a cell is no time.
        """
        if self.writing is None:
            return pd.DatetimeIndex([])
        return self.writing.read(cells, rows, f"column {cells.name!r} of {self.table.path}")

    def is_count(self, name: str) -> bool:
        """Whether a column is an index of rows that some program wrote."""
        if not _UNNAMED.fullmatch(name):
            return False
        numbers = pd.to_numeric(self.first[name], errors="coerce")
        return bool((numbers.diff().dropna() == 1).all()) and len(numbers) > 1

    def _find_times(self) -> tuple[str, Writing] | None:
        asked = self._wanted.time
        if asked is not None:
            return self._times_of(self.named("time", asked), needed=True)
        names = [name for name in self.table.columns if name != self._wanted.id]
        well_known = [name for name in names if name.lower() in TIMES]
        for some in (well_known, [name for name in names if name not in well_known]):
            tried = (self._times_of(name, needed=False) for name in some)
            found = [times for times in tried if times is not None]
            found = [times for times in found if times[1].is_calendar] or found
            if len(found) > 1:
                both = listed([name for name, _ in found])
                raise UsageError(
                    f"{self.table.path} has several columns of times: {both}: name one with --time"
                )
            if found:
                return found[0]
        # A column that should hold them is not passed over without a word.
        name = known(self.table.columns, TIMES)
        return self._times_of(name, needed=True) if name and self._is_wordy(name) else None

    def _is_wordy(self, name: str) -> bool:
        cells = self.first[name]
        return is_text(cells) and bool(pd.to_numeric(cells, errors="coerce").isna().all())

    def _times_of(self, name: str, needed: bool) -> tuple[str, Writing] | None:
        what = f"column {name!r} of {self.table.path}"
        form, is_named = self._wanted.time_format, needed or name.lower() in TIMES
        writing = writing_of(self.first[name], is_named, form, what)
        if writing is not None:
            return name, writing
        if not needed:
            return None
        like = f" like {form}" if form else ""
        raise UsageError(
            f"{what} holds no times{like} (data row 1: {str(self.first[name].iloc[0])!r}): correct "
            "it, name another column with --time, or say how they are written with --time-format"
        )


def known(names: Sequence[str], among: Sequence[str]) -> str | None:
    """The first of some well-known names that a column has, in whatever case."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in among if name in by_lower), None)

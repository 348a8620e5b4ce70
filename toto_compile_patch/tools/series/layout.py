"""Which column of a file is what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.notation import (
    GAPS,
    NUMBER_WITH_A_UNIT,
    Doubles,
    Notation,
    is_doubtful,
    is_text,
    notation_of,
    proven_decimals,
    why_doubtful,
    words_of,
)
from toto_compile_patch.tools.series.numeric_times import is_called_times, names_times
from toto_compile_patch.tools.series.tables import Table, listed, sample
from toto_compile_patch.tools.series.times import (
    are_numbers,
    check_format,
    first_unlike,
    may_be_times,
    writing_of,
)
from toto_compile_patch.tools.series.writing import Writing

IDS = ("item_id", "unique_id", "series_id", "id")
TIMES = ("timestamp", "ds", "time", "datetime", "date")
TARGETS = ("target", "y", "value")

_GLANCE = 64
"""Cells of a column by which it is told that it holds no times."""

_INDEX = re.compile(r"column 1|Unnamed: 0|index|__index_level_\d+__", re.IGNORECASE)


@dataclass(frozen=True)
class Wanted:
    """What the user says of a file; None and nothing: it is to be found out.

    Attributes:
        id: column that names the series.
        time: column of times.
        time_format: of the times, as ``strptime`` has it.
        decimal: mark before the decimals, a dot or a comma.
        others: columns that are asked for by name, and so are neither ids nor times.
        each_is_a_series: whether every other column is one, so that none can be named.
    """

    id: str | None = None
    time: str | None = None
    time_format: str | None = None
    decimal: str | None = None
    others: tuple[str, ...] = ()
    each_is_a_series: bool = False


class Layout:
    """What a file's columns hold, judged by its first rows.

    Args:
        table: the file.
        wanted: what the user says of it.

    Attributes:
        table: the file.
        first: those rows.
        id: column that names the series; None: there is none.
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
        for option, name in (("id", wanted.id), ("time", wanted.time)):
            if name is not None:
                self.named(option, name)
        if wanted.id is not None and wanted.id == wanted.time:
            raise UsageError(f"column {wanted.id!r} cannot be both --id and --time: correct one")
        check_format(wanted.time_format)
        self.id = self._find_id() if wanted.id is None else wanted.id
        self.time: str | None = None
        self.writing: Writing | None = None
        if found := self._find_times():
            self.time, self.writing = found
        self._notations: dict[str, Notation] = {}
        self._decimals: set[str] | None = None

    def told(self, columns: Sequence[str]) -> list[str]:
        """What was found of the file's dialect and of columns of numbers, in words."""
        notations = (self._notations[name].told for name in columns if name in self._notations)
        return [*self.table.told, *dict.fromkeys(filter(None, notations))]

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

    def only_number(self, option: str, besides: Sequence[str] = ()) -> str:
        """The only column of numbers, beside times, ids, indices and some others.

        Args:
            option: by which the user names one.
            besides: the others.

        Raises:
            UsageError: there is none, or more than one, or another one nearly is.
        """
        names = [name for name in self.others() if name not in besides]
        found = [name for name in names if self._share_of_numbers(name) > 0.5]
        if len(found) > 1:
            # What is the same in all rows is nothing to forecast.
            found = [name for name in found if self.first[name].nunique() > 1] or found
        if len(found) > 1:
            each = ", once for each" if option == "column" else ""
            raise UsageError(
                f"{self.table.path}: name what to forecast with --{option}{each}: {listed(found)}"
            )
        for name in names:
            if name not in found and (cell := self._nearly_a_number(name)) is not None:
                raise UsageError(
                    f"column {name!r} of {self.table.path} holds cells that are no numbers, such "
                    f"as {cell!r}: write them as numbers alone, or name what to forecast with "
                    f"--{option}"
                )
        if not found:
            raise UsageError(
                f"{self.table.path} has no column of numbers to forecast; it has "
                f"{listed(self.table.columns)}: name one with --{option}"
            )
        return found[0]

    def is_index(self, name: str) -> bool:
        """Whether a column numbers rows, as programs write it beside a table."""
        if not _INDEX.fullmatch(name):
            return False
        numbers = pd.to_numeric(self.first[name], errors="coerce")
        return bool(numbers.is_unique and (numbers % 1 == 0).all())

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
            raise UsageError(f"{column} holds times: {self._instead}")
        notation = self._notation_of(str(cells.name), column)
        numbers = notation.numbers(cells)
        empty = np.isnan(numbers)
        if empty.any() and is_text(cells):
            left = cells[empty]
            words = left.astype(str).str.strip()
            text = (left.notna() & ~words.str.lower().isin(GAPS)).to_numpy()
            if text.any():
                at = int(text.argmax())
                cell, row = str(left.iloc[at]), rows[int(np.flatnonzero(empty)[at])]
                if is_doubtful(cell):
                    raise UsageError(why_doubtful(cell.strip(), f"{column}, data row {row}"))
                cure = self._cure(left[text], notation)
                raise UsageError(
                    f"{column}, data row {row}: {cell!r} is not a number: correct it, delete the "
                    f"row, leave the cell empty if it is a gap, or {cure}"
                )
        return numbers

    def _cure(self, cells: pd.Series, notation: Notation) -> str:
        """What else may be done about cells that are no numbers."""
        other = Notation("," if notation.decimal == "." else ".")
        if self._wanted.decimal and not np.isnan(other.numbers(cells)).any():
            return f"give --decimal {other.decimal}"
        return self._instead

    @property
    def _instead(self) -> str:
        """What to do without a column that is to be forecast, and cannot be."""
        if self._wanted.each_is_a_series:
            return "take this column out of the file"
        return "name another column"

    def read_ids(self, cells: pd.Series, rows: Sequence[int]) -> npt.NDArray[np.object_]:
        """Ids of series.

        Args:
            cells: of the column that gives them.
            rows: their data rows, counted from 1.

        Raises:
            UsageError: one is missing.
        """
        unknown = (cells.isna() | (cells.astype(str) == "")).to_numpy()
        if unknown.any():
            raise UsageError(
                f"column {cells.name!r} of {self.table.path}, data row "
                f"{rows[int(unknown.argmax())]}: the id of the series is missing: fill it in"
            )
        return cells.astype(str).to_numpy(object)

    def read_times(self, cells: pd.Series, rows: Sequence[int]) -> pd.DatetimeIndex:
        """Times of the column that gives them.

        Args:
            cells: of the column.
            rows: their data rows, counted from 1.

        Raises:
            UsageError: a cell is no time.
        """
        assert self.writing is not None
        return self.writing.read(cells, rows, f"column {cells.name!r} of {self.table.path}")

    def _notation_of(self, name: str, column: str) -> Notation:
        """How a column's numbers are written: told by the first rows, for all of them."""
        if name not in self._notations:
            german = self.writing is not None and self.writing.words.startswith("%d.%m.")
            has_doubt = self.table.separator == ";" or german
            self._notations[name] = notation_of(
                self.first[name], self._wanted.decimal, self._proven_decimals, has_doubt, column
            )
        return self._notations[name]

    def _proven_decimals(self) -> set[str]:
        if self._decimals is None:
            found = (proven_decimals(self.first[name]) for name in self.others())
            self._decimals = set[str]().union(*found)
        return self._decimals

    def others(self) -> Iterator[str]:
        """Columns that give neither times nor ids, and are no index."""
        for name in self.table.columns:
            is_id = name == self.id or name.lower() in IDS
            if name != self.time and not is_id and not self.is_index(name):
                yield name

    def _share_of_numbers(self, name: str) -> float:
        cells = self.first[name]
        if getattr(cells.dtype, "kind", "") in "mMb":
            return 0.0
        if not is_text(cells):
            return float(cells.notna().any())
        words = words_of(cells)
        if words.empty:
            return 0.0
        marks = r"^[-+\u2212]?[\d.,'\u2019\s\u00a0\u202f]*\d[\d.,]*(?:[eE][-+]?\d+)?$"
        return float(words.str.contains(marks).mean())

    def _nearly_a_number(self, name: str) -> str | None:
        """A cell of a column that holds numbers, were it not for a unit or a word."""
        cells = self.first[name]
        if not is_text(cells):
            return None
        words = words_of(cells)
        if words.empty:
            return None
        nearly = words[words.str.fullmatch(NUMBER_WITH_A_UNIT)]
        units = nearly.str.replace(r"[-+\d.,' ]", "", regex=True)
        share = units.value_counts(normalize=True).max() * len(nearly) / len(words)
        if 2 * share > 1 or 0.1 <= self._share_of_numbers(name) <= 0.5:
            others = words[pd.to_numeric(words, errors="coerce").isna()]
            return None if others.empty else str(others.iloc[0])
        return None

    def _find_id(self) -> str | None:
        """A column of a well-known name, if it does not name each row."""
        name = known(self.table.columns, IDS)
        if name is None or name in self._wanted.others or name == self._wanted.time:
            return None
        ids = self.first[name]
        return None if len(ids) > 1 and ids.is_unique else name

    def _find_times(self) -> tuple[str, Writing] | None:
        asked = self._wanted.time
        if asked is not None:
            return self._times_of(asked, needed=True)
        apart = (self.id, *self._wanted.others)
        names = [
            name for name in self.table.columns if name not in apart and name.lower() not in IDS
        ]
        well_known = [name for name in names if name.lower() in TIMES]
        if found := self._one_of(well_known):
            return found
        # One that should hold times is not passed over without a word.
        for name in well_known:
            if self._is_wordy(name):
                return self._times_of(name, needed=True)
        found = self._one_of([name for name in names if name not in well_known])
        if found is not None:
            return found
        for name in names:
            if name in well_known or self._looks_like_times(name):
                return self._times_of(name, needed=True)
        self._check_parts(names)
        if self._wanted.time_format is not None:
            raise UsageError(
                f"{self.table.path} has no column that is written as --time-format "
                f"{self._wanted.time_format} says: correct the format, or leave it out"
            )
        return None

    def _looks_like_times(self, name: str) -> bool:
        """Whether a column that could not be read as times may hold some: it is not the only one,
        and its name or the cells of the first series say so."""
        cells = self.first[name]
        if self.id is not None:
            ids = self.first[self.id]
            cells = cells[ids == ids.iloc[0]]
        return len(self.table.columns) > 1 and (is_called_times(name) or may_be_times(cells))

    def _check_parts(self, names: Sequence[str]) -> None:
        """Whether years, months, days stand in columns of their own.

        Raises:
            UsageError: they do.
        """
        parts = [name for name in names if names_times(name)]
        years = [name for name in parts if re.search("year|jahr|ann|yr|fy", name, re.IGNORECASE)]
        if years or len(parts) > 1:
            raise UsageError(
                f"{self.table.path} has times in parts ({listed(parts)}): write them as one "
                "column, such as 2024-01 or 2024-01-31 23:00"
            )

    def _one_of(self, names: Sequence[str]) -> tuple[str, Writing] | None:
        tried = (self._times_of(name, needed=False) for name in names)
        found = [times for times in tried if times is not None]
        found = [times for times in found if times[1].is_calendar] or found
        if len(found) > 1:
            both = listed([name for name, _ in found])
            raise UsageError(
                f"{self.table.path} has several columns of times: {both}: name one with --time"
            )
        return found[0] if found else None

    def _is_wordy(self, name: str) -> bool:
        cells = self.first[name]
        if not is_text(cells):
            return False
        words = words_of(cells)
        is_clock = bool(words.str.fullmatch(r"\d{1,2}:\d\d(:\d\d)?").all())
        return not is_clock and bool(pd.to_numeric(words, errors="coerce").isna().all())

    def _times_of(self, name: str, needed: bool) -> tuple[str, Writing] | None:
        what, form = f"column {name!r} of {self.table.path}", self._wanted.time_format
        cells = self.first[name]
        if not needed and self._are_no_times(cells.head(_GLANCE), name):
            return None
        writing = writing_of(cells, name, form, what, name == self._wanted.time)
        if writing is not None:
            return name, writing
        if not needed:
            return None
        if form is not None and (unlike := first_unlike(form, cells)):
            row, cell = unlike
            raise UsageError(
                f"{what}, data row {row}: {cell!r} is not written as --time-format {form} says: "
                "correct the format, or leave it out"
            )
        if not are_numbers(cells):
            raise UsageError(
                f"{what} holds no times that are known (data row 1: {str(cells.iloc[0])!r}): say "
                "how they are written with --time-format, as in %d.%m.%Y, name another column with "
                "--time, or leave this one out of the file"
            )
        given = f"(data row 1: {cells.iloc[0]})"
        if name == self._wanted.time or name.lower() in TIMES or names_times(name):
            raise UsageError(
                f"{what} holds numbers that are no times {given}: write them as dates, let them "
                "count from 0 or 1, say how they are written with --time-format, or name another "
                "column with --time"
            )
        raise UsageError(
            f"{what} holds numbers that may be times {given}: if so, say --time {name}, or how "
            "they are written with --time-format; if not, leave this column out of the file"
        )

    def _are_no_times(self, cells: pd.Series, name: str) -> bool:
        """Whether that is plain by a few cells: there may be ten thousand columns."""
        if cells.nunique() < 2:
            return False
        with suppress(UsageError):
            # An error may be of these cells alone.
            return writing_of(cells, name, self._wanted.time_format, "", is_told=False) is None
        return False


def known(names: Sequence[str], among: Sequence[str]) -> str | None:
    """The first of some well-known names that a column has, in whatever case."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in among if name in by_lower), None)

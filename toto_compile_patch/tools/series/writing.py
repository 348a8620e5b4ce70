"""How the times of a column are written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools.checks import UsageError

# That pandas' nanoseconds reach, in whole.
_FIRST, _LAST = pd.Timestamp("1678-01-01"), pd.Timestamp("2262-01-01")


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
            UsageError: a cell is no time.
        """
        with warnings.catch_warnings():
            # What pandas warns of here ends as an error that names the row.
            warnings.simplefilter("ignore")
            found = pd.DatetimeIndex(self.parse(cells))
        first, last = (bound.tz_localize(found.tz) for bound in (_FIRST, _LAST))
        unknown = ~np.asarray((found >= first) & (found < last))
        if unknown.any():
            at = int(unknown.argmax())
            like = f" written as {self.words}" if self.words else ""
            raise UsageError(
                f"{what}, data row {rows[at]}: {str(cells.iloc[at])!r} is not a time{like}: "
                "correct it, delete the row, or name the column of times with --time"
            )
        return found.as_unit("ns")

"""Rows in the order of their times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools.checks import UsageError


def in_order(times: pd.DatetimeIndex, values: Any, what: str) -> tuple[pd.DatetimeIndex, Any, bool]:
    """Sort by time.

    Args:
        times: of the rows.
        values: of the rows (``... rows``).
        what: the column or series, for messages.

    Returns:
        Both, sorted, and whether they stood in another order.

    Raises:
        UsageError: a time is there twice.
    """
    steps = np.diff(times.asi8)
    if (steps > 0).all():
        return times, values, False
    order = np.argsort(times.asi8, kind="stable")
    times = times[order]
    twice = np.diff(times.asi8) == 0
    if twice.any():
        raise UsageError(_why_twice(times, int(twice.argmax()), what))
    return times, values[..., order], True


def _why_twice(times: pd.DatetimeIndex, at: int, what: str) -> str:
    time = times[at]
    cure = "leave one of the rows"
    if (times.hour == 0).all() and (times.minute == 0).all():
        cure += ", or, if another column holds the time of day, write both as one column"
    elif times.tz is None and time.weekday() == 6 and time.hour <= 3:
        cure += ", or, if clocks went back then, write times with their offset from UTC"
    return f"{what}: {time} is there twice: {cure}; of several series, name their column with --id"

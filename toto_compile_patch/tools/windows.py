"""The windows of a rolling-origin backtest, cut from one series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.single import Floats, Series
from toto_compile_patch.tools.wording import counted

if TYPE_CHECKING:
    from toto.data.util.dataset import MaskedTimeseries


@dataclass(frozen=True)
class Shape:
    """How a backtest is cut: windows whose origins lie a horizon apart."""

    windows: int
    context: int
    horizon: int


@dataclass(frozen=True)
class Window:
    """One forecast to make, and what came true.

    Attributes:
        values: the context without gaps (``variate context``).
        observed: False where a value of the context stands in for a gap (``variate context``).
        seconds: time of each step of the context (``context``).
        interval: seconds between two steps.
        truth: what followed, NaN where nobody knows (``variate horizon``).
    """

    values: npt.NDArray[np.float32]
    observed: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.int64]
    interval: int
    truth: Floats

    @property
    def known(self) -> Floats:
        """The context, NaN in its gaps (``variate context``)."""
        return np.where(self.observed, self.values.astype(float), np.nan)

    def inputs(self) -> MaskedTimeseries:
        """The context as upstream takes it, ``variate series_len``, on the CPU."""
        # A file is cut without either of them.
        import torch

        from toto_compile_patch.tools.models import toto_ts

        series = torch.from_numpy(self.values)
        made: MaskedTimeseries = toto_ts().MaskedTimeseries(
            series=series,
            padding_mask=torch.from_numpy(self.observed),
            id_mask=torch.zeros_like(series, dtype=torch.int),
            timestamp_seconds=torch.from_numpy(self.seconds).expand(series.shape),
            time_interval_seconds=torch.full((len(series),), self.interval),
        )
        return made


def cut_windows(series: Series, shape: Shape) -> list[Window]:
    """Cut windows whose origins lie a horizon apart; the last one's truth ends the series.

    A gap in a context repeats the last value before it; where there is none it is 0, as
    upstream's own padding is.

    Raises:
        UsageError: the series is too short, or a context holds nothing but gaps.
    """
    needed = shape.context + shape.windows * shape.horizon
    if series.rows < needed:
        raise UsageError(
            f"{series.source} has {counted(series.rows, 'row')}, but --context {shape.context} "
            f"and --windows {shape.windows} of --horizon {shape.horizon} need {needed}: "
            "ask for less of them"
        )
    filled = pd.DataFrame(series.values.T).ffill().fillna(0.0).to_numpy(np.float32).T
    first = series.rows - shape.horizon * shape.windows
    _check_known(
        series,
        slice(first, None),
        f"from data row {first + 1} on, where it is to be forecast: "
        "ask for more --windows, or choose another --column",
    )
    return [_window(series, filled, first + i * shape.horizon, shape) for i in range(shape.windows)]


def _window(series: Series, filled: npt.NDArray[np.float32], origin: int, shape: Shape) -> Window:
    past, future = slice(origin - shape.context, origin), slice(origin, origin + shape.horizon)
    _check_known(
        series,
        past,
        f"in data rows {past.start + 1} to {past.stop}, a context: take a longer "
        "--context, other --windows, or another --column",
    )
    return Window(
        values=np.ascontiguousarray(filled[:, past]),
        observed=~np.isnan(series.values[:, past]),
        seconds=series.seconds[past],
        interval=series.interval,
        truth=series.values[:, future],
    )


def _check_known(series: Series, rows: slice, where: str) -> None:
    unknown = np.isnan(series.values[:, rows]).all(axis=-1)
    if unknown.any():
        column = series.columns[int(unknown.argmax())]
        raise UsageError(f"column {column!r} of {series.source} holds nothing but gaps {where}")

"""What is to be forecast: windows of a file, cut as the options say; known without torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from toto_compile_patch.tools import models
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.layout import Wanted
from toto_compile_patch.tools.series.single import Floats, Series, read_series
from toto_compile_patch.tools.windows import Shape, Window, cut_windows

BUNDLED_COLUMN = "temp"
WINDOWS, CONTEXT, HORIZON = 16, 512, 96


@dataclass(frozen=True)
class Data:
    """What is forecast.

    Attributes:
        series: the columns.
        windows: the forecasts to make.
        shape: how they were cut.
        season: steps after which the series may repeat itself, for MASE and the naive forecast.
    """

    series: Series
    windows: list[Window]
    shape: Shape
    season: int

    @property
    def naive(self) -> str:
        """Name of the forecast that repeats the last season."""
        return "seasonal naive" if self.season > 1 else "last value"

    @property
    def truth(self) -> Floats:
        """What came true (``window variate horizon``)."""
        return np.stack([window.truth for window in self.windows])


def data_of(options: argparse.Namespace) -> Data:
    """The windows that were asked for.

    Raises:
        UsageError: the file cannot be read, or the series does not do.
    """
    columns = options.column or ([] if options.file else [BUNDLED_COLUMN])
    wanted = Wanted(options.id, options.time, options.time_format, options.decimal)
    series = read_series(options.file or models.BUNDLED, columns, wanted, options.item)
    shape = _shape(series, options)
    windows = cut_windows(series, shape)
    season = options.season or series.season(shape.context)
    if options.season and season >= shape.context:
        raise UsageError(
            f"--season {season} is not shorter than the context, {shape.context}: choose a shorter "
            "one, or a longer --context"
        )
    return Data(series, windows, shape, season)


def _shape(series: Series, options: argparse.Namespace) -> Shape:
    """As asked; what was not asked for fits the series."""
    rows, least = series.rows, options.windows or 1
    horizon = options.horizon or max(1, min(HORIZON, rows // (2 * max(2, least))))
    context = options.context or max(1, min(CONTEXT, rows // 2, rows - least * horizon))
    windows = options.windows or max(1, min(WINDOWS, (rows - context) // horizon))
    return Shape(windows, context, horizon)

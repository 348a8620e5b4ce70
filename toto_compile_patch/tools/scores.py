"""How good forecasts are: errors, intervals, and what a naive forecast would have made.

All arrays end in ``horizon``; a truth that nobody knows is NaN and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toto_compile_patch.tools.series.single import Floats
from toto_compile_patch.tools.turns import QUANTILES
from toto_compile_patch.tools.windows import Window


def pinball(quantiles: Floats, truth: Floats, levels: Sequence[float] = QUANTILES) -> Floats:
    """Twice the pinball loss, averaged over the quantiles: an estimate of the CRPS.

    Gneiting & Ranjan (2011): the CRPS is the integral over all levels of twice the pinball loss.

    Args:
        quantiles: forecasts at the levels (``... quantile variate horizon``).
        truth: what came true (``... variate horizon``).
        levels: of the quantiles.
    """
    at = np.array(levels)[:, None, None]
    miss = truth[..., None, :, :] - quantiles
    return np.asarray(2 * np.maximum(at * miss, (at - 1) * miss).mean(axis=-3))


def covered(quantiles: Floats, truth: Floats) -> Floats:
    """1 where the truth lies between the outermost quantiles, 0 where not, NaN where unknown."""
    low, high = quantiles[..., 0, :, :], quantiles[..., -1, :, :]
    return np.where(np.isnan(truth), np.nan, (low <= truth) & (truth <= high))


def seasonal_naive(window: Window, season: int) -> Floats:
    """The last season of the context, again and again (``variate horizon``)."""
    steps = np.arange(window.truth.shape[-1]) % season
    return np.asarray(window.values[:, -season:][:, steps], float)


def naive_scale(window: Window, season: int) -> Floats:
    """What MASE divides by: the mean absolute error, within the context, of the value one season
    before (``variate``); NaN where that is 0 or unknown.

    Hyndman & Koehler (2006).
    """
    values = window.known
    change = mean_of_known(np.abs(values[:, season:] - values[:, :-season]))
    return np.where(change > 0, change, np.nan)


def mean_of_known(values: Floats) -> Floats:
    """Over the last axis, of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    return over(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def over(values: Floats, by: Floats) -> Floats:
    """NaN where it would be divided by 0."""
    made = np.full(len(values), np.nan)
    np.divide(values, by, out=made, where=by > 0)
    return made

"""How good the forecasts are: of a shard's windows, and of all parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from toto_compile_patch.tools import scores
from toto_compile_patch.tools.backtest.windows import Cut
from toto_compile_patch.tools.scores import mean_of_known, over
from toto_compile_patch.tools.series.notation import Doubles


@dataclass(frozen=True)
class Made:
    """The forecast of a window.

    Attributes:
        cut: the window.
        mean: of the forecast (``horizon``).
        quantiles: of its samples (``level horizon``).
        median: of its samples; of a mean forecast, the mean (``horizon``).
    """

    cut: Cut
    mean: Doubles
    quantiles: Doubles
    median: Doubles


SCORES = ("mase", "wql", "coverage", "mase_naive")
"""Columns of the output."""


def scored(made: Sequence[Made], levels: Sequence[float]) -> dict[str, Doubles]:
    """The scores of each window, by column; NaN where nothing is known to score by.

    MASE is the mean absolute error of the median (or mean) forecast over that of the season before,
    within the context; ``mase_naive`` is the seasonal naive forecast's. WQL is twice the pinball
    loss, averaged over the quantiles, over the mean absolute value. Coverage is the share of the
    truth between the outermost quantiles.

    Args:
        made: the forecasts.
        levels: of their quantiles.
    """
    found = {name: np.full(len(made), np.nan) for name in SCORES}
    if not made:
        return found
    truth = np.stack([one.cut.window.truth for one in made])
    scales = np.array([_scale(one.cut) for one in made])
    found["mase"] = over(mean_of_known(np.abs(truth[:, 0] - [one.median for one in made])), scales)
    naive = np.stack([scores.seasonal_naive(one.cut.window, one.cut.season)[:1] for one in made])
    found["mase_naive"] = over(mean_of_known(np.abs(truth - naive)[:, 0]), scales)
    if levels:
        quantiles = np.stack([one.quantiles for one in made])[:, :, None]
        loss = scores.pinball(quantiles, truth, levels)[:, 0]
        found["wql"] = over(mean_of_known(loss), mean_of_known(np.abs(truth[:, 0])))
    if len(levels) > 1:
        found["coverage"] = mean_of_known(scores.covered(quantiles, truth)[:, 0])
    return found


def quantiles_of(samples: torch.Tensor, levels: Sequence[float]) -> Doubles:
    """Quantiles of the samples of each step, ``horizon samples`` to ``level horizon``.

    Sorted where they are, and in the type that they have: only what lies about a level is put into
    double precision, between which ``numpy.quantile`` interpolates as this does.
    """
    places = np.asarray(levels) * (samples.shape[-1] - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, samples.shape[-1] - 1)
    wanted = torch.from_numpy(np.concatenate([below, above])).to(samples.device)
    ordered = samples.sort(dim=-1).values.index_select(-1, wanted).double().cpu().numpy()
    low, high = np.split(ordered.T, 2)
    return np.asarray(low + (high - low) * (places - below)[:, None])


def _scale(cut: Cut) -> float:
    return float(scores.naive_scale(cut.window, cut.season)[0])

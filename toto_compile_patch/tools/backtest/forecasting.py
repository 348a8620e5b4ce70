"""The work itself: a model, and the forecasts of one shard after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import toto_compile_patch
from toto_compile_patch.errors import in_a_line
from toto_compile_patch.tools import models
from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.parts import Part, table_of
from toto_compile_patch.tools.backtest.regular import Problem
from toto_compile_patch.tools.backtest.scoring import Made, quantiles_of
from toto_compile_patch.tools.backtest.shards import Shard
from toto_compile_patch.tools.backtest.windows import Cut, cuts_of
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.turns import UPSTREAM_CODE

if TYPE_CHECKING:
    from toto.inference.forecaster import TotoForecaster


class Forecasting:
    """A patched process with a model in it.

    Args:
        job: what is asked for.
        timezone: of the times.

    Raises:
        UsageError: the model is not to be had, or toto cannot be patched.
    """

    def __init__(self, job: Job, timezone: str | None) -> None:
        warnings.filterwarnings("ignore")
        self._job, self._timezone = job, timezone
        torch.set_num_threads(job.threads)
        self._forecaster = _forecaster(job)
        self._is_patched = toto_compile_patch.is_applied("fast_decode")
        self._paths: set[str] = set()

    def part(self, shard: Shard) -> Part:
        """Forecast the windows of a shard."""
        found = [one for piece in shard.pieces for one in cuts_of(piece, self._job)]
        cuts = [one for one in found if isinstance(one, Cut)]
        forecasts = zip(cuts, self._forecasts(cuts), strict=True)
        outcomes = [_made(cut, forecast, self._job) for cut, forecast in forecasts]
        made = [one for one in outcomes if isinstance(one, Made)]
        table = table_of(made, sorted(self._paths), self._timezone, self._job)
        problems = (one for one in (*found, *outcomes) if isinstance(one, Problem))
        return Part(shard.index, shard.windows, table, (*shard.problems, *problems))

    def _forecasts(self, cuts: Sequence[Cut]) -> Iterator[Any]:
        job = self._job
        self._paths.clear()
        forecasts = toto_compile_patch.forecast_many(
            self._forecaster,
            self._inputs(cuts),
            job.horizon,
            job.samples or None,
            job.samples_per_batch,
            future_exogenous_variables=(cut.known_ahead(job.device) for cut in cuts),
            seed=(cut.seed(job.seed) for cut in cuts),
            memory=job.memory,
        )
        for forecast in forecasts:
            self._note_path()
            yield forecast

    def _inputs(self, cuts: Sequence[Cut]) -> Iterator[Any]:
        before = toto_compile_patch.last_path()
        for cut in cuts:
            yield cut.inputs(self._job.device)
            # No more than one group was forecast since the last one was asked for.
            if toto_compile_patch.last_path() is not before:
                self._note_path()

    def _note_path(self) -> None:
        path = toto_compile_patch.last_path() if self._is_patched else None
        if path is None:
            self._paths.add(UPSTREAM_CODE)
            return
        what = f"fast path, {path.runtime}" if path.taken == "fast" else UPSTREAM_CODE
        self._paths.add(f"{what} ({path.reason})" if path.reason else what)


def _forecaster(job: Job) -> TotoForecaster:
    try:
        toto_compile_patch.apply()
    except (ValueError, toto_compile_patch.TotoCompilePatchError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    try:
        toto = models.load(job.model)
    except Exception as error:
        raise UsageError(
            f"--model {job.model} cannot be loaded ({in_a_line(error)}): give a Hugging Face id "
            "that can be reached, or the directory of a checkpoint"
        ) from None
    model = toto.to(device=torch.device(job.device), dtype=getattr(torch, job.dtype)).model
    made: TotoForecaster = models.toto_ts().TotoForecaster(model)
    return made


def _made(cut: Cut, forecast: Any, job: Job) -> Made | Problem:
    if isinstance(forecast, toto_compile_patch.FailedForecast):
        said = in_a_line(forecast.error)
        return Problem(cut.item, cut.index, "forecast failed", said)
    # The first variate is the target, the others are known ahead.
    mean = forecast.mean[0, 0].double().cpu().numpy()
    median, quantiles = mean, np.empty((0, job.horizon))
    if forecast.samples is not None:
        found = quantiles_of(forecast.samples[0, 0], [0.5, *job.levels])
        median, quantiles = found[0], found[1:]
    if not (np.isfinite(mean).all() and np.isfinite(quantiles).all()):
        told = "the model's forecast is not a number, or an infinite one"
        return Problem(cut.item, cut.index, "forecast failed", told)
    return Made(cut, mean, quantiles, median)

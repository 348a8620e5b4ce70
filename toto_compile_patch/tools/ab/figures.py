"""What an A/B comparison measured: speed, errors, and whether the two sides say the same."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools import scores
from toto_compile_patch.tools.ab.asked import Data
from toto_compile_patch.tools.ab.judgement import Judgement, judge, judge_means
from toto_compile_patch.tools.series.single import Floats
from toto_compile_patch.tools.turns import Answer

OTHER_SEED = "upstream, another seed"


@dataclass
class Forecasts:
    """What one way did, forecast by forecast.

    Attributes:
        way: its name.
        first_seconds: of the forecasts before the clock counts.
        answers: the forecasts.
        means: mean forecasts (``variate horizon`` each).
        health: dynamo's counts over all of them.
        peak_bytes: the most memory that the process held.
    """

    way: str
    first_seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    means: list[Floats] = field(default_factory=list)
    health: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0

    @property
    def points(self) -> Floats:
        """The point forecasts (``window variate horizon``)."""
        return np.stack([answer.point for answer in self.answers])

    @property
    def quantiles(self) -> Floats | None:
        """The quantiles (``window quantile variate horizon``); None for mean forecasts."""
        found = [answer.quantiles for answer in self.answers if answer.quantiles is not None]
        return np.stack(found) if found else None


@dataclass(frozen=True)
class Speed:
    """How long one way took.

    Attributes:
        way: its name.
        seconds: of each forecast, after the first.
        median: of them.
        p95: of them: 95 of 100 were faster.
        ratio: upstream's eager seconds over its own, window by window: the median.
        ratio_from: the least of them.
        ratio_to: the greatest of them.
        first: what the first forecasts took beyond as many steady ones: compiling, say.
        peak_gb: the most memory that its process held, or allocated on a GPU.
        health: graphs, breaks, recompilations, limit hits.
        path: what made its forecasts.
    """

    way: str
    seconds: list[float]
    median: float
    p95: float
    ratio: float
    ratio_from: float
    ratio_to: float
    first: float
    peak_gb: float
    health: dict[str, int]
    path: str


@dataclass(frozen=True)
class Accuracy:
    """How far one way's forecasts of a column were from the truth.

    Attributes:
        column: its name.
        way: name of the way, or of what it is compared with.
        mae: mean absolute error of the median (or mean) forecast, in the column's unit.
        mase: that error over the error of the season before, within the context.
        crps: twice the pinball loss over nine quantiles, in the column's unit.
        coverage: share of the truth within the interval from 10 to 90 %.
        difference: mean distance from upstream's median forecast, in the column's unit.
        errors: mean absolute error of each window.
    """

    column: str
    way: str
    mae: float
    mase: float
    crps: float
    coverage: float
    difference: float
    errors: list[float]


@dataclass(frozen=True)
class Figures:
    """The whole comparison.

    Attributes:
        data: what was forecast.
        sides: the ways: upstream's eager code first, patched last.
        other_seed: upstream's eager code with other random numbers; None for mean forecasts.
        setting: machine, versions, model.
        samples: of each forecast; 0: mean forecasts.
        stolen: share of the processor's time that other virtual machines took.
    """

    data: Data
    sides: list[Forecasts]
    other_seed: Forecasts | None
    setting: dict[str, str]
    samples: int
    stolen: float

    @cached_property
    def speeds(self) -> list[Speed]:
        """Of each way, upstream's eager code first, patched last."""
        return [_speed(side, self.sides[0]) for side in self.sides]

    @cached_property
    def accuracies(self) -> list[Accuracy]:
        """By column and way, and of the naive forecast."""
        naive, season = self.data.naive, self.data.season
        points = [scores.seasonal_naive(window, season) for window in self.data.windows]
        forecasts = {side.way: side for side in self.sides}
        if self.other_seed:
            forecasts[OTHER_SEED] = self.other_seed
        forecasts[naive] = Forecasts(naive, answers=[Answer(0.0, one, None, "") for one in points])
        return [
            _accuracy(way, column, made, self.sides[0], self.data)
            for column in range(len(self.data.series.columns))
            for way, made in forecasts.items()
        ]

    @cached_property
    def judgement(self) -> Judgement:
        """Whether upstream and patched say the same."""
        upstream, patched = self.sides[0], self.sides[-1]
        means = judge_means(np.stack(upstream.means), np.stack(patched.means), self.data.windows)
        if self.other_seed is None:
            return Judgement(*means)
        sides = (upstream, patched, self.other_seed)
        one, two, three = (np.asarray(side.quantiles) for side in sides)
        return judge(one, two, three, self.samples, means)

    @property
    def mean_mae_change(self) -> float:
        """How much patched changes the mean absolute error of mean forecasts, relatively."""
        scale = np.nanstd(self.data.series.values, axis=-1)[:, None]
        before, after = (
            _mean(np.abs(np.stack(side.means) - self.data.truth) / scale)
            for side in (self.sides[0], self.sides[-1])
        )
        return after / before - 1

    @property
    def accuracies_of_sides(self) -> list[Accuracy]:
        """Of the first column: upstream's, with either seed, and patched."""
        column = self.data.series.columns[0]
        ways = [self.speeds[0].way, *([OTHER_SEED] if self.other_seed else []), self.speeds[-1].way]
        return [self.accuracy(way, column) for way in ways]

    @property
    def straying(self) -> list[float]:
        """How much farther upstream's means stray from a context's mean than the context does, in
        the median window of each column (``variate``); 0 where the context stands still."""
        known = np.stack([window.known for window in self.data.windows])
        away = np.stack(self.sides[0].means) - np.nanmean(known, axis=-1, keepdims=True)
        strays, std = np.sqrt((away**2).mean(axis=-1)), np.nanstd(known, axis=-1)
        times = np.divide(strays, std, out=np.zeros_like(std), where=std > 0)
        return [float(one) for one in np.median(times, axis=0)]

    def accuracy(self, way: str, column: str) -> Accuracy:
        """A row of the accuracies."""
        return next(row for row in self.accuracies if (row.way, row.column) == (way, column))

    def mae_change(self, way: str) -> float:
        """How much a way's mean absolute error differs from upstream's, relatively, in the column
        where it differs most."""
        upstream = self.speeds[0].way
        changes = [
            self.accuracy(way, column).mae / self.accuracy(upstream, column).mae - 1
            for column in self.data.series.columns
        ]
        return max(changes, key=abs)

    def as_json(self) -> dict[str, Any]:
        """All of it but the forecasts; what is no finite number is null."""
        series = self.data.series
        found = {
            "data": {"source": series.source, "columns": series.columns, "rows": series.rows},
            "shape": asdict(self.data.shape),
            "season": self.data.season,
            "samples": self.samples,
            "setting": self.setting,
            "speed": [asdict(speed) for speed in self.speeds],
            "accuracy": [asdict(row) for row in self.accuracies],
            "same": self.judgement.same,
            "judgement": asdict(self.judgement),
            "mae_change": self.mae_change(self.speeds[-1].way),
            "mae_change_of_another_seed": self.mae_change(OTHER_SEED) if self.samples else None,
            "mae_change_of_means": self.mean_mae_change,
            "stolen_cpu": self.stolen,
        }
        plain: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda _: None)
        return plain


def _speed(side: Forecasts, upstream: Forecasts) -> Speed:
    theirs, own = (np.array([a.seconds for a in way.answers]) for way in (upstream, side))
    median, p95 = np.quantile(own, (0.5, 0.95)).tolist()
    least, ratio, greatest = np.quantile(theirs / own, (0, 0.5, 1)).tolist()
    return Speed(
        way=side.way,
        seconds=own.tolist(),
        median=median,
        p95=p95,
        ratio=ratio,
        ratio_from=least,
        ratio_to=greatest,
        first=max(0.0, sum(side.first_seconds) - len(side.first_seconds) * median),
        peak_gb=side.peak_bytes / 1e9,
        health=side.health,
        path="; ".join(dict.fromkeys(answer.path for answer in side.answers)),
    )


def _accuracy(way: str, column: int, made: Forecasts, upstream: Forecasts, data: Data) -> Accuracy:
    """How far forecasts of a column were from the truth."""
    truth, points = data.truth[:, column], made.points[:, column]
    crps = coverage = math.nan
    if made.quantiles is not None:
        levels = made.quantiles[:, :, [column]]
        crps = _mean(scores.pinball(levels, truth[:, None]))
        coverage = _mean(scores.covered(levels, truth[:, None]))
    errors = pd.DataFrame(np.abs(points - truth)).mean(axis=1).to_numpy()
    scale = [scores.naive_scale(window, data.season)[column] for window in data.windows]
    return Accuracy(
        column=data.series.columns[column],
        way=way,
        mae=_mean(np.abs(points - truth)),
        mase=_mean(errors / scale),
        crps=crps,
        coverage=coverage,
        difference=_mean(np.abs(points - upstream.points[:, column])),
        errors=errors.tolist(),
    )


def _mean(numbers: Floats) -> float:
    """Mean of what is known; NaN where nothing is."""
    return float(pd.Series(numbers.ravel()).mean())

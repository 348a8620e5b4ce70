"""What an A/B comparison measured: speed, errors, and whether the two sides say the same."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from toto_compile_patch.tools import scores
from toto_compile_patch.tools.ab.judgement import Judgement, judge, judge_means
from toto_compile_patch.tools.series import Floats, Series, Shape, Window
from toto_compile_patch.tools.workers import Account, Answer, Way

STOLEN_WORTH_A_REMARK = 0.05

OTHER_SEED = "upstream, another seed"


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
        """``window variate horizon``"""
        return np.stack([window.truth for window in self.windows])


@dataclass
class Forecasts:
    """What one way did, forecast by forecast."""

    way: Way
    first_seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    means: list[Floats] = field(default_factory=list)
    account: Account | None = None

    def add(self, answer: Answer) -> None:
        """A forecast more."""
        self.answers.append(answer)

    @property
    def seconds(self) -> Floats:
        """``window``"""
        return np.array([answer.seconds for answer in self.answers])

    @property
    def points(self) -> Floats:
        """``window variate horizon``"""
        return np.stack([answer.point for answer in self.answers])

    @property
    def quantiles(self) -> Floats | None:
        """``window quantile variate horizon``; None for mean forecasts."""
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
        mase: the same over the error of the season before, within the context.
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
        setting: machine, versions, model.
        samples: of each forecast; 0: mean forecasts.
        speeds: of each way, upstream's eager code first, patched last.
        accuracies: by column and way.
        judgement: whether they say the same.
        mean_mae_change: how much patched changes the mean absolute error of mean forecasts,
            relatively.
        stolen: share of the processor's time that other virtual machines took.
        sides: the forecasts themselves, for the picture.
    """

    data: Data
    setting: dict[str, str]
    samples: int
    speeds: list[Speed]
    accuracies: list[Accuracy]
    judgement: Judgement
    mean_mae_change: float
    stolen: float
    sides: list[Forecasts]

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
        series, shape = self.data.series, self.data.shape
        found = {
            "data": {"source": series.source, "columns": series.columns, "rows": series.rows},
            "shape": asdict(shape),
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
        return dict(_finite(found))


def figures_of(
    data: Data,
    sides: list[Forecasts],
    other_seed: Forecasts | None,
    setting: dict[str, str],
    samples: int,
    stolen: float,
) -> Figures:
    """The figures of a comparison.

    Args:
        data: what was forecast.
        sides: the ways: upstream's eager code first, patched last.
        other_seed: upstream's eager code with other random numbers; None for mean forecasts.
        setting: machine, versions, model.
        samples: of each forecast.
        stolen: share of the processor's time.
    """
    upstream, patched = sides[0], sides[-1]
    means = judge_means(np.stack(upstream.means), np.stack(patched.means), data.windows)
    judgement = Judgement(*means)
    rows = [_accuracies(side.way.name, side.points, side.quantiles, sides, data) for side in sides]
    if other_seed is not None:
        rows += [_accuracies(OTHER_SEED, other_seed.points, other_seed.quantiles, sides, data)]
        quantiles = [side.quantiles for side in (upstream, patched, other_seed)]
        one, two, three = (part for part in quantiles if part is not None)
        judgement = judge(one, two, three, samples, means)
    naive = np.stack([scores.seasonal_naive(window, data.season) for window in data.windows])
    rows += [_accuracies(data.naive, naive, None, sides, data)]
    return Figures(
        data=data,
        setting=setting,
        samples=samples,
        speeds=[_speed(side, upstream) for side in sides],
        accuracies=[row for column in zip(*rows, strict=True) for row in column],
        judgement=judgement,
        mean_mae_change=_mean_error(patched, data) / _mean_error(upstream, data) - 1,
        stolen=stolen,
        sides=sides,
    )


def _mean_error(side: Forecasts, data: Data) -> float:
    """Mean absolute error of the mean forecasts, in standard deviations of their column."""
    errors = scores.absolute_errors(np.stack(side.means), data.truth)
    return _mean(errors / data.series.std[:, None])


def _speed(side: Forecasts, upstream: Forecasts) -> Speed:
    if side.account is None:
        raise ValueError(f"{side.way.name} has not finished")
    ratios = upstream.seconds / side.seconds
    median = float(np.median(side.seconds))
    return Speed(
        way=side.way.name,
        seconds=side.seconds.tolist(),
        median=median,
        p95=float(np.quantile(side.seconds, 0.95)),
        ratio=float(np.median(ratios)),
        ratio_from=float(ratios.min()),
        ratio_to=float(ratios.max()),
        first=max(0.0, sum(side.first_seconds) - len(side.first_seconds) * median),
        peak_gb=side.account.peak_bytes / 1e9,
        health=side.account.health,
        path=_path(side),
    )


def _path(side: Forecasts) -> str:
    """What made a way's forecasts, in words; the reasons where it was not the fast path."""
    paths = [answer.path for answer in side.answers]
    words = []
    for path in paths:
        if path is None or not side.way.patched:
            words.append("upstream's code")
        else:
            what = f"fast path, {path.runtime}" if path.taken == "fast" else "upstream's code"
            words.append(f"{what} ({path.reason})" if path.reason else what)
    return "; ".join(dict.fromkeys(words))


def _accuracies(
    name: str, points: Floats, quantiles: Floats | None, sides: list[Forecasts], data: Data
) -> list[Accuracy]:
    """A row for each column."""
    truth = data.truth
    errors = scores.absolute_errors(points, truth)
    scale = np.stack([scores.naive_scale(window, data.season) for window in data.windows])
    distance = np.abs(points - sides[0].points)
    unknown = np.full_like(errors, np.nan)
    pinball = unknown if quantiles is None else scores.pinball(quantiles, truth)
    covered = unknown if quantiles is None else scores.covered(quantiles, truth)
    return [
        Accuracy(
            column=column,
            way=name,
            mae=_mean(errors[:, i]),
            mase=_mean(_mean_of_windows(errors[:, i]) / scale[:, i]),
            crps=_mean(pinball[:, i]),
            coverage=_mean(covered[:, i]),
            difference=_mean(distance[:, i]),
            errors=_mean_of_windows(errors[:, i]).tolist(),
        )
        for i, column in enumerate(data.series.columns)
    ]


def _mean(numbers: Floats) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if known.size else math.nan


def _mean_of_windows(errors: Floats) -> Floats:
    """Mean over the horizon of what is known (``window``)."""
    return np.array([_mean(window) for window in errors])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

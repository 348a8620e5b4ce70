"""Skill of the bundled demo model on the held-out part of the bundled series.

Compared with repeating the last day (seasonal naive) and with statsmodels' exponential smoothing,
fitted to each context. Exit code 1 if the demo model does not beat the seasonal naive.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from statsmodels.tsa.holtwinters import ExponentialSmoothing
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto.model.toto import Toto
from train_demo_model import COLUMNS, DAY, HELD_OUT

import toto_compile_patch
from toto_compile_patch.tools.checks import write_whole
from toto_compile_patch.tools.models import BUNDLED, DEMO
from toto_compile_patch.tools.screen import table_of

Floats = npt.NDArray[np.float64]

CONTEXT, HORIZON = 512, 96
BETWEEN_ORIGINS = 49
"""Hours; not whole days, so that forecasts begin at every hour of the day."""


@dataclass(frozen=True)
class Windows:
    """Forecasts to make and what came true.

    Attributes:
        context: without gaps (``window context``).
        observed: False where a value repeats the one before a gap (``window context``).
        truth: NaN where nobody knows (``window horizon``).
    """

    context: Floats
    observed: npt.NDArray[np.bool_]
    truth: Floats


@dataclass(frozen=True)
class Skill:
    """Means over all windows.

    Attributes:
        name: who forecast.
        mase: error of the point forecast, over the context's own mean change from day to day.
        crps: the same of the whole distribution's error.
        coverage: part of the truth within the central 80 % of the samples; None without samples.
        mase_by_day: MASE of each day ahead.
        coverage_by_day: coverage of each day ahead.
    """

    name: str
    mase: float
    crps: float
    coverage: float | None
    mase_by_day: list[float]
    coverage_by_day: list[float] | None


def held_out_windows(column: str, first: int = HELD_OUT, last: int | None = None) -> Windows:
    """Windows of a column whose truth lies between two data rows, by default the held-out ones."""
    values = pd.read_csv(BUNDLED)[column][:last]
    filled, observed = values.ffill().bfill().to_numpy(float), values.notna().to_numpy()
    origins = np.arange(first, len(values) - HORIZON + 1, BETWEEN_ORIGINS)[:, None]
    past, future = origins + np.arange(-CONTEXT, 0), origins + np.arange(HORIZON)
    return Windows(filled[past], observed[past], values.to_numpy(float)[future])


def hourly(series: torch.Tensor, observed: torch.Tensor | None = None) -> MaskedTimeseries:
    """Series with a value an hour, ``batch variate time``, and where they were observed."""
    return MaskedTimeseries(
        series=series,
        padding_mask=torch.ones_like(series, dtype=torch.bool) if observed is None else observed,
        id_mask=torch.zeros_like(series, dtype=torch.int),
        timestamp_seconds=torch.zeros_like(series, dtype=torch.int),
        time_interval_seconds=torch.full(series.shape[:2], 3600),
    )


def forecast(model: Any, windows: Windows, samples: int) -> Floats:
    """Sample paths of a Toto: ``window horizon samples``."""
    series = torch.tensor(windows.context, dtype=torch.float32)[:, None]
    inputs = hourly(series, torch.tensor(windows.observed)[:, None])
    torch.manual_seed(0)
    made = TotoForecaster(model).forecast(
        inputs, prediction_length=HORIZON, num_samples=samples, samples_per_batch=samples
    )
    return np.asarray(made.samples[:, 0].double())


def seasonal_naive(windows: Windows) -> Floats:
    """The last day again and again: ``window horizon 1``."""
    return np.tile(windows.context[:, -DAY:], HORIZON // DAY)[..., None]


def exponential_smoothing(windows: Windows, samples: int) -> tuple[Floats, Floats]:
    """Additive daily seasonality and a damped trend: point forecasts and sample paths.

    Their shapes are ``window horizon`` and ``window horizon samples``.
    """
    chance = np.random.default_rng(0)
    fits = track(windows.context, "exponential smoothing", transient=True)
    points, paths = zip(*(_smoothed(context, samples, chance) for context in fits), strict=True)
    return np.stack(points), np.stack(paths)


def _smoothed(context: Floats, samples: int, chance: np.random.Generator) -> tuple[Floats, Floats]:
    model = ExponentialSmoothing(
        context,
        trend="add",
        damped_trend=True,
        seasonal="add",
        seasonal_periods=DAY,
        initialization_method="heuristic",
    )
    fit = model.fit()
    paths = fit.simulate(HORIZON, repetitions=samples, rng=chance)
    return fit.forecast(HORIZON), np.asarray(paths, dtype=float).reshape(HORIZON, samples)


def skill(name: str, point: Floats, samples: Floats, windows: Windows) -> Skill:
    """Judge points (``window horizon``) and samples (``window horizon samples``) by the truth."""
    change = np.abs(windows.context[:, DAY:] - windows.context[:, :-DAY]).mean(-1)[:, None]
    error = np.abs(point - windows.truth) / change
    crps = _crps(samples, windows.truth) / change
    low, high = np.quantile(samples, (0.1, 0.9), axis=-1)
    within = np.where(
        np.isnan(windows.truth), np.nan, (low <= windows.truth) & (windows.truth <= high)
    )
    spread = samples.shape[-1] > 1
    return Skill(
        name=name,
        mase=float(np.nanmean(error)),
        crps=float(np.nanmean(crps)),
        coverage=float(np.nanmean(within)) if spread else None,
        mase_by_day=_by_day(error),
        coverage_by_day=_by_day(within) if spread else None,
    )


def _by_day(scores: Floats) -> list[float]:
    return [float(np.nanmean(day)) for day in np.split(scores, HORIZON // DAY, axis=-1)]


def _crps(samples: Floats, truth: Floats) -> Floats:
    """Continuous ranked probability score of samples: mean |x - y| less half of mean |x - x'|."""
    count = samples.shape[-1]
    ranks = 2 * np.arange(1, count + 1) - count - 1
    spread = (np.sort(samples, axis=-1) * ranks).sum(-1) / count**2
    return np.asarray(np.abs(samples - truth[..., None]).mean(-1) - spread)


def compare(column: str, samples: int, precision: str) -> tuple[list[Skill], int]:
    """Skill of the demo model, the seasonal naive and exponential smoothing; and on how much."""
    windows = held_out_windows(column)
    with toto_compile_patch.patched(precision=precision):
        model = Toto.load_from_checkpoint(DEMO).eval().model
        own = forecast(model, windows, samples)
    naive = seasonal_naive(windows)
    made = {
        "demo model": (np.median(own, axis=-1), own),
        "seasonal naive": (naive[..., 0], naive),
        "exponential smoothing": exponential_smoothing(windows, samples),
    }
    return [skill(name, *guess, windows) for name, guess in made.items()], len(windows.truth)


def print_table(console: Console, skills: Sequence[Skill], column: str, windows: int) -> None:
    title = f"{column}: {windows} held-out windows, context {CONTEXT}, horizon {HORIZON}"
    headings = ["", "MASE", "CRPS", "within 80 %", "MASE by day ahead"]
    rows = [
        [
            row.name,
            f"{row.mase:.3f}",
            f"{row.crps:.3f}",
            "-" if row.coverage is None else f"{row.coverage:.0%}",
            "  ".join(f"{score:.2f}" for score in row.mase_by_day),
        ]
        for row in skills
    ]
    console.print(table_of(headings, rows, title=title))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--column", choices=COLUMNS, default=COLUMNS[0])
    parser.add_argument("--samples", type=int, default=256, help="paths of each forecast")
    parser.add_argument("--precision", default="model", help="of the demo model's forecasts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    skills, windows = compare(options.column, options.samples, options.precision)
    print_table(Console(), skills, options.column, windows)
    if options.json is not None:
        result = {
            "column": options.column,
            "windows": windows,
            "hours_between_origins": BETWEEN_ORIGINS,
            "context": CONTEXT,
            "horizon": HORIZON,
            "samples": options.samples,
            "precision": options.precision,
            "skill": [asdict(row) for row in skills],
        }
        write_whole(options.json, json.dumps(result, indent=2, allow_nan=False) + "\n")
    demo, naive, _ = skills
    return 0 if demo.mase < naive.mase else 1


if __name__ == "__main__":
    sys.exit(main())

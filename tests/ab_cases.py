"""Figures of an A/B comparison whose truth is known, made without a model."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from toto_compile_patch.tools.ab.asked import Data
from toto_compile_patch.tools.ab.figures import Figures, Forecasts
from toto_compile_patch.tools.ab.words import setting_of
from toto_compile_patch.tools.series.single import read_series
from toto_compile_patch.tools.turns import EAGER, PATCHED, QUANTILES, Answer, Job, Way
from toto_compile_patch.tools.windows import Shape, cut_windows

COUNTS = ("graphs", "graph_breaks", "recompilations", "limit_hits")
FACTS = {"device": "a machine, 1 thread", "torch": "2.7.0", "toto": "toto-ts 0.2.0"}
DATE = "2024-02-29"


def figures_of(
    folder: Path,
    *,
    shift: float = 0.0,
    spread: float = 1.0,
    mean_shift: float = 0.0,
    windows: int = 8,
    horizon: int = 24,
    samples: int = 256,
    columns: tuple[str, ...] = ("load",),
    source: str = "a.csv",
    path: str = "fast path",
) -> Figures:
    """Two sides that differ by chance, and by what is asked for.

    Args:
        folder: where the series is written.
        shift: of patched samples, in their standard deviations.
        spread: of patched samples, as a multiple of upstream's.
        mean_shift: of patched means, in standard deviations of the context.
        windows: forecasts of each side.
        horizon: of a forecast.
        samples: of a forecast; 0: means alone.
        columns: of the series.
        source: name of its file.
        path: what made the patched forecasts.
    """
    _write(folder / source, columns)
    series, shape = read_series(folder / source, columns), Shape(windows, 100, horizon)
    data = Data(series, cut_windows(series, shape), shape, 24)
    job = Job("demo", "cpu", "default", horizon, samples, samples)
    generator = np.random.default_rng(0)

    def side(way: Way, shift: float, spread: float, mean_shift: float) -> Forecasts:
        made = Forecasts(way.name, [2.0])
        for one in data.windows:
            mean = one.truth + 5 + mean_shift * one.values.std()
            made.means.append(mean)
            if not samples:
                made.answers.append(Answer(1.0, mean, None, path))
                continue
            noise = shift + spread * generator.normal(size=(*one.truth.shape, samples))
            quantiles = np.quantile(one.truth[..., None] + noise, QUANTILES, axis=-1)
            made.answers.append(Answer(1.0, quantiles[4], quantiles, path))
        made.health, made.peak_bytes = dict.fromkeys(COUNTS, 0), 10**9
        return made

    sides = [side(EAGER, 0, 1, 0), side(PATCHED, shift, spread, mean_shift)]
    other_seed = side(EAGER, 0, 1, 0) if samples else None
    setting = setting_of(data, job, {**FACTS, "date": DATE})
    return Figures(data, sides, other_seed, setting, samples, 0.0)


def _write(file: Path, columns: tuple[str, ...]) -> None:
    hours = pd.date_range("2024-01-01", periods=400, freq="h").strftime("%Y-%m-%d %H:%M")
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["time", *columns])
        for i, hour in enumerate(hours):
            writer.writerow([hour, *([round(100 + 10 * np.sin(i / 4) + i % 7, 2)] * len(columns))])

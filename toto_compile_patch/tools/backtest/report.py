"""What a backtest came to, in figures and in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from toto_compile_patch.tools import models
from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.output import Folder
from toto_compile_patch.tools.backtest.parts import paths_of
from toto_compile_patch.tools.backtest.scoring import SCORES
from toto_compile_patch.tools.backtest.survey import Plan
from toto_compile_patch.tools.screen import console_of, show_table
from toto_compile_patch.tools.wording import counted

WIDTH_OF_A_FILE = 100


@dataclass(frozen=True)
class Speed:
    """What was done by this process and its workers; a run that goes on does only the rest.

    Attributes:
        windows: that were forecast.
        seconds: from when the model was loaded.
        engine: where.
    """

    windows: int
    seconds: float
    engine: str


@dataclass(frozen=True)
class Figures:
    """Of the whole run, whenever its parts were made.

    Attributes:
        windows: rows of the output.
        scores: mean over the windows in which they are known, by column.
        paths: which code made the forecasts, in words.
        errors: how often each kind of error is there.
    """

    windows: int
    scores: dict[str, float]
    paths: tuple[str, ...]
    errors: dict[str, int]


def figures_of(folder: Folder, plan: Plan) -> Figures:
    """Add up all parts, one after the other."""
    sums, counts, windows = dict.fromkeys(SCORES, 0.0), dict.fromkeys(SCORES, 0), 0
    paths: set[str] = set()
    for table in folder.parts(plan.shards, list(SCORES)):
        windows += table.num_rows
        paths |= set(paths_of(table.schema.metadata or {}))
        for name in SCORES:
            values = table[name].to_numpy()
            sums[name] += float(np.nansum(values))
            counts[name] += int((~np.isnan(values)).sum())
    scores = {name: sums[name] / counts[name] if counts[name] else math.nan for name in SCORES}
    errors = Counter(problem.kind for problem in folder.problems())
    return Figures(windows, scores, tuple(sorted(paths)), dict(sorted(errors.items())))


def scores_json(figures: Figures, job: Job, plan: Plan) -> dict[str, Any]:
    """What is kept in the folder: the same, however the run came about."""
    return {
        "series": plan.series,
        "windows": figures.windows,
        "point_forecast": "median" if job.samples else "mean",
        "interval": [job.levels[0], job.levels[-1]] if len(job.levels) > 1 else None,
        "scores": {
            name: value if math.isfinite(value) else None for name, value in figures.scores.items()
        },
        "errors": figures.errors,
    }


def as_json(figures: Figures, job: Job, plan: Plan, speed: Speed, folder: Folder) -> dict[str, Any]:
    """What ``--json`` keeps."""
    return {
        "model": job.model,
        **scores_json(figures, job, plan),
        "paths": list(figures.paths),
        "engine": speed.engine,
        "windows_of_this_run": speed.windows,
        "seconds": speed.seconds,
        "windows_per_second": speed.windows / speed.seconds if speed.seconds else None,
        "output": folder.path,
        "file": plan.file,
    }


def show(figures: Figures, job: Job, plan: Plan, speed: Speed, folder: Folder) -> None:
    """Print it."""
    console = console_of(WIDTH_OF_A_FILE)
    for label, text in _lines(figures, job, plan, speed, folder):
        console.print(f"{label + ':':<10} {text}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    headings = ("mean over windows", "this model", "seasonal naive")
    show_table(console, headings, list(_rows(figures, job)))
    if figures.errors:
        rows = [(kind, str(count)) for kind, count in figures.errors.items()]
        console.print()
        show_table(console, ("not forecast", "lines"), rows)
        console.print(
            f"each of them is a line of {folder.path}/errors.csv",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _lines(
    figures: Figures, job: Job, plan: Plan, speed: Speed, folder: Folder
) -> Iterable[tuple[str, str]]:
    yield "model", models.describe(job.model)
    if job.model == "demo":
        yield "note", models.TOY
    broken = f" ({plan.broken} of them cannot be forecast)" if plan.broken else ""
    forecast = f"{counted(figures.windows, 'window')} forecast"
    yield "data", f"{plan.series} series{broken}, {forecast}"
    if plan.fewer:
        windows = counted(job.windows, "window")
        yield "note", f"fewer than {windows} fit into {plan.fewer} of the series"
    yield "path", "; ".join(figures.paths) or "none"
    rate = f", {speed.windows / speed.seconds:.1f} windows a second" if speed.windows else ""
    windows = counted(speed.windows, "window")
    yield "speed", f"{windows} in {speed.seconds:.1f} s{rate}, {speed.engine}"
    yield "output", folder.path


def _rows(figures: Figures, job: Job) -> Iterable[tuple[str, str, str]]:
    scores = figures.scores
    point = "median" if job.samples else "mean"
    yield f"MASE of the {point}", _text(scores["mase"]), _text(scores["mase_naive"])
    if job.levels:
        yield "WQL", _text(scores["wql"]), ""
    if len(job.levels) > 1:
        width = job.levels[-1] - job.levels[0]
        yield f"{width:.0%} interval holds", f"{scores['coverage']:.1%}", ""


def _text(value: float) -> str:
    return f"{value:.4g}"

"""An A/B comparison as a picture: forecasts over the truth, seconds and errors side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from toto_compile_patch.tools.ab.figures import OTHER_SEED, Figures, Forecasts
from toto_compile_patch.tools.ab.words import headline, ratio
from toto_compile_patch.tools.series.single import Floats

UPSTREAM, PATCHED, TRUTH, PAST = "#3b6fb6", "#e4572e", "#111111", "#777777"
OTHERS = ("#8a9bb0", "#b9a44c")
PANELS = 3

STYLE = Path(__file__).with_name("picture.mplstyle")


def draw(figures: Figures) -> bytes:
    """The picture as PNG."""
    windows = len(figures.data.windows)
    with mpl.rc_context(fname=STYLE):
        figure: Any = Figure(figsize=(11, 7), layout="constrained")
        figure.suptitle(headline(figures), fontsize=14, fontweight="bold", x=0.01, ha="left")
        above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
        # The first window, one in the middle, the last.
        shown = sorted({round(i) for i in np.linspace(0, windows - 1, min(PANELS, windows))})
        fans = above.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, window in zip(fans, shown, strict=True):
            _fan(axes, figures, window)
        fans[0].set_ylabel(figures.data.series.columns[0])
        above.legend(*fans[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        seconds, errors = below.subplots(1, 2)
        _seconds(seconds, figures)
        _errors(errors, figures)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _fan(axes: Any, figures: Figures, window: int) -> None:
    """Both sides' median and interval of the first column, over what went before and came true."""
    horizon, shown = figures.data.shape.horizon, figures.data.windows[window]
    past = shown.known[0, -2 * horizon :]
    steps = np.arange(horizon)
    axes.plot(np.arange(-len(past), 0), past, color=PAST, linewidth=0.9)
    low, middle, high = _levels(figures.sides[0], window)
    if figures.samples:
        band = {"color": UPSTREAM, "alpha": 0.22, "linewidth": 0}
        axes.fill_between(steps, low, high, label="upstream, 10 to 90 %", **band)
    label = "upstream, median" if figures.samples else "upstream, mean"
    axes.plot(steps, middle, color=UPSTREAM, linewidth=1.8, label=label)
    low, middle, high = _levels(figures.sides[-1], window)
    dashed = {"color": PATCHED, "dashes": (3, 2)}
    axes.plot(steps, middle, linewidth=1.4, label="patched, 10, 50 and 90 %", **dashed)
    if figures.samples:
        axes.plot(steps, np.stack([low, high], axis=1), linewidth=1.0, **dashed)
    axes.plot(steps, shown.truth[0], color=TRUTH, linewidth=1.1, label="truth")
    axes.axvline(-0.5, color=PAST, linewidth=0.6, linestyle=":")
    axes.set_title(f"window {window + 1} of {figures.data.shape.windows}")
    axes.set_xlabel("time steps from the forecast's origin")


def _levels(side: Forecasts, window: int) -> tuple[Floats, Floats, Floats]:
    """10, 50 and 90 % of the first column."""
    answer = side.answers[window]
    point, quantiles = answer.point[0], answer.quantiles
    return (point,) * 3 if quantiles is None else (quantiles[0, 0], point, quantiles[-1, 0])


def _seconds(axes: Any, figures: Figures) -> None:
    """Each forecast's seconds, way by way."""
    colors = [UPSTREAM, *OTHERS[: len(figures.speeds) - 2], PATCHED]
    for row, speed in enumerate(figures.speeds):
        faster = f", {ratio(speed.ratio)} times faster" if row else ""
        label = f"{speed.way}: median {speed.median:.3g} s{faster}"
        _bar(axes, row, (label, colors[row]), speed.median, speed.seconds)
    axes.set_title("Seconds of each forecast")
    axes.set_xlabel("seconds: less is better")


def _errors(axes: Any, figures: Figures) -> None:
    """Each window's error, way by way."""
    column = figures.data.series.columns[0]
    colors = {figures.speeds[0].way: UPSTREAM}
    if figures.samples:
        colors[OTHER_SEED] = OTHERS[0]
    colors[figures.speeds[-1].way] = PATCHED
    for row, (way, color) in enumerate(colors.items()):
        found = figures.accuracy(way, column)
        _bar(axes, row, (f"{way}: mean {found.mae:.4g}", color), found.mae, found.errors)
    axes.set_title("Mean absolute error of each window")
    axes.set_xlabel(f"{column}: less is better")


def _bar(
    axes: Any, row: int, look: tuple[str, str], middle: float, points: Sequence[float]
) -> None:
    """A bar from 0 as long as the middle of its points, with them over it and its label above."""
    label, color = look
    axes.barh(row, middle, height=0.4, color=color, alpha=0.65, linewidth=0)
    spread = row + np.linspace(-0.15, 0.15, len(points))
    axes.scatter(points, spread, s=10, color=TRUTH, alpha=0.55, linewidth=0)
    axes.annotate(label, (0, row - 0.24), va="bottom", fontweight="bold")
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_ylim(row + 0.4, -0.7)

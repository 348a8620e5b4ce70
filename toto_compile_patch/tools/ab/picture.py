"""An A/B comparison as a picture: forecasts over the truth, seconds and errors side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from toto_compile_patch.tools.ab import report
from toto_compile_patch.tools.ab.figures import OTHER_SEED, Figures, Forecasts
from toto_compile_patch.tools.series import Floats

UPSTREAM, PATCHED, TRUTH, PAST = "#3b6fb6", "#e4572e", "#111111", "#777777"
OTHERS = ("#8a9bb0", "#b9a44c")
PANELS = 3

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # A column's name may have dollars in it.
    "text.parse_math": False,
}


def draw(figures: Figures) -> bytes:
    """The picture as PNG."""
    with mpl.rc_context(STYLE):
        figure: Any = Figure(figsize=(11, 7), layout="constrained")
        figure.suptitle(_headline(figures), fontsize=14, fontweight="bold", x=0.01, ha="left")
        above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
        chosen = _chosen(len(figures.data.windows))
        fans = above.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
        for axes, window in zip(fans, chosen, strict=True):
            _fan(axes, figures, window)
        fans[0].set_ylabel(figures.data.series.columns[0])
        above.legend(*fans[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        seconds, errors = below.subplots(1, 2)
        _seconds(seconds, figures)
        _errors(errors, figures)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _headline(figures: Figures) -> str:
    patched = figures.speeds[-1]
    says = "the same forecast" if figures.judgement.same else "NOT the same forecast"
    return f"Toto, {patched.way}: {report.ratio(patched.ratio)} times the speed of upstream, {says}"


def _chosen(windows: int) -> list[int]:
    """Windows to show: the first, one in the middle, the last."""
    return sorted({round(i) for i in np.linspace(0, windows - 1, min(PANELS, windows))})


def _fan(axes: Any, figures: Figures, window: int) -> None:
    data = figures.data
    shape, shown = data.shape, data.windows[window]
    past = np.where(shown.observed[0], shown.values[0], np.nan)[-2 * shape.horizon :]
    before, after = np.arange(-len(past), 0), np.arange(shape.horizon)
    upstream, patched = figures.sides[0], figures.sides[-1]
    axes.plot(before, past, color=PAST, linewidth=0.9)
    _band(axes, after, upstream, window, figures.samples)
    low, middle, high = _levels(patched, window)
    axes.plot(
        after, middle, color=PATCHED, linewidth=1.4, dashes=(3, 2), label="patched, 10, 50 and 90 %"
    )
    if figures.samples:
        for level in (low, high):
            axes.plot(after, level, color=PATCHED, linewidth=1.0, dashes=(3, 2))
    axes.plot(after, shown.truth[0], color=TRUTH, linewidth=1.1, label="truth")
    axes.axvline(-0.5, color=PAST, linewidth=0.6, linestyle=":")
    axes.set_title(f"window {window + 1} of {shape.windows}")
    axes.set_xlabel("time steps from the forecast's origin")


def _band(axes: Any, steps: Any, side: Forecasts, window: int, samples: int) -> None:
    low, middle, high = _levels(side, window)
    if samples:
        axes.fill_between(
            steps, low, high, color=UPSTREAM, alpha=0.22, linewidth=0, label="upstream, 10 to 90 %"
        )
    axes.plot(
        steps,
        middle,
        color=UPSTREAM,
        linewidth=1.8,
        label="upstream, median" if samples else "upstream, mean",
    )


def _levels(side: Forecasts, window: int) -> tuple[Floats, Floats, Floats]:
    """10, 50 and 90 % of the first column."""
    point, quantiles = side.points[window][0], side.answers[window].quantiles
    return (point,) * 3 if quantiles is None else (quantiles[0, 0], point, quantiles[-1, 0])


def _seconds(axes: Any, figures: Figures) -> None:
    """Each forecast's seconds, way by way."""
    bars: list[Bar] = []
    for speed, color in zip(figures.speeds, _colors(len(figures.speeds)), strict=True):
        label = f"{speed.way}: median {speed.median:.3g} s"
        if bars:
            label += f", {report.ratio(speed.ratio)} times faster"
        bars.append(Bar(label, color, speed.median, speed.seconds))
    _bars(axes, bars)
    axes.set_title("Seconds of each forecast")
    axes.set_xlabel("seconds: less is better")


def _errors(axes: Any, figures: Figures) -> None:
    """Each window's error, way by way."""
    column = figures.data.series.columns[0]
    colors = {figures.speeds[0].way: UPSTREAM}
    if figures.samples:
        colors[OTHER_SEED] = OTHERS[0]
    colors[figures.speeds[-1].way] = PATCHED
    rows = [(figures.accuracy(way, column), color) for way, color in colors.items()]
    _bars(
        axes,
        [Bar(f"{row.way}: mean {row.mae:.4g}", color, row.mae, row.errors) for row, color in rows],
    )
    axes.set_title("Mean absolute error of each window")
    axes.set_xlabel(f"{column}: less is better")


@dataclass(frozen=True)
class Bar:
    """A bar that is as long as the middle of what its points show."""

    label: str
    color: str
    middle: float
    points: Sequence[float]


def _bars(axes: Any, bars: Sequence[Bar]) -> None:
    """Bars from 0, each with its points over it and its label above it."""
    for row, bar in enumerate(bars):
        axes.barh(row, bar.middle, height=0.4, color=bar.color, alpha=0.65, linewidth=0)
        spread = row + np.linspace(-0.15, 0.15, len(bar.points))
        axes.scatter(bar.points, spread, s=10, color=TRUTH, alpha=0.55, linewidth=0)
        axes.annotate(bar.label, (0, row - 0.24), va="bottom", fontweight="bold")
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_ylim(len(bars) - 0.6, -0.7)


def _colors(count: int) -> list[str]:
    return [UPSTREAM, *OTHERS[: count - 2], PATCHED]

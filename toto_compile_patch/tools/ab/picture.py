"""An A/B comparison as a picture: forecasts over the truth, seconds and errors side by side."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager, style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from toto_compile_patch.tools.ab.figures import OTHER_SEED, Figures, Forecasts
from toto_compile_patch.tools.ab.words import brief, headline, ratio, subject

STYLE = Path(__file__).with_name("picture.mplstyle")

PANELS = 3
"""Windows to show, at most."""

FEW_STEPS = 8
"""Time steps so few that each is drawn by itself: a band of one step cannot be seen."""

MANY_STEPS = 150
"""Time steps from which lines grow finer."""

LEAST_PAST = 24
"""Time steps of the context to show, at least."""


@dataclass(frozen=True)
class Look:
    """How a picture is laid out.

    Attributes:
        narrow: for a telephone: one thing below the other.
        dark: for a dark page.
        alone: shown without the page, so that it says itself what it shows.
    """

    narrow: bool = False
    dark: bool = False
    alone: bool = False

    @property
    def inches(self) -> tuple[float, float]:
        """Width and height."""
        return (4.4, 8.2) if self.narrow else (11, 9 if self.alone else 8)


ALONE = Look(alone=True)


@dataclass(frozen=True)
class Colors:
    """Of what is drawn. Those of the two sides are Okabe and Ito's blue and vermilion (orange on
    black), which colour-blind people tell apart; hatches tell them apart in grey as well."""

    upstream: str
    patched: str
    others: tuple[str, str]
    truth: str
    past: str
    ground: str

    def tint(self, color: str, share: float) -> tuple[float, ...]:
        """A color thinned with the ground's. Not transparent: in SVG, hatches would be, too."""
        mixed = share * np.array(to_rgb(color)) + (1 - share) * np.array(to_rgb(self.ground))
        return tuple(mixed.tolist())


LIGHT = Colors("#0072b2", "#d55e00", ("#8a9bb0", "#b9a44c"), "#111111", "#777777", "#ffffff")
DARK = Colors("#56b4e9", "#e69f00", ("#8a9bb0", "#b9a44c"), "#ffffff", "#a0a0a0", "#16181c")

HATCHES = {"upstream": "", "patched": "///"}


def draw(figures: Figures, look: Look = ALONE) -> bytes:
    """The picture: alone, as PNG; for a page, as SVG, for the page's own ground."""
    with styled(figures, look):
        file, kind = io.BytesIO(), "png" if look.alone else "svg"
        compose(figures, look).savefig(file, format=kind, transparent=not look.alone)
    return file.getvalue()


def compose(figures: Figures, look: Look) -> Figure:
    """The picture, to be drawn while ``styled``."""
    figure = Figure(figsize=look.inches, layout="constrained")
    if look.alone:
        _say_what_it_shows(figure, figures)
    _panels(figure, figures, look)
    return figure


@contextmanager
def styled(figures: Figures, look: Look) -> Iterator[None]:
    """The package's style, with fonts that can write the names of file and columns."""
    names = figures.data.series.source + "".join(figures.data.series.columns)
    # Not a user's own style: pictures are to look alike.
    sheets = ["default", *(["dark_background"] if look.dark else []), STYLE]
    with style.context(sheets), warnings.catch_warnings():
        mpl.rcParams["font.family"] = [*mpl.rcParams["font.family"], *_fonts_for(names)]
        # What no font can write is an empty box.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _fonts_for(text: str) -> list[str]:
    """Installed fonts that have the letters which the usual one lacks."""
    found = []
    usual = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    lacking = {ord(letter) for letter in text if letter.isprintable()} - usual.get_charmap().keys()
    families = dict.fromkeys(entry.name for entry in font_manager.fontManager.ttflist)
    for family in families if lacking else ():
        # Matplotlib's own, whose letters are boxes.
        if family.startswith("Last Resort"):
            continue
        # A letter that only a slanted or a bold face has would still be a box. In a list, or
        # matplotlib would look for patterns in the name.
        upright = font_manager.findfont(font_manager.FontProperties(family=[family]))
        has = lacking & font_manager.get_font(upright).get_charmap().keys()
        if has:
            found.append(family)
            lacking -= has
    return found


def _say_what_it_shows(figure: Any, figures: Figures) -> None:
    """The verdict above; series, model, machine and date below."""
    setting, left = figures.setting, {"x": 0.01, "ha": "left"}
    figure.suptitle(textwrap.fill(headline(figures), 98), fontweight="bold", **left)
    lines = (subject(figures), setting["forecasts"], f"{setting['machine']}; {setting['date']}")
    figure.supxlabel("\n".join(textwrap.fill(line, 150) for line in lines), **left)


def _panels(figure: Any, figures: Figures, look: Look) -> None:
    """Fans above, bars below."""
    colors = DARK if look.dark else LIGHT
    above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1) if look.narrow else (1.7, 1))
    _fans(above, figures, look, colors)
    seconds, errors = below.subplots(*((2, 1) if look.narrow else (1, 2)))
    _seconds(seconds, figures, colors)
    _errors(errors, figures, colors)


def _fans(figure: Any, figures: Figures, look: Look, colors: Colors) -> None:
    """Upstream's forecasts above patched ones, so that neither hides the other."""
    windows = len(figures.data.windows)
    most = 1 if look.narrow else PANELS
    # The first window, one in the middle, the last.
    shown = sorted({round(i) for i in np.linspace(0, windows - 1, min(most, windows))})
    panels = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    sides = {"upstream": figures.sides[0], "patched": figures.sides[-1]}
    keys: dict[str, Any] = {}
    for row, (name, side) in zip(panels, sides.items(), strict=True):
        for axes, window in zip(row, shown, strict=True):
            _past_and_truth(axes, figures, window, colors)
            _forecast(axes, side, window, name, colors)
            axes.set_title(f"{name}, window {window + 1} of {windows}")
        row[0].set_ylabel(brief(figures.data.series.columns[0]))
        handles, labels = row[0].get_legend_handles_labels()
        keys.update(zip(labels, handles, strict=True))
    for axes in panels[-1]:
        axes.set_xlabel("time steps from the forecast's origin")
    columns = 2 if look.narrow else len(keys)
    figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=columns)


def _past_and_truth(axes: Any, figures: Figures, window: int, colors: Colors) -> None:
    """What went before and what came true, of the first column."""
    shown, horizon = figures.data.windows[window], figures.data.shape.horizon
    past = shown.known[0, -max(LEAST_PAST, horizon) :]
    marker = "D" if _are_few(shown.truth[0]) else ""
    axes.plot(np.arange(-len(past), 0), past, color=colors.past, linewidth=0.9, label="context")
    line = {"color": colors.truth, "linewidth": 1.1, "marker": marker, "markersize": 4}
    axes.plot(np.arange(horizon), shown.truth[0], label="actual", zorder=3, **line)
    axes.axvline(-0.5, color=colors.past, linewidth=0.6, linestyle=":")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter("{x:,.10g}")


def _forecast(axes: Any, side: Forecasts, window: int, name: str, colors: Colors) -> None:
    """One side's median and interval of the first column, or its mean."""
    color, answer = getattr(colors, name), side.answers[window]
    middle = answer.point[0]
    steps = np.arange(len(middle))
    # Of many steps, thick lines would be all that is seen.
    fine = min(1.0, MANY_STEPS / len(steps))
    line = {"color": color, "linewidth": 0.6 + fine, "marker": "o" if _are_few(steps) else ""}
    label = f"{name}, mean" if answer.quantiles is None else f"{name}, median"
    axes.plot(steps, middle, label=label, **line)
    if answer.quantiles is None:
        return
    low, high = answer.quantiles[0, 0], answer.quantiles[-1, 0]
    label = f"{name}, 10 to 90%"
    if _are_few(steps):
        # The median is one of the samples, and quantiles lie between them.
        reach = np.maximum(0, [middle - low, high - middle])
        axes.errorbar(steps, middle, reach, color=color, fmt="none", capsize=5, label=label)
        return
    band = {"facecolor": colors.tint(color, 0.3), "edgecolor": color, "hatch": HATCHES[name]}
    axes.fill_between(steps, low, high, linewidth=0.5 * fine, label=label, **band)


def _are_few(steps: Sized) -> bool:
    return len(steps) <= FEW_STEPS


@dataclass(frozen=True)
class Bar:
    """A bar from 0 as long as the middle of its points, which are drawn over it."""

    label: str
    color: str
    middle: float
    points: Sequence[float]


def _seconds(axes: Any, figures: Figures, colors: Colors) -> None:
    """Each forecast's seconds, way by way."""
    shades = [colors.upstream, *colors.others[: len(figures.speeds) - 2], colors.patched]
    bars: list[Bar] = []
    for speed, color in zip(figures.speeds, shades, strict=True):
        label = f"{speed.way}: median {speed.median:.3g} s"
        if bars:
            label += f", {ratio(speed.ratio)} times the speed"
        bars.append(Bar(label, color, speed.median, speed.seconds))
    _draw_bars(axes, bars, colors)
    axes.set_title("Seconds of each forecast")
    axes.set_xlabel("seconds: less is better")


def _errors(axes: Any, figures: Figures, colors: Colors) -> None:
    """Each window's error, way by way."""
    shades = {figures.speeds[0].way: colors.upstream, OTHER_SEED: colors.others[0]}
    bars = [
        Bar(
            f"{row.way}: mean {row.mae:.4g}",
            shades.get(row.way, colors.patched),
            row.mae,
            row.errors,
        )
        for row in figures.accuracies_of_sides
    ]
    _draw_bars(axes, bars, colors)
    axes.set_title("Mean absolute error of each window")
    column = brief(figures.data.series.columns[0])
    axes.set_xlabel(f"in the unit of {column}: less is better")


def _draw_bars(axes: Any, bars: Sequence[Bar], colors: Colors) -> None:
    """From the top down, each with its label above it."""
    ink = {"color": mpl.rcParams["text.color"], "alpha": 0.7, "linewidth": 0}
    for row, bar in enumerate(bars):
        hatch = HATCHES["patched" if bar.color == colors.patched else "upstream"]
        face = {"facecolor": colors.tint(bar.color, 0.6), "edgecolor": bar.color, "hatch": hatch}
        axes.barh(row, bar.middle, height=0.4, linewidth=0.8, **face)
        axes.scatter(bar.points, row + np.linspace(-0.15, 0.15, len(bar.points)), s=12, **ink)
        axes.annotate(bar.label, (0, row - 0.24), va="bottom", fontweight="bold")
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_ylim(len(bars) - 0.6, -0.7)

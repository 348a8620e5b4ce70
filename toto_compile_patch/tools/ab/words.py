"""An A/B comparison in words and tables, as the screen, the page and the picture say it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Console

from toto_compile_patch.tools import models
from toto_compile_patch.tools.ab.asked import Data
from toto_compile_patch.tools.ab.figures import OTHER_SEED, Accuracy, Figures
from toto_compile_patch.tools.screen import show_table
from toto_compile_patch.tools.turns import UPSTREAM_CODE, Job
from toto_compile_patch.tools.wording import counted

STOLEN_WORTH_A_REMARK = 0.05
STRAYING_WORTH_A_REMARK = 20

LONGEST_NAME = 24
"""Characters of a column's name that a table or an axis has room for."""

MARKS = {True: "[bold green]yes[/]", False: "[bold red]NO[/] ", None: "[bold yellow]?[/]  "}

SPEED_LEGEND = (
    "Seconds of a forecast. Times faster: upstream's eager seconds over the way's, window by "
    "window: median (least to greatest). First +: what the first forecast takes beyond a steady "
    "one."
)
COMPILED_LEGEND = (
    "What torch.compile did in the whole comparison; limit hits are of its recompile limit."
)
ERRORS_LEGEND = (
    "MAE: mean absolute error, in the column's unit. MASE: that error over the error of the season "
    "before, within the context. Less of either is better. From upstream: mean distance from "
    "upstream's point forecast, in the column's unit."
)
SAMPLES_LEGEND = (
    " CRPS: twice the pinball loss over nine quantiles, in the column's unit; less is better. 80% "
    "holds: the share of the truth within the interval from 10 to 90%."
)


@dataclass(frozen=True)
class Verdict:
    """One thing that the comparison comes to.

    Attributes:
        good: whether it is good news; None where there is too little to tell.
        claim: in a few words.
        detail: the numbers behind it.
    """

    good: bool | None
    claim: str
    detail: str


def setting_of(data: Data, job: Job, facts: dict[str, str]) -> dict[str, str]:
    """What is compared on what, by label."""
    series, shape = data.series, data.shape
    size = [counted(series.rows_of_file, "row")]
    if series.rows != series.rows_of_file:
        size.append(counted(series.rows, "time step"))
    if series.gaps:
        size.append(counted(series.gaps, "gap"))
    dialect, times = series.notes
    return {
        "data": f"{series.source}, {', '.join(size)}: "
        f"{', '.join(series.columns)}" + (f" ({dialect})" if dialect else ""),
        "times": f"{times}; season {data.season}",
        "model": models.describe(job.model),
        "forecasts": f"{counted(shape.windows, 'window')}, context {shape.context}, horizon "
        f"{shape.horizon}, {counted(job.samples, 'sample') if job.samples else 'means'}",
        "machine": "{device}, torch {torch}, {toto}".format_map(facts),
        "date": facts["date"],
    }


def show_setting(setting: dict[str, str], console: Console) -> None:
    """Say on what the ways are compared, before the wait."""
    for label, text in setting.items():
        console.print(f"{label + ':':<10} {text}", markup=False, highlight=False, soft_wrap=True)


def headline(figures: Figures) -> str:
    """How much faster, and whether it says the same, in one line."""
    patched = figures.speeds[-1]
    says = {
        True: "the same forecast",
        False: "NOT the same forecast",
        None: "too little to tell whether it is the same forecast",
    }[figures.judgement.same]
    return f"Toto, {patched.way}: {ratio(patched.ratio)} times the speed of upstream, {says}"


def subject(figures: Figures) -> str:
    """Which series was forecast, by which model."""
    series = figures.data.series
    columns = [brief(column) for column in series.columns[:3]]
    if more := len(series.columns) - len(columns):
        columns.append(counted(more, "other column"))
    return f"{', '.join(columns)} of {brief(series.source, 60)}, by {figures.setting['model']}"


def verdicts(figures: Figures) -> list[Verdict]:
    """What the comparison comes to, the most important first."""
    found = [_speed(figures), _means(figures)]
    path = figures.speeds[-1].path
    if UPSTREAM_CODE in path:
        found.insert(1, Verdict(False, "not all forecasts went by the fast path", path))
    if figures.samples:
        found.append(_samples(figures))
    return found


def _speed(figures: Figures) -> Verdict:
    patched, windows = figures.speeds[-1], len(figures.data.windows)
    spread = f"{ratio(patched.ratio_from)} to {ratio(patched.ratio_to)} times, window by window"
    return Verdict(
        good=patched.ratio > 1,
        claim=f"{ratio(patched.ratio)} times the speed of upstream",
        detail=spread if windows > 1 else "measured in 1 window",
    )


def _means(figures: Figures) -> Verdict:
    judgement = figures.judgement
    equal = "are equal to within rounding" if judgement.means_agree else "DIFFER"
    return Verdict(
        good=judgement.means_agree,
        claim=f"mean forecasts, which involve no chance, {equal}",
        detail=f"at most {judgement.mean:.1e} standard deviations apart; their mean absolute error "
        f"changes by {abs(figures.mean_mae_change):.4%}",
    )


def _samples(figures: Figures) -> Verdict:
    judgement = figures.judgement
    claim = {
        True: "samples differ as much as two seeds of upstream do",
        False: "samples differ MORE than two seeds of upstream do",
        None: "too little to judge samples by",
    }[judgement.samples_agree]
    detail = (
        f"their quantiles by {judgement.distance:.1%} of the interval, two seeds' by "
        f"{judgement.between_seeds:.1%} (chance explains {judgement.explained:.1%}); the "
        f"median's mean absolute error changes by {figures.mae_change(figures.speeds[-1].way):+.1%}"
        f", with another seed by {figures.mae_change(OTHER_SEED):+.1%}"
    )
    if judgement.samples_agree is None:
        asked = counted(len(figures.data.windows), "window")
        detail = (
            f"in {asked} of {counted(figures.samples, 'sample')}, a real difference of up to "
            f"{judgement.smallest_seen:.0%} of the interval could go unseen: ask for --samples "
            f"{judgement.samples_needed} or for more --windows. Quantiles differ by "
            f"{judgement.distance:.1%} of the interval, two seeds' by {judgement.between_seeds:.1%}"
        )
    return Verdict(judgement.samples_agree, claim, detail)


def remarks(figures: Figures) -> list[str]:
    """What a reader should keep in mind."""
    found = []
    upstream, naive = figures.speeds[0].way, figures.data.naive
    if figures.stolen > STOLEN_WORTH_A_REMARK:
        found.append(
            f"{figures.stolen:.0%} of the processor's time was stolen by other virtual machines: "
            "trust ratios only, or measure again"
        )
    first = figures.data.series.columns[0]
    if figures.accuracy(upstream, first).mae > figures.accuracy(naive, first).mae:
        found.append(f"this model forecasts worse than the {naive} forecast, on either side")
    for column, strays in zip(figures.data.series.columns, figures.straying, strict=True):
        if strays > STRAYING_WORTH_A_REMARK:
            found.append(
                f"{brief(column)} moves too little for this model, whose forecasts stray "
                f"{strays:,.0f} times as far on either side: multiply the column by a power of ten"
            )
    return found


def show(figures: Figures, console: Console) -> None:
    """Print verdicts, tables and remarks."""
    console.print()
    for verdict in verdicts(figures):
        console.print(MARKS[verdict.good], end=" ")
        console.print(f"{verdict.claim}: {verdict.detail}", markup=False, highlight=False)
    for headings, rows, legend in tables(figures):
        console.print()
        show_table(console, headings, rows)
        console.print(legend, style="dim", markup=False, highlight=False)
    for remark in remarks(figures):
        console.print(f"note: {remark}", markup=False, highlight=False)


def tables(figures: Figures) -> list[tuple[list[str], list[list[str]], str]]:
    """Headings, rows and legend of each."""
    compiled = any(any(speed.health.values()) for speed in figures.speeds)
    errors = ERRORS_LEGEND + (SAMPLES_LEGEND if figures.samples else "")
    return [
        (*speed_rows(figures), SPEED_LEGEND),
        *([(*compiled_rows(figures), COMPILED_LEGEND)] if compiled else []),
        (*accuracy_rows(figures), errors),
    ]


def alternative(figures: Figures) -> str:
    """What the picture shows, for whoever cannot see it."""
    column = figures.data.series.columns[0]
    bands = "medians and intervals from 10 to 90%" if figures.samples else "means"
    seconds = "; ".join(f"{speed.way} {speed.median:.3g} s" for speed in figures.speeds)
    errors = "; ".join(f"{row.way} {row.mae:.4g}" for row in figures.accuracies_of_sides)
    return (
        f"{headline(figures)}. Forecasts of {column}, {bands}, over the actual values: upstream's "
        f"above, patched below. Seconds of a forecast, at the median: {seconds}. Mean absolute "
        f"error, in the unit of {column}: {errors}."
    )


def speed_rows(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of speeds."""
    rows = [
        [
            speed.way,
            f"{speed.median:.3g}",
            f"{speed.p95:.3g}",
            f"{ratio(speed.ratio)} ({ratio(speed.ratio_from)}-{ratio(speed.ratio_to)})",
            f"{speed.first:.1f}",
            f"{speed.peak_gb:.2f}",
        ]
        for speed in figures.speeds
    ]
    return ["speed", "median s", "p95 s", "times faster", "first + s", "peak GB"], rows


def compiled_rows(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of what torch.compile did."""
    counts = ("graphs", "graph_breaks", "recompilations", "limit_hits")
    rows = [
        [speed.way, *(str(speed.health[count]) for count in counts)] for speed in figures.speeds
    ]
    return ["compiled", *(count.replace("_", " ") for count in counts)], rows


def accuracy_rows(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of errors."""
    several = len(figures.data.series.columns) > 1

    def of_samples(row: Accuracy) -> list[str]:
        if not figures.samples:
            return []
        return [_short(row.crps), "" if math.isnan(row.coverage) else f"{row.coverage:.0%}"]

    rows = [
        [
            f"{brief(row.column)}: {row.way}" if several else row.way,
            *map(_short, (row.mae, row.mase, row.difference or math.nan)),
            *of_samples(row),
        ]
        for row in figures.accuracies
    ]
    headings = ["errors", "MAE", "MASE", "from upstream"]
    return [*headings, *(["CRPS", "80% holds"] if figures.samples else [])], rows


def ratio(number: float) -> str:
    """How many times, to what digits matter."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def brief(name: str, length: int = LONGEST_NAME) -> str:
    """A name, its end left out where it is long."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _short(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.4g}"

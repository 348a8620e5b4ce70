"""An A/B comparison in words and tables, on the screen."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toto_compile_patch.tools import models
from toto_compile_patch.tools.ab.figures import (
    OTHER_SEED,
    STOLEN_WORTH_A_REMARK,
    Data,
    Figures,
)
from toto_compile_patch.tools.workers import Job

LEGENDS = (
    "Times faster: upstream's eager seconds over the way's, window by window: median, and from "
    "least to greatest. First +: what the first forecast takes beyond a steady one. Graphs, graph "
    "breaks, recompilations and recompile-limit hits of torch.compile.",
    "MAE, CRPS (twice the pinball loss over nine quantiles): in the column's unit. MASE: against "
    "the season before, within the context. 80 % holds: how much of the truth lies within the "
    "interval from 10 to 90 %. From upstream: mean distance from upstream's median forecast.",
)
"""What the headings of the two tables mean."""


def setting_of(data: Data, job: Job, facts: dict[str, str]) -> dict[str, str]:
    """What is compared on what, by label."""
    series, shape = data.series, data.shape
    gaps = f", {series.gaps} gaps" if series.gaps else ""
    plural = "" if series.skips == 1 else "s"
    skips = f", {series.skips} jump{plural} in the times (rows are taken as they follow)"
    return {
        "data": f"{series.source}, {series.rows} rows{gaps}{skips if series.skips else ''}: "
        f"{', '.join(series.columns)}",
        "model": models.describe(job.model),
        "forecasts": f"{shape.windows} windows, context {shape.context}, horizon {shape.horizon}, "
        + (f"{job.samples} samples" if job.samples else "means")
        + f", season {data.season}",
        "machine": "{device}, torch {torch}, {toto}".format_map(facts),
        "date": facts["date"],
    }


def show_setting(setting: dict[str, str], console: Console) -> None:
    """Say on what the ways are compared, before the wait."""
    for label, text in setting.items():
        console.print(f"{label + ':':<10} {text}", markup=False, highlight=False, soft_wrap=True)


def verdicts(figures: Figures) -> list[tuple[bool, str]]:
    """What the comparison comes to: whether each is good news, and the sentence."""
    patched, judgement = figures.speeds[-1], figures.judgement
    found = [
        (
            patched.ratio > 1,
            f"{ratio(patched.ratio)} times the speed of upstream (window by window "
            f"{ratio(patched.ratio_from)} to {ratio(patched.ratio_to)})",
        ),
        (
            judgement.means_agree,
            "mean forecasts, which involve no chance, "
            + ("are equal" if judgement.means_agree else "DIFFER")
            + f": at most {judgement.mean:.1e} standard deviations apart; their mean absolute "
            f"error changes by {abs(figures.mean_mae_change):.4%}",
        ),
    ]
    if judgement.distance is not None:
        more = "as much as" if judgement.samples_agree else "MORE than"
        found.append(
            (
                judgement.samples_agree,
                f"samples differ {more} two seeds of upstream do: their quantiles by "
                f"{judgement.distance:.1%} of the interval, two seeds' by "
                f"{judgement.between_seeds:.1%} (chance explains {judgement.explained:.1%}); the "
                f"median's mean absolute error changes by {figures.mae_change(patched.way):+.1%}, "
                f"with another seed by {figures.mae_change(OTHER_SEED):+.1%}",
            )
        )
    return found


def remarks(figures: Figures) -> list[str]:
    """What a reader should keep in mind."""
    found = []
    if "upstream's code" in figures.speeds[-1].path:
        found.append(f"not all went by the fast path: {figures.speeds[-1].path}")
    if figures.stolen > STOLEN_WORTH_A_REMARK:
        found.append(
            f"{figures.stolen:.0%} of the processor's time was stolen by other virtual machines: "
            "trust ratios only, or measure again"
        )
    upstream, first = figures.speeds[0].way, figures.data.series.columns[0]
    if figures.accuracy(upstream, first).mae > figures.accuracy(figures.data.naive, first).mae:
        naive = figures.data.naive
        found.append(f"this model forecasts worse than the {naive} forecast, on either side")
    return found


def show(figures: Figures, console: Console) -> None:
    """Print verdicts, tables and remarks."""
    console.print()
    for good, sentence in verdicts(figures):
        mark = "[bold green]yes[/] " if good else "[bold red]NO [/] "
        console.print(mark, end="")
        console.print(sentence, markup=False, highlight=False)
    console.print(
        "", table_of(*speed_rows(figures)), "", table_of(*accuracy_rows(figures)), sep="\n"
    )
    for remark in remarks(figures):
        console.print(f"note: {remark}", markup=False, highlight=False)


def table_of(headings: list[str], rows: list[list[str]]) -> Table:
    """The first column to the left, figures to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        # As text: a column's name may look like markup.
        table.add_row(*map(Text, row))
    return table


def speed_rows(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of speeds."""
    headings = ["seconds", "median", "p95", "times faster", "first +", "peak GB"]
    counts = {"graphs": "graphs", "graph_breaks": "breaks", "recompilations": "recomp."}
    counts["limit_hits"] = "limit"
    rows = [
        [
            speed.way,
            f"{speed.median:.3g}",
            f"{speed.p95:.3g}",
            f"{ratio(speed.ratio)} ({ratio(speed.ratio_from)}-{ratio(speed.ratio_to)})",
            f"{speed.first:.1f}",
            f"{speed.peak_gb:.2f}",
            *(str(speed.health[count]) for count in counts),
        ]
        for speed in figures.speeds
    ]
    return headings + list(counts.values()), rows


def accuracy_rows(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of errors."""
    headings = ["errors", "MAE", "MASE", "CRPS", "80 % holds", "from upstream"]
    several = len(figures.data.series.columns) > 1
    rows = [
        [
            f"{row.column}: {row.way}" if several else row.way,
            _short(row.mae),
            _short(row.mase),
            _short(row.crps),
            "" if math.isnan(row.coverage) else f"{row.coverage:.0%}",
            _short(row.difference) if row.difference else "",
        ]
        for row in figures.accuracies
    ]
    return headings, rows


def ratio(number: float) -> str:
    """How many times, to what digits matter."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _short(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.4g}"

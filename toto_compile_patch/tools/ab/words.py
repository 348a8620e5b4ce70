"""An A/B comparison in words and tables, on the screen and as a page."""

from __future__ import annotations

import base64
import math
from pathlib import Path

from rich.console import Console

from toto_compile_patch.tools import models
from toto_compile_patch.tools.ab.figures import OTHER_SEED, Data, Figures
from toto_compile_patch.tools.screen import table_of
from toto_compile_patch.tools.turns import UPSTREAM_CODE, Job
from toto_compile_patch.tools.wording import counted

STOLEN_WORTH_A_REMARK = 0.05


def setting_of(data: Data, job: Job, facts: dict[str, str]) -> dict[str, str]:
    """What is compared on what, by label."""
    series, shape = data.series, data.shape
    gaps = f", {counted(series.gaps, 'gap')}" if series.gaps else ""
    dialect, times = series.notes
    return {
        "data": f"{series.source}, {counted(series.rows, 'row')}{gaps}: "
        f"{', '.join(series.columns)}" + (f" ({dialect})" if dialect else ""),
        "times": f"{times}; season {data.season}",
        "model": models.describe(job.model),
        "forecasts": f"{shape.windows} windows, context {shape.context}, horizon {shape.horizon}, "
        + (f"{job.samples} samples" if job.samples else "means"),
        "machine": "{device}, torch {torch}, {toto}".format_map(facts),
        "date": facts["date"],
    }


def show_setting(setting: dict[str, str], console: Console) -> None:
    """Say on what the ways are compared, before the wait."""
    for label, text in setting.items():
        console.print(f"{label + ':':<10} {text}", markup=False, highlight=False, soft_wrap=True)


def headline(figures: Figures) -> str:
    """How much faster, and whether it says the same, in one line."""
    says = "the same forecast" if figures.judgement.same else "NOT the same forecast"
    patched = figures.speeds[-1]
    return f"Toto, {patched.way}: {ratio(patched.ratio)} times the speed of upstream, {says}"


def verdicts(figures: Figures) -> list[tuple[bool, str]]:
    """What the comparison comes to: whether each is good news, and the sentence."""
    patched, judgement = figures.speeds[-1], figures.judgement
    equal = "are equal" if judgement.means_agree else "DIFFER"
    faster = (
        f"{ratio(patched.ratio)} times the speed of upstream (window by window "
        f"{ratio(patched.ratio_from)} to {ratio(patched.ratio_to)})"
    )
    means = (
        f"mean forecasts, which involve no chance, {equal}: at most {judgement.mean:.1e} standard "
        f"deviations apart; their mean absolute error changes by {abs(figures.mean_mae_change):.4%}"
    )
    found = [(patched.ratio > 1, faster), (judgement.means_agree, means)]
    if judgement.distance is not None:
        more = "as much as" if judgement.samples_agree else "MORE than"
        samples = (
            f"samples differ {more} two seeds of upstream do: their quantiles by "
            f"{judgement.distance:.1%} of the interval, two seeds' by "
            f"{judgement.between_seeds:.1%} (chance explains {judgement.explained:.1%}); the "
            f"median's mean absolute error changes by {figures.mae_change(patched.way):+.1%}, "
            f"with another seed by {figures.mae_change(OTHER_SEED):+.1%}"
        )
        found.append((judgement.samples_agree, samples))
    return found


def remarks(figures: Figures) -> list[str]:
    """What a reader should keep in mind."""
    found = []
    upstream, path, naive = figures.speeds[0].way, figures.speeds[-1].path, figures.data.naive
    if UPSTREAM_CODE in path:
        found.append(f"not all went by the fast path: {path}")
    if figures.stolen > STOLEN_WORTH_A_REMARK:
        found.append(
            f"{figures.stolen:.0%} of the processor's time was stolen by other virtual machines: "
            "trust ratios only, or measure again"
        )
    first = figures.data.series.columns[0]
    if figures.accuracy(upstream, first).mae > figures.accuracy(naive, first).mae:
        found.append(f"this model forecasts worse than the {naive} forecast, on either side")
    return found


def show(figures: Figures, console: Console) -> None:
    """Print verdicts, tables and remarks."""
    console.print()
    for good, sentence in verdicts(figures):
        mark = "[bold green]yes[/] " if good else "[bold red]NO [/] "
        console.print(mark, end="")
        console.print(sentence, markup=False, highlight=False)
    for rows in (speed_rows(figures), accuracy_rows(figures)):
        console.print("", table_of(*rows), sep="\n")
    for remark in remarks(figures):
        console.print(f"note: {remark}", markup=False, highlight=False)


def page(figures: Figures, picture: bytes) -> str:
    """The comparison as a self-contained page, with its picture (PNG) in it."""
    import jinja2

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        verdicts=verdicts(figures),
        headline=headline(figures),
        setting=figures.setting,
        tables=[speed_rows(figures), accuracy_rows(figures)],
        remarks=remarks(figures),
        picture=base64.b64encode(picture).decode(),
    )


def speed_rows(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of speeds."""
    counts = ("graphs", "graph_breaks", "recompilations", "limit_hits")
    headings = ["seconds", "median", "p95", "times faster", "first +", "peak GB"]
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
    return [*headings, "graphs", "breaks", "recomp.", "limit"], rows


def accuracy_rows(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of errors."""
    several = len(figures.data.series.columns) > 1
    rows = [
        [
            f"{row.column}: {row.way}" if several else row.way,
            *map(_short, (row.mae, row.mase, row.crps)),
            "" if math.isnan(row.coverage) else f"{row.coverage:.0%}",
            _short(row.difference or math.nan),
        ]
        for row in figures.accuracies
    ]
    return ["errors", "MAE", "MASE", "CRPS", "80 % holds", "from upstream"], rows


def ratio(number: float) -> str:
    """How many times, to what digits matter."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _short(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.4g}"

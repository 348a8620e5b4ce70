"""What a backtest ran on and what it measured: descriptions, summaries, table, JSON."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from toto_compile_patch.settings import ENV_TOGGLE, Settings
from toto_compile_patch.tools import models
from toto_compile_patch.tools.series import Floats, Series, Window
from toto_compile_patch.tools.workers import Answer, Job, Way

_LEGEND = {
    "speed-up": "eager's seconds divided by the way's, per window: median, and least-greatest",
    "compile": "what the first forecast takes beyond a steady one, with an empty compile cache",
    "error": "mean absolute error of the point forecasts",
    "diff.": "greatest distance of a point forecast from eager's, in std. deviations of the data",
}

_STEAL_WORTH_A_WARNING = 0.05
_SPREAD_WORTH_A_WARNING = 2.0


def print_setting(
    console: Console, series: Series, job: Job, machine: dict[str, Any], standing: list[str]
) -> None:
    """Say on what the ways are compared, before the long wait."""
    gaps = f"{series.gaps} gaps" if series.gaps else "no gaps"
    _print_line(console, "data", f"{series.source}, {series.rows} rows, {gaps}")
    _print_line(console, "column", series.columns[0])
    _print_line(console, "model", models.describe(job.model))
    text = "{device}, torch {torch}, {toto}".format_map(machine)
    _print_line(console, "machine", text)
    _print_line(console, "patches", _describe_patches(standing))


def _print_line(console: Console, label: str, text: str) -> None:
    console.print(f"{label + ':':<9} {text}", markup=False, highlight=False, soft_wrap=True)


def _describe_patches(standing: list[str]) -> str:
    if standing:
        return ", ".join(standing)
    if Settings.resolve().enabled:
        return "none fits the installed toto: upstream runs untouched, nothing is patched"
    return f"{ENV_TOGGLE}={os.environ[ENV_TOGGLE]}: upstream runs untouched, nothing is patched"


@dataclass
class Record:
    """What one way did, forecast by forecast; the warm-up forecasts stand apart."""

    way: Way
    warmup_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    points: list[Floats] = field(default_factory=list)
    noises: list[Floats] = field(default_factory=list)
    health: dict[str, int] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        self.seconds.append(answer.seconds)
        self.points.append(answer.point)
        self.noises.append(answer.noise)

    @property
    def spread(self) -> float:
        return max(self.seconds) / min(self.seconds)


@dataclass(frozen=True)
class Summary:
    """One row of the table.

    Attributes:
        way: its name.
        median_seconds: of a forecast, warm-up left out.
        speedup: eager's seconds over its own, window by window: the median.
        speedup_min: the least of them.
        speedup_max: the greatest of them.
        compile_seconds: what the warm-up forecasts took beyond as many steady ones; None for a
            way that compiles nothing.
        mean_absolute_error: of the point forecasts, where the truth is known.
        max_difference: of a point forecast from eager's, in standard deviations of the series.
        warmup_seconds: of each warm-up forecast.
        seconds: of each forecast.
        sampling_noise: what chance alone makes of a difference between two forecasts with other
            random numbers, in standard deviations of the series: on average, and at its greatest.
        health: counts of dynamo, over all forecasts.
    """

    way: str
    median_seconds: float
    speedup: float
    speedup_min: float
    speedup_max: float
    compile_seconds: float | None
    mean_absolute_error: float
    max_difference: float
    sampling_noise: tuple[float, float]
    warmup_seconds: list[float]
    seconds: list[float]
    health: dict[str, int]


def summarize(record: Record, eager: Record, windows: list[Window], std: float) -> Summary:
    speedups = np.array(eager.seconds) / np.array(record.seconds)
    median = float(np.median(record.seconds))
    compile_seconds = sum(record.warmup_seconds) - len(record.warmup_seconds) * median
    points = np.stack(record.points)
    noise = 2**0.5 * np.stack(record.noises) / std
    return Summary(
        way=record.way.name,
        median_seconds=median,
        speedup=float(np.median(speedups)),
        speedup_min=float(speedups.min()),
        speedup_max=float(speedups.max()),
        compile_seconds=compile_seconds if record.health["graphs"] else None,
        mean_absolute_error=_mean_absolute_error(points, windows),
        max_difference=float(np.abs(points - np.stack(eager.points)).max()) / std,
        sampling_noise=(float(noise.mean()), float(noise.max())),
        warmup_seconds=record.warmup_seconds,
        seconds=record.seconds,
        health=record.health,
    )


def _mean_absolute_error(points: Floats, windows: list[Window]) -> float:
    truth = np.stack([window.truth for window in windows])
    known = ~np.isnan(truth)
    return float(np.abs(points - truth)[known].mean()) if known.any() else math.nan


def remarks_on(records: list[Record], stolen: float) -> list[str]:
    """Say what disturbed the clock."""
    found = []
    if stolen > _STEAL_WORTH_A_WARNING:
        found.append(
            f"{stolen:.0%} of the CPU time was stolen by other virtual machines: trust ratios only"
        )
    found += [
        f"seconds of '{record.way.name}' differ by a factor of {record.spread:.1f} between windows"
        for record in records
        if record.spread > _SPREAD_WORTH_A_WARNING
    ]
    return found


def print_result(console: Console, summaries: list[Summary], remarks: list[str]) -> None:
    console.print("", _table(summaries), "", sep="\n")
    for label, text in _LEGEND.items():
        _print_line(console, label, text)
    average, greatest = summaries[0].sampling_noise
    if greatest > 0:
        _print_line(
            console,
            "noise",
            "upstream's own forecasts with two seeds differ by about "
            f"{_short(average)} on average and {_short(greatest)} where they are least certain",
        )
    for remark in remarks:
        _print_line(console, "warning", remark)


def _table(summaries: list[Summary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("way of\nforecasting")
    for header in (
        "median\nseconds",
        "speed-up\nvs eager",
        "compile\nseconds",
        "\ngraphs",
        "graph\nbreaks",
        "recom-\npiled",
        "limit\nhits",
        "mean\nerror",
        "max.\ndiff.",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for summary in summaries:
        table.add_row(*_cells(summary))
    return table


def _cells(summary: Summary) -> list[str]:
    compile_seconds = summary.compile_seconds
    counts = ("graphs", "graph_breaks", "recompilations", "limit_hits")
    return [
        summary.way,
        f"{summary.median_seconds:.3g}",
        f"{_ratio(summary.speedup)}\n{_ratio(summary.speedup_min)}-{_ratio(summary.speedup_max)}",
        "-" if compile_seconds is None else f"{compile_seconds:.1f}",
        *(str(summary.health[name]) for name in counts),
        _short(summary.mean_absolute_error),
        _short(summary.max_difference),
    ]


def _ratio(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.0f}"


def _short(number: float) -> str:
    if math.isnan(number):
        return "unknown"
    return f"{number:.4g}" if 0.001 <= abs(number) < 10_000 or number == 0 else f"{number:.1e}"


def as_json(summaries: list[Summary]) -> list[dict[str, Any]]:
    """The summaries as JSON has them: what is no finite number is null."""
    return [
        {name: _finite_or_none(value) for name, value in asdict(summary).items()}
        for summary in summaries
    ]


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

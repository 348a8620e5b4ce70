"""The command: what it refuses, the forecasts that it asks for, what it writes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools import checks, machine, models
from toto_compile_patch.tools.ab import report
from toto_compile_patch.tools.ab.figures import Data, Figures, Forecasts, figures_of
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.scores import season_of
from toto_compile_patch.tools.series import (
    Series,
    SeriesError,
    Shape,
    cut_windows,
    read_series,
)
from toto_compile_patch.tools.turns import standing_patches, started, warmups
from toto_compile_patch.tools.workers import (
    COMPILED,
    EAGER,
    PATCHED,
    PATCHED_COMPILED,
    Job,
    Question,
    Way,
    WorkerError,
)

BUNDLED_COLUMN = "temp"
WINDOWS, CONTEXT, HORIZON = 16, 512, 96
SAMPLES, FEWER_SAMPLES = {"demo": 512}, 128
OTHER_SEED = 1_000_000
WIDTH_OF_A_FILE = 100


@dataclass(frozen=True)
class Plan:
    """All that was asked for, checked."""

    data: Data
    ways: tuple[Way, ...]
    job: Job


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    try:
        plan = _plan(options)
        facts = machine.facts(plan.job.device)
        drawn = _can_draw(options)
        setting = report.setting_of(plan.data, plan.job, facts)
        report.show_setting(setting, console)
        figures = measure(plan, setting)
    except (UsageError, SeriesError) as error:
        return _fail(2, str(error))
    except WorkerError as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    report.show(figures, console)
    if drawn:
        console.print(f"\nreport: {write_report(options.report, figures)}", markup=False)
    if options.json:
        _write(options.json, (json.dumps(figures.as_json(), indent=1) + "\n").encode())
    return 0 if figures.same else 1


def _can_draw(options: argparse.Namespace) -> bool:
    """Whether there will be a report; says so where matplotlib is missing."""
    if options.report is None or find_spec("matplotlib"):
        return options.report is not None
    print("ab: no report: matplotlib is missing: pip install matplotlib", file=sys.stderr)
    return False


def write_report(path: Path, figures: Figures) -> Path:
    """Write the page and, beside it, its picture; return the page's path."""
    from toto_compile_patch.tools.ab.page import page
    from toto_compile_patch.tools.ab.picture import draw

    picture = draw(figures)
    _write(path.with_suffix(".png"), picture)
    _write(path, page(figures, picture).encode())
    return path


def _fail(code: int, message: str) -> int:
    print(f"ab: error: {message}", file=sys.stderr)
    return code


def _write(path: Path, content: bytes) -> None:
    """A file that is whole or not there."""
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)


def _plan(options: argparse.Namespace) -> Plan:
    samples: int = SAMPLES.get(options.model, FEWER_SAMPLES)
    if options.samples is not None:
        samples = options.samples
    samples_per_batch = checks.check_batch(samples, options.samples_per_batch)
    if options.model not in models.KNOWN:
        checks.check_model(options.model)
    for option, path in (("--report", options.report), ("--json", options.json)):
        if path is not None:
            checks.check_writable(option, path)
    if options.report and options.report.suffix != ".html":
        raise UsageError(f"--report {options.report}: give a file named .html")
    if options.file is None:
        series = read_series(models.BUNDLED, options.column or [BUNDLED_COLUMN])
    else:
        series = read_series(options.file, options.column or [])
    shape = _shape(series, options)
    windows = cut_windows(series, shape)
    season = options.season or season_of(series, shape.context)
    if season >= shape.context:
        raise UsageError(f"--season {season} must be shorter than the context, {shape.context}")
    if not standing_patches():
        raise UsageError(_nothing_to_compare())
    compiled = options.mode is not None
    return Plan(
        data=Data(series, windows, shape, season),
        ways=(EAGER, COMPILED, PATCHED_COMPILED) if compiled else (EAGER, PATCHED),
        job=Job(
            model=options.model,
            device=checks.choose_device(options.device),
            mode=options.mode or "default",
            horizon=shape.horizon,
            samples=samples,
            samples_per_batch=samples_per_batch,
        ),
    )


def _nothing_to_compare() -> str:
    toggle = os.environ.get(ENV_TOGGLE)
    if toggle is not None:
        return f"{ENV_TOGGLE}={toggle} leaves nothing to compare upstream with: unset it"
    return "no patch fits the installed toto: see `toto-compile-patch doctor`"


def _shape(series: Series, options: argparse.Namespace) -> Shape:
    """As asked; what was not asked for fits the series."""
    horizon = options.horizon or min(HORIZON, series.rows // 4)
    context = options.context or max(1, min(CONTEXT, series.rows - horizon, series.rows // 2))
    windows = options.windows or max(1, min(WINDOWS, (series.rows - context) // horizon))
    return Shape(windows, context, horizon)


def measure(plan: Plan, setting: dict[str, str]) -> Figures:
    """Let the ways take turns at every window.

    Upstream's eager code makes each forecast with a second seed too, and two of them without
    chance: the means.

    Raises:
        WorkerError: one of the ways cannot do it.
    """
    sides = [Forecasts(way) for way in plan.ways]
    warm = warmups(plan.job.device)
    other_seed = Forecasts(EAGER)
    count = len(plan.data.windows) * (2 * len(sides) + 1) + warm * len(sides)
    stolen = machine.read_stolen()
    with started(plan.ways, plan.job, count) as turns:
        for _ in range(warm):
            answers = turns.ask_all(Question(0, plan.data.windows[0]), "first forecast")
            for side, answer in zip(sides, answers, strict=True):
                side.first_seconds.append(answer.seconds)
        for seed, window in enumerate(plan.data.windows):
            doing = f"window {seed + 1}"
            answers = turns.ask_all(Question(seed, window), doing, first=seed)
            for side, answer in zip(sides, answers, strict=True):
                side.add(answer)
            question = Question(OTHER_SEED + seed, window)
            other_seed.add(turns.ask(turns.workers[0], question, f"{doing}, another seed"))
        for seed, window in enumerate(plan.data.windows):
            answers = turns.ask_all(Question(seed, window, mean=True), "means")
            for side, answer in zip(sides, answers, strict=True):
                side.means.append(answer.point)
        for side, worker in zip(sides, turns.workers, strict=True):
            side.account = worker.finish()
    stolen_share = machine.stolen_share(stolen, machine.read_stolen())
    return figures_of(plan.data, sides, other_seed, setting, plan.job.samples, stolen_share)

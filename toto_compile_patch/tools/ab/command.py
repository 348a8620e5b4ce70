"""The command: what it refuses, the forecasts that it asks for, what it writes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools import checks, machine, models
from toto_compile_patch.tools.ab import report
from toto_compile_patch.tools.ab.figures import Data, Figures, Forecasts, figures_of
from toto_compile_patch.tools.checks import UsageError, is_stdout, write_whole
from toto_compile_patch.tools.scores import season_of
from toto_compile_patch.tools.series import (
    Series,
    SeriesError,
    Shape,
    cut_windows,
    read_series,
)
from toto_compile_patch.tools.turns import LoadError, standing_patches, started, warmups
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    to_stdout = is_stdout(options.json)
    console = Console(stderr=to_stdout)
    if not console.is_terminal:
        console = Console(stderr=to_stdout, width=WIDTH_OF_A_FILE)
    try:
        return _compare(options, console)
    except (SeriesError, LoadError) as error:
        return _fail(2, str(error))
    except WorkerError as error:
        return _fail(1, str(error))


def _compare(options: argparse.Namespace, console: Console) -> int:
    plan = _plan(options)
    drawn = _can_draw(options)
    setting = report.setting_of(plan.data, plan.job, machine.facts(plan.job.device))
    report.show_setting(setting, console)
    figures = measure(plan, setting)
    report.show(figures, console)
    if options.json:
        write_whole(options.json, json.dumps(figures.as_json(), indent=1) + "\n")
    if drawn:
        console.print(f"\nreport: {write_report(options.report, figures)}", markup=False)
    return 0 if figures.judgement.same else 1


def _can_draw(options: argparse.Namespace) -> bool:
    """Whether there will be a report; says so where something for it is missing."""
    missing = [name for name in ("matplotlib", "jinja2") if not find_spec(name)]
    if options.report and missing:
        names = " ".join(missing)
        print(f"ab: no report without {names}: pip install {names}", file=sys.stderr)
    return options.report is not None and not missing


def write_report(path: Path, figures: Figures) -> Path:
    """Write the page and, beside it, its picture; return the page's path."""
    from toto_compile_patch.tools.ab.page import page
    from toto_compile_patch.tools.ab.picture import draw

    picture = draw(figures)
    write_whole(path.with_suffix(".png"), picture)
    write_whole(path, page(figures, picture))
    return path


def _fail(code: int, message: str) -> int:
    print(f"ab: error: {message}", file=sys.stderr)
    return code


def _plan(options: argparse.Namespace) -> Plan:
    samples: int = SAMPLES.get(options.model, FEWER_SAMPLES)
    if options.samples is not None:
        samples = options.samples
    samples_per_batch = checks.check_batch(samples, options.samples_per_batch)
    if options.model not in models.KNOWN:
        checks.check_model(options.model)
    _check_outputs(options)
    if options.file is None:
        series = read_series(models.BUNDLED, options.column or [BUNDLED_COLUMN])
    else:
        series = read_series(options.file, options.column or [])
    shape = _shape(series, options)
    windows = cut_windows(series, shape)
    season = options.season or season_of(series, shape.context)
    if options.season and season >= shape.context:
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


def _check_outputs(options: argparse.Namespace) -> None:
    checks.check_json(options.json)
    if not options.report:
        return
    if options.report.suffix != ".html":
        raise UsageError(f"--report {options.report}: give a file named .html")
    written = (options.report, options.report.with_suffix(".png"))
    for path in written:
        checks.check_writable("--report", path)
    if options.json in written:
        raise UsageError(f"--json {options.json} is the report: choose another file")


def _nothing_to_compare() -> str:
    toggle = os.environ.get(ENV_TOGGLE)
    if toggle is not None:
        return f"{ENV_TOGGLE}={toggle} leaves nothing to compare upstream with: unset it"
    return "no patch fits the installed toto: see `toto-compile-patch doctor`"


def _shape(series: Series, options: argparse.Namespace) -> Shape:
    """As asked; what was not asked for fits the series."""
    rows, least = series.rows, options.windows or 1
    horizon = options.horizon or max(1, min(HORIZON, rows // (2 * max(2, least))))
    context = options.context or max(1, min(CONTEXT, rows // 2, rows - least * horizon))
    windows = options.windows or max(1, min(WINDOWS, (rows - context) // horizon))
    return Shape(windows, context, horizon)


def measure(plan: Plan, setting: dict[str, str]) -> Figures:
    """Let the ways take turns at every window.

    Of samples, upstream's eager code makes each forecast with a second seed, too, and every way
    makes the mean, which involves no chance.

    Raises:
        WorkerError: one of the ways cannot do it.
    """
    sides = [Forecasts(way) for way in plan.ways]
    warm = warmups(plan.job.device)
    other_seed = Forecasts(EAGER) if plan.job.samples else None
    per_window = 2 * len(sides) + 1 if plan.job.samples else len(sides)
    stolen = machine.read_stolen()
    with started(
        plan.ways, plan.job, len(plan.data.windows) * per_window + warm * len(sides)
    ) as turns:
        for _ in range(warm):
            answers = turns.ask_all(Question(0, plan.data.windows[0]), "first forecast")
            for side, answer in zip(sides, answers, strict=True):
                side.first_seconds.append(answer.seconds)
        for seed, window in enumerate(plan.data.windows):
            doing = f"window {seed + 1}"
            answers = turns.ask_all(Question(seed, window), doing, first=seed)
            for side, answer in zip(sides, answers, strict=True):
                side.add(answer)
            if other_seed:
                question = Question(OTHER_SEED + seed, window)
                answer = turns.ask(turns.workers[0], question, f"{doing}, another seed")
                other_seed.add(answer)
        for seed, window in enumerate(plan.data.windows):
            for i, side in enumerate(sides):
                # Forecasts that are means already need not be made again.
                answer = side.answers[seed]
                if other_seed:
                    question = Question(seed, window, mean=True)
                    answer = turns.ask(turns.workers[i], question, f"mean {seed + 1}")
                side.means.append(answer.point)
        for side, worker in zip(sides, turns.workers, strict=True):
            side.account = worker.finish()
    stolen_share = machine.stolen_share(stolen, machine.read_stolen())
    return figures_of(plan.data, sides, other_seed, setting, plan.job.samples, stolen_share)

"""The command: what it refuses, the forecasts that it asks for, what it writes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from rich.console import Console

from toto_compile_patch.tools import checks, machine, models, turns
from toto_compile_patch.tools.ab import words
from toto_compile_patch.tools.ab.figures import OTHER_SEED, Data, Figures, Forecasts
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.scores import season_of
from toto_compile_patch.tools.series.layout import Wanted
from toto_compile_patch.tools.series.single import Series, read_series
from toto_compile_patch.tools.turns import Job, Question, Way
from toto_compile_patch.tools.windows import Shape, cut_windows
from toto_compile_patch.tools.workers import WorkerError

BUNDLED_COLUMN = "temp"
WINDOWS, CONTEXT, HORIZON = 16, 512, 96
SEED_OF_ANOTHER = 1_000_000
WIDTH_OF_A_FILE = 100


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    to_stdout = checks.is_stdout(options.json)
    console = Console(stderr=to_stdout)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    try:
        return _compare(options, console)
    except WorkerError as error:
        print(f"ab: error: {error}", file=sys.stderr)
        return 1


def _compare(options: argparse.Namespace, console: Console) -> int:
    job, data = _checked(options)
    ways = [turns.EAGER, turns.PATCHED]
    if options.mode:
        ways = [turns.EAGER, turns.COMPILED, turns.PATCHED_COMPILED]
    missing = [name for name in ("matplotlib", "jinja2") if not find_spec(name)]
    if options.report and missing:
        names = " ".join(missing)
        print(f"ab: no report without {names}: pip install {names}", file=sys.stderr)
    setting = words.setting_of(data, job, machine.facts(job.device))
    words.show_setting(setting, console)
    figures = measure(data, ways, job, setting)
    words.show(figures, console)
    checks.write_json(options.json, figures.as_json())
    if options.report and not missing:
        from toto_compile_patch.tools.ab.page import page, pictures_of
        from toto_compile_patch.tools.ab.picture import draw

        checks.write_whole(options.report.with_suffix(".png"), draw(figures))
        checks.write_whole(options.report, page(figures, pictures_of(figures)))
        console.print(f"\nreport: {options.report}", markup=False)
    # Too little to judge by is nothing found wrong.
    return 1 if figures.judgement.same is False else 0


def _checked(options: argparse.Namespace) -> tuple[Job, Data]:
    """What was asked for, and the series that it is asked of.

    Raises:
        UsageError: it cannot be, or the series does not do.
    """
    columns = options.column or ([] if options.file else [BUNDLED_COLUMN])
    wanted = Wanted(options.id, options.time, options.time_format, options.decimal)
    series = read_series(options.file or models.BUNDLED, columns, wanted, options.item)
    shape = _shape(series, options)
    windows = cut_windows(series, shape)
    season = options.season or season_of(series, shape.context)
    if options.season and season >= shape.context:
        raise UsageError(f"--season {season} must be shorter than the context, {shape.context}")
    if not turns.standing_patches():
        raise UsageError("no patch fits the installed toto: see `toto-compile-patch doctor`")
    device, mode = checks.choose_device(options.device), options.mode or "default"
    drawn = (options.samples, options.samples_per_batch)
    job = Job(options.model, device, mode, shape.horizon, *drawn)
    return job, Data(series, windows, shape, season)


def _shape(series: Series, options: argparse.Namespace) -> Shape:
    """As asked; what was not asked for fits the series."""
    rows, least = series.rows, options.windows or 1
    horizon = options.horizon or max(1, min(HORIZON, rows // (2 * max(2, least))))
    context = options.context or max(1, min(CONTEXT, rows // 2, rows - least * horizon))
    windows = options.windows or max(1, min(WINDOWS, (rows - context) // horizon))
    return Shape(windows, context, horizon)


def measure(data: Data, ways: Sequence[Way], job: Job, setting: dict[str, str]) -> Figures:
    """Let the ways take turns at every window.

    Of samples, upstream's eager code makes each forecast with a second seed, too, and every way
    makes the mean, which involves no chance.

    Raises:
        WorkerError: one of the ways cannot do it.
    """
    sides = [Forecasts(way.name) for way in ways]
    other_seed = Forecasts(OTHER_SEED) if job.samples else None
    warm = turns.warmups(job.device)
    per_window = 2 * len(ways) + 1 if job.samples else len(ways)
    stolen = machine.read_stolen()
    with turns.started(ways, job, len(data.windows) * per_window + warm * len(ways)) as asked:
        for _ in range(warm):
            first = asked.ask_all(Question(0, data.windows[0]), "first forecast")
            for side, answer in zip(sides, first, strict=True):
                side.first_seconds.append(answer.seconds)
        for seed, window in enumerate(data.windows):
            doing = f"window {seed + 1}"
            answers = asked.ask_all(Question(seed, window), doing, first=seed)
            for side, answer in zip(sides, answers, strict=True):
                side.answers.append(answer)
            if other_seed:
                question = Question(SEED_OF_ANOTHER + seed, window)
                answer = asked.ask(asked.workers[0], question, f"{doing}, another seed")
                other_seed.answers.append(answer)
        for seed, window in enumerate(data.windows):
            # Forecasts that are means already need not be made again.
            answers = [side.answers[seed] for side in sides]
            if other_seed:
                answers = asked.ask_all(Question(seed, window, mean=True), f"mean {seed + 1}")
            for side, answer in zip(sides, answers, strict=True):
                side.means.append(answer.point)
        for side, worker in zip(sides, asked.workers, strict=True):
            side.health, side.peak_bytes = worker.ask(None)
    return Figures(data, sides, other_seed, setting, job.samples, machine.stolen_since(stolen))

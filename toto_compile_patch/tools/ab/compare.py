"""The command: the forecasts that it asks for, what it writes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from toto_compile_patch.tools import checks, machine, turns
from toto_compile_patch.tools.ab import words
from toto_compile_patch.tools.ab.asked import Data
from toto_compile_patch.tools.ab.figures import OTHER_SEED, Figures, Forecasts
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.screen import console_of
from toto_compile_patch.tools.turns import Job, Question, Way
from toto_compile_patch.tools.workers import WorkerError

SEED_OF_ANOTHER = 1_000_000
WIDTH_OF_A_FILE = 100


def run(options: argparse.Namespace, data: Data) -> int:
    """Compare the two sides on some windows; return the command's exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    to_stdout = checks.is_stdout(options.json)
    console = console_of(WIDTH_OF_A_FILE, stderr=to_stdout)
    try:
        return _compare(options, data, console)
    except WorkerError as error:
        print(f"ab: error: {error}", file=sys.stderr)
        return 1


def _compare(options: argparse.Namespace, data: Data, console: Console) -> int:
    job = _job(options, data.shape.horizon)
    ways = [turns.EAGER, turns.PATCHED]
    if options.mode:
        ways = [turns.EAGER, turns.COMPILED, turns.PATCHED_COMPILED]
    if options.report:
        # What cannot be imported is said before the wait.
        from toto_compile_patch.tools.ab.page import page, pictures_of
        from toto_compile_patch.tools.ab.picture import draw
    setting = words.setting_of(data, job, machine.facts(job.device))
    words.show_setting(setting, console)
    figures = measure(data, ways, job, setting)
    words.show(figures, console)
    checks.write_json(options.json, figures.as_json())
    if options.report:
        checks.write_whole(options.report.with_suffix(".png"), draw(figures))
        checks.write_whole(options.report, page(figures, pictures_of(figures)))
        console.print(f"\nreport: {options.report}", markup=False)
    # Too little to judge by is nothing found wrong.
    return 1 if figures.judgement.same is False else 0


def _job(options: argparse.Namespace, horizon: int) -> Job:
    """What each side is to do.

    Raises:
        UsageError: it cannot be done here.
    """
    if not turns.standing_patches():
        raise UsageError(
            "apply() leaves the installed toto as it is: ask `toto-compile-patch doctor` why"
        )
    device, mode = checks.choose_device(options.device), options.mode or "default"
    drawn = (options.samples, options.samples_per_batch)
    return Job(options.model, device, mode, horizon, *drawn)


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

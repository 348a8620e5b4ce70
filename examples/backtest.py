"""Rolling-origin backtest: the same forecasts by upstream's code, eager and compiled, and patched.

Each way runs in a process of its own with the same model. The ways take turns at every window, so
that whatever disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

_INSTALL = {"torch": "toto-ts", "toto_compile_patch": "-e ."}


def _what_is_missing(error: ModuleNotFoundError) -> str:
    name = str(error.name).partition(".")[0]
    return f"{name} is missing: pip install {_INSTALL.get(name, name)}"


try:
    from options import Options, build_parser, read_options
    from report import Record, as_json, print_result, print_setting, remarks_on, summarize
    from rich.console import Console

    from toto_compile_patch.tools import machine, models
    from toto_compile_patch.tools.checks import UsageError, choose_device, write_whole
    from toto_compile_patch.tools.series import SeriesError, Shape, Window, cut_windows, read_series
    from toto_compile_patch.tools.turns import standing_patches, started, warmups
    from toto_compile_patch.tools.workers import (
        COMPILED,
        EAGER,
        PATCHED,
        Job,
        Question,
        Way,
        WorkerError,
    )
except ModuleNotFoundError as error:
    print(f"backtest.py: error: {_what_is_missing(error)}", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

_WIDTH_OF_A_FILE = 100


def forecast_all(ways: Sequence[Way], job: Job, windows: Sequence[Window]) -> list[Record]:
    """Let the ways take turns at every window, never two at once."""
    records = [Record(way) for way in ways]
    warm = warmups(job.device)
    with started(ways, job, len(ways) * (warm + len(windows))) as turns:
        for _ in range(warm):
            answers = turns.ask_all(Question(0, windows[0]), "warming up")
            for record, answer in zip(records, answers, strict=True):
                record.warmup_seconds.append(answer.seconds)
        for seed, window in enumerate(windows):
            answers = turns.ask_all(Question(seed, window), f"window {seed + 1}")
            for record, answer in zip(records, answers, strict=True):
                record.add(answer)
        for record, worker in zip(records, turns.workers, strict=True):
            record.health = worker.finish().health
    return records


def run(options: Options, console: Console) -> None:
    """Make the backtest and report it."""
    series = read_series(options.csv, [options.column])
    windows = cut_windows(series, Shape(options.windows, options.context, options.horizon))
    job = _job(options)
    standing = standing_patches()
    facts = machine.facts(job.device)
    print_setting(console, series, job, facts, standing)
    ways = (EAGER, COMPILED, PATCHED) if standing else (EAGER, COMPILED)
    before = machine.read_stolen()
    records = forecast_all(ways, job, windows)
    stolen = machine.stolen_share(before, machine.read_stolen())
    std = float(series.std[0])
    summaries = [summarize(record, records[0], windows, std) for record in records]
    remarks = remarks_on(records, stolen)
    print_result(console, summaries, remarks)
    if options.json is not None:
        result = {
            "data": {"source": series.source, "column": options.column, "rows": series.rows},
            "model": models.describe(job.model),
            "machine": facts,
            "patches": standing,
            "job": asdict(job),
            "windows": options.windows,
            "context": options.context,
            "ways": as_json(summaries),
            "stolen_cpu": stolen,
            "warnings": remarks,
        }
        write_whole(options.json, json.dumps(result, indent=2, allow_nan=False) + "\n")


def _job(options: Options) -> Job:
    return Job(
        model=options.model,
        device=choose_device(options.device),
        mode=options.mode,
        horizon=options.horizon,
        samples=options.samples,
        samples_per_batch=options.samples_per_batch,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser(__doc__)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    try:
        run(read_options(parser, arguments), console)
    except (UsageError, SeriesError) as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(_what_is_missing(error))
    except WorkerError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

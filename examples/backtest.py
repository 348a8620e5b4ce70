"""Rolling-origin backtest: the same forecasts by upstream's code, eager and compiled, and patched.

Each way runs in a process of its own with the same model. The ways take turns at every window, so
that whatever disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

_INSTALL = {"torch": "toto-ts", "toto_compile_patch": "-e ."}


def _what_is_missing(error: ModuleNotFoundError) -> str:
    name = str(error.name).partition(".")[0]
    return f"{name} is missing: pip install {_INSTALL.get(name, name)}"


try:
    from options import Options, UsageError, build_parser, choose_device, read_options
    from report import (
        Record,
        as_json,
        cpu_times,
        describe_model,
        machine_facts,
        print_result,
        print_setting,
        remarks_on,
        stolen_fraction,
        summarize,
    )
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from series import SeriesError, Window, cut_windows, read_series
    from workers import COMPILED, EAGER, PATCHED, Job, Question, Way, Worker, WorkerError

    import toto_compile_patch
except ModuleNotFoundError as error:
    print(f"backtest.py: error: {_what_is_missing(error)}", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

_WIDTH_OF_A_FILE = 100


def forecast_all(ways: Sequence[Way], job: Job, windows: Sequence[Window]) -> list[Record]:
    """Let the ways take turns at every window, never two at once."""
    # A CUDA graph is recorded when its code runs for the second time.
    warmups = 2 if job.device.startswith("cuda") else 1
    records = [Record(way) for way in ways]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        progress = stack.enter_context(_progress(len(ways) * (warmups + len(windows))))
        workers = [_start(way, job, Path(folder), progress, stack) for way in ways]
        for _ in range(warmups):
            for index, worker in _in_turn(workers, "warming up", progress):
                answer = worker.ask(Question(0, windows[0]))
                records[index].warmup_seconds.append(answer.seconds)
        for seed, window in enumerate(windows):
            for index, worker in _in_turn(workers, f"window {seed + 1}", progress):
                records[index].add(worker.ask(Question(seed, window)))
        for record, worker in zip(records, workers, strict=True):
            record.health = worker.finish()
    return records


def _start(way: Way, job: Job, folder: Path, progress: Progress, stack: ExitStack) -> Worker:
    _describe(progress, "loading", way)
    worker = Worker(way, job, folder / way.name.replace(", ", "-"))
    stack.callback(worker.stop)
    worker.wait_until_ready()
    return worker


def _in_turn(
    workers: Sequence[Worker], doing: str, progress: Progress
) -> Iterator[tuple[int, Worker]]:
    for index, worker in enumerate(workers):
        _describe(progress, doing, worker.way)
        yield index, worker
        progress.advance(progress.task_ids[0])


def _describe(progress: Progress, doing: str, way: Way) -> None:
    progress.update(progress.task_ids[0], description=f"{doing}: {way.name}")


def _progress(total: int) -> Progress:
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description:<30}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # The bar is drawn by the machine that is being timed.
        refresh_per_second=2,
    )
    progress.add_task("", total=total)
    return progress


def standing_patches() -> list[str]:
    """Names of the patches that ``apply()`` puts in, with the environment as it is.

    Raises:
        UsageError: the environment asks for what does not exist, or toto cannot be patched.
    """
    warnings.filterwarnings("ignore")
    try:
        toto_compile_patch.apply()
    except (ValueError, toto_compile_patch.TotoCompilePatchError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    return [row.name for row in toto_compile_patch.status() if row.state == "applied"]


def run(options: Options, console: Console) -> None:
    """Make the backtest and report it."""
    series = read_series(options.csv, options.column)
    windows = cut_windows(series, options.windows, options.context, options.horizon)
    job = _job(options)
    standing = standing_patches()
    machine = machine_facts(job.device)
    print_setting(console, series, job, machine, standing)
    ways = (EAGER, COMPILED, PATCHED) if standing else (EAGER, COMPILED)
    before = cpu_times()
    records = forecast_all(ways, job, windows)
    stolen = stolen_fraction(before, cpu_times())
    summaries = [summarize(record, records[0], windows, series.std) for record in records]
    remarks = remarks_on(records, stolen)
    print_result(console, summaries, remarks)
    if options.json is not None:
        result = {
            "data": {"source": series.source, "column": series.column, "rows": len(series.values)},
            "model": describe_model(job),
            "machine": machine,
            "patches": standing,
            "job": asdict(job),
            "windows": options.windows,
            "context": options.context,
            "ways": as_json(summaries),
            "stolen_cpu": stolen,
            "warnings": remarks,
        }
        options.json.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _job(options: Options) -> Job:
    return Job(
        model=options.model,
        small=options.small,
        device=choose_device(options.device),
        mode=options.mode,
        horizon=options.horizon,
        samples=options.samples,
        samples_per_batch=options.samples_per_batch or max(1, options.samples),
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

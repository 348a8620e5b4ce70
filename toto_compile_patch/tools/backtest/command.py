"""The command: the order of the work."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from toto_compile_patch.tools import checks, models
from toto_compile_patch.tools.backtest import report
from toto_compile_patch.tools.backtest.asked import Asked
from toto_compile_patch.tools.backtest.engine import Engine
from toto_compile_patch.tools.backtest.engine_local import Local
from toto_compile_patch.tools.backtest.engine_ray import Cluster, OnRay
from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.output import Folder, check_same, manifest_of
from toto_compile_patch.tools.backtest.report import Speed
from toto_compile_patch.tools.backtest.shards import Shard
from toto_compile_patch.tools.backtest.survey import Plan, shards_in
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.screen import ProgressLine
from toto_compile_patch.tools.series.reader import Reader
from toto_compile_patch.tools.wording import counted


def run(options: argparse.Namespace, asked: Asked) -> int:
    """Run the command; return its exit code: 1 where nothing could be forecast.

    Raises:
        UsageError: it cannot be run as it was asked for, or not to its end.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _check_known(list(asked.job.known))
    job, folder = _job(options, asked.job), Folder(options.output)
    if asked.plan is None:
        manifest = folder.manifest() or {}
        plan = check_same(manifest, job, asked.file, options.output)
    else:
        plan = asked.plan
        manifest = manifest_of(job, asked.file, plan)
    print(f"backtest: {options.file}: {plan.file}", file=sys.stderr)
    if job.model == "demo":
        print(f"backtest: note: {models.TOY}", file=sys.stderr)
    work = Work(options.file, job, plan, asked.reader, folder)
    speed = _forecast(work, _engine(options, job, plan), manifest)
    figures = report.figures_of(folder, plan)
    folder.finish(report.scores_json(figures, job, plan))
    told = (figures, job, plan, speed, folder)
    checks.report(options.json, report.as_json(*told), lambda: report.show(*told))
    return 0 if figures.windows else 1


@dataclass(frozen=True)
class Work:
    """What is to be done, and where it is kept.

    Attributes:
        path: of the file.
        job: what was asked for.
        plan: how much it is.
        reader: of the file.
        folder: of the output.
    """

    path: str
    job: Job
    plan: Plan
    reader: Reader
    folder: Folder

    def left(self, done: set[int]) -> Iterator[Shard]:
        """The shards whose parts are not there."""
        shards = shards_in(self.reader, self.path, self.job)
        return (shard for shard in shards if shard.index not in done)


def _forecast(work: Work, engine: Engine, manifest: dict[str, Any]) -> Speed:
    """Make the parts that are not there.

    Raises:
        UsageError: the model is not to be had, or a part cannot be written.
    """
    done = work.folder.done()
    if len(done) == work.plan.shards:
        return Speed(0, 0.0, engine.name)
    try:
        with ProgressLine(work.plan.windows) as progress:
            progress.say("loading the model")
            with engine:
                work.folder.begin(manifest)
                return _write_parts(work, engine, done, progress)
    except KeyboardInterrupt:
        there = len(work.folder.done())
        print(
            f"backtest: {work.folder.path} holds {there} of {counted(work.plan.shards, 'part')}: "
            "the same command with --resume goes on",
            file=sys.stderr,
        )
        raise


def _write_parts(work: Work, engine: Engine, done: set[int], progress: ProgressLine) -> Speed:
    windows, start = 0, time.perf_counter()
    progress.say("forecasting")
    for part in engine.parts(work.left(done)):
        work.folder.write(part)
        done.add(part.index)
        windows += part.table.num_rows
        progress.say("forecasting", steps=part.windows)
    if done != set(range(work.plan.shards)):
        raise UsageError(f"{work.path} changed while it was read: begin anew in another folder")
    return Speed(windows, time.perf_counter() - start, engine.name)


def _job(options: argparse.Namespace, job: Job) -> Job:
    """The job, with the device and the threads that it is done with."""
    if options.engine == "ray":
        device = job.device or ("cuda" if options.gpus_per_worker else "cpu")
        threads = job.threads or max(1, int(options.cpus_per_worker))
    else:
        device = checks.choose_device(options.device)
        threads = job.threads or torch.get_num_threads()
    return replace(job, device=device, threads=threads)


def _check_known(columns: list[str]) -> None:
    if columns and "num_exogenous_variables" not in models.toto_ts().MaskedTimeseries._fields:
        raise UsageError(
            "--known needs a toto that takes exogenous variables: pip install 'toto-ts>=0.2'"
        )


def _engine(options: argparse.Namespace, job: Job, plan: Plan) -> Engine:
    if options.engine == "local":
        return Local(job, plan.timezone)
    cpus, gpus = options.cpus_per_worker, options.gpus_per_worker
    cluster = Cluster(options.address, options.workers, cpus, gpus)
    return OnRay(job, plan.timezone, cluster, plan.shards)

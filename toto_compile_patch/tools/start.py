"""``start``: how long the first forecast of a compiled model takes, upstream and patched.

Each side runs in a process of its own, with an empty cache of compiled code (cold) and again with
the one that it filled (warm). A trivial function is compiled first, so that what the compiler takes
to start is apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch
from toto_compile_patch.tools import bench, machine
from toto_compile_patch.tools.checks import check_json, is_stdout, write_whole
from toto_compile_patch.tools.screen import ProgressLine
from toto_compile_patch.tools.workloads import Workload

JOB = Workload("first forecast", 1, 1, 512, 128, 16, 16)
"""Samples, with a decode step: what every part of the forecast takes part in."""

SIDES = (bench.UPSTREAM, bench.PATCHED)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    errors = Console(stderr=True)
    if options.side:
        print(json.dumps(_first_forecasts(options.side, options.mode)))
        return 0
    check_json(options.json)
    found: dict[str, Any] = {}
    with ProgressLine(2 * len(SIDES)) as progress:
        for side in SIDES:
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    progress.say(f"{side}, {state}")
                    seconds = _in_a_process(side, options.mode, cache)
                    if seconds is None:
                        errors.print(f"{side}, {state}: the forecast failed", markup=False)
                        return 1
                    found[f"{side}, {state}"] = seconds
                    progress.say("", steps=1)
    figures = {
        "machine": machine.name(torch.device("cpu")),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "what": JOB.describe(),
        "mode": options.mode,
        "starts": found,
    }
    if not is_stdout(options.json):
        _show(figures)
    if options.json:
        write_whole(options.json, json.dumps(figures, indent=1) + "\n")
    return 0


def _in_a_process(side: str, mode: str, cache: str) -> dict[str, float] | None:
    command = [sys.executable, "-W", "ignore", "-m", "toto_compile_patch", "start"]
    command += ["--mode", mode, "--side", side]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return None
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _first_forecasts(side: str, mode: str) -> dict[str, float]:
    """Seconds of a trivial function, of the first forecast and of a steady one."""
    device = torch.device("cpu")
    backbone = bench.base_model(device, torch.float32)
    backbone.compile(mode=mode)
    if side == bench.PATCHED:
        toto_compile_patch.apply(fallback="error")
    inputs = bench.series(JOB, device, torch.float32)
    forecaster = TotoForecaster(backbone)

    def forecast() -> None:
        forecaster.forecast(
            inputs,
            prediction_length=JOB.horizon,
            num_samples=JOB.samples,
            samples_per_batch=JOB.per_batch,
        )

    trivial = torch.compile(lambda x: 2 * x + 1, mode=mode)
    seconds = {"trivial": _seconds(lambda: trivial(torch.ones(8)))}
    seconds["first"] = _seconds(forecast)
    # Upstream compiles parts of it anew in the second, too.
    seconds["second"] = _seconds(forecast)
    seconds["steady"] = min(_seconds(forecast) for _ in range(3))
    return seconds


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 3)


def _show(figures: dict[str, Any]) -> None:
    table = Table(
        title=f"{figures['machine']}, torch {figures['torch']}, mode {figures['mode']}",
        caption=f"{figures['what']}; seconds",
    )
    table.add_column("", no_wrap=True)
    columns = ("trivial", "first", "second", "steady")
    for column in columns:
        table.add_column(f"{column} forecast" if column != "trivial" else "trivial function")
    for side, seconds in figures["starts"].items():
        table.add_row(side, *(f"{seconds[column]:.3g}" for column in columns))
    Console().print(table)

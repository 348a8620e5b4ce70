"""``start``: how long the first forecast of a compiled model takes, upstream and patched.

Each side runs in a process of its own, with an empty cache of compiled code (cold) and again with
the one that it filled (warm). A trivial function is compiled first, so that what the compiler takes
to start is apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import date
from timeit import repeat, timeit
from typing import Any

import torch

import toto_compile_patch
from toto_compile_patch.tools import bench, machine, models
from toto_compile_patch.tools.checks import report
from toto_compile_patch.tools.screen import ProgressLine, console_of, show_table
from toto_compile_patch.tools.workers import WorkerError, call_apart
from toto_compile_patch.tools.workloads import Workload

JOB = Workload("first forecast", 1, 1, 512, 128, 16, 16)
"""Samples, with a decode step: what every part of the forecast takes part in."""

SIDES = (bench.UPSTREAM, bench.PATCHED)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    try:
        found = _measure(options.mode)
    except WorkerError as error:
        print(f"start: error: the forecast failed: {error}", file=sys.stderr)
        return 1
    figures = {
        "machine": machine.name(torch.device("cpu")),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "what": JOB.describe(),
        "mode": options.mode,
        "starts": found,
    }
    report(options.json, figures, lambda: _show(figures))
    return 0


def _measure(mode: str) -> dict[str, dict[str, float]]:
    """Seconds of each side, cold and warm."""
    found: dict[str, dict[str, float]] = {}
    with ProgressLine(2 * len(SIDES)) as progress:
        for side in SIDES:
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    progress.say(f"{side}, {state}")
                    environment = {"TORCHINDUCTOR_CACHE_DIR": cache}
                    seconds = call_apart(first_forecasts, side, mode, environment=environment)
                    found[f"{side}, {state}"] = seconds
                    progress.say("", steps=1)
    return found


def first_forecasts(side: str, mode: str) -> dict[str, float]:
    """Seconds of a trivial function, of the first forecast and of a steady one."""
    device = torch.device("cpu")
    backbone = bench.base_model(device, torch.float32)
    backbone.compile(mode=mode)
    if side == bench.PATCHED:
        toto_compile_patch.apply(fallback="error")
    inputs = bench.series(JOB, device, torch.float32)
    upstream_or_patched = bench.Side(models.toto_ts().TotoForecaster(backbone))

    def forecast() -> None:
        upstream_or_patched.forecast(JOB, inputs)

    trivial = torch.compile(lambda x: 2 * x + 1, mode=mode)
    seconds = {
        "trivial": timeit(lambda: trivial(torch.ones(8)), number=1),
        "first": timeit(forecast, number=1),
        # Upstream compiles parts of it anew in the second, too.
        "second": timeit(forecast, number=1),
        "steady": min(repeat(forecast, number=1, repeat=3)),
    }
    return {name: round(taken, 3) for name, taken in seconds.items()}


def _show(figures: dict[str, Any]) -> None:
    columns = ("trivial", "first", "second", "steady")
    starts = figures["starts"].items()
    show_table(
        console_of(bench.TABLE_WIDTH),
        ("", "trivial function", *columns[1:]),
        [(side, *(f"{seconds[name]:.3g}" for name in columns)) for side, seconds in starts],
        title=f"{figures['machine']}, torch {figures['torch']}, mode {figures['mode']}",
        caption=f"{figures['what']}; seconds of a trivial function and of forecasts",
    )

"""How fast ``toto-compile-patch backtest`` is, beside a loop of ``forecast`` over the same windows.

    python .ci/evidence/backtest_rates.py                       # base architecture: minutes
    python .ci/evidence/backtest_rates.py --model demo --threads 1 --series 200 --json rates.json

Series are random walks, contexts have 512 steps and horizons one patch. Both ways are patched. What
the command does beside forecasting (reading, cutting, quantiles, scores, writing) is counted in
seconds of computing, which other processes disturb less: those of the whole command, less those
of a file of one window, less those of ``forecast_many``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import toto_compile_patch
from toto_compile_patch.tools import machine, models
from toto_compile_patch.tools.checks import positive

CONTEXT, HORIZON = 512, 64


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "series.parquet")
        write_series(file, options.series, options.windows)
        command = backtest(file, Path(folder, "out"), options)
        write_series(file, 1, 1)
        alone = backtest(file, Path(folder, "one"), options)
    torch.set_num_threads(options.threads)
    toto_compile_patch.apply(fallback="error")
    toto = models.toto_ts()
    forecaster = toto.TotoForecaster(models.load(options.model).model)
    walks = [walk(index, options.windows) for index in range(options.series)]
    numbers = (HORIZON, options.samples, options.samples)
    # Prepares the weights.
    forecaster.forecast(next(inputs(walks, options)), *numbers)
    start = time.perf_counter()
    for window in inputs(walks, options):
        forecaster.forecast(window, *numbers)
    middle, computing = time.perf_counter(), time.process_time()
    for _ in toto_compile_patch.forecast_many(forecaster, inputs(walks, options), *numbers):
        pass
    windows = options.series * options.windows
    loop, many = middle - start, time.perf_counter() - middle
    computing = time.process_time() - computing
    beside = (command["computing"] - alone["computing"]) / (windows - 1) - computing / windows
    figures = {
        "model": models.describe(options.model),
        **machine.facts("cpu"),
        "windows": windows,
        "samples": options.samples,
        "loop_ms": 1000 * loop / windows,
        "forecast_many_ms": 1000 * many / windows,
        "backtest_ms": 1000 * command["seconds"] / windows,
        "times_faster_than_the_loop": loop / command["seconds"],
        "beside_forecasting_cpu_ms": 1000 * beside,
        "start_cpu_seconds": alone["computing"],
        "bytes_read": command["read"] / windows,
        "bytes_written": command["written"] / windows,
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base", help="base, small, demo or a directory")
    parser.add_argument("--series", type=positive, default=64)
    parser.add_argument("--windows", type=positive, default=8, help="of each series")
    parser.add_argument("--samples", type=positive, default=256)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser.parse_args()


def walk(index: int, windows: int) -> np.ndarray[Any, Any]:
    """A seeded random walk near 100."""
    steps = CONTEXT + HORIZON * windows
    return 100 + np.random.default_rng(index).normal(size=steps).cumsum()


def write_series(file: Path, series: int, windows: int) -> None:
    """The walks as a long table."""
    times = pd.date_range("2024-01-01", periods=CONTEXT + HORIZON * windows, freq="h")
    tables = [
        pd.DataFrame({"item_id": f"s{i:06}", "timestamp": times, "target": walk(i, windows)})
        for i in range(series)
    ]
    pd.concat(tables).to_parquet(file, index=False)


def backtest(file: Path, output: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the command once the model is there, of computing in all, and bytes."""
    command = [sys.executable, "-m", "toto_compile_patch", "backtest", file, "--output", output]
    numbers = {"horizon": HORIZON, "windows": options.windows, "samples": options.samples}
    numbers["threads"] = options.threads
    arguments = [word for name, value in numbers.items() for word in (f"--{name}", value)]
    before = os.times()
    done = subprocess.run(
        [*map(str, command), *map(str, arguments), "--model", options.model, "--json", "-"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    after = os.times()
    return {
        "seconds": json.loads(done.stdout)["seconds"],
        "computing": sum(after[2:4]) - sum(before[2:4]),
        "read": file.stat().st_size,
        "written": sum(part.stat().st_size for part in output.glob("part-*.parquet")),
    }


def inputs(walks: list[np.ndarray[Any, Any]], options: argparse.Namespace) -> Iterator[Any]:
    """The windows, as ``forecast`` takes them."""
    make = models.toto_ts().MaskedTimeseries
    for values in walks:
        for window in range(options.windows):
            first = HORIZON * window
            series = torch.from_numpy(values[first : first + CONTEXT]).float().unsqueeze(0)
            yield make(
                series=series,
                padding_mask=torch.ones_like(series, dtype=torch.bool),
                id_mask=torch.zeros_like(series),
                timestamp_seconds=torch.arange(CONTEXT).unsqueeze(0),
                time_interval_seconds=torch.tensor([3600]),
            )


if __name__ == "__main__":
    main()

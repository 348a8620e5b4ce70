"""Windows one by one and by ``forecast_many``: seconds of each, patched, in turns in one process.

python .ci/evidence/many_windows.py                          # base architecture: minutes
python .ci/evidence/many_windows.py --windows 64 --workload W2,W8 --json many.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import toto_compile_patch
from toto_compile_patch.tools import machine, models
from toto_compile_patch.tools.bench import series
from toto_compile_patch.tools.checks import positive
from toto_compile_patch.tools.screen import table_of
from toto_compile_patch.tools.workloads import WORKLOADS, Workload

DEFAULT = ("W2", "W3", "W8", "WM")


def main() -> None:
    options = parse()
    toto_compile_patch.apply(fallback="error")
    toto = models.toto_ts()
    forecaster = toto.TotoForecaster(models.load(options.model).model.to(options.device))
    rows = {}
    for name in options.workload.split(","):
        rows[name] = measured(forecaster, WORKLOADS[name], options)
        print(json.dumps({name: rows[name]}), flush=True)
        if options.json:
            # As far as it has come: it may be cut short.
            facts = machine.facts(options.device) | {"model": models.describe(options.model)}
            options.json.write_text(json.dumps({**facts, "many": rows}, indent=2) + "\n")
    headings = ("workload", "one by one", "forecast_many", "times faster", "pairs")
    print_table(headings, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default=",".join(DEFAULT), help="names, between commas")
    parser.add_argument("--windows", type=positive, default=512)
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--model", default="base", help="base, small, demo or a directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser.parse_args()


def measured(forecaster: Any, load: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a window each way, and the ratio of each pair of turns."""
    device, patch = torch.device(options.device), forecaster.model.patch_embed.patch_size
    # A rolling backtest's: of many lengths, and as many patches.
    windows = [
        series(replace(load, length=load.length - index % patch), device, torch.float32)
        for index in range(options.windows)
    ]
    numbers = (load.horizon, load.samples, load.per_batch, load.use_kv_cache)

    def one_by_one() -> Iterable[Any]:
        return (forecaster.forecast(window, *numbers) for window in windows)

    def together() -> Iterable[Any]:
        return toto_compile_patch.forecast_many(forecaster, windows, *numbers)

    # Prepares, and fills caches.
    for way in (one_by_one, together):
        next(iter(way()))
    stolen = machine.read_stolen()
    pairs = [(seconds(one_by_one), seconds(together)) for _ in range(options.turns)]
    alone, many = (1000 * median(turns) / len(windows) for turns in zip(*pairs, strict=True))
    return {
        "what": load.describe(),
        "windows": len(windows),
        "alone_ms": alone,
        "many_ms": many,
        "ratios": [one / other for one, other in pairs],
        "stolen": machine.stolen_since(stolen),
    }


def seconds(way: Callable[[], Iterable[Any]]) -> float:
    """How long all forecasts of a way take."""
    start = time.perf_counter()
    # A forecast is there when it is on the CPU.
    for forecast in way():
        forecast.mean.cpu()
    return time.perf_counter() - start


def print_table(headings: tuple[str, ...], rows: dict[str, Any]) -> None:
    from rich.console import Console

    cells = [
        (
            f"{name}, {row['what']}",
            f"{row['alone_ms']:.3g} ms",
            f"{row['many_ms']:.3g} ms",
            f"{median(row['ratios']):.3g}",
            " ".join(f"{ratio:.3g}" for ratio in row["ratios"]),
        )
        for name, row in rows.items()
    ]
    Console().print(table_of(headings, cells))


if __name__ == "__main__":
    main()

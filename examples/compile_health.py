"""What dynamo does with a compiled Toto: upstream and patched, each in a process of its own.

The model is compiled the way that works unpatched (``toto.model = torch.compile(toto.model)``),
and asked for means and samples of several context lengths, then for the same again, then for a
context length that it has not seen. The recompile limit is raised to 64 for both sides, so that
neither count is cut short, unless --own-limits is given.

    python examples/compile_health.py              # base architecture, inductor: many minutes
    python examples/compile_health.py --small --backend eager
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from toto_compile_patch.settings import ENV_TOGGLE, PATCH_NAMES

if TYPE_CHECKING:
    from toto.inference.forecaster import TotoForecaster

SIDES = ("upstream", "patched")
RECOMPILE_LIMIT = 64
HORIZON = 336
HEADINGS = {
    "graphs": "graphs",
    "graph_breaks": "breaks",
    "recompilations": "recompiled",
    "limit_hits": "limit hits",
    "seconds": "seconds",
}

# Context length, horizon, samples and samples per batch of each call.
CALLS: list[tuple[int, int, int | None, int]] = [
    *[(512, HORIZON, None, 1)] * 3,
    *[(512, 8, 256, 128)] * 2,
    *[(512, HORIZON, 64, 64)] * 2,
    *[(length, HORIZON, None, 1) for length in (640, 704, 768) for _ in range(2)],
]
UNSEEN: list[tuple[int, int, int | None, int]] = [(896, HORIZON, None, 1)]


def main() -> None:
    arguments = parse()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    results = {side: run_side(side) for side in SIDES}
    report(results, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a small model, for a quick look")
    parser.add_argument("--backend", default="inductor", help="torch.compile backend")
    parser.add_argument(
        "--own-limits",
        action="store_true",
        help="leave each side its own recompile limit: torch's, and that of the patches",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(side: str) -> dict[str, Any]:
    """Measure one side in a fresh interpreter with the same arguments."""
    command = [sys.executable, *sys.argv, "--side", side]
    environ = {name: text for name, text in os.environ.items() if name != ENV_TOGGLE}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    import torch
    from toto.inference.forecaster import TotoForecaster
    from toto.model.toto import Toto
    from workers import BASE, SMALL

    import toto_compile_patch
    from toto_compile_patch.tools.compile_health import CompileHealth

    if arguments.side == "patched":
        # Without fast_decode, which does not call the model.
        toto_compile_patch.apply([name for name in PATCH_NAMES if name != "fast_decode"])
    if not arguments.own_limits:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch.manual_seed(0)
    fewer_layers = {"num_layers": 4, "spacewise_every_n_layers": 4}
    toto = Toto(**({**SMALL, **fewer_layers} if arguments.small else BASE)).eval()
    toto.model = torch.compile(toto.model, backend=arguments.backend)
    forecaster = TotoForecaster(toto.model)
    result: dict[str, Any] = {"torch": torch.__version__}
    for name, calls in (("first", CALLS), ("again", CALLS), ("unseen length", UNSEEN)):
        with CompileHealth() as health:
            seconds = [timed(forecaster, *call) for call in calls]
        result[name] = {**health.counts(), "seconds": round(sum(seconds), 1)}
    return result


def timed(
    forecaster: TotoForecaster, length: int, horizon: int, samples: int | None, per_batch: int
) -> float:
    import torch
    from toto.data.util.dataset import MaskedTimeseries

    values = 100 + torch.randn(1, length).cumsum(-1)
    inputs = MaskedTimeseries(
        series=values,
        padding_mask=torch.ones_like(values, dtype=torch.bool),
        id_mask=torch.zeros_like(values),
        timestamp_seconds=torch.zeros_like(values, dtype=torch.int),
        time_interval_seconds=torch.full((1,), 3600, dtype=torch.int),
    )
    start = time.perf_counter()
    forecaster.forecast(
        inputs, prediction_length=horizon, num_samples=samples, samples_per_batch=per_batch
    )
    return time.perf_counter() - start


def report(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    size = "small" if arguments.small else "base"
    torch_version = results["patched"]["torch"]
    table = Table(title=f"{size} model, backend {arguments.backend}, torch {torch_version}")
    table.add_column("calls", no_wrap=True)
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in ("first", "again", "unseen length"):
        for side in SIDES:
            row = results[side][stage]
            table.add_row(f"{side}, {stage}", *(str(row[count]) for count in HEADINGS))
    Console().print(table)


if __name__ == "__main__":
    main()

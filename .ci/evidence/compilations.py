"""What dynamo does with a compiled Toto: upstream and patched, each in a process of its own.

The model is compiled the way that works unpatched (``toto.model = torch.compile(toto.model)``),
and asked for means and samples of several context lengths, then for the same again, then for a
context length that it has not seen. The recompile limit is raised to 64 for both sides, so that
neither count is cut short, unless --own-limits is given.

    python .ci/evidence/compilations.py              # base architecture, inductor: many minutes
    python .ci/evidence/compilations.py --small --backend eager
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from counted_calls import CALLS, UNSEEN, timed
from rich.console import Console

from toto_compile_patch.settings import ENV_TOGGLE, PATCH_NAMES
from toto_compile_patch.tools.screen import table_of
from toto_compile_patch.tools.workers import call_apart

SIDES = ("upstream", "patched")
RECOMPILE_LIMIT = 64
HEADINGS = {
    "graphs": "graphs",
    "graph_breaks": "breaks",
    "recompilations": "recompiled",
    "limit_hits": "limit hits",
    "seconds": "seconds",
}


def main() -> None:
    arguments = parse()
    os.environ.pop(ENV_TOGGLE, None)
    results = {side: call_apart(measure, side, arguments) for side in SIDES}
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
    return parser.parse_args()


def measure(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from toto.inference.forecaster import TotoForecaster
    from toto.model.toto import Toto

    import toto_compile_patch
    from toto_compile_patch.tools.compile_health import CompileHealth
    from toto_compile_patch.tools.models import BASE, SMALL

    if side == "patched":
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
            seconds = [timed(forecaster, call) for call in calls]
        result[name] = {**health.counts(), "seconds": round(sum(seconds), 1)}
    return result


def report(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    size = "small" if arguments.small else "base"
    torch_version = results["patched"]["torch"]
    rows = [
        [f"{side}, {stage}", *(str(results[side][stage][count]) for count in HEADINGS)]
        for stage in ("first", "again", "unseen length")
        for side in SIDES
    ]
    title = f"{size} model, backend {arguments.backend}, torch {torch_version}"
    Console().print(table_of(["calls", *HEADINGS.values()], rows, title=title))


if __name__ == "__main__":
    main()

"""Why the obvious fix does not work: what dynamo does for each way to compile and patch Toto.

Each row is a process of its own, which makes six forecasts, of means and samples over four context
lengths. The model has random weights and the depth of the real one, but is narrow.

    python .ci/evidence/obvious_fixes.py          # minutes
    python .ci/evidence/obvious_fixes.py --base --backend inductor    # the real thing: an hour
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counted_calls import CALLS, timed
from rich.console import Console

import toto_compile_patch
from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools import machine, models
from toto_compile_patch.tools.checks import positive, write_whole
from toto_compile_patch.tools.compile_health import CompileHealth
from toto_compile_patch.tools.screen import table_of
from toto_compile_patch.tools.workers import call_apart

ROWS = {
    "toto_compile": "toto.compile()",
    "wrap_toto": "torch.compile(toto); TotoForecaster(toto.model)",
    "drop_the_result": "torch.compile(toto.model), its result dropped",
    "wrap_model_too_late": "toto.model = torch.compile(toto.model), after the forecaster",
    "model_compile": "toto.model.compile()",
    "wrap_model": "toto.model = torch.compile(toto.model), before the forecaster",
    "raise_limit": "… and recompile_limit = 64",
    "raise_limit_and_capture_scalars": "… and recompile_limit = 64, capture_scalar_outputs = True",
    "break_by_wrapt": "… and a graph break around positional_embedding, by wrapt",
    "host_index_and_break_by_wrapt": "… the same, and the cache's positions on the host",
    "host_index_and_break_by_function": "… both, by plain functions with a bare graph break each",
    "apply_without_fast_decode": "… and apply() of its four patches for compiled models",
    "apply": "apply(), not compiled",
    "apply_and_wrap_model": "apply(), compiled",
}
"""Functions of ``recipes``, and what each stands for; … adds to the row of ``wrap_model``."""

BY_WRAPT = ("break_by_wrapt", "host_index_and_break_by_wrapt")
DISTINCT = list(dict.fromkeys(CALLS))
WIDTH = 160
COUNTS = {
    "graphs": "graphs",
    "graph_breaks": "breaks",
    "recompilations": "recompiled",
    "limit_hits": "limit hits",
}


def main() -> None:
    arguments = build_parser().parse_args()
    os.environ.pop(ENV_TOGGLE, None)
    console = Console(width=max(WIDTH, Console().width))
    result: dict[str, Any] = {
        "machine": machine.facts("cpu"),
        "model": models.describe(arguments.model),
        "backend": arguments.backend,
        "rows": {},
    }
    for name in arguments.rows or ROWS:
        with console.status(ROWS[name]):
            counted = call_apart(measure, name, arguments.model, arguments.backend, arguments.calls)
        result["rows"][name] = {"way": ROWS[name], **counted}
        if arguments.json:
            write_whole(arguments.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    rows = [
        [row["way"] + remark(row), *(str(row.get(count, "-")) for count in COUNTS)]
        for row in result["rows"].values()
    ]
    title = f"backend {arguments.backend}, torch {result['machine']['torch']}"
    console.print(table_of(["what is written", *COUNTS.values()], rows, title=title))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base",
        dest="model",
        action="store_const",
        const="base",
        default="small",
        help="the real architecture, with random weights",
    )
    parser.add_argument("--backend", default="eager", help="of torch.compile (default: eager)")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"only these: {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--calls", type=positive, default=len(DISTINCT), help="only the first so many forecasts"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser


def measure(name: str, model: str, backend: str, calls: int) -> dict[str, Any]:
    """What dynamo counted in the first so many forecasts, or why they cannot be made."""
    import recipes
    import torch

    if model == "small":
        # Too small to share: on a busy machine, threads wait for one another.
        torch.set_num_threads(1)
    prepare: recipes.Prepare = getattr(recipes, name)
    try:
        forecaster = prepare(models.load(model), backend)
        with CompileHealth() as health:
            for call in DISTINCT[:calls]:
                timed(forecaster, call)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    counts = health.counts()
    result: dict[str, Any] = {name: counts[name] for name in COUNTS}
    if path := toto_compile_patch.last_path():
        result["path"] = f"{path.taken}, {path.runtime}"
    if name in BY_WRAPT:
        result["wrapper_runs"] = recipes.wrapper_runs(forecaster.model, backend)
    return result


def remark(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"\n  (raises {row['error']})"
    if runs := row.get("wrapper_runs"):
        return f"\n  (the wrapper runs in {runs['compiled']} of {runs['eager']} compiled calls)"
    return ""


if __name__ == "__main__":
    main()

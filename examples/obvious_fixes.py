"""Why the obvious fix does not work: what dynamo does for each way to compile and patch Toto.

Each row is a process of its own, which makes six forecasts, of means and samples over four context
lengths. The model has random weights and the depth of the real one, but is narrow.

    python examples/obvious_fixes.py                              # minutes
    python examples/obvious_fixes.py --base --backend inductor    # the real thing: an hour or more
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamo_calls import CALLS, in_own_process, timed
from options import Parser
from rich.console import Console
from rich.table import Table

import toto_compile_patch
from toto_compile_patch.tools import models
from toto_compile_patch.tools.checks import UsageError, check_writable, positive

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
_WIDTH_OF_A_FILE = 100
COUNTS = {
    "graphs": "graphs",
    "graph_breaks": "breaks",
    "recompilations": "recom-\npiled",
    "limit_hits": "limit\nhits",
}


def main() -> None:
    parser = build_parser()
    arguments = parser.parse_args()
    if arguments.json:
        try:
            check_writable("--json", arguments.json)
        except UsageError as error:
            parser.error(str(error))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    result: dict[str, Any] = {
        "machine": in_own_process(describe_machine),
        "model": models.describe(arguments.model),
        "backend": arguments.backend,
        "rows": {},
    }
    for name in arguments.rows or ROWS:
        with console.status(ROWS[name]):
            counted = in_own_process(
                measure, name, arguments.model, arguments.backend, arguments.calls
            )
        result["rows"][name] = {"way": ROWS[name], **counted}
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    report(console, result)


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def describe_machine() -> dict[str, Any]:
    from toto_compile_patch.tools import machine

    return machine.facts("cpu")


def measure(name: str, model: str, backend: str, calls: int) -> dict[str, Any]:
    """What dynamo counted in the first so many forecasts, or why they cannot be made."""
    import recipes
    import torch

    from toto_compile_patch.tools.compile_health import CompileHealth

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


def report(console: Console, result: Mapping[str, Any]) -> None:
    torch_version = result["machine"]["torch"]
    table = Table(title=f"backend {result['backend']}, torch {torch_version}")
    table.add_column("what is written")
    for heading in COUNTS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"].values():
        table.add_row(row["way"] + remark(row), *(str(row.get(count, "-")) for count in COUNTS))
    console.print(table)


def remark(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"\n  (raises {row['error']})"
    if runs := row.get("wrapper_runs"):
        return f"\n  (the wrapper runs in {runs['compiled']} of {runs['eager']} compiled calls)"
    return ""


if __name__ == "__main__":
    main()

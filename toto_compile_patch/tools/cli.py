"""The command line. Exit codes: 0, 1 (a measurement failed), 2 (bad usage or input)."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from toto_compile_patch.settings import COMPILE_MODES, PRECISIONS, RUNTIMES
from toto_compile_patch.tools.workloads import WORKLOADS, chosen

_EXAMPLES = """\
examples:
  python -m toto_compile_patch bench                      every workload, upstream and patched
  python -m toto_compile_patch bench --workload W3,WM     two of them
  python -m toto_compile_patch bench --workload W4 --compile reduce-overhead --device cuda
  python -m toto_compile_patch bench --json figures.json  keep the figures
  python -m toto_compile_patch start                      the first forecast of a compiled model
  python -m toto_compile_patch bench --runtime eager,compile --precision model,bf16
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        tool = importlib.import_module(f"toto_compile_patch.tools.{options.tool}")
    except ImportError as error:
        print(f"{error}: pip install 'toto_compile_patch[toto,tools]'", file=sys.stderr)
        return 2
    code: int = tool.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toto_compile_patch",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bench = commands.add_parser(
        "bench",
        help="time the same forecasts upstream and patched",
        description="Time the same forecasts by upstream's code and patched, in turn, in one "
        "process: seeded random weights of Toto-Open-Base-1.0's shape, generated series.",
        epilog=_EXAMPLES
        + "\nworkloads:\n"
        + "".join(f"  {name:<8}{load.describe()}\n" for name, load in WORKLOADS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument(
        "--workload",
        type=_workloads,
        default=list(WORKLOADS),
        metavar="NAMES",
        help="names, separated by commas (default: all)",
    )
    bench.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    bench.add_argument(
        "--dtype",
        choices=("float32", "float64", "float16", "bfloat16"),
        default="float32",
        help="of the model and the series (default: float32)",
    )
    bench.add_argument(
        "--compile",
        choices=COMPILE_MODES,
        metavar="MODE",
        help="measure upstream with a compiled backbone, too: " + ", ".join(COMPILE_MODES),
    )
    bench.add_argument(
        "--runtime",
        type=_choices(RUNTIMES),
        default=["auto"],
        metavar="NAMES",
        help="how the patched side runs, one or several: " + ", ".join(RUNTIMES),
    )
    bench.add_argument(
        "--precision",
        type=_choices(PRECISIONS),
        default=["model"],
        metavar="NAMES",
        help="of the patched side's matrix products, one or several: " + ", ".join(PRECISIONS),
    )
    bench.add_argument(
        "--per-batch",
        type=_positive,
        metavar="SAMPLES",
        help="the most samples that upstream decodes at once (default: the workload's)",
    )
    bench.add_argument(
        "--pairs", type=_positive, default=5, help="pairs of measurements (default: 5)"
    )
    bench.add_argument(
        "--budget",
        type=_positive,
        default=120,
        metavar="SECONDS",
        help="of upstream's time for each workload; a slow one gets fewer pairs, or is measured "
        "on one of its batches of samples, and the table says so (default: 120)",
    )
    bench.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    bench.add_argument("--memory-of", help=argparse.SUPPRESS)
    bench.set_defaults(tool="bench")
    start = commands.add_parser(
        "start",
        help="time the first forecast of a compiled model",
        description="Time the first forecast of a model compiled on a CPU, upstream and patched, "
        "each in a process of its own, with an empty cache of compiled code and with a filled one.",
    )
    start.add_argument("--mode", choices=COMPILE_MODES, default="default", help="of torch.compile")
    start.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    start.add_argument("--side", help=argparse.SUPPRESS)
    start.set_defaults(tool="start")
    return parser


def _workloads(text: str) -> list[str]:
    try:
        return chosen(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _choices(known: Sequence[str]) -> Callable[[str], list[str]]:
    def choices(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: choose from {', '.join(known)}")
        return names

    return choices


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return number

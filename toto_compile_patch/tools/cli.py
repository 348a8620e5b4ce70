"""The command line. Exit codes: 0, 1 (the check failed), 2 (bad usage or input).

A command's arguments stand here, so that ``--help`` and a wrong argument are answered without
waiting for torch; what it does stands in the module of its name.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from toto_compile_patch.settings import COMPILE_MODES, PRECISIONS, RUNTIMES
from toto_compile_patch.tools.checks import UsageError, not_negative, positive, what_is_missing
from toto_compile_patch.tools.workloads import WORKLOADS, chosen

_EXAMPLES = """\
examples:
  toto-compile-patch ab                                   upstream and patched on bundled data
  toto-compile-patch ab load.csv --column MW              ... on yours, with a report to look at
  toto-compile-patch run backtest.py --windows 8          your script, unchanged, patched
  toto-compile-patch doctor                               what is installed, applied, in the way
  toto-compile-patch doctor --script backtest.py          what torch.compile makes of your script
  toto-compile-patch bench --workload W3                  speed on one of the known workloads

COMMAND --help tells more of each. Exit codes: 0; 1: the check failed; 2: bad usage or input.
"""

_AB_EXAMPLES = """\
examples:
  toto-compile-patch ab                                     the demo model on bundled temperatures
  toto-compile-patch ab --base --samples 64 --windows 4     the real architecture, random weights
  toto-compile-patch ab load.csv --column MW --model Datadog/Toto-Open-Base-1.0
  toto-compile-patch ab prices.parquet --column open --column close --context 1024 --horizon 1
  toto-compile-patch ab --compile reduce-overhead           upstream and patched compiled, too
  toto-compile-patch ab --report pull_request.html --json ab.json

Both sides forecast the same windows, whose origins lie a horizon apart, taking turns, each in a
process of its own. Upstream's eager code forecasts all of them with a second seed as well: what
two seeds differ by is what the patch may differ by.
"""

_RUN_EXAMPLES = """\
examples:
  toto-compile-patch run backtest.py --windows 8
  toto-compile-patch run -m my_project.evaluate
  TOTO_COMPILE_PATCH=0 toto-compile-patch run backtest.py     upstream, untouched

apply() is called right after the first import of toto.inference.forecaster, toto.model.toto or
toto_compile_patch, in the script and in every Python that it starts (multiprocessing, subprocess);
TOTO_COMPILE_PATCH_* variables hold for each. Where it fails, a line on stderr says why, and
upstream's code runs. Python's own flags stand before -m: python -u -m toto_compile_patch run ...

The processes find it by PYTHONPATH: one that is started with another PYTHONPATH, an emptied
environment, or Python's flags -E, -I or -S runs upstream's code.
"""

_DOCTOR_EXAMPLES = """\
examples:
  toto-compile-patch doctor
  toto-compile-patch doctor --script backtest.py --windows 8
  toto-compile-patch doctor --json health.json --script backtest.py
  toto-compile-patch doctor --json -

Exit codes: 0: everything asked for is applied, the script is well; 1: something waits for a cure;
2: bad usage.
"""

_BENCH_EXAMPLES = """\
examples:
  python -m toto_compile_patch bench                      every workload, upstream and patched
  python -m toto_compile_patch bench --workload W3,WM     two of them
  python -m toto_compile_patch bench --workload W4 --compile reduce-overhead --device cuda
  python -m toto_compile_patch bench --json figures.json  keep the figures
  python -m toto_compile_patch bench --runtime eager,compile --precision model,bf16
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            # Of libraries that toto imports, to whoever maintains it.
            warnings.simplefilter("ignore")
            tool = importlib.import_module(f"toto_compile_patch.tools.{options.tool}")
        code: int = tool.run(options)
    except ModuleNotFoundError as error:
        print(f"{parser.prog}: error: {what_is_missing(error)}", file=sys.stderr)
        return 2
    except UsageError as error:
        print(f"{options.tool}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    return code


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog=_program(),
        description="Toto, patched: see on your own data that it is faster and says the same.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_ab, _add_run, _add_doctor, _add_bench, _add_start):
        add(commands)
    return parser


def _program() -> str:
    """As the user called it: the script, or Python with the module."""
    name = Path(sys.argv[0]).name
    return "python -m toto_compile_patch" if name == "__main__.py" else name


def _add_ab(commands: _Commands) -> None:
    ab = commands.add_parser(
        "ab",
        help="compare upstream and patched on your series: speed, errors, equality",
        description="Forecast a series by upstream's code and patched, side by side, and say how "
        "much faster it is and whether it says the same. Exit code 1 where it does not.",
        epilog=_AB_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ab.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="CSV with a header line, or Parquet: a row per time step; empty cells are gaps; a "
        "column named time, timestamp, datetime, date or ds gives the times (default: hourly "
        "weather at JFK airport, 2013)",
    )
    ab.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="what to forecast; several make one series of several variates (default: the only "
        "one; temp for the bundled series)",
    )
    model = ab.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        default="demo",
        metavar="ID_OR_DIR",
        help="Hugging Face id or checkpoint directory (default: the demo model, small, trained on "
        "the first part of the bundled series)",
    )
    model.add_argument(
        "--base",
        dest="model",
        action="store_const",
        const="base",
        help="the architecture of Toto-Open-Base-1.0 with random weights: no skill, real speed",
    )
    ab.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    ab.add_argument(
        "--compile",
        dest="mode",
        choices=COMPILE_MODES,
        metavar="MODE",
        help="compile both sides as well: " + ", ".join(COMPILE_MODES),
    )
    for name, most, meaning in (
        ("--windows", "16", "forecasts of each side"),
        ("--context", "512", "time steps that a forecast starts from"),
        ("--horizon", "96", "time steps to forecast"),
        ("--season", "a day, week or year", "time steps after which the series repeats itself"),
    ):
        ab.add_argument(
            name, type=positive, metavar="N", help=f"{meaning} (default: {most}, if it fits)"
        )
    ab.add_argument(
        "--samples",
        type=not_negative,
        metavar="N",
        help="of a forecast; its median is the point forecast; 0: means (default: 128; with the "
        "demo model, which is small, 512)",
    )
    ab.add_argument(
        "--samples-per-batch",
        type=positive,
        metavar="N",
        help="that upstream decodes at once (default: all)",
    )
    report = ab.add_mutually_exclusive_group()
    report.add_argument(
        "--report",
        type=Path,
        default=Path("toto_ab.html"),
        metavar="FILE.html",
        help="where to write a page to show around, with its picture beside it as .png "
        "(default: %(default)s)",
    )
    report.add_argument(
        "--no-report", dest="report", action="store_const", const=None, help="write neither"
    )
    _add_json(ab)
    ab.set_defaults(tool="ab")


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run",
        help="run your script, unchanged, patched",
        description="Run a Python script or module as `python` would, with toto patched in it and "
        "in the processes that it starts.",
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s SCRIPT [ARGS ...]\n       %(prog)s -m MODULE [ARGS ...]",
    )
    everything = argparse.REMAINDER
    run.add_argument(
        "script", nargs=everything, metavar="SCRIPT", help="a script, and all that follows is its"
    )
    run.add_argument(
        "-m", nargs=everything, dest="module", metavar="MODULE", help="a module, likewise"
    )
    run.set_defaults(tool="run")


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        usage="%(prog)s [-h] [--json FILE] [--script FILE [ARGUMENTS ...]]",
        help="what is installed, what is applied, and what is in the way",
        description="Say what is installed, what apply() does here, and which known traps this\n"
        "environment holds, each with its cure. Or run a script, and say what torch.compile made "
        "of\nit, which code made its forecasts, and what is to be done about it.",
        epilog=_DOCTOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument(
        "--script",
        nargs=argparse.REMAINDER,
        metavar="FILE",
        help="run this script, unchanged and with all the arguments that follow, and report on it; "
        "other options stand before. Nothing is applied but what the script applies. Only the "
        "script's own process is watched, not those that it starts",
    )
    doctor.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write everything there too; - writes it to stdout instead of the report (and what "
        "the script prints goes to stderr)",
    )
    doctor.set_defaults(tool="doctor")


def _add_bench(commands: _Commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="time the same forecasts upstream and patched",
        description="Time the same forecasts by upstream's code and patched, in turn, in one "
        "process: seeded random weights of Toto-Open-Base-1.0's shape, generated series.",
        epilog=_BENCH_EXAMPLES
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
        type=positive,
        metavar="SAMPLES",
        help="the most samples that upstream decodes at once (default: the workload's)",
    )
    bench.add_argument(
        "--pairs", type=positive, default=5, help="pairs of measurements (default: 5)"
    )
    bench.add_argument(
        "--budget",
        type=positive,
        default=120,
        metavar="SECONDS",
        help="of upstream's time for each workload; a slow one gets fewer pairs, or is measured "
        "on one of its batches of samples, and the table says so (default: 120)",
    )
    bench.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    _add_json(bench)
    bench.set_defaults(tool="bench")


def _add_start(commands: _Commands) -> None:
    start = commands.add_parser(
        "start",
        help="time the first forecast of a compiled model",
        description="Time the first forecast of a model compiled on a CPU, upstream and patched, "
        "each in a process of its own, with an empty cache of compiled code and with a filled one.",
    )
    start.add_argument("--mode", choices=COMPILE_MODES, default="default", help="of torch.compile")
    _add_json(start)
    start.add_argument("--side", help=argparse.SUPPRESS)
    start.set_defaults(tool="start")


def _add_json(command: _Parser) -> None:
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there; - for standard output"
    )


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

"""The command line. Exit codes: 0, 1 (the check failed), 2 (bad usage or input).

A command's arguments stand here, so that ``--help`` and a wrong argument are answered without
waiting for torch; what it does stands in the module of its name. The docstrings of the functions
that add the arguments are what ``--help`` prints.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from toto_compile_patch import import_hook
from toto_compile_patch.settings import COMPILE_MODES, PRECISIONS, RUNTIMES, variable_of
from toto_compile_patch.tools import checks
from toto_compile_patch.tools.checks import UsageError, not_negative, positive
from toto_compile_patch.tools.workloads import WORKLOADS, chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    # As the user called it: the script, or Python with the module.
    name = Path(sys.argv[0]).name
    name = "python -m toto_compile_patch" if name == "__main__.py" else name
    parser = _Parser(_commands, prog=name)
    options = parser.parse_args(arguments)
    try:
        if options.tool not in ("run", "doctor"):
            # Both sides of a comparison are patched or not by the command alone.
            os.environ.pop(variable_of("auto"), None)
        import_hook.unfollow()
        # Before anything long begins. What `run` runs has options of its own.
        checks.check_json(getattr(options, "json", None))
        with warnings.catch_warnings():
            # Of libraries that toto imports, to whoever maintains it.
            warnings.simplefilter("ignore")
            tool = importlib.import_module(f"toto_compile_patch.tools.{options.tool}")
        return int(tool.run(options))
    except ModuleNotFoundError as error:
        print(f"{name}: error: {checks.what_is_missing(error)}", file=sys.stderr)
    except UsageError as error:
        print(f"{options.tool}: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 2


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line; its help is the docstring of what adds its arguments."""

    def __init__(self, add: Callable[[_Parser], None], **kwargs: Any) -> None:
        description, _, epilog = inspect.cleandoc(add.__doc__ or "").partition("\n\n")
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=raw, **kwargs)
        add(self)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _commands(parser: _Parser) -> None:
    """Toto, patched: see on your own data that it is faster and says the same.

    examples:
      toto-compile-patch ab                                  upstream and patched on bundled data
      toto-compile-patch ab load.csv --column MW             ... on yours, with a report to look at
      toto-compile-patch run backtest.py --windows 8         your script, unchanged, patched
      toto-compile-patch doctor                              what is installed, applied, in the way
      toto-compile-patch doctor --script backtest.py         what torch.compile makes of your script
      toto-compile-patch bench --workload W3                 speed on one of the known workloads

    COMMAND --help tells more of each. Exit codes: 0; 1: the check failed; 2: bad usage or input.
    """
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add, says in (
        (_ab, "compare upstream and patched on your series: speed, errors, equality"),
        (_run, "run your script, unchanged, patched"),
        (_activate, "let an environment variable patch any Python of this environment"),
        (_deactivate, "take that back"),
        (_doctor, "what is installed, what is applied, and what is in the way"),
        (_bench, "time the same forecasts upstream and patched"),
        (_start, "time the first forecast of a compiled model"),
        (_fingerprints, "which definitions of Toto's code are known, and which differ"),
    ):
        name = add.__name__.removeprefix("_")
        commands.add_parser(name, add=add, help=says).set_defaults(tool=name)


def _ab(ab: _Parser) -> None:
    """Forecast a series by upstream's code and patched, side by side, and say how much faster it
    is and whether it says the same. Exit code 1 where it does not.

    examples:
      toto-compile-patch ab                                   the demo model on bundled temperatures
      toto-compile-patch ab --base --samples 64 --windows 4   the real architecture, random weights
      toto-compile-patch ab load.csv --column MW --model Datadog/Toto-Open-Base-1.0
      toto-compile-patch ab prices.parquet --column open --column close --context 1024 --horizon 1
      toto-compile-patch ab --compile reduce-overhead         upstream and patched compiled, too
      toto-compile-patch ab --report pull_request.html --json ab.json

    Both sides forecast the same windows, whose origins lie a horizon apart, taking turns, each in a
    process of its own. Upstream's eager code forecasts all of them with a second seed as well: what
    two seeds differ by is what the patch may differ by.
    """
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
    _model(ab)
    ab.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    _compile(ab, "compile both sides as well", dest="mode")
    _number(ab, "--windows", "forecasts of each side (default: 16, if it fits)")
    _number(ab, "--context", "time steps that a forecast starts from (default: 512, if it fits)")
    _number(ab, "--horizon", "time steps to forecast (default: 96, if it fits)")
    repeats = "time steps after which the series repeats itself"
    _number(ab, "--season", f"{repeats} (default: a day, week or year, if it fits)")
    drawn = "of a forecast; its median is the point forecast; 0: means"
    default = "default: 128; with the demo model, which is small, 512"
    _number(ab, "--samples", f"{drawn} ({default})", type=not_negative)
    _number(ab, "--samples-per-batch", "that upstream decodes at once (default: all)")
    _report(ab)
    _json(ab)


def _model(ab: _Parser) -> None:
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


def _report(ab: _Parser) -> None:
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


def _run(run: _Parser) -> None:
    """Run a Python script or module as `python` would, with toto patched in it and in the
    processes that it starts.

    examples:
      toto-compile-patch run backtest.py --windows 8
      toto-compile-patch run -m my_project.evaluate
      TOTO_COMPILE_PATCH=0 toto-compile-patch run backtest.py     upstream, untouched

    apply() is called right after the first import of toto.inference.forecaster, toto.model.toto or
    toto_compile_patch, in the script and in every Python that it starts (multiprocessing,
    subprocess); TOTO_COMPILE_PATCH_* variables hold for each. Where it fails, a line on stderr
    says why, and upstream's code runs. Python's own flags stand before -m:
    python -u -m toto_compile_patch run ...

    The processes find it by PYTHONPATH: one that is started with another PYTHONPATH, an emptied
    environment, or Python's flags -E, -I or -S runs upstream's code.
    """
    run.usage = "%(prog)s SCRIPT [ARGS ...]\n       %(prog)s -m MODULE [ARGS ...]"
    told, rest = "a script, and all that follows is its", argparse.REMAINDER
    run.add_argument("script", nargs=rest, metavar="SCRIPT", help=told)
    run.add_argument("-m", nargs=rest, dest="module", metavar="MODULE", help="a module, likewise")


def _activate(activate: _Parser) -> None:
    """Let TOTO_COMPILE_PATCH_AUTO=1 patch any Python of this environment, where the command line is
    somebody else's: clusters, notebooks, containers.

    examples:
      toto-compile-patch activate
      TOTO_COMPILE_PATCH_AUTO=1 python backtest.py                patched
      python backtest.py                                          as if nothing had been activated
      toto-compile-patch deactivate                               before the package is uninstalled

    It writes one .pth file into the site-packages of the Python that runs it. Where the variable is
    1, true, yes or on, apply() is called right after the first import of Toto's code or of
    toto_compile_patch, in every Python of this environment but those started with the flag -S;
    TOTO_COMPILE_PATCH_* variables hold for each. Where it fails, a line on stderr says why, and
    upstream's code runs.
    """


def _deactivate(deactivate: _Parser) -> None:
    """Remove the .pth file that `activate` has written into this environment's site-packages."""


def _doctor(doctor: _Parser) -> None:
    """Say what is installed, what apply() does here, and which known traps this environment holds,
    each with its cure. Or run a script, and say what torch.compile made of it, which code made its
    forecasts, and what is to be done about it.

    examples:
      toto-compile-patch doctor
      toto-compile-patch doctor --script backtest.py --windows 8
      toto-compile-patch doctor --json health.json --script backtest.py
      toto-compile-patch doctor --json -

    Exit codes: 0: everything asked for is applied, the script is well; 1: something waits for a
    cure; 2: bad usage.
    """
    doctor.usage = "%(prog)s [-h] [--json FILE] [--script FILE [ARGUMENTS ...]]"
    doctor.add_argument(
        "--script",
        nargs=argparse.REMAINDER,
        metavar="FILE",
        help="run this script, unchanged and with all the arguments that follow, and report on it; "
        "other options stand before. Nothing is applied but what the script applies. Only the "
        "script's own process is watched, not those that it starts",
    )
    _json(
        doctor,
        "write everything there too; - writes it to stdout instead of the report (and what the "
        "script prints goes to stderr)",
    )


def _bench(bench: _Parser) -> None:
    """Time the same forecasts by upstream's code and patched, in turn, in one process: seeded
    random weights of Toto-Open-Base-1.0's shape, generated series.

    examples:
      python -m toto_compile_patch bench                      every workload, upstream and patched
      python -m toto_compile_patch bench --workload W3,WM     two of them
      python -m toto_compile_patch bench --workload W4 --compile reduce-overhead --device cuda
      python -m toto_compile_patch bench --json figures.json  keep the figures
      python -m toto_compile_patch bench --runtime eager,compile --precision model,bf16

    workloads:
    """
    workloads = [f"  {name:<8}{load.describe()}" for name, load in WORKLOADS.items()]
    bench.epilog = "\n".join([bench.epilog or "", *workloads])
    told = "names, separated by commas (default: all)"
    _names(bench, "--workload", told, chosen, default=list(WORKLOADS))
    bench.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    told, types = "of the model and the series", ("float32", "float64", "float16", "bfloat16")
    told = f"{told} (default: %(default)s)"
    bench.add_argument("--dtype", choices=types, default=types[0], help=told)
    _compile(bench, "measure upstream with a compiled backbone, too")
    told = f"how the patched side runs, one or several: {', '.join(RUNTIMES)}"
    _names(bench, "--runtime", told, _among(RUNTIMES), default=[RUNTIMES[0]])
    told = f"of the patched side's matrix products, one or several: {', '.join(PRECISIONS)}"
    _names(bench, "--precision", told, _among(PRECISIONS), default=[PRECISIONS[0]])
    told = "the most samples that upstream decodes at once (default: the workload's)"
    _number(bench, "--per-batch", told, metavar="SAMPLES")
    _number(bench, "--pairs", "pairs of measurements (default: 5)", default=5)
    _number(
        bench,
        "--budget",
        "of upstream's time for each workload; a slow one gets fewer pairs, or is measured on one "
        "of its batches of samples, and the table says so (default: 120)",
        default=120,
        metavar="SECONDS",
    )
    bench.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    _json(bench)


def _start(start: _Parser) -> None:
    """Time the first forecast of a model compiled on a CPU, upstream and patched, each in a process
    of its own, with an empty cache of compiled code and with a filled one.
    """
    start.add_argument("--mode", choices=COMPILE_MODES, default="default", help="of torch.compile")
    _json(start)


def _fingerprints(fingerprints: _Parser) -> None:
    """Print the fingerprint of each definition of Toto's that is replaced or relied on, beside
    those that are known, and say which differ. Reads files, and runs nothing of them. Exit code 1
    where any differs.

    examples:
      python -m toto_compile_patch fingerprints               the installed toto
      python -m toto_compile_patch fingerprints unpacked/toto another one, which need not work
    """
    told = "that of a package toto (default: the installed one)"
    fingerprints.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help=told)
    _json(fingerprints)


def _compile(command: _Parser, meaning: str, **kwargs: Any) -> None:
    text = f"{meaning}: {', '.join(COMPILE_MODES)}"
    command.add_argument("--compile", choices=COMPILE_MODES, metavar="MODE", help=text, **kwargs)


def _number(command: _Parser, name: str, text: str, **kwargs: Any) -> None:
    command.add_argument(name, help=text, **{"type": positive, "metavar": "N", **kwargs})


def _json(command: _Parser, text: str = "write the figures there; - for standard output") -> None:
    command.add_argument("--json", type=Path, metavar="FILE", help=text)


def _names(
    command: _Parser, name: str, text: str, choose: Callable[[list[str]], list[str]], **kwargs: Any
) -> None:
    def names(given: str) -> list[str]:
        try:
            return choose(given.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    command.add_argument(name, type=names, metavar="NAMES", help=text, **kwargs)


def _among(known: Sequence[str]) -> Callable[[list[str]], list[str]]:
    def choose(names: list[str]) -> list[str]:
        names = [name.strip() for name in names]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{unknown[0]!r}: choose from {', '.join(known)}")
        return names

    return choose

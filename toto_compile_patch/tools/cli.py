"""The command line. Exit codes: 0, 1 (the check failed), 2 (bad usage or input).

A command's arguments stand here, so that ``--help`` and a wrong argument are answered without
waiting for torch; what it does stands in the module of its name. The docstrings of the functions
that add the arguments are what ``--help`` prints.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from toto_compile_patch import import_hook
from toto_compile_patch.settings import COMPILE_MODES, PRECISIONS, RUNTIMES, variable_of
from toto_compile_patch.tools import checks, refusals
from toto_compile_patch.tools.checks import UsageError, device, not_negative, positive
from toto_compile_patch.tools.workloads import WORKLOADS, chosen
from toto_compile_patch.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on standard error: what a terminal cannot show is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    # As the user called it: the script, or Python with the module.
    name = Path(sys.argv[0]).name
    name = "python -m toto_compile_patch" if name == "__main__.py" else name
    parser = _Parser(_commands, prog=name)
    options = parser.parse_args(arguments)
    if options.tool is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        if options.tool not in ("run", "doctor"):
            # Both sides of a comparison are patched or not by the command alone.
            os.environ.pop(variable_of("auto"), None)
        import_hook.unfollow()
        refusals.check(options)
        with warnings.catch_warnings():
            # Of libraries that toto imports, to whoever maintains it.
            warnings.simplefilter("ignore")
            tool = importlib.import_module(f"toto_compile_patch.tools.{options.tool}")
        return int(tool.run(options))
    except ModuleNotFoundError as error:
        print(f"{name}: error: {checks.what_is_missing(str(error.name))}", file=sys.stderr)
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
      toto-compile-patch backtest sales.parquet --horizon 28 --output sales_backtest
                                                             every series of a file, scored
      toto-compile-patch run backtest.py --windows 8         your script, unchanged, patched
      toto-compile-patch doctor                              what is installed, applied, in the way
      toto-compile-patch doctor --script backtest.py         what torch.compile makes of your script
      toto-compile-patch bench --workload W3                 speed on one of the known workloads

    COMMAND --help tells more of each. Exit codes: 0; 1: the check failed; 2: bad usage or input.
    """
    version = f"toto-compile-patch {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print it, and end")
    parser.set_defaults(tool=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for add, says in (
        (_ab, "compare upstream and patched on your series: speed, errors, equality"),
        (_backtest, "forecast and score every series of a file, on one machine or by Ray"),
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
    is and whether it says the same. Exit code 1 where the forecasts differ; 0 where they do not,
    also where patched is slower, or windows and samples were too few to tell ("same" is then null
    in --json).

    examples:
      toto-compile-patch ab                                   the demo model on bundled temperatures
      toto-compile-patch ab --base --windows 4                the real architecture, random weights
      toto-compile-patch ab load.csv --column MW --model Datadog/Toto-Open-Base-1.0
      toto-compile-patch ab prices.parquet --column open --column close --horizon 1 --windows 64
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
        help="CSV or Parquet, a row for each time step; empty cells and missing rows are gaps "
        "(default: hourly weather at JFK airport, 2013)",
    )
    ab.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="what to forecast; several make one series of several variates (default: the only "
        "one of numbers; temp for the bundled series)",
    )
    _reading(ab, "the column that names the series (default: item_id, unique_id, series_id or id)")
    ab.add_argument("--item", help="the series to forecast, if the file holds several")
    _model(ab)
    told = "cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    ab.add_argument("--device", type=device, help=told)
    _compile(ab, "compile both sides as well", dest="mode")
    _number(ab, "--windows", "forecasts that each side makes (default: 16, if it fits)")
    _number(ab, "--context", "time steps that a forecast starts from (default: 512, if it fits)")
    _number(ab, "--horizon", "time steps to forecast (default: 96, if it fits)")
    repeats = "time steps after which the series repeats itself"
    _number(ab, "--season", f"{repeats} (default: a day, week or year, if it fits)")
    drawn = "samples of a forecast, whose median is the point forecast; 0: means"
    default = "default: 128; with the demo model, which is small, 512"
    _number(ab, "--samples", f"{drawn} ({default})", type=not_negative)
    _number(ab, "--samples-per-batch", _PER_BATCH)
    _report(ab)
    _json(ab)


_PER_BATCH = "samples that upstream decodes at once (default: all)"


def _reading(parser: _Parser, id: str) -> None:
    """How to read a file, where it can be read in several ways."""
    parser.add_argument("--id", metavar="COLUMN", help=id)
    told = "the column that gives the times (default: the one that holds times)"
    parser.add_argument("--time", metavar="COLUMN", help=told)
    told = "how times are written, as strptime has it, such as %%d/%%m/%%Y (default: as they show)"
    parser.add_argument("--time-format", metavar="FORMAT", help=told)
    told = "the mark before the decimals, a dot or a comma (default: as numbers show)"
    parser.add_argument("--decimal", choices=(".", ","), metavar="MARK", help=told)


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
        help="where to write a page that you can share, with its picture beside it as .png "
        "(default: %(default)s)",
    )
    report.add_argument(
        "--no-report", dest="report", action="store_const", const=None, help="write neither"
    )


def _backtest(backtest: _Parser) -> None:
    """Forecast rolling windows of every series of a file, patched, and score the forecasts. A run
    that was killed goes on with --resume, to the same result, bit for bit.

    examples:
      toto-compile-patch backtest sales.parquet --horizon 28 --output out
      toto-compile-patch backtest sales.csv --horizon 28 --windows 8 --output out \\
          --model Datadog/Toto-Open-Base-1.0
      toto-compile-patch backtest load.csv --wide --known temperature --horizon 24 --output out
      toto-compile-patch backtest s3://bucket/sales.parquet --horizon 28 --output s3://bucket/out
      toto-compile-patch backtest sales.parquet --horizon 28 --output out --engine ray --workers 8
      toto-compile-patch backtest sales.parquet --horizon 28 --output out --resume

    The rows of a series stand together; rows that are missing are gaps. The whole
    file is checked before anything is forecast; a series that cannot be forecast is a line of
    errors.csv, and costs no other one. The output holds part-*.parquet, one row for each window:
    item_id, cutoff (the last time of the context), window, mean, a column for each quantile, truth,
    mase, wql, coverage (of the outermost quantiles), mase_naive (the seasonal naive forecast's);
    scores.json, the means of these; errors.csv; and run.json, by which a run goes on.

    What is forecast together depends on the file and the options alone. So do the rows, bit for
    bit, however many workers there are, if the machines and --threads are alike.
    """
    backtest.add_argument(
        "file",
        metavar="FILE",
        help="CSV or Parquet; a path or any address that fsspec knows",
    )
    backtest.add_argument(
        "--output", required=True, metavar="DIR", help="a new folder; likewise, any address"
    )
    told = "go on with the run that was begun in that folder; begin it, if there is none"
    backtest.add_argument("--resume", action="store_true", help=told)
    _columns(backtest)
    _windows(backtest)
    _model(backtest)
    _forecasts(backtest)
    _engine(backtest)
    _json(backtest)


def _columns(backtest: _Parser) -> None:
    told = "names the series (default: item_id, unique_id, series_id or id; none: one series)"
    _reading(backtest, f"the column that {told}")
    told = "the column to forecast (default: target, y or value, or the only one of numbers)"
    backtest.add_argument("--target", metavar="COLUMN", help=told)
    told = "each column is a series, but for the times and what is --known"
    backtest.add_argument("--wide", action="store_true", help=told)
    told = "a column whose future is known when a forecast is made; may be given several times"
    backtest.add_argument("--known", action="append", metavar="COLUMN", help=told)
    told = "step of the times, as pandas writes it: h, 15min, D, B, MS (default: as they lie)"
    backtest.add_argument("--freq", metavar="STEP", help=told)


def _windows(backtest: _Parser) -> None:
    _number(backtest, "--horizon", "time steps to forecast", required=True)
    told = "windows of each series, the last of which ends with it; 0: as many as fit"
    _number(backtest, "--windows", f"{told} (default: 1)", default=1, type=not_negative)
    _number(backtest, "--step", "time steps between two windows (default: the horizon)")
    told = "most time steps that a forecast starts from"
    _number(backtest, "--context", f"{told} (default: %(default)s)", default=512)
    told = "fewest time steps that a forecast starts from, in short series and first windows"
    _number(backtest, "--min-context", f"{told} (default: %(default)s)", default=16)
    told = "time steps after which a series repeats itself, for the scores"
    _number(backtest, "--season", f"{told} (default: a day, week or year, by its times)")


def _forecasts(backtest: _Parser) -> None:
    told = "samples of a forecast, whose median is scored; 0: means (default: %(default)s)"
    _number(backtest, "--samples", told, default=256, type=not_negative)
    _number(backtest, "--samples-per-batch", _PER_BATCH)
    levels = [level / 10 for level in range(1, 10)]
    told = "levels of the quantiles to keep, separated by commas (default: 0.1,0.2,...,0.9)"
    backtest.add_argument("--quantiles", type=_levels, default=levels, metavar="LEVELS", help=told)
    told = "cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    backtest.add_argument("--device", type=device, help=told)
    told, types = "numbers of model and series (default: %(default)s)", ("float32", "float64")
    backtest.add_argument("--dtype", choices=types, default=types[0], help=told)
    told = "seed of the run, from which each window has its own, by its series and time"
    _number(backtest, "--seed", f"{told} (default: 0)", default=0, type=not_negative)
    told = "memory for forecasts that are made together, as 500MB or 2GB (default: 1GB)"
    _number(backtest, "--memory", told, type=_bytes, default=2**30, metavar="BYTES")
    told = "windows in each part of the output (default: %(default)s)"
    _number(backtest, "--shard", told, default=512)


def _engine(backtest: _Parser) -> None:
    told = "one process, or Ray workers, which take the extra ray (default: %(default)s)"
    engines = ("local", "ray")
    backtest.add_argument("--engine", choices=engines, default=engines[0], help=told)
    told = "address of a Ray cluster (default: RAY_ADDRESS, else one is started on this machine)"
    backtest.add_argument("--address", help=told)
    told = "number of Ray workers (default: as many as there is room for)"
    _number(backtest, "--workers", told)
    for name, default in (("CPUs", 1.0), ("GPUs", 0.0)):
        told = f"{name} that Ray gives each worker (default: {default:g})"
        _number(backtest, f"--{name.lower()}-per-worker", told, type=_share, default=default)
    told = "CPU threads for torch in each process (default: all; by Ray, the worker's CPUs)"
    _number(backtest, "--threads", told)


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
    """Say what is installed, what apply() does here, by which path a small forecast goes, whether
    products in 16 bits pay on this machine, and which known traps this environment holds, each with
    its cure. Or run a script, and say what torch.compile made of it, which code made its forecasts,
    and what is to be done about it. The last line says what to do next.

    examples:
      toto-compile-patch doctor
      toto-compile-patch doctor --script backtest.py --windows 8
      toto-compile-patch doctor --json health.json --script backtest.py
      toto-compile-patch doctor --json -

    Exit codes: 0: everything asked for is applied and the small forecast was fast, or the script is
    well; 1: something waits for a cure; 2: bad usage.
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
    told = "names of workloads, separated by commas (default: all)"
    _names(bench, "--workload", told, chosen, default=list(WORKLOADS))
    told = "cpu, cuda, cuda:1, ... (default: cpu)"
    bench.add_argument("--device", type=device, default="cpu", help=told)
    told, types = "numbers of model and series", ("float32", "float64", "float16", "bfloat16")
    told = f"{told} (default: %(default)s)"
    bench.add_argument("--dtype", choices=types, default=types[0], help=told)
    _compile(bench, "measure upstream with a compiled backbone, too")
    told = f"how the patched side runs, one or several: {', '.join(RUNTIMES)}"
    _names(bench, "--runtime", told, _among(RUNTIMES), default=[RUNTIMES[0]])
    told = f"precision of patched matrix products, one or several: {', '.join(PRECISIONS)}"
    _names(bench, "--precision", told, _among(PRECISIONS), default=[PRECISIONS[0]])
    told = "the most samples that upstream decodes at once (default: the workload's)"
    _number(bench, "--per-batch", told, metavar="SAMPLES")
    _number(bench, "--pairs", "pairs of measurements (default: 5)", default=5)
    _number(
        bench,
        "--budget",
        "seconds that upstream may take for each workload; a slow one gets fewer pairs, or is "
        "measured on one of its batches of samples, and the table says so (default: 120)",
        default=120,
        metavar="SECONDS",
    )
    bench.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    _json(bench)


def _start(start: _Parser) -> None:
    """Time the first forecast of a model compiled on a CPU, upstream and patched, each in a process
    of its own, with an empty cache of compiled code and with a filled one.
    """
    start.add_argument(
        "--mode", choices=COMPILE_MODES, default="default", help="mode of torch.compile"
    )
    _json(start)


def _fingerprints(fingerprints: _Parser) -> None:
    """Print the fingerprint of each definition of Toto's that is replaced or relied on, beside
    those that are known, and say which differ. Reads files, and runs nothing of them. Exit code 1
    where any differs.

    examples:
      python -m toto_compile_patch fingerprints               the installed toto
      python -m toto_compile_patch fingerprints unpacked/toto another one, which need not work
    """
    told = "folder of a package toto (default: the installed one)"
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


def _levels(text: str) -> list[float]:
    try:
        levels = [float(level) for level in text.split(",")]
    except ValueError:
        levels = []
    increase = all(low < high for low, high in itertools.pairwise([0.0, *levels, 1.0]))
    if not levels or not increase:
        raise argparse.ArgumentTypeError(
            f"give increasing numbers between 0 and 1, separated by commas, not {text!r}"
        )
    return levels


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?)i?b?", text.strip().lower())
    size = int(float(found[1]) * 2 ** (10 * " kmgt".index(found[2] or " "))) if found else 0
    if not size:
        raise argparse.ArgumentTypeError(f"give a size as 500MB or 2GB, not {text!r}")
    return size


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise argparse.ArgumentTypeError(f"give a number of at least 0, not {text!r}")
    return share

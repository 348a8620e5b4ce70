"""What each command refuses before torch is imported, which takes seconds.

Whatever can be known from the arguments, the environment and what is installed is asked for here,
in one place; what the modules of the commands refuse takes torch, or the file's contents.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec

from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools import checks, models
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.workloads import WORKLOADS

SAMPLES, SAMPLES_OF_DEMO = 128, 512
"""Of a forecast of ``ab``, where nobody says: by any model, and by the demo model, which is
small."""

_FORECASTS = ("torch", "toto", "rich")
_REPORTS = ("matplotlib", "jinja2")


def check(options: argparse.Namespace) -> None:
    """Whether a command can be run, as far as that can be known without torch.

    Options whose defaults depend on others are filled in.

    Raises:
        UsageError: it cannot.
    """
    # What `run` runs has options of its own.
    checks.check_json(getattr(options, "json", None))
    if options.tool in _CHECKS:
        _CHECKS[options.tool](options)


def _ab(options: argparse.Namespace) -> None:
    checks.check_installed(*_FORECASTS, "pandas", *(_REPORTS if options.report else ()))
    _check_both_sides()
    if options.file is not None:
        checks.check_readable(options.file)
    _check_model(options.model)
    if options.samples is None:
        options.samples = SAMPLES_OF_DEMO if options.model == "demo" else SAMPLES
    options.samples_per_batch = checks.check_batch(options.samples, options.samples_per_batch)
    if options.report:
        _check_report(options)


def _check_report(options: argparse.Namespace) -> None:
    if options.report.suffix != ".html":
        raise UsageError(f"--report {options.report}: give a file named .html")
    written = (options.report, options.report.with_suffix(".png"))
    for path in written:
        checks.check_writable("--report", path)
    if options.json in written:
        raise UsageError(f"--json {options.json} is the report: choose another file")


def _backtest(options: argparse.Namespace) -> None:
    checks.check_installed(*_FORECASTS, "pandas")
    checks.check_environment()
    if options.wide and (options.id or options.target):
        raise UsageError("--wide takes each column as a series: leave out --id and --target")
    if options.min_context > options.context:
        raise UsageError(
            f"--min-context {options.min_context} is more than --context {options.context}: "
            "ask for less"
        )
    known = options.known or []
    if len(set(known)) < len(known):
        raise UsageError(f"--known {', '.join(known)}: name each column once")
    options.samples_per_batch = checks.check_batch(options.samples, options.samples_per_batch)
    _check_model(options.model)
    _check_engine(options)
    checks.check_readable(options.file)
    _check_output(options)
    _check_pyarrow()
    if options.freq is not None:
        _check_freq(options.freq)


def _check_engine(options: argparse.Namespace) -> None:
    given = [name for name in ("address", "workers") if getattr(options, name) is not None]
    if options.engine != "ray":
        if given:
            raise UsageError(f"--{given[0]} is for --engine ray: add that, or leave it out")
    elif find_spec("ray") is None:
        raise UsageError(f"--engine ray: {checks.what_is_missing('ray')}")


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        said = str(error).partition("\n")[0]
        raise UsageError(
            f"pyarrow cannot be imported ({said}): pip install 'pyarrow>=14,<26'"
        ) from None


def _check_output(options: argparse.Namespace) -> None:
    from toto_compile_patch.tools.backtest.place import Place

    place = Place(options.output)
    if not options.resume or place.manifest() is None:
        place.check_new(may_exist=options.resume)


def _check_freq(freq: str) -> None:
    import pandas as pd

    cure = "give a frequency as pandas writes it: h, 15min, D, B, W, MS"
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except ValueError:
        raise UsageError(f"--freq {freq}: {cure}") from None
    if offset.n < 1:
        raise UsageError(f"--freq {freq} does not go on: {cure}")


def _bench(options: argparse.Namespace) -> None:
    checks.check_installed(*_FORECASTS)
    _check_both_sides()
    for name in options.workload:
        load = WORKLOADS[name]
        per_batch = min(load.per_batch, options.per_batch or load.per_batch)
        if load.samples and load.samples % per_batch:
            raise UsageError(
                f"--per-batch {options.per_batch} does not divide the {load.samples} samples of "
                f"{name}: choose one that does"
            )


def _start(options: argparse.Namespace) -> None:
    checks.check_installed(*_FORECASTS)
    _check_both_sides()


def _run(options: argparse.Namespace) -> None:
    checks.check_environment()


def _fingerprints(options: argparse.Namespace) -> None:
    checks.check_installed("rich")


_CHECKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ab": _ab,
    "backtest": _backtest,
    "bench": _bench,
    "start": _start,
    "run": _run,
    "fingerprints": _fingerprints,
}


def _check_both_sides() -> None:
    """Whether the environment leaves anything to compare upstream's code with.

    Raises:
        UsageError: it does not, or has a value that it cannot have.
    """
    if not checks.check_environment().enabled:
        raise UsageError(
            f"{ENV_TOGGLE}={os.environ[ENV_TOGGLE]} leaves nothing to compare upstream with: "
            "unset it"
        )


def _check_model(model: str) -> None:
    if model not in models.KNOWN:
        checks.check_model(model)

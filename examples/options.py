"""The command line of the backtest, and what is refused before anything long begins."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from toto_compile_patch.settings import COMPILE_MODES
from toto_compile_patch.tools.checks import (
    check_batch,
    check_model,
    check_writable,
    not_negative,
    positive,
)
from toto_compile_patch.tools.models import BUNDLED, KNOWN

PROGRAM = "backtest.py"

_EXAMPLES = """\
examples:
  python examples/backtest.py                             the demo model on the bundled series
  python examples/backtest.py --base                      random weights of the real architecture
  python examples/backtest.py --samples 0                 mean forecasts, which involve no chance
  python examples/backtest.py --model Datadog/Toto-Open-Base-1.0 --samples 256
  python examples/backtest.py --csv load.csv --column MW --context 2048 --horizon 168
  TOTO_COMPILE_PATCH=0 python examples/backtest.py        upstream alone
  TOTO_COMPILE_PATCH=kv_cache python examples/backtest.py one patch alone
"""


@dataclass(frozen=True)
class Options:
    """The command line; see ``--help`` for what each means."""

    csv: Path
    column: str
    model: str
    device: str | None
    mode: str
    windows: int
    context: int
    horizon: int
    samples: int
    samples_per_batch: int
    json: Path | None


class Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser(description: str | None) -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description=description,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_data_options(parser)
    _add_model_options(parser)
    _add_forecast_options(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write everything measured here"
    )
    return parser


def _add_data_options(parser: Parser) -> None:
    parser.add_argument(
        "--csv",
        type=Path,
        default=BUNDLED,
        metavar="FILE",
        help="a header line, then a row per time step; empty cells are gaps; a column named time, "
        "timestamp, datetime, date or ds gives the times (default: hourly weather at JFK, 2013)",
    )
    parser.add_argument(
        "--column", default="temp", metavar="NAME", help="what to forecast (default: %(default)s)"
    )


def _add_model_options(parser: Parser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        default="demo",
        metavar="ID_OR_DIR",
        help="Hugging Face id or checkpoint directory (default: the demo model, a small one that "
        "was trained on the first part of the bundled series)",
    )
    for size, which in (("base", "of Toto-Open-Base-1.0"), ("small", "of a small model")):
        model.add_argument(
            f"--{size}",
            dest="model",
            action="store_const",
            const=size,
            help=f"random weights, seed 0, of the architecture {which}: equality and speed are "
            "real, forecast skill is not",
        )
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument(
        "--compile",
        dest="mode",
        default="reduce-overhead",
        choices=COMPILE_MODES,
        metavar="MODE",
        help=f"torch.compile mode: {', '.join(COMPILE_MODES)} (default: %(default)s)",
    )


def _add_forecast_options(parser: Parser) -> None:
    for name, default, meaning in (
        ("--windows", 8, "forecasts of each way, one horizon apart"),
        ("--context", 512, "time steps that a forecast starts from"),
        ("--horizon", 96, "time steps to forecast"),
    ):
        meaning += " (default: %(default)s)"
        parser.add_argument(name, type=positive, default=default, metavar="N", help=meaning)
    parser.add_argument(
        "--samples",
        type=not_negative,
        default=64,
        metavar="N",
        help="paths per forecast, whose median is the point forecast; 0: the mean forecast "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--samples-per-batch",
        type=positive,
        metavar="N",
        help="paths drawn at once (default: all of them)",
    )


def read_options(parser: Parser, arguments: Sequence[str] | None) -> Options:
    """Parse the command line and refuse what would fail only after a long wait.

    Raises:
        UsageError: options that do not go together, or a path that is of no use.
    """
    given = vars(parser.parse_args(arguments))
    given["samples_per_batch"] = check_batch(given["samples"], given["samples_per_batch"])
    options = Options(**given)
    if options.model not in KNOWN:
        check_model(options.model)
    if options.json is not None:
        check_writable("--json", options.json)
    return options

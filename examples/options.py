"""The command line of the backtest, and what is refused before anything long begins."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from toto_compile_patch.settings import COMPILE_MODES

PROGRAM = "backtest.py"
BUNDLED = Path(__file__).parent / "data" / "jfk_hourly_2013.csv"

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

_EXAMPLES = """\
examples:
  python examples/backtest.py --small                     a quick look, with a small random model
  python examples/backtest.py --samples 0                 mean forecasts, which involve no chance
  python examples/backtest.py --model Datadog/Toto-Open-Base-1.0 --samples 256
  python examples/backtest.py --csv load.csv --column MW --context 2048 --horizon 168
  TOTO_COMPILE_PATCH=0 python examples/backtest.py        upstream alone
  TOTO_COMPILE_PATCH=kv_cache python examples/backtest.py one patch alone
"""


class UsageError(ValueError):
    """An argument or the environment asks for what cannot be; the message says what to do."""


@dataclass(frozen=True)
class Options:
    """The command line; see ``--help`` for what each means."""

    csv: Path
    column: str
    model: str | None
    small: bool
    device: str | None
    mode: str
    windows: int
    context: int
    horizon: int
    samples: int
    samples_per_batch: int | None
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
    parser.add_argument(
        "--model",
        metavar="ID_OR_DIR",
        help="Hugging Face id or checkpoint directory (default: random weights, seed 0, of the "
        "architecture of Toto-Open-Base-1.0: equality and speed are real, forecast skill is not)",
    )
    parser.add_argument("--small", action="store_true", help="a much smaller random model")
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
        parser.add_argument(name, type=_positive, default=default, metavar="N", help=meaning)
    parser.add_argument(
        "--samples",
        type=_not_negative,
        default=64,
        metavar="N",
        help="paths per forecast, whose median is the point forecast; 0: the mean forecast "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--samples-per-batch",
        type=_positive,
        metavar="N",
        help="paths drawn at once (default: all of them)",
    )


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"give a whole number of at least {least}, not {text!r}")
    return number


def read_options(parser: Parser, arguments: Sequence[str] | None) -> Options:
    """Parse the command line and refuse what would fail only after a long wait.

    Raises:
        UsageError: options that do not go together, or a path that is of no use.
    """
    options = Options(**vars(parser.parse_args(arguments)))
    batch = options.samples_per_batch
    if batch and options.samples % batch:
        raise UsageError(
            f"--samples {options.samples} is not a multiple of --samples-per-batch {batch}: "
            "choose one that divides it"
        )
    if options.model is not None:
        _check_model(options.model, options.small)
    if options.json is not None:
        _check_writable(options.json)
    return options


def _check_model(model: str, small: bool) -> None:
    if small:
        raise UsageError("--small is a random model: leave out either --small or --model")
    directory = Path(model)
    if not directory.is_dir():
        if directory.exists() or not _HUB_ID.fullmatch(model):
            raise UsageError(
                f"--model {model} is neither a directory nor a Hugging Face id (owner/name): "
                "correct it"
            )
        return
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UsageError(f"--model {model} holds no {name}: give the directory of a checkpoint")


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"--json {path}: there is no directory {path.parent}: make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--json {path} cannot be written: choose another file")


def choose_device(asked: str | None) -> str:
    """The device to use, which must be one that upstream's float64 scaler runs on.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    count = torch.cuda.device_count()
    if asked is None:
        return "cuda" if count else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UsageError(f"--device {asked}: choose cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {asked}: choose cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(
            f"--device {asked}: torch {torch.__version__} sees {count} CUDA devices on this "
            "machine: choose another one, or --device cpu"
        )
    return asked

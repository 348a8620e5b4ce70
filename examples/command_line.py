"""The options that the lessons share, and their errors in one line; your own script needs none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from toto.model.toto import Toto

from toto_compile_patch.tools import checks
from toto_compile_patch.tools.models import BUNDLED, KNOWN, RANDOM, describe, load
from toto_compile_patch.tools.series.single import read_series
from toto_compile_patch.tools.windows import Shape, Window, cut_windows

__all__ = ["BUNDLED", "Parser", "Window", "describe"]

P = ParamSpec("P")
R = TypeVar("R")


class Parser(argparse.ArgumentParser):
    """A command line with ``--model`` and ``--device``.

    Args:
        description: what ``--help`` says, a script's docstring.
        numbers: names of options that are numbers of at least 1, and their defaults.
    """

    def __init__(self, description: str | None, **numbers: int) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=raw, allow_abbrev=False)
        self.add_argument(
            "--model",
            default="demo",
            help="Hugging Face id, checkpoint directory, or a name: demo (default), and small and "
            "base, which have random weights: --small, --base",
        )
        for name in RANDOM:
            self.add_argument(f"--{name}", dest="model", action="store_const", const=name)
        self.add_argument(
            "--device", type=checks.device, help="default: cuda if there is one, else cpu"
        )
        for name, default in numbers.items():
            self.add_argument(f"--{name}", type=checks.positive, default=default, metavar="N")

    def error(self, message: str) -> NoReturn:
        """Leave with the message in one line."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def add_samples(self, default: int) -> None:
        """``--samples``, of which 0 asks for means, and how many of them to draw at once."""
        self.add_argument("--samples", type=checks.not_negative, default=default)
        self.add_argument("--samples-per-batch", type=checks.positive)

    def samples_per_batch(self, arguments: argparse.Namespace) -> int:
        """How many to draw at once: as asked, else all."""
        return self.checked(checks.check_batch, arguments.samples, arguments.samples_per_batch)

    def load_model(self, arguments: argparse.Namespace) -> Toto:
        """The model that was asked for, on its device."""
        if arguments.model not in KNOWN:
            self.checked(checks.check_model, arguments.model)
        device = self.checked(checks.choose_device, arguments.device)
        return self.checked(load, arguments.model).to(device)

    def read_windows(
        self, arguments: argparse.Namespace, file: Path = BUNDLED, column: str = "temp"
    ) -> list[Window]:
        """Windows of a CSV file's column, by default of the bundled series' temperatures."""
        shape = Shape(arguments.windows, arguments.context, arguments.horizon)
        return self.checked(cut_windows, self.checked(read_series, file, [column]), shape)

    def checked(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What a function returns; where it refuses its arguments, an exit that says why."""
        try:
            return function(*args, **kwargs)
        except (checks.UsageError, OSError, RuntimeError) as error:
            self.error(str(error))

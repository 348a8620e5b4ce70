"""The option that the examples share: which model to forecast with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from options import Parser

from toto_compile_patch.tools import models
from toto_compile_patch.tools.checks import UsageError, check_model, choose_device

if TYPE_CHECKING:
    from toto.model.toto import Toto


def build_parser(description: str | None) -> Parser:
    """A parser that knows ``--model``."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default="demo",
        metavar="ID_OR_DIR",
        help="Hugging Face id, checkpoint directory, or a name: demo (default), and small and "
        "base, which have random weights",
    )
    return parser


def load_model(parser: Parser, model: str) -> Toto:
    """The model on the GPU, if there is one; an exit with one clear line if it cannot be had."""
    try:
        if model not in models.KNOWN:
            check_model(model)
        return models.load(model).to(choose_device(None))
    except UsageError as error:
        parser.error(str(error))
    except (OSError, RuntimeError) as error:
        parser.error(" ".join(str(error).split()))

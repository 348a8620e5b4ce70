"""The models that the tools forecast with: the demo model, random ones, and the user's own.

Torch is imported when a model is loaded, so that names can be asked for before.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toto_compile_patch.carriers import TOTO

if TYPE_CHECKING:
    from toto.model.toto import Toto

    from toto_compile_patch.upstream import TotoCode

DEMO = Path(__file__).parent.parent / "demo"
"""Folder of the demo model's checkpoint and of the bundled series."""

BUNDLED = DEMO / "jfk_hourly_2013.csv"
"""Hourly weather at JFK airport in 2013."""

BASE: dict[str, Any] = json.loads(Path(__file__).with_name("base_model.json").read_text())
"""The architecture of Toto-Open-Base-1.0."""

SMALL: dict[str, Any] = {**BASE, "embed_dim": 64, "num_heads": 4, "mlp_hidden_dim": 128}
"""As deep, and much narrower."""

RANDOM = {"base": BASE, "small": SMALL}
"""Architectures that are to be had with random weights, by name."""

KNOWN = ("demo", *RANDOM)
"""Names of models."""

TOY = (
    "the demo model is a toy, which shows what the command does: for forecasts to rely on, give "
    "--model Datadog/Toto-Open-Base-1.0"
)
"""What a reader of its forecasts should know."""


def toto_ts() -> TotoCode:
    """The installed ``toto``, with which the commands forecast."""
    from toto_compile_patch import upstream

    with warnings.catch_warnings():
        # Of libraries that toto imports, to whoever maintains it.
        warnings.simplefilter("ignore")
        return upstream.load(TOTO)


def load(model: str) -> Toto:
    """A model to forecast with, by name (``KNOWN``), directory or Hugging Face id.

    Random weights come from seed 0.

    Raises:
        RuntimeError: nothing of that name is to be had.
    """
    import torch

    kind = toto_ts().Toto
    if model in RANDOM:
        torch.manual_seed(0)
        made: Toto = kind(**RANDOM[model]).eval()
        return made
    directory = DEMO if model == "demo" else Path(model)
    if directory.is_dir():
        made = kind.load_from_checkpoint(str(directory)).eval()
        return made
    try:
        made = kind.from_pretrained(model).eval()
        return made
    except Exception as error:
        raise RuntimeError(
            f"cannot load {model!r}, which is no directory here, from the Hugging Face Hub: "
            f"{type(error).__name__}: {error}"
        ) from error


def describe(model: str) -> str:
    """What a reader should know of it."""
    if model == "demo":
        return "the demo model, small, trained on the first part of the bundled series"
    if model in RANDOM:
        what = "a small model" if model == "small" else "the architecture of Toto-Open-Base-1.0"
        return (
            f"RANDOM weights (seed 0), {what}: equality and speed are real, forecast skill is not"
        )
    return model

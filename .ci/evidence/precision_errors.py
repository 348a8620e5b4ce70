#!/usr/bin/env python3
"""How far do forecasts in 16 bits lie from exact ones?

    python .ci/evidence/precision_errors.py [--windows 8] [--samples 1024] [--json FILE]

Of the demo model on held-out windows of its series, and of random weights of the architecture of
Toto-Open-Base-1.0 on random walks: mean forecasts, and medians of samples of one seed. Means are
compared with float64's. Samples in float64 are drawn with other random numbers, so that medians are
compared with those in float32, which draws the same numbers, and whose means differ from float64's
by rounding alone. "Weights alone": weights of 16 bits, products of 32. "Another seed": float32's
medians with other random numbers, the error that any sampled forecast has.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from demo_model_skill import HORIZON, held_out_windows, hourly
from rich.console import Console
from toto.inference.forecaster import TotoForecaster
from toto.model.toto import Toto
from train_demo_model import COLUMNS

import toto_compile_patch
from toto_compile_patch.tools import machine, models
from toto_compile_patch.tools.checks import positive, write_whole
from toto_compile_patch.tools.models import DEMO
from toto_compile_patch.tools.screen import table_of


class Subject(NamedTuple):
    """A model, and the series that it forecasts.

    Attributes:
        name: of both.
        load: a model of its own at each call, in float32.
        series: ``batch variate context``, in float64.
    """

    name: str
    load: Callable[[], Any]
    series: torch.Tensor


class Way(NamedTuple):
    """How a forecast is made.

    Attributes:
        samples: None for the mean.
        dtype: of model and series.
        precision: of ``apply()``.
        rounded: round the layers' weights to 16 bits first.
        seed: of the random numbers.
    """

    samples: int | None
    dtype: torch.dtype = torch.float32
    precision: str = "model"
    rounded: bool = False
    seed: int = 0


def subjects(windows: int) -> list[Subject]:
    """The demo model on windows of its own series, and random weights on random walks."""
    held_out = torch.tensor(held_out_windows(COLUMNS[0]).context[:windows])
    torch.manual_seed(0)
    walks = torch.randn(windows, 2, held_out.shape[-1], dtype=torch.float64).cumsum(-1)
    return [
        Subject("demo model", lambda: Toto.load_from_checkpoint(DEMO).model, held_out[:, None]),
        Subject("random weights", lambda: models.load("base").model, walks),
    ]


def forecast(subject: Subject, way: Way) -> torch.Tensor:
    """The mean, or the median of samples, ``batch variate horizon``."""
    model = subject.load().to(way.dtype)
    if way.rounded:
        with torch.no_grad():
            for weight in model.transformer.parameters():
                weight.copy_(weight.bfloat16())
    inputs = hourly(subject.series.to(way.dtype))
    with toto_compile_patch.patched(fallback="error", precision=way.precision):
        torch.manual_seed(way.seed)
        made = TotoForecaster(model).forecast(
            inputs, HORIZON, num_samples=way.samples, samples_per_batch=way.samples or 1
        )
    found: torch.Tensor = made.mean if way.samples is None else made.samples.median(-1).values
    return found.double()


def errors(subject: Subject, samples: int) -> dict[str, dict[str, float]]:
    """Of each kind of forecast, how far others lie from it, in deviations of the series."""
    mean, median = Way(None), Way(samples)
    compared = {
        "mean, float32": (mean, Way(None, torch.float64)),
        "mean, weights alone": (mean._replace(rounded=True), Way(None, torch.float64)),
        "mean, bf16": (mean._replace(precision="bf16"), Way(None, torch.float64)),
        "median, weights alone": (median._replace(rounded=True), median),
        "median, bf16": (median._replace(precision="bf16"), median),
        "median, another seed": (median._replace(seed=1), median),
    }
    made = {
        way: forecast(subject, way) for way in {way for both in compared.values() for way in both}
    }
    deviation = subject.series.std(-1, keepdim=True)
    found = {}
    for name, (way, exact) in compared.items():
        error = (made[way] - made[exact]).abs() / deviation
        found[name] = {"mean": float(error.mean()), "most": float(error.max())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=positive, default=8)
    parser.add_argument("--samples", type=positive, default=1024, help="of each series")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    found = {one.name: errors(one, options.samples) for one in subjects(options.windows)}
    rows = [
        (name, kind, f"{error['mean']:.1e}", f"{error['most']:.1e}")
        for name, kinds in found.items()
        for kind, error in kinds.items()
    ]
    headings = ("model", "forecast", "on average", "at most")
    Console().print(table_of(headings, rows))
    if options.json:
        facts = machine.facts("cpu") | {"windows": options.windows, "samples": options.samples}
        write_whole(options.json, json.dumps({**facts, "errors": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

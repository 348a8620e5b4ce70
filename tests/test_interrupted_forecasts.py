"""A forecast that is broken off at any line leaves nothing behind that another would stumble on.

An interrupt (Ctrl-C) or an error (as where memory ends) is raised at one line of the package after
the other while a forecast is made; the next one must be the forecast that it always was.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from interrupted import Failure, Interrupt, Interrupter, first_places, release_locks
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, small_model

import toto_compile_patch
from toto_compile_patch.decode import random_numbers
from toto_compile_patch.patches import fast_decode
from toto_compile_patch.path_taken import PathTaken

HORIZON = 2 * PATCH


def process() -> tuple[Any, ...]:
    """What a forecast changes for its own length."""
    config = torch._dynamo.config
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        [getattr(config, name) for name in ("assume_static_by_default", "recompile_limit")],
        random_numbers._here.seeds,
        fast_decode._here.fast_alone,
    )


@pytest.mark.parametrize("error", [Interrupt, Failure], ids=["interrupt", "no memory"])
@pytest.mark.parametrize("samples", [None, 6], ids=["mean", "samples"])
@pytest.mark.parametrize(
    "places", [12, pytest.param(None, marks=pytest.mark.slow)], ids=["some lines", "every line"]
)
@pytest.mark.fault(
    injected="an interrupt, or an error for want of memory",
    where="every line of a forecast, the first with its weights to prepare, and a later one",
    observed="it is raised",
    afterwards="the next forecast is bit for bit what it was; torch's modes and settings are as "
    "before; patches stand",
)
def test_the_next_forecast_is_what_it_was(
    places: int | None, samples: int | None, error: type[BaseException]
) -> None:
    toto_compile_patch.apply(fallback="upstream")
    model = small_model(num_layers=2).model
    forecaster, inputs = TotoForecaster(model), series(40, 2)

    def anew() -> torch.Tensor:
        """Prepares the weights, as the first forecast of all does."""
        toto_compile_patch.refresh(model)
        return again()

    def again() -> torch.Tensor:
        torch.manual_seed(0)
        made = forecaster.forecast(inputs, HORIZON, samples, samples or 10)
        return made.mean if samples is None else made.samples

    expected, before = anew(), process()
    for call in (anew, again):
        lines = first_places(call)
        for place in lines if places is None else random.Random(0).sample(lines, places):
            interrupter = Interrupter(place, error=error)
            # What fails while the arguments are read is upstream's code to complain of.
            assert not interrupter.run(call) or error is Failure, interrupter.where
            release_locks()
            assert process() == before, interrupter.where
            assert torch.equal(again(), expected), interrupter.where
            assert toto_compile_patch.last_path() == PathTaken("fast", "", "eager")
            assert toto_compile_patch.is_applied()

"""Makes one forecast: prepares the weights, chooses the runtime, runs it, and starts over if a
weight has changed meanwhile."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode import compile_report, graphs
from toto_compile_patch.decode import weights as weights_of
from toto_compile_patch.decode.device_checks import (
    DeviceChecks,
    WeightsChangedError,
    raise_for,
)
from toto_compile_patch.decode.generation import generate
from toto_compile_patch.decode.graphs import AskedForecast
from toto_compile_patch.decode.memory import said_clearly
from toto_compile_patch.decode.modules import ModelParts
from toto_compile_patch.decode.precision import MODEL, Precision
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.random_numbers import (
    GivenRandomNumbers,
    OwnRandomNumbers,
    RandomNumbers,
    numbers_of_a_forecast,
)
from toto_compile_patch.decode.recorder import capturing
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.runtime import (
    AUTO,
    Ran,
    Runtime,
    choose_runtime,
    forget_compiled,
    ran_uncompiled,
)
from toto_compile_patch.decode.weights import prepared_weights


@dataclass(frozen=True)
class ForecastOptions:
    """How a forecast is to be made.

    Attributes:
        rng: ``fast`` draws once from the component chosen; ``upstream`` repeats upstream's
            draws in upstream's order.
        runtime: ``auto``, or the name of a Runtime.
        precision: the name of a Precision.
    """

    rng: str = "fast"
    runtime: str = AUTO
    precision: str = MODEL


def forecast(
    model: Any, parts: ModelParts, request: Request, options: ForecastOptions
) -> tuple[torch.Tensor, Ran]:
    """Forecast what is asked for.

    Args:
        model: the backbone, or what ``torch.compile`` made of it: tells which runtime is wanted.
        parts: the backbone itself, with what it consists of.
        request: series and horizon.
        options: how.

    Returns:
        Means ``batch variate horizon``, or samples ``batch variate horizon samples``; and how they
        were made.

    Raises:
        NotFiniteError: the distribution's parameters are not numbers.
        AssertionError: a patch spans two groups of variates.
        RuntimeError: there is not enough memory.
    """
    device = request.inputs.device
    runtime = choose_runtime(options.runtime, model, device)
    numbers: RandomNumbers | None = None
    if options.rng != "upstream":
        # A user's own capture takes no other generator than the process's.
        numbers = GivenRandomNumbers(None) if capturing() else numbers_of_a_forecast(device)
    try:
        with torch.inference_mode(False), torch.no_grad(), compile_report.of_forecast():
            result, ran = _until_weights_stay(parts, request, options, runtime, numbers)
    except RuntimeError as error:
        if (clear := said_clearly(error)) is error:
            raise
        raise clear from error
    # Within inference mode, upstream's results are inference tensors.
    return result.clone() if torch.is_inference_mode_enabled() else result, ran


def forget_prepared(backbone: Any = None) -> None:
    """Prepare a backbone's weights and graphs anew; without one, all, and what was compiled."""
    graphs.forget(backbone)
    weights_of.forget(backbone)
    if backbone is None:
        forget_compiled()


def _until_weights_stay(
    parts: ModelParts,
    request: Request,
    options: ForecastOptions,
    runtime: Runtime,
    numbers: RandomNumbers | None,
) -> tuple[torch.Tensor, Ran]:
    while True:
        try:
            return _run(parts, request, options, runtime, numbers)
        except WeightsChangedError:
            forget_prepared(parts.root)
            parts = ModelParts.of(parts.root)


def _run(
    parts: ModelParts,
    request: Request,
    options: ForecastOptions,
    runtime: Runtime,
    numbers: RandomNumbers | None,
) -> tuple[torch.Tensor, Ran]:
    device, backbone = request.inputs.device, parts.root
    time_steps = min(request.horizon, backbone.patch_embed.patch_size)
    weights = prepared_weights(backbone, options.precision, time_steps, parts)
    model = PreparedModel(backbone, weights, runtime.regions, Precision(options.precision))
    # On a CPU that was seen to already, and in a capture of the user's nothing can be asked.
    unseen = device.type != "cpu" and not capturing()

    def compute(
        request: Request, numbers: RandomNumbers | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        checks = DeviceChecks(device)
        if unseen and numbers is not None:
            checks.forbid(WeightsChangedError, weights.noted.changed(time_steps))
        return generate(model, request, numbers, checks), checks.outcomes()

    alone = runtime.captures or device.type != "cpu"
    with graphs.one_at_a_time(device) if alone else nullcontext():
        if unseen and numbers is None:
            # Nothing is tried again once upstream's random numbers were drawn: wait.
            checks = DeviceChecks(device)
            checks.forbid(WeightsChangedError, weights.noted.changed(time_steps))
            raise_for(checks.outcomes())
        if runtime.captures and isinstance(numbers, OwnRandomNumbers):
            asked = AskedForecast(model, request, options, runtime, numbers, compute)
            result, outcomes, ran = graphs.run(asked)
        else:
            runtime = runtime.without_graphs()
            result, outcomes = compute(request, numbers)
            ran = Ran(runtime.name, runtime.reason, unexpected=bool(runtime.reason))
    if not capturing():
        raise_for(outcomes)
    if failure := runtime.regions.failure:
        # It may have failed only now.
        ran = ran_uncompiled(ran, failure)
    return result, ran

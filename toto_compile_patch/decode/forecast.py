"""Makes one forecast: checks the model, prepares the weights, chooses the runtime, runs it, and
starts over if a weight has changed meanwhile, or if memory ran out that graphs held."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from toto_compile_patch.decode import ahead, compile_report, graphs
from toto_compile_patch.decode import weights as weights_of
from toto_compile_patch.decode.compile_call import without_compiling
from toto_compile_patch.decode.device_checks import (
    DeviceChecks,
    WeightsChangedError,
    raise_for,
)
from toto_compile_patch.decode.generation import generate
from toto_compile_patch.decode.graphs import AskedForecast
from toto_compile_patch.decode.memory import out_of_memory, said_clearly
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
    choose_runtime,
    forget_compiled,
    ran_uncompiled,
)
from toto_compile_patch.decode.support import RefusedError, broken_head, weights_that_change
from toto_compile_patch.decode.weights import prepared_weights
from toto_compile_patch.errors import is_of_a_signal

MOST_TRIES = 4
"""Of a forecast on a GPU during which weights change."""


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
    model: Any, look: Callable[[], ModelParts], request: Request, options: ForecastOptions
) -> tuple[torch.Tensor, Ran]:
    """Forecast what is asked for.

    Args:
        model: the backbone, or what ``torch.compile`` made of it: tells which runtime is wanted.
        look: checks the backbone, and gives what it consists of. What it raises is passed on: the
            forecast has then had no effect. Where a CUDA graph can be launched before, it is.
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
    numbers: RandomNumbers | None = None
    if options.rng != "upstream":
        # A user's own capture takes no other generator than the process's.
        device = request.inputs.device
        numbers = GivenRandomNumbers(None) if capturing() else numbers_of_a_forecast(device)
    try:
        with torch.inference_mode(False), torch.no_grad(), compile_report.of_forecast():
            result, ran = _until_weights_stay(model, look, request, options, numbers)
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


@dataclass(frozen=True)
class _Begun:
    """A forecast that the device may still be making.

    Attributes:
        result: the forecast.
        outcomes: of its checks.
        ran: how it is made.
    """

    result: torch.Tensor
    outcomes: torch.Tensor
    ran: Ran


def _until_weights_stay(
    model: Any,
    look: Callable[[], ModelParts],
    request: Request,
    options: ForecastOptions,
    numbers: RandomNumbers | None,
) -> tuple[torch.Tensor, Ran]:
    device, backbone = request.inputs.device, without_compiling(model)
    for _ in range(MOST_TRIES):
        try:
            # On a CPU, several threads forecast at once. Elsewhere others may begin while this one
            # waits for its outcomes.
            with nullcontext() if device.type == "cpu" else graphs.one_at_a_time(device):
                begun = _begin_with_room(model, look, request, options, numbers)
            if not capturing():
                # Without a device's lock: those of two may be wanted. The device works meanwhile.
                if (kept := graphs.kept_for(backbone)) is not None:
                    kept.leave_for(device)
                raise_for(begun.outcomes)
            return begun.result, begun.ran
        except WeightsChangedError:
            forget_prepared(backbone)
            look = partial(ModelParts.of, backbone)
    raise RefusedError(weights_that_change())


def _begin_with_room(
    model: Any,
    look: Callable[[], ModelParts],
    request: Request,
    options: ForecastOptions,
    numbers: RandomNumbers | None,
) -> _Begun:
    """Begin a forecast; again, and without a graph, if memory ran out that graphs held."""
    try:
        return _begin(model, look, request, options, numbers)
    except (RuntimeError, MemoryError) as error:
        # Upstream's random numbers cannot be drawn again.
        final = numbers is None or capturing() or not out_of_memory(error)
        if final or is_of_a_signal(error) or not graphs.free(request.inputs.device):
            raise
    # Outside of the ``except``: the error would hold what the first attempt took.
    why_no_graph = "the memory that CUDA graphs held was needed"
    return _begin(model, look, request, options, numbers, why_no_graph)


def _begin(
    model: Any,
    look: Callable[[], ModelParts],
    request: Request,
    options: ForecastOptions,
    numbers: RandomNumbers | None,
    why_no_graph: str = "",
) -> _Begun:
    device, backbone = request.inputs.device, without_compiling(model)
    launched = ahead.launch(backbone, request, options, numbers)
    parts = look()
    runtime = choose_runtime(options.runtime, model, device)
    time_steps = min(request.horizon, backbone.patch_embed.patch_size)
    weights = prepared_weights(backbone, options.precision, time_steps, parts)
    # What draws by upstream's code has it looked at all.
    draws_as_upstream = numbers is None and request.num_samples is not None
    if not (weights.head_is_finite or draws_as_upstream):
        raise RefusedError(broken_head())
    prepared = PreparedModel(backbone, weights, runtime.regions, Precision(options.precision))
    # On a CPU that was seen to already, and in a capture of the user's nothing can be asked.
    unseen = device.type != "cpu" and not capturing()

    def compute(
        request: Request, numbers: RandomNumbers | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        checks = DeviceChecks(device)
        if unseen and numbers is not None:
            checks.forbid(WeightsChangedError, weights.noted.changed(time_steps))
        return generate(prepared, request, numbers, checks), checks.outcomes()

    if unseen and numbers is None:
        # Nothing is tried again once upstream's random numbers were drawn: wait.
        checks = DeviceChecks(device)
        checks.forbid(WeightsChangedError, weights.noted.changed(time_steps))
        raise_for(checks.outcomes())
    if runtime.captures and isinstance(numbers, OwnRandomNumbers) and not why_no_graph:
        asked = AskedForecast(prepared, request, options, runtime, numbers, compute, launched)
        result, outcomes, ran = graphs.run(asked)
    else:
        runtime = runtime.without_graphs(why_no_graph)
        result, outcomes = compute(request, numbers)
        ran = Ran(runtime.name, runtime.reason, unexpected=bool(runtime.reason))
    if failure := runtime.regions.failure:
        # It may have failed only now.
        ran = ran_uncompiled(ran, failure)
    return _Begun(result, outcomes, ran)

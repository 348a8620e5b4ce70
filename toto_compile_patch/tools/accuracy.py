"""What a lower precision does to a forecast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster

from toto_compile_patch.tools.workloads import Workload

Forecaster = tuple[TotoForecaster, Callable[[], None]]
"""A forecaster, and what puts its way of running in force."""


def compare(
    before: Forecaster,
    after: Forecaster,
    series: tuple[MaskedTimeseries, torch.Tensor],
    load: Workload,
) -> dict[str, float]:
    """Compare the point forecasts of two ways of running.

    Args:
        before: the way to compare with.
        after: the other.
        series: the context, and how it goes on, ``batch variate horizon``.
        load: what to forecast.

    Returns:
        ``difference``: mean absolute difference of the median forecasts (of the means where there
        are no samples) from the same seed; ``between_seeds``: the same between two seeds before;
        both in standard deviations of the context; ``error`` and ``error_before``: mean absolute
        error.
    """
    inputs, truth = series
    spread = inputs.series.double().std()

    def point(forecaster: Forecaster, seed: int) -> torch.Tensor:
        made_by, put_in_force = forecaster
        put_in_force()
        torch.manual_seed(seed)
        forecast = made_by.forecast(
            inputs,
            prediction_length=load.horizon,
            num_samples=load.samples,
            samples_per_batch=load.per_batch,
            use_kv_cache=load.use_kv_cache,
        )
        if forecast.samples is None:
            return forecast.mean.double()
        median: torch.Tensor = forecast.samples.double().quantile(0.5, dim=-1)
        return median

    plain, other_seed, changed = point(before, 0), point(before, 1), point(after, 0)

    def distance(one: torch.Tensor, two: torch.Tensor) -> float:
        return float((one - two).abs().mean())

    return {
        "difference": distance(plain, changed) / float(spread),
        "between_seeds": distance(plain, other_seed) / float(spread),
        "error": distance(changed, truth.double()),
        "error_before": distance(plain, truth.double()),
    }

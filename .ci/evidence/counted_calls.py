"""The forecasts by which this folder counts what dynamo compiles."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from toto.inference.forecaster import TotoForecaster

_HORIZON = 336


class Call(NamedTuple):
    """A forecast of one variate: context length, horizon, samples (None: mean) and batches."""

    length: int
    horizon: int = _HORIZON
    samples: int | None = None
    per_batch: int = 1


CALLS = [
    *[Call(512)] * 3,
    *[Call(512, 8, 256, 128)] * 2,
    *[Call(512, _HORIZON, 64, 64)] * 2,
    *[Call(length) for length in (640, 704, 768) for _ in range(2)],
]
UNSEEN = [Call(896)]


def timed(forecaster: TotoForecaster, call: Call) -> float:
    """Seconds of one forecast of a random walk."""
    import torch
    from toto.data.util.dataset import MaskedTimeseries

    values = 100 + torch.randn(1, call.length).cumsum(-1)
    inputs = MaskedTimeseries(
        series=values,
        padding_mask=torch.ones_like(values, dtype=torch.bool),
        id_mask=torch.zeros_like(values),
        timestamp_seconds=torch.zeros_like(values, dtype=torch.int),
        time_interval_seconds=torch.full((1,), 3600, dtype=torch.int),
    )
    start = time.perf_counter()
    forecaster.forecast(
        inputs,
        prediction_length=call.horizon,
        num_samples=call.samples,
        samples_per_batch=call.per_batch,
    )
    return time.perf_counter() - start

"""Small seeded Toto models and series for the tests."""

from __future__ import annotations

from typing import Any

import torch
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import Forecast, TotoForecaster
from toto.model.toto import Toto

PATCH = 8
COMPILE_PATCHES = ("kv_cache", "positional_embedding", "dynamo_config", "compile_method")
"""The patches for models that are compiled: all but the one that forecasts without the model."""

SCALERS = ("StdMeanScaler", "CausalStdMeanScaler", "CausalPatchStdMeanScaler")


def small_model(seed: int = 0, **changes: Any) -> Toto:
    """A seeded Toto with patches of 8 steps; SDPA layout unless told otherwise."""
    arguments: dict[str, Any] = {
        "patch_size": PATCH,
        "stride": PATCH,
        "embed_dim": 32,
        "num_layers": 4,
        "num_heads": 4,
        "mlp_hidden_dim": 64,
        "dropout": 0.1,
        "spacewise_every_n_layers": 2,
        "scaler_cls": "<class 'model.scaler.CausalPatchStdMeanScaler'>",
        "output_distribution_classes": ["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
        "spacewise_first": False,
        "output_distribution_kwargs": {"k_components": 3},
        "use_memory_efficient_attention": False,
    }
    torch.manual_seed(seed)
    return Toto(**(arguments | changes)).eval()


def tiny_model(seed: int = 0, **changes: Any) -> Toto:
    """One time-wise and one space-wise layer: quick to compile."""
    return small_model(seed, num_layers=2, **changes)


def series(
    length: int, variates: int = 1, batch: int | None = None, dtype: torch.dtype = torch.float32
) -> MaskedTimeseries:
    """A seeded random walk near 100, ``[batch] variate time_steps``."""
    generator = torch.Generator().manual_seed(length)
    shape = (variates, length) if batch is None else (batch, variates, length)
    values = 100 + torch.randn(shape, generator=generator).cumsum(-1)
    return MaskedTimeseries(
        series=values.to(dtype),
        padding_mask=torch.ones(shape, dtype=torch.bool),
        id_mask=torch.zeros(shape),
        timestamp_seconds=torch.zeros(shape, dtype=torch.int),
        time_interval_seconds=torch.full(shape[:-1], 3600, dtype=torch.int),
    )


def forecast(
    model: Any,
    inputs: MaskedTimeseries,
    horizon: int,
    samples: int | None = None,
    per_batch: int = 10,
    **kwargs: Any,
) -> Forecast:
    """A forecast from a fixed seed, by a new forecaster."""
    torch.manual_seed(0)
    return TotoForecaster(model).forecast(
        inputs,
        prediction_length=horizon,
        num_samples=samples,
        samples_per_batch=per_batch,
        **kwargs,
    )


def values(result: Forecast) -> torch.Tensor:
    """The samples of a forecast, or its mean where there are none."""
    found: torch.Tensor = result.mean if result.samples is None else result.samples
    return found

"""The loop of fev's example for Toto, and the pieces of upstream's own evaluation on fev's data."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import fev
import numpy as np
import pandas as pd
import torch
from bundled import COLUMNS, CONTEXT, DEMO, HORIZON, deviation, read_bundled
from sides import QUANTILES, Case, Client, Floats, Side
from toto.data.util.dataset import MaskedTimeseries
from toto.evaluation.fev.evaluate import (
    batch_task_windows,
    generate_test_window,
    predict_batched,
    setup_toto_forecaster,
)
from toto.inference.forecaster import TotoForecaster
from toto.model.toto import Toto

SAMPLES = 128
WINDOWS = 2
TABLE = read_bundled(CONTEXT + WINDOWS * HORIZON)
HELD_OUT = read_bundled(5000)


@cache
def model() -> Toto:
    """The demo model."""
    return Toto.from_pretrained(str(DEMO))


@cache
def task() -> fev.Task:
    """Rolling windows of the three columns, a series each, as fev reads them from a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jfk.parquet"
        rows = [{"id": name, "timestamp": TABLE.index, "target": TABLE[name]} for name in COLUMNS]
        pd.DataFrame(rows).map(np.asarray, na_action=None).astype({"id": str}).to_parquet(file)
        made = fev.Task(
            dataset_path=str(file),
            horizon=HORIZON,
            num_windows=WINDOWS,
            max_context_length=CONTEXT,
            seasonality=24,
            eval_metric="MASE",
            extra_metrics=["WQL"],
            quantile_levels=list(QUANTILES),
        )
        made.load_full_dataset()
    return made


def fev_loop(seed: int, _: Side) -> Floats:
    """Quantiles of the windows of a task, 32 samples at a time (``quantile window ...``)."""
    torch.manual_seed(seed)
    forecaster = TotoForecaster(model().model)
    forecasts = []
    for window in task().iter_windows():
        past, _future = window.get_input_data()
        series = torch.tensor(np.stack(past["target"]), dtype=torch.float32)[:, None]
        forecasts.append(
            forecaster.forecast(
                masked(series),
                prediction_length=window.horizon,
                num_samples=SAMPLES,
                samples_per_batch=32,
            )
        )
    made = [[one.quantile(level)[:, 0].numpy() for one in forecasts] for level in QUANTILES]
    summary = task().evaluation_summary(
        [predictions(window) for window in zip(*made, strict=True)], model_name="toto"
    )
    assert np.isfinite(summary["test_error"])
    return np.array(made)


def masked(series: torch.Tensor) -> MaskedTimeseries:
    """A batch of series (``batch variate time``), each of its own id, as fev's example has it."""
    ids = torch.arange(len(series), dtype=torch.int)[:, None, None].expand(series.shape)
    return MaskedTimeseries(
        series=series,
        padding_mask=torch.ones_like(series, dtype=torch.bool),
        id_mask=ids,
        timestamp_seconds=torch.zeros_like(series, dtype=torch.int),
        time_interval_seconds=torch.full((len(series), 1), 3600, dtype=torch.int),
    )


def predictions(quantiles: tuple[Floats, ...]) -> list[dict[str, Any]]:
    """A window's quantiles (``quantile series time``) as fev scores them; the median is the point
    forecast."""
    return [
        {
            "predictions": of_series[QUANTILES.index(0.5)],
            **{str(level): one for level, one in zip(QUANTILES, of_series, strict=True)},
        }
        for of_series in zip(*quantiles, strict=True)
    ]


def upstreams_own(seed: int, _: Side) -> Floats:
    """Quantiles by upstream's own evaluation on fev's data, with an exogenous series."""
    torch.manual_seed(seed)
    forecaster, patch = setup_toto_forecaster(model(), add_exogenous_variables=True)
    row = {
        "target": [HELD_OUT["temp"].to_numpy()],
        "timestamp": [HELD_OUT.index.to_numpy()],
        "feat_dynamic_real": [HELD_OUT[["dewp", "pressure"]].to_numpy().T],
    }
    windows = [
        generate_test_window(
            row, patch, offset=offset, context_length=CONTEXT, max_pred_length=HORIZON
        )
        for offset in (0, HORIZON)
    ]
    forecast = predict_batched(
        batch_task_windows(windows), forecaster, True, HORIZON, num_samples=SAMPLES
    )
    return np.stack([forecast.quantile(level).numpy() for level in QUANTILES])


datasets.disable_progress_bars()
CLIENT = Client(
    name="fev",
    distribution="fev",
    recipe="`apply()`",
    pitfalls="",
    cases=(
        Case(
            f"{WINDOWS} windows, 3 series, {SAMPLES} samples, 32 at a time",
            fev_loop,
            deviation(TABLE),
        ),
        Case(
            f"toto's own `evaluation.fev`, 2 exogenous, {SAMPLES} samples",
            upstreams_own,
            deviation(HELD_OUT),
        ),
    ),
)

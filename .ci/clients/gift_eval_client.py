"""The loop of upstream's GIFT-Eval notebook: compiled, deterministic, scored by GluonTS."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from bundled import CONTEXT, DEMO, HORIZON, deviation, read_bundled
from gluonts.dataset.common import ListDataset
from gluonts.dataset.split import TestData, split
from gluonts.ev.metrics import MASE, MSE, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model
from sides import QUANTILES, Case, Client, Floats, Side
from toto.inference.gluonts_predictor import Multivariate, TotoPredictor
from toto.model.toto import Toto

SAMPLES = 256
WINDOWS = 2
TABLE = read_bundled(CONTEXT + WINDOWS * HORIZON)


@cache
def compiled_model() -> Any:
    """The demo model, compiled as the notebook does it."""
    return torch.compile(Toto.from_pretrained(str(DEMO)).eval())


class Predictor:
    """Upstream's predictor as the notebook calls it; it keeps what it has forecast."""

    def __init__(self) -> None:
        self.forecasts: list[Any] = []
        self._predictor = TotoPredictor.create_for_eval(
            model=compiled_model(),
            prediction_length=HORIZON,
            context_length=CONTEXT,
            mode=Multivariate(batch_size=1),
            samples_per_batch=SAMPLES,
        )

    def predict(self, dataset: Iterable[Any]) -> list[Any]:
        """Forecasts of a data set, with a key/value cache."""
        forecasts = self._predictor.predict(dataset, use_kv_cache=True, num_samples=SAMPLES)
        self.forecasts = list(forecasts)
        return self.forecasts


@cache
def test_data() -> TestData:
    """Rolling windows of one series of three variates."""
    entry = {"target": TABLE.to_numpy().T, "start": TABLE.index[0], "item_id": "jfk"}
    dataset = ListDataset([entry], freq="h", one_dim_target=False)
    _, template = split(dataset, offset=-WINDOWS * HORIZON)
    return template.generate_instances(HORIZON, windows=WINDOWS, distance=HORIZON)


def notebook(seed: int, _: Side) -> Floats:
    """Quantiles of the windows that the notebook's loop scores (``quantile window ...``)."""
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    np.random.seed(seed)
    predictor = Predictor()
    scores = evaluate_model(
        predictor,
        test_data=test_data(),
        metrics=[MSE(forecast_type="mean"), MASE(), MeanWeightedSumQuantileLoss([0.1, 0.5, 0.9])],
        axis=None,
        batch_size=SAMPLES,
        mask_invalid_label=True,
        allow_nan_forecast=False,
        seasonality=24,
    )
    assert np.isfinite(scores.to_numpy(float)).all()
    return np.stack([[one.quantile(level) for one in predictor.forecasts] for level in QUANTILES])


CLIENT = Client(
    name="GIFT-Eval's loop, GluonTS",
    distribution="gluonts",
    recipe="`apply()`",
    pitfalls="",
    cases=(Case(f"{WINDOWS} windows, 3 variates, {SAMPLES} samples", notebook, deviation(TABLE)),),
)

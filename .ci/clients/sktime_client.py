"""sktime's own Toto forecaster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from bundled import CONTEXT, DEMO, HORIZON, deviation, read_bundled
from joblib.externals.loky import get_reusable_executor
from sides import QUANTILES, Case, Client, ClientError, Floats, Side
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.toto import TotoForecaster
from sktime.performance_metrics.forecasting import make_forecasting_scorer
from sktime.performance_metrics.forecasting.probabilistic import PinballLoss
from sktime.split import SlidingWindowSplitter

import toto_compile_patch

SAMPLES = 32
WINDOWS = 2
STEPS = list(range(1, HORIZON + 1))
TABLE = read_bundled(CONTEXT + WINDOWS * HORIZON)
CONTEXTS = TABLE.iloc[:CONTEXT]


def forecaster(seed: int, **more: Any) -> TotoForecaster:
    """sktime's forecaster of the demo model, in its own defaults but for the samples."""
    settings = {"num_samples": SAMPLES, "seed": seed, "model_path": str(DEMO), "device": "cpu"}
    return TotoForecaster(**{**settings, **more})


def values_of(quantiles: pd.DataFrame) -> Floats:
    """sktime's table of quantiles of one variate (``quantile time``)."""
    return quantiles.to_numpy(float).T


def one_series(seed: int, _: Side) -> Floats:
    """Quantiles of one series."""
    fitted = forecaster(seed).fit(CONTEXTS[["temp"]])
    return values_of(fitted.predict_quantiles(fh=STEPS, alpha=list(QUANTILES)))


def exogenous(seed: int, _: Side) -> Floats:
    """Quantiles of one series of which two others are known beforehand."""
    known = ["dewp", "pressure"]
    fitted = forecaster(seed).fit(CONTEXTS[["temp"]], X=CONTEXTS[known])
    future = TABLE[known].iloc[CONTEXT : CONTEXT + HORIZON]
    return values_of(fitted.predict_quantiles(fh=STEPS, X=future, alpha=list(QUANTILES)))


def means(seed: int, _: Side) -> Floats:
    """A mean forecast of three variates."""
    fitted = forecaster(seed, num_samples=None, prediction_type="mean").fit(CONTEXTS)
    return np.asarray(fitted.predict(fh=STEPS).to_numpy(float).T)


def fast_share(y_true: object, y_pred: object, **_: object) -> float:
    """A score: 1 where the process's last forecast was made by the fast path, else 0."""
    path = toto_compile_patch.last_path()
    return float(path is not None and path.taken == "fast")


def end_workers() -> None:
    """Leave none of joblib's workers behind."""
    get_reusable_executor(reuse=True).shutdown(kill_workers=True)


def in_workers(seed: int, side: Side) -> Floats:
    """Quantiles of a backtest in two processes of joblib's backend loky."""
    table = evaluate(
        forecaster(seed),
        SlidingWindowSplitter(fh=STEPS, window_length=CONTEXT, step_length=HORIZON),
        TABLE[["temp"]],
        scoring=[
            make_forecasting_scorer(fast_share, name="fast_share"),
            PinballLoss(alpha=list(QUANTILES)),
        ],
        return_data=True,
        error_score="raise",
        backend="loky",
        backend_params={"n_jobs": 2, **worker_settings(side)},
    )
    fast = table["test_fast_share"].tolist()
    if set(fast) != {float(side.patched)} or len(fast) != WINDOWS:
        raise ClientError(f"{side.name}: in the workers, the fast path's share is {fast}")
    return np.stack([values_of(window) for window in table["y_pred_quantiles"]], axis=1)


def worker_settings(side: Side) -> dict[str, Any]:
    """What activates the patch in joblib's workers."""
    return {"initializer": side.bring_about} if side.patched else {}


CLIENT = Client(
    name="sktime",
    distribution="sktime",
    recipe="`apply()`; in loky's workers, "
    '`evaluate(..., backend_params={"initializer": toto_compile_patch.apply})`',
    pitfalls="It wants `setuptools<82`. It names its backend to joblib, which then ignores the "
    "initializer of a `joblib.parallel_config`.",
    cases=(
        Case(f"1 series, {SAMPLES} samples, 1 at a time", one_series, deviation(CONTEXTS)),
        Case(f"2 exogenous, {SAMPLES} samples", exogenous, deviation(CONTEXTS)),
        Case("3 variates, means", means, deviation(CONTEXTS), draws=False),
        Case(
            f"`evaluate` by loky, {WINDOWS} windows, {SAMPLES} samples",
            in_workers,
            deviation(CONTEXTS[["temp"]]),
            in_workers=True,
        ),
    ),
    end=end_workers,
)

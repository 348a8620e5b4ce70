"""GluonTS, by upstream's own predictor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from bundled import COLUMNS, CONTEXT, DEMO, HORIZON, deviation, read_bundled
from sides import QUANTILES, Case, Client, Floats, Side
from toto.inference.gluonts_predictor import Multivariate, TotoPredictor
from toto.model.toto import Toto

SAMPLES = 100
TABLE = read_bundled(CONTEXT)


@cache
def predictor(samples_per_batch: int) -> TotoPredictor:
    """The predictor of the demo model."""
    return TotoPredictor.create_for_eval(
        Toto.from_pretrained(str(DEMO)),
        prediction_length=HORIZON,
        context_length=CONTEXT,
        mode=Multivariate(batch_size=4),
        samples_per_batch=samples_per_batch,
    )


def predict(
    entries: Sequence[Floats], seed: int, samples: int | None, at_once: int = SAMPLES
) -> list[Any]:
    """GluonTS forecasts of series, each ``time`` or ``variate time``."""
    start = TABLE.index[0].to_period("h")
    dataset = [
        {"target": entry, "start": start, "item_id": str(i)} for i, entry in enumerate(entries)
    ]
    torch.manual_seed(seed)
    return list(predictor(at_once).predict(dataset, num_samples=samples))


def quantiles(entries: Sequence[Floats], seed: int, at_once: int = SAMPLES) -> Floats:
    """Quantiles of their forecasts (``quantile series time ...``)."""
    forecasts = predict(entries, seed, SAMPLES, at_once)
    return np.stack([[one.quantile(level) for one in forecasts] for level in QUANTILES])


def one_by_one() -> list[Floats]:
    """Each column, a series of one variate."""
    return [TABLE[column].to_numpy() for column in COLUMNS]


def univariate(seed: int, _: Side) -> Floats:
    """Three series of one variate, 10 samples at once, the predictor's own default."""
    return quantiles(one_by_one(), seed, at_once=10)


def multivariate(seed: int, _: Side) -> Floats:
    """One series of three variates."""
    return quantiles([TABLE.to_numpy().T], seed)


def ragged(seed: int, _: Side) -> Floats:
    """Three series of different lengths, one of them shorter than a patch of the demo model."""
    return quantiles(cut(), seed)


def cut() -> list[Floats]:
    """The end of each column, of its own length."""
    return [
        column[-length:] for column, length in zip(one_by_one(), (CONTEXT, 333, 20), strict=True)
    ]


def means(seed: int, _: Side) -> Floats:
    """Mean forecasts of three variates."""
    return np.stack([one.mean for one in predict([TABLE.to_numpy().T], seed, None)])


CLIENT = Client(
    name="GluonTS",
    distribution="gluonts",
    recipe="`apply()`",
    pitfalls="",
    cases=(
        Case(f"3 series, {SAMPLES} samples, 10 at a time", univariate, deviation(TABLE)),
        Case(f"3 variates, {SAMPLES} samples", multivariate, deviation(TABLE)),
        Case("3 variates, means", means, deviation(TABLE), draws=False),
        Case(
            f"3 series of 512, 333 and 20 hours, {SAMPLES} samples",
            ragged,
            float(min(map(np.std, cut()))),
        ),
    ),
)

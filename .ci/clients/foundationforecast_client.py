"""foundationforecast, which brings Toto's code in timecopilot-toto."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import torch
from bundled import COLUMNS, CONTEXT, DEMO, HORIZON, deviation, read_bundled
from foundationforecast import FoundationForecast, Toto
from sides import QUANTILES, Case, Client, Floats, Side

TABLE = read_bundled(CONTEXT)
NAME = "Toto"


@cache
def forecaster() -> FoundationForecast:
    """The demo model, in the client's own defaults but for the context."""
    return FoundationForecast([Toto(repo_id=str(DEMO), context_length=CONTEXT, alias=NAME)])


@cache
def long_table() -> pd.DataFrame:
    """The columns as series below each other, as the client takes them."""
    parts = [
        pd.DataFrame({"unique_id": column, "ds": TABLE.index, "y": TABLE[column].to_numpy()})
        for column in COLUMNS
    ]
    return pd.concat(parts, ignore_index=True)


def panel(seed: int, _: Side) -> Floats:
    """Quantiles of three series (``quantile series time``)."""
    torch.manual_seed(seed)
    made = forecaster().forecast(long_table(), h=HORIZON, freq="h", quantiles=list(QUANTILES))
    columns = [f"{NAME}-q-{round(100 * level)}" for level in QUANTILES]
    series = [made.loc[made["unique_id"] == column, columns] for column in COLUMNS]
    return np.stack([one.to_numpy(float).T for one in series], axis=1)


CLIENT = Client(
    name="foundationforecast",
    distribution="foundationforecast",
    recipe="`apply()`",
    pitfalls="Toto's code is timecopilot-toto's; its module for Toto also wants timecopilot-toto-2 "
    "and timecopilot-dd-unit-scaling. Its granite-tsfm refuses torch 2.12 and newer, and comes "
    "here without what it asks for.",
    cases=(Case("3 series, 128 samples, 8 at a time", panel, deviation(TABLE)),),
)

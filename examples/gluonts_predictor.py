"""Upstream's GluonTS predictor, patched, scored by GluonTS on the bundled series.

Without a key/value cache, as the predictor forecasts unless told otherwise:

    python examples/gluonts_predictor.py
    TOTO_COMPILE_PATCH=0 python examples/gluonts_predictor.py     # the same by upstream's code
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import pandas as pd
from command_line import BUNDLED, Parser
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split
from gluonts.evaluation import Evaluator
from toto.inference.gluonts_predictor import Multivariate, TotoPredictor

import toto_compile_patch

COLUMNS = ("temp", "dewp")
QUANTILES = tuple(level / 10 for level in range(1, 10))
DAY = 24


def main() -> None:
    parser = Parser(__doc__, windows=8, context=512, horizon=48, samples=100)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    toto_compile_patch.apply()  # the one line

    predictor = TotoPredictor.create_for_eval(
        parser.load_model(arguments),
        prediction_length=arguments.horizon,
        context_length=arguments.context,
        mode=Multivariate(batch_size=16),
        samples_per_batch=arguments.samples,
    )
    _, template = split(read_bundled(), offset=-arguments.horizon * arguments.windows)
    windows = template.generate_instances(arguments.horizon, windows=arguments.windows)

    start = time.perf_counter()
    forecasts = list(predictor.predict(windows.input, num_samples=arguments.samples))
    seconds = time.perf_counter() - start
    path = toto_compile_patch.last_path()

    truth = [pd.concat([to_series(past), to_series(future)]) for past, future in windows]
    evaluator = Evaluator(QUANTILES, seasonality=DAY, num_workers=0)
    scores, _ = evaluator(truth, forecasts)
    print(f"forecasts:                   {len(forecasts)}, {arguments.horizon} hours each")
    print(f"MASE:                        {scores['MASE']:.3f}")
    print(f"mean weighted quantile loss: {scores['mean_wQuantileLoss']:.4f}")
    print(f"seconds:                     {seconds:.2f}")
    print(f"path:                        {path or 'upstream, unpatched'}")


def read_bundled() -> PandasDataset:
    """Two columns of the bundled series, an item each; in a gap, the hour before it again."""
    table = pd.read_csv(BUNDLED, index_col="time", parse_dates=True)[list(COLUMNS)].ffill()
    return PandasDataset(dict(table.tz_localize(None).asfreq("h").astype("float32")), freq="h")


def to_series(entry: dict[str, Any]) -> pd.Series:
    """A part of a window with its times."""
    start, values = entry["start"], entry["target"]
    return pd.Series(values, pd.period_range(start, periods=len(values), freq="h"))


if __name__ == "__main__":
    main()

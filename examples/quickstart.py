"""The quick start of Toto, with one line added: forecasts of seven variates, median and quantiles.

Whatever the model, the script stays the same:

    python examples/quickstart.py                                        # the bundled demo model
    python examples/quickstart.py --model Datadog/Toto-Open-Base-1.0
    TOTO_COMPILE_PATCH=0 python examples/quickstart.py --samples 16      # upstream: a long wait
"""

from __future__ import annotations

import math
import time

import torch
from command_line import Parser
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch

VARIATES = 7
HOUR = 3600


def main() -> None:
    parser = Parser(__doc__, context=4096, horizon=336, samples=256)
    arguments = parser.parse_args()
    toto_compile_patch.apply()  # the one line

    toto = parser.load_model(arguments)
    forecaster = TotoForecaster(toto.model)
    inputs = daily_cycles(arguments.context).to(toto.device)

    start = time.perf_counter()
    forecast = forecaster.forecast(
        inputs,
        prediction_length=arguments.horizon,
        num_samples=arguments.samples,
        samples_per_batch=arguments.samples,
    )
    low, median, high = (forecast.quantile(level)[0, 0, -1] for level in (0.1, 0.5, 0.9))
    seconds = time.perf_counter() - start

    assert forecast.samples is not None
    print(f"samples: {tuple(forecast.samples.shape)} (batch, variate, time steps, samples)")
    print(f"median:  {median:.2f} at the last step of the first variate")
    print(f"80 % of its samples lie between {low:.2f} and {high:.2f}")
    print(f"seconds: {seconds:.2f}")
    print(f"path:    {toto_compile_patch.last_path() or 'upstream, unpatched'}")


def daily_cycles(steps: int) -> MaskedTimeseries:
    """Hourly series that repeat each day, with noise, ``variate series_len``."""
    torch.manual_seed(0)
    hours = torch.arange(steps).expand(VARIATES, steps)
    height = torch.arange(1.0, VARIATES + 1).unsqueeze(-1)
    series = 100 + height * torch.sin(hours * 2 * math.pi / 24) + torch.randn(VARIATES, steps)
    return MaskedTimeseries(
        series=series,
        padding_mask=torch.full_like(series, True, dtype=torch.bool),
        id_mask=torch.zeros_like(series),
        timestamp_seconds=hours * HOUR,
        time_interval_seconds=torch.full((VARIATES,), HOUR),
    )


if __name__ == "__main__":
    main()

"""A pipeline that compiles Toto itself and forecasts within autocast, with one line before it.

The same script runs upstream's code where the toggle says so:

    python examples/compiled_pipeline.py
    python examples/compiled_pipeline.py --mode reduce-overhead --model Datadog/Toto-Open-Base-1.0
    TOTO_COMPILE_PATCH=0 python examples/compiled_pipeline.py --mean    # upstream, compiled
"""

from __future__ import annotations

import time
from statistics import median

import model_option
import numpy as np
import torch
from options import Parser
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto.model.toto import Toto

import toto_compile_patch
from toto_compile_patch.settings import COMPILE_MODES
from toto_compile_patch.tools import models
from toto_compile_patch.tools.checks import positive
from toto_compile_patch.tools.compile_health import CompileHealth
from toto_compile_patch.tools.series import (
    Floats,
    SeriesError,
    Shape,
    Window,
    cut_windows,
    read_series,
)


class Pipeline:
    """Forecasts one series, as it would without the patch."""

    def __init__(self, toto: Toto, backend: str, mode: str, samples: int | None) -> None:
        self.device = toto.device
        chosen = mode if backend == "inductor" else None
        toto.model = torch.compile(toto.model, backend=backend, mode=chosen)
        self.forecaster = TotoForecaster(toto.model)
        self.samples = samples

    def forecast(self, window: Window, horizon: int) -> Floats:
        """The median of what follows, or its mean if there are no samples (``horizon``)."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
            forecast = self.forecaster.forecast(
                self._inputs(window),
                prediction_length=horizon,
                num_samples=self.samples,
                samples_per_batch=self.samples or 1,
            )
        point = forecast.median if self.samples else forecast.mean
        return point.flatten().float().cpu().numpy()

    def _inputs(self, window: Window) -> MaskedTimeseries:
        series = torch.from_numpy(window.values)
        inputs = MaskedTimeseries(
            series=series,
            padding_mask=torch.from_numpy(window.observed),
            id_mask=torch.zeros_like(series),
            timestamp_seconds=torch.from_numpy(window.seconds).unsqueeze(0),
            time_interval_seconds=torch.tensor([window.interval]),
        )
        return inputs.to(self.device)


def main() -> None:
    parser = build_parser()
    arguments = parser.parse_args()
    toto_compile_patch.apply()  # the one line

    toto = model_option.load_model(parser, arguments.model)
    samples = None if arguments.mean else arguments.samples
    shape = Shape(arguments.windows, arguments.context, arguments.horizon)
    try:
        windows = cut_windows(read_series(models.BUNDLED, ["temp"]), shape)
    except SeriesError as error:
        parser.error(str(error))
    pipeline = Pipeline(toto, arguments.backend, arguments.mode, samples)
    seconds, errors = [], []
    with CompileHealth() as health:
        for window in windows:
            start = time.perf_counter()
            point = pipeline.forecast(window, arguments.horizon)
            seconds.append(time.perf_counter() - start)
            errors.append(np.nanmean(abs(point - window.truth)))
    print(f"seconds: first forecast {seconds[0]:.2f}, later {median(seconds[1:] or seconds):.3f}")
    print(
        f"dynamo:  {health.graphs} graphs, {health.graph_breaks} breaks, "
        f"{len(health.recompilations)} recompilations, {health.limit_hits} limit hits"
    )
    print(f"error:   {np.mean(errors):.2f} degrees on average")
    print(f"path:    {toto_compile_patch.last_path() or 'upstream, unpatched'}")


def build_parser() -> Parser:
    parser = model_option.build_parser(__doc__)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--mode", default="default", choices=COMPILE_MODES, help="of inductor")
    parser.add_argument("--windows", type=positive, default=8, metavar="N")
    parser.add_argument("--context", type=positive, default=512, metavar="HOURS")
    parser.add_argument("--horizon", type=positive, default=48, metavar="HOURS")
    parser.add_argument("--samples", type=positive, default=64, metavar="N")
    parser.add_argument(
        "--mean",
        action="store_true",
        help="means: on a CPU, upstream cannot draw samples in bfloat16",
    )
    return parser


if __name__ == "__main__":
    main()

"""A pipeline that compiles Toto itself and forecasts within autocast, with one line before it.

The same script runs upstream's code where the toggle says so:

    python examples/compiled_pipeline.py
    python examples/compiled_pipeline.py --mode reduce-overhead --model Datadog/Toto-Open-Base-1.0
    TOTO_COMPILE_PATCH=0 python examples/compiled_pipeline.py --mean    # upstream, compiled
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch
from command_line import Parser, Window
from numpy.typing import NDArray
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch
from toto_compile_patch.settings import COMPILE_MODES
from toto_compile_patch.tools.compile_health import CompileHealth


def main() -> None:
    parser = Parser(__doc__, windows=8, context=512, horizon=48, samples=64)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--mode", default="default", choices=COMPILE_MODES, help="of inductor")
    parser.add_argument(
        "--mean",
        action="store_true",
        help="means: on a CPU, upstream cannot draw samples in bfloat16",
    )
    arguments = parser.parse_args()
    toto_compile_patch.apply()  # the one line

    toto = parser.load_model(arguments)
    mode = arguments.mode if arguments.backend == "inductor" else None
    toto.model = torch.compile(toto.model, backend=arguments.backend, mode=mode)
    forecaster = TotoForecaster(toto.model)
    samples = None if arguments.mean else arguments.samples

    seconds, errors = [], []
    with CompileHealth() as health:
        for window in parser.read_windows(arguments):
            start = time.perf_counter()
            point = forecast(forecaster, window, samples)
            seconds.append(time.perf_counter() - start)
            errors.append(np.nanmean(abs(point - window.truth)))
    later = median(seconds[1:] or seconds)
    print(f"seconds: first forecast {seconds[0]:.2f}, later {later:.3f}")
    counts = health.counts()
    print(
        f"dynamo:  {counts['graphs']} graphs, {counts['graph_breaks']} breaks, "
        f"{counts['recompilations']} recompilations, {counts['limit_hits']} limit hits"
    )
    print(f"error:   {np.mean(errors):.2f} degrees on average")
    print(f"path:    {toto_compile_patch.last_path() or 'upstream, unpatched'}")


def forecast(forecaster: TotoForecaster, window: Window, samples: int | None) -> NDArray[Any]:
    """The median of what follows, or its mean if there are no samples (``variate horizon``)."""
    device = forecaster.model.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        made = forecaster.forecast(
            window.inputs().to(device),
            prediction_length=window.truth.shape[-1],
            num_samples=samples,
            samples_per_batch=samples or 1,
        )
    point = made.median if samples else made.mean
    return point[0].float().cpu().numpy()


if __name__ == "__main__":
    main()

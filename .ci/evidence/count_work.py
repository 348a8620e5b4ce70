#!/usr/bin/env python3
"""What a GPU has to do for a forecast, upstream and patched: counted, not measured.

    python .ci/evidence/count_work.py [--workload W1,W4] [--json FILE]

Needs no GPU: the code that runs on one runs here on shapes alone, with the architecture of
Toto-Open-Base-1.0. "Floor" is the time of an H100 that has nothing to do but this: each operator
takes 1.5 us, or what its arithmetic takes at 60 TFLOP/s, or its memory at 3.35 TB/s, if that is
more. A question is a wait of the host for the GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))

from gpu_work import H100, Work
from pretend_gpu import HOST, NOWHERE, PretendGpu

import toto_compile_patch
from toto_compile_patch.decode.forecast import ForecastOptions, forecast
from toto_compile_patch.decode.modules import ModelParts
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.weights import prepared_weights
from toto_compile_patch.patches import fast_decode
from toto_compile_patch.tools import bench, models
from toto_compile_patch.tools.workloads import WORKLOADS, Workload, chosen

NARROW: dict[str, Any] = {
    **models.BASE,
    "embed_dim": 48,
    "mlp_hidden_dim": 8,
    "output_distribution_kwargs": {"k_components": 2},
}
"""As deep as the published model: it asks the same questions, and computes in no time."""

FEW_SAMPLES = 2
"""Of each of upstream's batches, where what is wanted are its questions alone."""


class AskedError(Exception):
    """Carries what the fast path was asked for."""

    def __init__(self, request: Request) -> None:
        self.request = request


def built(arguments: dict[str, Any]) -> Any:
    """A model of some architecture."""
    return models.toto_ts().Toto(**arguments).eval().model


def upstream(load: Workload) -> tuple[Work, int]:
    """The work of upstream's forecast, and its questions."""
    batches = (load.samples or 0) // load.per_batch
    samples = FEW_SAMPLES * batches if load.samples else None
    few = replace(load, samples=samples, per_batch=FEW_SAMPLES)
    with PretendGpu(HOST) as asked:
        _upstream_forecast(asked, built(NARROW), few)
    answers = [answer for _, answer in asked.asked]
    with torch.device("meta"):
        model = built(models.BASE)
    work = Work()
    with PretendGpu(NOWHERE, answers) as gpu:
        _upstream_forecast(gpu, model, load, work)
    if [name for name, _ in gpu.asked] != [name for name, _ in asked.asked]:
        raise RuntimeError("a narrow model asks other questions")
    return work, len(answers)


def _upstream_forecast(
    gpu: PretendGpu, model: Any, load: Workload, work: Work | None = None
) -> None:
    inputs = bench.series(load, torch.device("cpu"), torch.float32)
    parts = (gpu.tensor(part) if torch.is_tensor(part) else part for part in inputs)
    side = bench.Side(models.toto_ts().TotoForecaster(gpu.model(model)))
    with torch.no_grad(), work or torch.no_grad():
        side.forecast(load, type(inputs)(*parts))


def patched(load: Workload) -> tuple[Work, int]:
    """The work of what a CUDA graph captures, and the questions of the whole forecast."""
    with torch.device("meta"):
        model = built(models.BASE)
    work = Work()
    # The head is finite, and nothing is wrong.
    with PretendGpu(NOWHERE, [True, [False] * 3]) as gpu:
        model, request = gpu.model(model), gpu.request(_request(load))
        parts = ModelParts.of(model)
        time_steps = min(load.horizon, model.patch_embed.patch_size)
        prepared_weights(model, time_steps=time_steps, parts=parts)
        gpu.asked.clear()
        with work:
            forecast(model, lambda: parts, request, ForecastOptions(runtime="eager"))
    return work, len(gpu.asked)


def _request(load: Workload) -> Request:
    def asked(model: Any, look: Any, request: Request, options: Any) -> Any:
        raise AskedError(request)

    inputs = bench.series(load, torch.device("cpu"), torch.float32)
    side = bench.Side(models.toto_ts().TotoForecaster(built(NARROW)))
    with (
        patch.object(fast_decode, "forecast", asked),
        toto_compile_patch.patched("fast_decode", fallback="error"),
    ):
        try:
            side.forecast(load, inputs)
        except AskedError as error:
            return error.request
    raise RuntimeError("upstream's code made the forecast")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="W1,W2,W3,W4,W6,WM")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "card": H100.name,
        "torch": torch.__version__,
        "date": str(date.today()),
        "workloads": {},
    }
    head = ("", "", "operators", "float64", "TFLOP", "GB", "questions", "floor, ms")
    print("{:4} {:9} {:>9} {:>8} {:>9} {:>8} {:>9} {:>10}".format(*head))
    for name in chosen(options.workload.split(",")):
        load = WORKLOADS[name]
        row: dict[str, Any] = {"what": load.describe()}
        for side, (work, questions) in (("upstream", upstream(load)), ("patched", patched(load))):
            row[side] = {
                "operators": work.kernels,
                "float64": work.in_float64,
                "tflop": work.flops / 1e12,
                "gb": work.bytes / 1e9,
                "questions": questions,
                "floor_ms": 1e3 * work.seconds,
            }
            print(
                f"{name:4} {side:9} {work.kernels:9} {work.in_float64:8} {work.flops / 1e12:9.4f} "
                f"{work.bytes / 1e9:8.3f} {questions:9} {1e3 * work.seconds:10.3f}",
                flush=True,
            )
        found["workloads"][name] = row
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

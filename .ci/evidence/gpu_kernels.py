#!/usr/bin/env python3
"""What a GPU does in a patched forecast: kernels, their time, and the time that the host takes.

    python .ci/evidence/gpu_kernels.py [--workload W4,W2] [--runtime cudagraph] [--json FILE]

A forecast is replayed under torch's profiler. "Busy" is the sum of its kernels' times, and "span"
the time from the first one's start to the last one's end, which has the gaps between them as well.
Then Python's profiler lists the functions in which the host spends most time, waiting included; it
makes a forecast take about twice as long.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import CodeType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import toto_compile_patch
from toto_compile_patch.tools import bench, machine, models
from toto_compile_patch.tools.workloads import WORKLOADS, chosen

REPEATS = 30
SECONDS = 4.0
LARGEST = 14
PROFILED = 20


def measure(side: bench.Side, name: str) -> dict[str, Any]:
    """One workload by one runtime."""
    device = torch.device("cuda")
    load = WORKLOADS[name]
    inputs = bench.series(load, device, torch.float32)
    side.put_in_force()

    def forecast() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        side.forecast(load, inputs)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    warm = [forecast() for _ in range(3)]
    wall: list[float] = []
    began = time.perf_counter()
    while len(wall) < REPEATS and time.perf_counter() - began < SECONDS:
        wall.append(forecast())
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        forecast()
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    kernels = [event for event in recorded.events() if event.device_type.name == "CUDA"]
    for event in kernels:
        times[event.name] += event.self_device_time_total
        counts[event.name] += 1
    ends = [event.time_range.end for event in kernels]
    starts = [event.time_range.start for event in kernels]
    path = toto_compile_patch.last_path()
    return {
        "runtime": path.runtime if path else "",
        "reason": path.reason if path else "",
        "first_seconds": warm,
        "wall_ms": 1e3 * median(wall),
        "kernels": sum(counts.values()),
        "busy_ms": sum(times.values()) / 1e3,
        "span_ms": (max(ends) - min(starts)) / 1e3 if kernels else 0.0,
        "largest": [
            {"name": kernel[:90], "count": counts[kernel], "ms": spent / 1e3}
            for kernel, spent in times.most_common(LARGEST)
        ],
        "host": of_the_host(forecast),
    }


def of_the_host(forecast: Callable[[], float]) -> list[dict[str, Any]]:
    """What takes most of the host's time in a forecast, by Python's profiler."""
    profiled = cProfile.Profile()
    profiled.runcall(lambda: [forecast() for _ in range(PROFILED)])
    largest = sorted(profiled.getstats(), key=lambda one: -one.inlinetime)[:LARGEST]
    return [
        {
            "name": in_words(one.code),
            "calls": one.callcount / PROFILED,
            "ms": 1e3 * one.inlinetime / PROFILED,
            "ms_with_what_it_calls": 1e3 * one.totaltime / PROFILED,
        }
        for one in largest
    ]


def in_words(code: CodeType | str) -> str:
    """What a function is called, and where it is."""
    if isinstance(code, str):
        return code
    return f"{code.co_name} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="W4,W3,W2,WM,W1")
    parser.add_argument("--runtime", default="cudagraph")
    parser.add_argument("--precision", default="model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    forecaster = models.toto_ts().TotoForecaster
    model = bench.base_model(torch.device("cuda"), torch.float32)
    found: dict[str, Any] = {"machine": machine.facts("cuda"), "workloads": {}}
    for runtime in options.runtime.split(","):
        settings = {"runtime": runtime, "precision": options.precision}
        side = bench.Side(forecaster(model), settings)
        for name in chosen(options.workload.split(",")):
            try:
                one = measure(side, name)
            except RuntimeError as error:
                one = {"failed": str(error)[:300]}
            found["workloads"][f"{name} {runtime}"] = one
            head = {key: value for key, value in one.items() if key not in ("largest", "host")}
            print(name, runtime, json.dumps(head), flush=True)
            for row in one.get("largest", []):
                print(f"    {row['ms']:9.3f} ms {row['count']:5} {row['name']}", flush=True)
            for row in one.get("host", []):
                print(f"    {row['ms']:9.3f} ms {row['calls']:5g} {row['name']}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What a forecast on a CPU spends its time on, and how near it is to its matrix products alone.

    python .ci/evidence/cpu_shares.py [--workload W1,WL,W6] [--precision model,bf16]
        [--runtime eager,compile] [--json FILE]

"Of the rate": the seconds of the packed products of an eager forecast, made again with the same
weights, the same numbers of rows and in the same order, but nothing between them and no gated unit
within them, over the seconds of the forecast. "Times faster" and "at most": the seconds of the
first precision over those of this one, of the forecasts and of their products alone. All of a
workload in turns, after a warm-up, short forecasts several times in a row; medians of the turns'
ratios. The shares are of an eager forecast under torch's profiler, by operator. Random weights, the
architecture of Toto-Open-Base-1.0.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from toto_compile_patch.tools import bench, machine, models
from toto_compile_patch.tools.checks import positive
from toto_compile_patch.tools.screen import table_of
from toto_compile_patch.tools.workloads import WORKLOADS, Workload

PACKED = torch.ops.mkldnn._linear_pointwise.default
PACKED_TIMES = torch.ops.mkldnn._linear_pointwise.binary

EAGER = "eager"

KINDS = {
    "packed products": ("mkldnn::_linear_pointwise",),
    "attention": (
        "aten::bmm",
        "aten::baddbmm",
        "aten::_softmax",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::logaddexp",
        "aten::exp",
    ),
    "copies and conversions": ("aten::copy_", "aten::cat", "aten::index", "aten::index_select"),
    "norms": ("aten::linalg_vector_norm", "aten::hypot", "aten::div"),
    "gated units, sums and rotation": (
        "aten::silu",
        "aten::silu_",
        "aten::mul",
        "aten::mul_",
        "aten::add",
        "aten::add_",
        "aten::addcmul",
        "aten::addcmul_",
        "aten::sum",
        "aten::flip",
    ),
}
"""Operators of a kind; what is in none of them, sampling above all, is the rest."""

REST = "the rest"


class Product(NamedTuple):
    """One packed product of a forecast: inputs of its shape and type, and the weight as it is."""

    inputs: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def make(self) -> None:
        PACKED(self.inputs, self.weight, self.bias, "none", [], "")


class Recorded(TorchDispatchMode):
    """Keeps the packed products of what runs under it, with inputs that those of a shape share."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self._inputs: dict[tuple[torch.Size, torch.dtype], torch.Tensor] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operator in (PACKED, PACKED_TIMES):
            inputs, *others = args
            weight, bias = others[:2] if operator is PACKED else others[1:3]
            # Some of a few, as in a forecast, where the last product's rows are not in the cache.
            like = self._inputs.setdefault((inputs.shape, inputs.dtype), torch.randn_like(inputs))
            self.products.append(Product(like, weight, bias))
        return operator(*args, **(kwargs or {}))


class Trial:
    """Forecasts of a workload in one precision and runtime, by a model of its own."""

    def __init__(self, load: Workload, precision: str, runtime: str, model: str) -> None:
        forecaster = models.toto_ts().TotoForecaster(models.load(model).model)
        self._side = bench.Side(forecaster, {"runtime": EAGER, "precision": precision})
        self._load = load
        self._inputs = bench.series(load, torch.device("cpu"), torch.float32)
        self.forecasts: list[float] = []
        self.alone: list[float] = []
        self._forecast_anew()
        with Recorded() as recorded:
            self.forecast()
        self.recorded = recorded.products
        self.runtime = runtime
        self._side = bench.Side(forecaster, {"runtime": runtime, "precision": precision})

    def forecast(self) -> None:
        """The workload's, in the precision and runtime in force."""
        self._side.forecast(self._load, self._inputs)

    @torch.inference_mode()
    def products(self) -> None:
        """Those of a forecast, and nothing else."""
        for product in self.recorded:
            product.make()

    def take_turn(self) -> None:
        """Time both, warm."""
        self._forecast_anew()
        self.products()
        self.alone.append(seconds(self.products))
        self.forecasts.append(seconds(self.forecast))

    def shares(self) -> dict[str, float]:
        """Of an eager forecast under the profiler; nothing of a compiled one, whose operators are
        fused."""
        if self.runtime != EAGER:
            return {}
        self._forecast_anew()
        return shares(self.forecast)

    def _forecast_anew(self) -> None:
        self._side.put_in_force()
        self.forecast()


def main() -> None:
    options = parse()
    rows: dict[str, Any] = {}
    for name in options.workload.split(","):
        found = measured(WORKLOADS[name], options)
        rows |= {f"{name}, {how}": row for how, row in found.items()}
        print(json.dumps({name: found}), flush=True)
    print_table(rows)
    if options.json:
        facts = machine.facts("cpu") | {"model": models.describe(options.model)}
        options.json.write_text(json.dumps({**facts, "shares": rows}, indent=2) + "\n")


def print_table(rows: dict[str, Any]) -> None:
    from rich.console import Console

    kinds = (*KINDS, REST)
    cells = [
        (
            name,
            f"{row['seconds']:.3g}",
            f"{row['of_the_rate']:.1%}",
            f"{row['times_faster']:.2f}",
            f"{row['at_most']:.2f}",
            *(f"{row['shares'][kind]:.1%}" if row["shares"] else "" for kind in kinds),
        )
        for name, row in rows.items()
    ]
    headings = (
        "workload, precision",
        "seconds",
        "of the rate",
        "times faster",
        "at most",
        *kinds,
    )
    Console(width=180).print(table_of(headings, cells))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="W1,WL,W6", help="names, between commas")
    parser.add_argument("--precision", default="model", help="model, bf16, or both with a comma")
    parser.add_argument("--runtime", default=EAGER, help="eager, compile, or both with a comma")
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--model", default="base", help="base, small, demo or a directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser.parse_args()


def measured(load: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Of each precision and runtime, the shares of a workload and the ratio of its products to all
    of it."""
    trials = {
        precision if runtime == EAGER else f"{precision}, compiled": Trial(
            load, precision, runtime, options.model
        )
        for runtime in options.runtime.split(",")
        for precision in options.precision.split(",")
    }
    stolen = machine.read_stolen()
    for _ in range(options.turns):
        for trial in trials.values():
            trial.take_turn()
    stolen_part = machine.stolen_since(stolen)
    firsts: dict[str, Trial] = {}
    for trial in trials.values():
        firsts.setdefault(trial.runtime, trial)
    return {
        name: {
            "what": load.describe(),
            "seconds": median(trial.forecasts),
            "of_the_rate": median(of_the_rate := ratios(trial.alone, trial.forecasts)),
            "turns": of_the_rate,
            "times_faster": median(ratios(firsts[trial.runtime].forecasts, trial.forecasts)),
            "at_most": median(ratios(firsts[trial.runtime].alone, trial.alone)),
            "packed_gflops": flops(trial.recorded) / median(trial.alone) / 1e9,
            "shares": trial.shares(),
            "stolen": stolen_part,
        }
        for name, trial in trials.items()
    }


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def flops(products: list[Product]) -> int:
    return sum(2 * one.inputs.numel() * one.bias.numel() for one in products)


def seconds(what: Callable[[], None]) -> float:
    """Of a call; of a short one, the median of several in a row."""
    turn: list[float] = []
    while len(turn) < bench.MOST_IN_A_TURN and sum(turn) < bench.SECONDS_OF_A_TURN:
        start = time.perf_counter()
        what()
        turn.append(time.perf_counter() - start)
    return median(turn)


def shares(forecast: Callable[[], None]) -> dict[str, float]:
    """Each kind of operator's part of the time within operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        forecast()
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    whole = sum(times.values())
    found = {
        kind: sum(times.pop(operator, 0) for operator in operators) / whole
        for kind, operators in KINDS.items()
    }
    return {**found, REST: sum(times.values()) / whole}


if __name__ == "__main__":
    main()

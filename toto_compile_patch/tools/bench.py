"""``bench``: the same forecasts by upstream's code and patched, in turn, in one process."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch
from toto_compile_patch.tools import accuracy, bench_report, machine, models
from toto_compile_patch.tools.checks import check_json, is_stdout, write_whole
from toto_compile_patch.tools.workloads import WORKLOADS, Workload

WEIGHTS_OF_LAYERS = 12 * (4 * 768 * 768 + 3 * 768 * 3072)
"""What a patch has to be multiplied by."""

WEIGHTS_OF_HEAD = 768 * 64 * 4 * 24
"""What the last patch of the context, and each that is generated, has to be multiplied by."""

UPSTREAM, PATCHED, COMPILED = "upstream", "patched", "upstream compiled"
TABLE_WIDTH = 120
MOST_IN_A_TURN, SECONDS_OF_A_TURN = 5, 0.5
DISTURBED_STOLEN, DISTURBED_SPREAD = 0.05, 1.5


@dataclasses.dataclass(frozen=True)
class Way:
    """How the patched side runs: arguments of ``apply()``."""

    runtime: str
    precision: str

    def put_in_force(self) -> None:
        """Apply only what forecasts, so that the compiled side is upstream as users compile it."""
        toto_compile_patch.apply(
            "fast_decode", fallback="error", runtime=self.runtime, precision=self.precision
        )


@dataclasses.dataclass(frozen=True)
class Side:
    """One of those compared; ``way`` is None for upstream."""

    forecaster: TotoForecaster
    way: Way | None = None


def ways_of(options: argparse.Namespace) -> dict[str, Way]:
    """The patched sides by name; the first is PATCHED."""
    found: dict[str, Way] = {}
    for precision in options.precision:
        for runtime in options.runtime:
            parts = [runtime] if len(options.runtime) > 1 else []
            parts += [precision] if len(options.precision) > 1 else []
            name = ", ".join([PATCHED, *parts]) if found else PATCHED
            found[name] = Way(runtime, precision)
    return found


def upstream_forecaster() -> type[TotoForecaster]:
    """A forecaster that keeps upstream's own code, whatever is applied later."""
    toto_compile_patch.revert()
    own = {name: vars(TotoForecaster)[name] for name in ("generate_mean", "generate_samples")}
    return type("UpstreamForecaster", (TotoForecaster,), own)


@dataclasses.dataclass
class Timing:
    """Measurements of one side of one workload.

    Attributes:
        wall: seconds of each measurement, scaled to the whole forecast.
        cpu: processor seconds, likewise.
        batches: how many of upstream's batches of samples were measured, of how many.
        per_batch: samples per batch; fewer than the workload's where memory is short.
        first: seconds of the first forecast.
    """

    wall: list[float]
    cpu: list[float]
    batches: tuple[int, int]
    per_batch: int
    first: float


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    warnings.filterwarnings("ignore")
    console = Console()
    if console.width < TABLE_WIDTH:
        console = Console(width=TABLE_WIDTH)
    errors = Console(stderr=True)
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        errors.print(f"--device {options.device}: {str(error).splitlines()[0]}", markup=False)
        return 2
    check_json(options.json)
    to_stdout = is_stdout(options.json)
    if options.memory_of:
        print(_peak_of(options, device))
        return 0
    upstream = upstream_forecaster()
    ways = ways_of(options)
    ways[PATCHED].put_in_force()
    if not toto_compile_patch.is_applied("fast_decode"):
        errors.print("TOTO_COMPILE_PATCH=0: nothing to compare upstream with", markup=False)
        return 2
    dtype = getattr(torch, options.dtype)
    rates = machine.measure_rates(device, dtype)
    figures: dict[str, Any] = {
        "machine": machine.name(device),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "dtype": options.dtype,
        "matrix_gflops": round(rates.flops / 1e9),
        "memory_gb_per_s": round(rates.bytes / 1e9, 1),
        "ways": {name: dataclasses.asdict(way) for name, way in ways.items()},
        "workloads": {},
    }
    with progress_bar(errors) as progress:
        sides = _sides(upstream, ways, options, device, dtype)
        for name in options.workload:
            try:
                figures["workloads"][name] = _measure(
                    WORKLOADS[name], sides, rates, options, device, progress, name
                )
            except RuntimeError as error:
                # On a CPU, say, upstream cannot draw samples in 16 bits.
                figures["workloads"][name] = {"failed": str(error).splitlines()[0]}
            if options.json and not to_stdout:
                # What is cut short leaves what it has measured.
                write_whole(options.json, json.dumps(figures, indent=1) + "\n")
    if to_stdout:
        write_whole(options.json, json.dumps(figures, indent=1) + "\n")
    else:
        bench_report.show(figures, console)
    return 0


def _sides(
    upstream: type[TotoForecaster],
    ways: dict[str, Way],
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Side]:
    sides = {UPSTREAM: Side(upstream(base_model(device, dtype)))}
    for name, way in ways.items():
        sides[name] = Side(TotoForecaster(sides[UPSTREAM].forecaster.model), way)
    if options.compile:
        compiled = base_model(device, dtype)
        compiled.compile(mode=options.compile)
        sides[COMPILED] = Side(upstream(compiled))
    return sides


def base_model(device: torch.device, dtype: torch.dtype) -> Any:
    """Toto-Open-Base-1.0's shape, with seeded random weights."""
    return models.load("base").model.to(device=device, dtype=dtype)


def _measure(
    load: Workload,
    sides: dict[str, Side],
    rates: machine.Rates,
    options: argparse.Namespace,
    device: torch.device,
    progress: Progress,
    name: str,
) -> dict[str, Any]:
    task = progress.add_task(f"{name} {load.describe()}", total=None)
    dtype = getattr(torch, options.dtype)
    inputs = series(load, device, dtype)
    stolen = machine.read_stolen()
    timings: dict[str, Timing] = {}
    runs: dict[str, Callable[[], tuple[float, float]]] = {}
    pairs = options.pairs
    for name_of_side, side in sides.items():
        samples, per_batch = load.samples, load.per_batch
        if side.way is None and samples is not None:
            per_batch = _that_fits(load, device, options.per_batch)
            samples = per_batch
        timed = _timed(side, load, inputs, samples, per_batch, device)
        first = once = timed()[0]
        if side.way is not None or name_of_side == COMPILED:
            # A CUDA graph is captured the second time, and compiling takes no part in the budget.
            once = timed()[0]
        whole = measured = 1
        if side.way is None and load.samples is not None:
            whole = load.samples // per_batch
        if side.way is None:
            if whole > 1 and once * whole * (pairs + 1) <= options.budget:
                timed = _timed(side, load, inputs, load.samples, per_batch, device)
                once, measured = timed()[0], whole
            pairs = max(1, min(pairs, int(options.budget // once) - 1))
        timings[name_of_side] = Timing([], [], (measured, whole), per_batch, first)
        runs[name_of_side] = timed
    for pair in range(pairs):
        progress.update(task, description=f"{name} {load.describe()}: pair {pair + 1} of {pairs}")
        for name_of_side, timed in runs.items():
            wall, cpu = _turn(timed)
            timing = timings[name_of_side]
            measured, whole = timing.batches
            timing.wall.append(wall * whole / measured)
            timing.cpu.append(cpu * whole / measured)
    steal = machine.stolen_share(stolen, machine.read_stolen())
    memory = {} if options.no_memory else {s: _peak_in_a_process(s, name, options) for s in sides}
    figures = _figures(load, sides, timings, memory, steal, rates)
    first_way = sides[PATCHED].way
    for name_of_side, side in sides.items():
        if side.way and first_way and side.way.precision != first_way.precision:
            figures[name_of_side]["accuracy"] = accuracy.compare(
                (sides[PATCHED].forecaster, first_way.put_in_force),
                (side.forecaster, side.way.put_in_force),
                (inputs, truth(load, device, dtype)),
                load,
            )
    progress.remove_task(task)
    return figures


def _figures(
    load: Workload,
    sides: dict[str, Side],
    timings: dict[str, Timing],
    memory: dict[str, float | None],
    steal: float,
    rates: machine.Rates,
) -> dict[str, Any]:
    patched = timings[PATCHED]
    figures: dict[str, Any] = {"what": load.describe(), "stolen": round(steal, 3)}
    for side, timing in timings.items():
        measured, whole = timing.batches
        figures[side] = {
            "seconds": round(median(timing.wall), 5),
            "cpu_seconds": round(median(timing.cpu), 5),
            "spread": round(machine.spread(timing.wall), 2),
            "peak_gb": memory.get(side),
        }
        if side == PATCHED:
            continue
        ratios = [theirs / ours for theirs, ours in zip(timing.wall, patched.wall, strict=True)]
        figures[side] |= {
            "ratio": round(median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
        if sides[side].way is None:
            figures[side]["measured"] = f"{measured} of {whole} batches of {timing.per_batch}"
        if side != UPSTREAM:
            figures[side]["first_seconds"] = round(
                max(0.0, timing.first - median(timing.wall) * measured / whole), 2
            )
    floor = _least_seconds(load, rates)
    for side in timings:
        if sides[side].way is not None:
            figures[side]["share_of_limit"] = round(floor / figures[side]["seconds"], 3)
    figures["disturbed"] = steal > DISTURBED_STOLEN or any(
        machine.spread(timing.wall) > DISTURBED_SPREAD for timing in timings.values()
    )
    return figures


def _least_seconds(load: Workload, rates: machine.Rates) -> float:
    """Time for the products with the weights alone, at the rates measured in this run, each weight
    read once for the context and once for each further patch."""
    series = load.batch * load.variates
    decoded = series * (load.samples or 1)
    steps = -(-load.horizon // 64)
    context = _product_seconds(series * -(-load.length // 64), WEIGHTS_OF_LAYERS, rates)
    step = _product_seconds(decoded, WEIGHTS_OF_LAYERS, rates)
    # The head of the last step covers the time steps that are wanted, no more.
    heads = WEIGHTS_OF_HEAD * (load.horizon / 64) / steps
    first_head = _product_seconds(series, heads, rates)
    later_head = _product_seconds(decoded, heads, rates)
    return context + first_head + (steps - 1) * (step + later_head)


def _product_seconds(rows: int, weights: float, rates: machine.Rates) -> float:
    return max(2 * rows * weights / rates.flops, 4 * weights / rates.bytes)


def series(load: Workload, device: torch.device, dtype: torch.dtype) -> MaskedTimeseries:
    """Seeded random walks near 100, as the workload wants them."""
    shape = (load.batch, load.variates, load.length)
    values = _walks(load)[..., : load.length]
    groups = torch.zeros(shape)
    if load.own_groups:
        groups += torch.arange(load.batch).view(-1, 1, 1)
    ones = torch.ones(shape)
    return MaskedTimeseries(
        series=values.to(device, dtype),
        padding_mask=(ones if load.float_padding else ones.bool()).to(device),
        id_mask=groups.to(device),
        timestamp_seconds=torch.zeros(shape, dtype=torch.int, device=device),
        time_interval_seconds=torch.full(shape[:-1], 60, dtype=torch.int, device=device),
    )


def truth(load: Workload, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """How the series go on, ``batch variate horizon``."""
    return _walks(load)[..., load.length :].to(device, dtype)


def _walks(load: Workload) -> torch.Tensor:
    shape = (load.batch, load.variates, load.length + load.horizon)
    steps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return 100 + steps.cumsum(-1)


def _turn(timed: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """A side's turn: a short forecast several times, of which the median counts, since the other
    side has left it cold caches."""
    walls: list[float] = []
    cpus: list[float] = []
    while len(walls) < MOST_IN_A_TURN and sum(walls) < SECONDS_OF_A_TURN:
        wall, cpu = timed()
        walls.append(wall)
        cpus.append(cpu)
    return median(walls), median(cpus)


def _timed(
    side: Side,
    load: Workload,
    inputs: MaskedTimeseries,
    samples: int | None,
    per_batch: int,
    device: torch.device,
) -> Callable[[], tuple[float, float]]:
    """A forecast that returns its wall and processor seconds."""

    def timed() -> tuple[float, float]:
        if side.way is not None:
            side.way.put_in_force()
        with _surroundings(load, device):
            machine.wait_for(device)
            wall, cpu = time.perf_counter(), time.process_time()
            side.forecaster.forecast(
                inputs,
                prediction_length=load.horizon,
                num_samples=samples,
                samples_per_batch=per_batch,
                use_kv_cache=load.use_kv_cache,
            )
            machine.wait_for(device)
            return time.perf_counter() - wall, time.process_time() - cpu

    return timed


@contextmanager
def _surroundings(load: Workload, device: torch.device) -> Iterator[None]:
    """The modes of torch that the workload is run in."""
    with ExitStack() as stack:
        if load.inference_mode:
            stack.enter_context(torch.inference_mode())
        if load.autocast:
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        if load.deterministic:
            torch.use_deterministic_algorithms(True)
            stack.callback(torch.use_deterministic_algorithms, False)
        yield


def _that_fits(load: Workload, device: torch.device, most: int | None) -> int:
    """The most samples per batch, up to the workload's or a given number, that upstream has
    memory for.

    It unembeds every time step of every copy of the context, then holds the parameters of all
    components for each, and what is drawn from them: some three times the unembedded context.
    """
    per_batch = min(load.per_batch, most or load.per_batch)
    one = load.batch * load.variates * load.length * 768 * 4
    while per_batch > 1 and 3 * one * per_batch > 0.8 * machine.free_bytes(device):
        per_batch //= 2
    return per_batch


def _peak_in_a_process(side: str, name: str, options: argparse.Namespace) -> float | None:
    """Peak gigabytes of one forecast in a process of its own; None where it failed."""
    command = [sys.executable, "-W", "ignore", "-m", "toto_compile_patch", "bench"]
    command += ["--workload", name, "--device", options.device, "--dtype", options.dtype]
    command += ["--memory-of", side]
    command += ["--runtime", ",".join(options.runtime), "--precision", ",".join(options.precision)]
    if options.per_batch:
        command += ["--per-batch", str(options.per_batch)]
    if options.compile:
        command += ["--compile", options.compile]
    process = subprocess.run(command, capture_output=True, text=True)
    return round(float(process.stdout.split()[-1]), 2) if process.returncode == 0 else None


def _peak_of(options: argparse.Namespace, device: torch.device) -> float:
    load = WORKLOADS[options.workload[0]]
    dtype = getattr(torch, options.dtype)
    model = base_model(device, dtype)
    inputs = series(load, device, dtype)
    samples, per_batch = load.samples, load.per_batch
    way = ways_of(options).get(options.memory_of)
    if way is None and samples is not None:
        # One batch of samples holds as much as the others.
        samples = per_batch = _that_fits(load, device, options.per_batch)
    if options.memory_of == COMPILED:
        model.compile(mode=options.compile)
    _timed(Side(TotoForecaster(model), way), load, inputs, samples, per_batch, device)()
    return machine.peak_bytes(device) / 1e9


def progress_bar(console: Console) -> Progress:
    """A line that says what is being measured, and for how long; gone at the end."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )

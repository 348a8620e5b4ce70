"""``bench``: the same forecasts by upstream's code and patched, in turn, in one process."""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

import toto_compile_patch
from toto_compile_patch.tools import machine, models, screen
from toto_compile_patch.tools.checks import UsageError, choose_device, is_stdout, write_json
from toto_compile_patch.tools.wording import counted
from toto_compile_patch.tools.workers import WorkerError, call_apart
from toto_compile_patch.tools.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from toto.data.util.dataset import MaskedTimeseries
    from toto.inference.forecaster import TotoForecaster

WEIGHTS_OF_LAYERS = 12 * (4 * 768 * 768 + 3 * 768 * 3072)
"""What a patch has to be multiplied by."""

WEIGHTS_OF_HEAD = 768 * 64 * 4 * 24
"""What the last patch of the context, and each that is generated, has to be multiplied by."""

UPSTREAM, PATCHED, COMPILED = "upstream", "patched", "upstream compiled"
TABLE_WIDTH = 120
HEADINGS = ("", "seconds", "times slower", "from-to", "first, s", "peak GB", "CPU s", "of limit")
LEGEND = (
    "Seconds of a forecast, at the median. Times slower: than patched, pair by pair, at the median "
    "(from-to: least and greatest); so many times faster is patched. First: seconds that the first "
    "forecast takes beyond a steady one. CPU s: processor seconds. Of limit: the least time that "
    "the products with the weights take on this machine, over the seconds."
)
MOST_IN_A_TURN, SECONDS_OF_A_TURN = 20, 0.5
FEW_PAIRS = 5
"""Fewer than these are worth a remark."""

DISTURBED_STOLEN, DISTURBED_SPREAD = 0.05, 1.5


@dataclass(frozen=True)
class Side:
    """One of those compared.

    Attributes:
        forecaster: what makes its forecasts.
        settings: the runtime and precision that ``apply()`` is given; empty for upstream's code.
    """

    forecaster: TotoForecaster
    settings: dict[str, Any] = field(default_factory=dict)

    def put_in_force(self) -> None:
        """Apply only what forecasts, so that the compiled side is upstream as users compile it."""
        if self.settings:
            toto_compile_patch.apply("fast_decode", fallback="error", **self.settings)

    def forecast(self, load: Workload, inputs: MaskedTimeseries) -> Any:
        """The workload's forecast."""
        return self.forecaster.forecast(
            inputs,
            prediction_length=load.horizon,
            num_samples=load.samples,
            samples_per_batch=load.per_batch,
            use_kv_cache=load.use_kv_cache,
        )


@dataclass
class Trial:
    """Measurements of one side of one workload.

    Attributes:
        side: which.
        load: what a measured forecast makes: the workload, or fewer of its samples where upstream
            is short of memory or time.
        inputs: its series.
        whole: how many of upstream's batches the workload's forecast takes.
        measured: how many of them a measured forecast makes.
        first: seconds of the first forecast.
        steady: seconds of the last one before the clock counts.
        wall: seconds of each measurement, scaled to the workload's forecast.
        cpu: processor seconds, likewise.
    """

    side: Side
    load: Workload
    inputs: MaskedTimeseries
    whole: int = 1
    measured: int = 1
    first: float = 0.0
    steady: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, side: Side, load: Workload, options: argparse.Namespace) -> Trial:
        """A trial: of the patched side whole, of upstream one of its batches of samples."""
        device, dtype = torch.device(options.device), getattr(torch, options.dtype)
        trial = cls(side, load, series(load, device, dtype))
        if not side.settings and load.samples is not None:
            per_batch = _that_fits(load, device, options.per_batch)
            trial.load = replace(load, samples=per_batch, per_batch=per_batch)
            trial.whole = load.samples // per_batch
        return trial

    def forecast(self) -> tuple[float, float]:
        """Put the side in force and make a forecast; return its wall and processor seconds."""
        self.side.put_in_force()
        return self._forecast_again()

    def _forecast_again(self) -> tuple[float, float]:
        """Make another one, in the modes of torch that the workload is run in."""
        load, device = self.load, self.inputs.series.device
        torch.use_deterministic_algorithms(load.deterministic)
        autocast = torch.autocast(device.type, torch.bfloat16) if load.autocast else nullcontext()
        with torch.inference_mode(load.inference_mode), autocast:
            machine.wait_for(device)
            wall, cpu = time.perf_counter(), time.process_time()
            self.side.forecast(load, self.inputs)
            machine.wait_for(device)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        torch.use_deterministic_algorithms(False)
        return wall, cpu

    def warm_up(self, samples: int | None, pairs: int, budget: int, twice: bool) -> None:
        """Make forecasts before the clock counts: upstream, which is slow, makes all of its batches
        (all samples of the workload) only if there is time for that."""
        self.first = self.steady = self.forecast()[0]
        if twice:
            # A CUDA graph is captured the second time, and compiling takes no part in the budget.
            self.steady = self.forecast()[0]
        if self.whole > 1 and self.steady * self.whole * (pairs + 1) <= budget:
            self.load, self.measured = replace(self.load, samples=samples), self.whole
            self.steady = self.forecast()[0]

    def take_turn(self) -> None:
        """Measure: a short forecast many times in a row, as users make them, of which the median
        counts. What comes before the first one, the other side's turn and ``apply()``, leaves it
        cold caches."""
        turn = [self.forecast()]
        while len(turn) < MOST_IN_A_TURN and sum(wall for wall, _ in turn) < SECONDS_OF_A_TURN:
            turn.append(self._forecast_again())
        wall, cpu = map(median, zip(*turn, strict=True))
        self.wall.append(wall * self.whole / self.measured)
        self.cpu.append(cpu * self.whole / self.measured)

    @property
    def spread(self) -> float:
        """Greatest over median."""
        return max(self.wall) / median(self.wall)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    warnings.filterwarnings("ignore")
    device, dtype = torch.device(choose_device(options.device)), getattr(torch, options.dtype)
    toto_compile_patch.revert()
    sides = sides_of(options)
    try:
        sides[PATCHED].put_in_force()
    except toto_compile_patch.TotoCompilePatchError as error:
        raise UsageError(" ".join(str(error).split())) from None
    if not toto_compile_patch.is_applied("fast_decode"):
        raise UsageError(
            "apply() leaves the installed toto as it is: ask `toto-compile-patch doctor` why"
        )
    rates = machine.measure_rates(device, dtype)
    workloads: dict[str, Any] = {}
    figures = {
        "machine": machine.name(device),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "dtype": options.dtype,
        "matrix_gflops": round(rates.flops / 1e9),
        "memory_gb_per_s": round(rates.bytes / 1e9, 1),
        "pairs": options.pairs,
        "ways": settings_of(options),
        "workloads": workloads,
    }
    with screen.ProgressLine(len(options.workload)) as progress:
        for name in options.workload:
            try:
                workloads[name] = _measure(name, sides, rates, options, progress)
            except RuntimeError as error:
                # On a CPU, say, upstream cannot draw samples in 16 bits.
                workloads[name] = {"failed": str(error).splitlines()[0]}
            progress.say("", steps=1)
            if not is_stdout(options.json):
                # What is cut short leaves what it has measured.
                write_json(options.json, figures)
    if is_stdout(options.json):
        write_json(options.json, figures)
    else:
        _show(figures, screen.console_of(TABLE_WIDTH))
    return 0


def settings_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What ``apply()`` is given for each patched side, by name; the first is PATCHED."""
    found: dict[str, dict[str, Any]] = {}
    for precision, runtime in itertools.product(options.precision, options.runtime):
        parts = [runtime] if len(options.runtime) > 1 else []
        parts += [precision] if len(options.precision) > 1 else []
        name = ", ".join([PATCHED, *parts]) if found else PATCHED
        found[name] = {"runtime": runtime, "precision": precision}
    return found


def sides_of(options: argparse.Namespace) -> dict[str, Side]:
    """The sides by name; made before anything is applied."""
    # Forecasters that keep upstream's own code, whatever is applied later.
    forecaster = models.toto_ts().TotoForecaster
    own = {name: vars(forecaster)[name] for name in ("generate_mean", "generate_samples")}
    upstream = type("UpstreamForecaster", (forecaster,), own)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model = base_model(device, dtype)
    sides = {UPSTREAM: Side(upstream(model))}
    for name, settings in settings_of(options).items():
        sides[name] = Side(forecaster(model), settings)
    if options.compile:
        compiled = base_model(device, dtype)
        compiled.compile(mode=options.compile)
        sides[COMPILED] = Side(upstream(compiled))
    return sides


def base_model(device: torch.device, dtype: torch.dtype) -> Any:
    """Toto-Open-Base-1.0's shape, with seeded random weights."""
    return models.load("base").model.to(device=device, dtype=dtype)


def _measure(
    name: str,
    sides: dict[str, Side],
    rates: machine.Rates,
    options: argparse.Namespace,
    progress: screen.ProgressLine,
) -> dict[str, Any]:
    """All that is known of a workload, as the figures have it."""
    load = WORKLOADS[name]
    progress.say(f"{name} {load.describe()}")
    stolen = machine.read_stolen()
    pairs, trials = options.pairs, {}
    for side, how in sides.items():
        trials[side] = trial = Trial.of(how, load, options)
        trial.warm_up(load.samples, pairs, options.budget, twice=side != UPSTREAM)
        if not how.settings:
            pairs = max(1, min(pairs, int(options.budget // trial.steady) - 1))
    for pair in range(pairs):
        progress.say(f"{name} {load.describe()}: pair {pair + 1} of {pairs}")
        for trial in trials.values():
            trial.take_turn()
    steal, spreads = machine.stolen_since(stolen), [trial.spread for trial in trials.values()]
    figures: dict[str, Any] = {"what": load.describe(), "stolen": round(steal, 3)}
    peaks = {side: _peak_apart(options, name, side) for side in sides}
    floor, first = _least_seconds(load, rates), trials[PATCHED]
    for side, trial in trials.items():
        figures[side] = found = _figures(side, trial, first, peaks[side])
        if settings := trial.side.settings:
            found["share_of_limit"] = round(floor / found["seconds"], 3)
            if settings["precision"] != first.side.settings["precision"]:
                found["accuracy"] = _accuracy(first, trial)
    figures["disturbed"] = steal > DISTURBED_STOLEN or max(spreads) > DISTURBED_SPREAD
    return figures


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


def _figures(name: str, trial: Trial, patched: Trial, memory: float | None) -> dict[str, Any]:
    """What is known of one side of a workload."""
    figures: dict[str, Any] = {
        "seconds": round(median(trial.wall), 5),
        "cpu_seconds": round(median(trial.cpu), 5),
        "spread": round(trial.spread, 2),
        "peak_gb": memory,
    }
    if name != PATCHED:
        ratios = [one / other for one, other in zip(trial.wall, patched.wall, strict=True)]
        figures["ratio"] = round(median(ratios), 3)
        figures["ratios"] = [round(ratio, 3) for ratio in ratios]
    if not trial.side.settings:
        batches = f"{trial.measured} of {trial.whole} batches"
        figures["measured"] = f"{batches} of {trial.load.per_batch}"
    if name not in (PATCHED, UPSTREAM):
        steady = median(trial.wall) * trial.measured / trial.whole
        figures["first_seconds"] = round(max(0.0, trial.first - steady), 2)
    return figures


def _least_seconds(load: Workload, rates: machine.Rates) -> float:
    """Time for the products with the weights alone, at the rates measured in this run, each weight
    read once for the context and once for each further patch."""

    def product(rows: int, weights: float) -> float:
        return max(2 * rows * weights / rates.flops, 4 * weights / rates.bytes)

    series = load.batch * load.variates
    decoded = series * (load.samples or 1)
    steps = -(-load.horizon // 64)
    # The head of the last step covers the time steps that are wanted, no more.
    heads = WEIGHTS_OF_HEAD * (load.horizon / 64) / steps
    context = product(series * -(-load.length // 64), WEIGHTS_OF_LAYERS) + product(series, heads)
    step = product(decoded, WEIGHTS_OF_LAYERS) + product(decoded, heads)
    return context + (steps - 1) * step


def _accuracy(before: Trial, after: Trial) -> dict[str, float]:
    """What another precision does to a forecast.

    Returns:
        ``difference``: mean absolute difference of the median forecasts (of the means where there
        are no samples) from the same seed; ``between_seeds``: that between two seeds before;
        both in standard deviations of the context; ``error`` and ``error_before``: mean absolute
        error.
    """

    load, inputs = before.load, before.inputs

    def point(trial: Trial, seed: int) -> torch.Tensor:
        trial.side.put_in_force()
        torch.manual_seed(seed)
        made = trial.side.forecast(load, inputs)
        drawn = made.samples
        return made.mean.double() if drawn is None else drawn.double().quantile(0.5, dim=-1)

    def distance(one: torch.Tensor, two: torch.Tensor) -> float:
        return float((one - two).abs().mean())

    plain, other_seed, changed = point(before, 0), point(before, 1), point(after, 0)
    truth = _walks(load)[..., load.length :].to(inputs.series).double()
    spread = float(inputs.series.double().std())
    return {
        "difference": distance(plain, changed) / spread,
        "between_seeds": distance(plain, other_seed) / spread,
        "error": distance(changed, truth),
        "error_before": distance(plain, truth),
    }


def series(load: Workload, device: torch.device, dtype: torch.dtype) -> MaskedTimeseries:
    """Seeded random walks near 100, as the workload wants them."""
    shape = (load.batch, load.variates, load.length)
    groups = torch.zeros(shape)
    if load.own_groups:
        groups += torch.arange(load.batch).view(-1, 1, 1)
    ones = torch.ones(shape)
    made: MaskedTimeseries = models.toto_ts().MaskedTimeseries(
        series=_walks(load)[..., : load.length].to(device, dtype),
        padding_mask=(ones if load.float_padding else ones.bool()).to(device),
        id_mask=groups.to(device),
        timestamp_seconds=torch.zeros(shape, dtype=torch.int, device=device),
        time_interval_seconds=torch.full(shape[:-1], 60, dtype=torch.int, device=device),
    )
    return made


def _walks(load: Workload) -> torch.Tensor:
    """Context and truth, ``batch variate time``."""
    shape = (load.batch, load.variates, load.length + load.horizon)
    steps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return 100 + steps.cumsum(-1)


def _peak_apart(options: argparse.Namespace, name: str, side: str) -> float | None:
    """Peak gigabytes of one forecast in a process of its own; None where unwanted, or it failed."""
    if options.no_memory:
        return None
    try:
        return round(call_apart(peak_bytes_of, options, name, side) / 1e9, 2)
    except WorkerError:
        return None


def peak_bytes_of(options: argparse.Namespace, name: str, side: str) -> int:
    """The most memory that this process holds for one forecast; one batch of upstream's samples
    holds as much as the others."""
    model = base_model(torch.device(options.device), getattr(torch, options.dtype))
    if side == COMPILED:
        model.compile(mode=options.compile)
    how = Side(models.toto_ts().TotoForecaster(model), settings_of(options).get(side, {}))
    Trial.of(how, WORKLOADS[name], options).forecast()
    return machine.peak_bytes(torch.device(options.device))


def _show(figures: dict[str, Any], console: Console) -> None:
    """Print a row for each workload and side, and what to know of them."""
    rows, notes = [], []
    for name, row in figures["workloads"].items():
        if "failed" in row:
            notes.append(f"{name}: could not be measured: {row['failed']}")
            continue
        sides = {side: found for side, found in row.items() if isinstance(found, dict)}
        rows += [_cells(f"{name} {side}", found) for side, found in sides.items()]
        notes += _notes(name, row, sides, figures["pairs"])
    title = f"{figures['machine']}, torch {figures['torch']}, {figures['dtype']}"
    caption = (
        f"matrix products {figures['matrix_gflops']} GFLOP/s, "
        f"memory {figures['memory_gb_per_s']} GB/s, measured in this run"
    )
    screen.show_table(console, HEADINGS, rows, title, caption)
    console.print(LEGEND, style="dim", markup=False, highlight=False)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _cells(name: str, found: dict[str, Any]) -> list[str]:
    ratios = found.get("ratios", [])
    return [
        name,
        f"{found['seconds']:.3g}",
        f"{found['ratio']:.3g}" if ratios else "",
        f"{min(ratios):.3g}-{max(ratios):.3g}" if ratios else "",
        f"{found['first_seconds']:.3g}" if "first_seconds" in found else "",
        "?" if found["peak_gb"] is None else f"{found['peak_gb']:.3g}",
        f"{found['cpu_seconds']:.3g}",
        f"{found['share_of_limit']:.0%}" if "share_of_limit" in found else "",
    ]


def _notes(
    name: str, row: dict[str, Any], sides: dict[str, dict[str, Any]], asked: int
) -> Iterator[str]:
    """What to know of a workload, whose measurements were asked for in so many pairs."""
    upstream = row[UPSTREAM]
    measured, _, whole, *_ = upstream["measured"].split()
    if measured != whole:
        yield f"{name}: upstream measured on {upstream['measured']}, times the rest"
    pairs = counted(len(upstream["ratios"]), "pair")
    if len(upstream["ratios"]) < asked:
        yield f"{name}: {pairs} of measurements, for which the --budget was enough, not {asked}"
    elif asked < FEW_PAIRS:
        yield f"{name}: {pairs} of measurements"
    for side, found in sides.items():
        if figures := found.get("accuracy"):
            yield (
                f"{name}, {side}: median forecast off by {figures['difference']:.2g} of the "
                f"series' standard deviation (two seeds: {figures['between_seeds']:.2g}); mean "
                f"error {figures['error']:.4g}, before {figures['error_before']:.4g}"
            )
    if row["disturbed"]:
        yield (
            f"{name}: the machine was disturbed ({row['stolen']:.0%} of its time stolen, "
            f"spread {upstream['spread']} and {row[PATCHED]['spread']}): measure again"
        )

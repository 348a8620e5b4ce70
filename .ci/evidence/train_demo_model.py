"""Train the bundled demo model: a small Toto that forecasts hourly series, in minutes on a CPU.

It learns from generated series and from the first part of the bundled one; the rest of that, from
HELD_OUT on, is neither trained on nor used to choose anything.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
import torch
from rich.progress import track
from safetensors.torch import save_file
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto.model.toto import Toto

import toto_compile_patch
from toto_compile_patch.tools import machine
from toto_compile_patch.tools.checks import write_whole
from toto_compile_patch.tools.models import BASE, BUNDLED, DEMO

COLUMNS = ("temp", "dewp", "pressure")
HELD_OUT = 5238
"""Data row of the bundled series from which on nothing is trained: 60 % of its rows."""

PATCH = 24
DAY, WEEK = 24, 168
STEPS_OF_A_ROW = 100
"""Of the log of losses."""

ARCHITECTURE: dict[str, Any] = {
    **BASE,
    **{"patch_size": PATCH, "stride": PATCH, "embed_dim": 128, "mlp_hidden_dim": 256},
    **{"num_layers": 4, "num_heads": 4, "spacewise_every_n_layers": 4, "dropout": 0.0},
    "output_distribution_kwargs": {"k_components": 5},
}


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: optimiser's steps.
        seed: of weights and data.
        threads: of torch.
        patches: in a batch, whatever the lengths of its series.
        learning_rate: the greatest, after a linear rise and before a cosine's fall to 0.
        weight_decay: AdamW's.
        rollout_from: part of the steps after which contexts end in patches drawn from the model.
        rollout: how many of them.
        bundled: part of a batch that comes from the bundled series.
    """

    steps: int = 2000
    seed: int = 0
    threads: int = 2
    patches: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    rollout_from: float = 0.6
    rollout: int = 3
    bundled: float = 0.2


class Batch(NamedTuple):
    """Series to learn from, of shape ``batch variate steps``; where not observed, a stand-in."""

    values: torch.Tensor
    observed: torch.Tensor


def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape)


def log_uniform(low: float, high: float, *shape: int) -> torch.Tensor:
    return uniform(math.log(low), math.log(high), *shape).exp()


def sometimes(probability: float, count: int) -> torch.Tensor:
    """A column of ones and zeros: ``count 1``."""
    return (torch.rand(count, 1) < probability).float()


def stationary_noise(length: torch.Tensor, slope: torch.Tensor, steps: int) -> torch.Tensor:
    """Noise of unit variance whose memory is ``length`` steps (``count 1``): ``count steps``.

    Its spectrum is Matern's: a slope of 1 is an autoregression of first order, 2 is smoother.
    """
    # Twice as long as needed, because the Fourier transform's noise is periodic.
    frequency = torch.fft.rfftfreq(2 * steps)
    amplitude = (frequency**2 + (2 * math.pi * length) ** -2.0) ** (-slope / 2)
    spectrum = amplitude * torch.randn(len(length), steps + 1, dtype=torch.complex64)
    noise = torch.fft.irfft(spectrum, n=2 * steps)
    return (noise / noise.std(-1, keepdim=True))[:, :steps]


def cycles(count: int, steps: int) -> torch.Tensor:
    """Periodic waves of unit variance, whose amplitude and form drift: ``count steps``."""
    periods = torch.tensor([DAY] * 12 + [WEEK] * 2 + [6, 8, 12, 12, 16, 36, 48, 60])
    period = periods[torch.randint(len(periods), (count, 1))].float()
    harmonic = torch.arange(1.0, 7.0)
    weights = harmonic ** -uniform(0.5, 3.0, count, 1)
    phase = uniform(0, 2 * math.pi, count, 6)
    weights = weights / weights.norm(dim=-1, keepdim=True) * 2**0.5
    turn = 2 * math.pi * torch.arange(steps) / period
    waves = torch.cos(turn[..., None] * harmonic + phase[:, None]) @ weights[..., None]
    drift = stationary_noise(log_uniform(24, 1000, count, 1), uniform(1, 2, count, 1), steps)
    return waves[..., 0] * (1 + uniform(0, 0.6, count, 1) * drift)


def working_week(count: int, steps: int) -> torch.Tensor:
    """Factors of each day of the week: ``count steps``."""
    factors = uniform(0.8, 1.2, count, 7)
    factors[:, 5:] *= uniform(0.2, 1.0, count, 1)
    day = (torch.arange(steps) + torch.randint(WEEK, (count, 1))) // DAY % 7
    return factors.gather(1, day)


def jumps(count: int, steps: int, rate: float) -> torch.Tensor:
    """Level shifts, ``rate`` of them per series on average: ``count steps``."""
    shift = torch.randn(count, steps) * (torch.rand(count, steps) < rate / steps)
    return shift.cumsum(-1)


def generate(count: int, steps: int) -> torch.Tensor:
    """Cycles, trends, autoregressive and white noise, shifts and spikes: ``count steps``."""
    time_ = torch.linspace(-1, 1, steps)
    week = working_week(count, steps) ** sometimes(0.3, count)
    series = sometimes(0.9, count) * log_uniform(0.2, 3, count, 1) * cycles(count, steps) * week
    series += sometimes(0.3, count) * log_uniform(0.1, 1, count, 1) * cycles(count, steps)
    for longest, probability in ((12, 0.5), (120, 0.8), (1500, 0.5)):
        noise = stationary_noise(
            log_uniform(longest / 10, longest, count, 1), uniform(0.8, 2, count, 1), steps
        )
        series += sometimes(probability, count) * log_uniform(0.1, 3, count, 1) * noise
    series += log_uniform(0.01, 0.5, count, 1) * torch.randn(count, steps)
    series += sometimes(0.3, count) * torch.randn(count, 1) * 2 * time_
    series += sometimes(0.2, count) * 2 * jumps(count, steps, 1.5)
    spikes = torch.randn(count, steps).abs() * (torch.rand(count, steps) < 0.01)
    series += sometimes(0.1, count) * 4 * spikes
    counts_like = sometimes(0.15, count)
    return torch.where(counts_like > 0, torch.exp(0.5 * series.clamp(max=12)), series)


class Bundled:
    """Windows of the bundled series' training part."""

    def __init__(self, path: Path, rows: int) -> None:
        values = torch.tensor(pd.read_csv(path)[:rows][list(COLUMNS)].to_numpy("float32").T)
        self._observed = ~values.isnan()
        values = fill_gaps(torch.nan_to_num(values), self._observed)
        self._values = (values - values.mean(-1, keepdim=True)) / values.std(-1, keepdim=True)

    def windows(self, count: int, steps: int) -> Batch:
        """Windows of all columns, each in units of its standard deviation."""
        rows = self._values.shape[-1]
        start = torch.randint(rows - steps + 1, (count, 1))
        index = start + torch.arange(steps)
        return Batch(
            self._values[:, index].transpose(0, 1), self._observed[:, index].transpose(0, 1)
        )


def fill_gaps(values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Repeat the last observed value in each gap; zeros before the first."""
    index = torch.where(observed, torch.arange(values.shape[-1]), 0).cummax(-1).values
    return values.gather(-1, index) * observed.cummax(-1).values


def make_batch(bundled: Bundled, settings: Training) -> Batch:
    """A batch of one of several lengths, of single or of several related series."""
    patches = (27, 27, 27, 27, 14, 48, 86)[int(torch.randint(7, ()))]
    variates = (1, 1, 1, 2, 3, 4)[int(torch.randint(6, ()))]
    steps = patches * PATCH
    count = max(2, settings.patches // (patches * variates))
    from_bundle = max(1, round(settings.bundled * count))
    made = make_generated(count - from_bundle, variates, steps)
    read = make_bundled(bundled, from_bundle, variates, steps)
    batch = Batch(*(torch.cat(pair) for pair in zip(made, read, strict=True)))
    return with_gaps(in_any_unit(batch))


def make_generated(count: int, variates: int, steps: int) -> Batch:
    own = generate(count * variates, steps).view(count, variates, steps)
    if variates > 1:
        shared = generate(count, steps)[:, None] * torch.randn(count, variates, 1)
        own = own * log_uniform(0.1, 1, count, variates, 1) + shared
    return Batch(own, torch.ones_like(own, dtype=torch.bool))


def make_bundled(bundled: Bundled, count: int, variates: int, steps: int) -> Batch:
    """Columns of the bundled series, some upside down, blended with generated ones."""
    values, observed = bundled.windows(count, steps)
    order = torch.rand(count, max(variates, len(COLUMNS))).argsort(-1)[:, :variates]
    index = (order % len(COLUMNS))[..., None].expand(-1, -1, steps)
    values, observed = values.gather(1, index), observed.gather(1, index)
    noise = generate(count * variates, steps).view_as(values)
    noise = noise / noise.std(-1, keepdim=True).clamp_min(1e-3)
    blend = sometimes(0.7, count)[..., None] * log_uniform(0.02, 1, count, 1, 1)
    sign = 1 - 2 * sometimes(0.25, count)[..., None]
    return Batch(sign * values + blend * noise, observed)


def in_any_unit(batch: Batch) -> Batch:
    """Scale and offset each series at random."""
    shape = (*batch.values.shape[:2], 1)
    scale = log_uniform(0.5, 500, *shape)
    offset = torch.randn(shape) * log_uniform(0.1, 100, *shape)
    return Batch(scale * (batch.values + offset), batch.observed)


def with_gaps(batch: Batch) -> Batch:
    """Hide some stretches, and in half of the series a beginning, as upstream's padding does."""
    count, variates, steps = batch.values.shape
    position = torch.arange(steps)
    observed = batch.observed.clone()
    for probability in (0.3, 0.1):
        start = torch.randint(steps, (count, variates, 1))
        length = log_uniform(1, 48, count, variates, 1) * (
            torch.rand(count, variates, 1) < probability
        )
        observed &= (position < start) | (position >= start + length)
    values = fill_gaps(batch.values, observed)
    short = torch.randint(PATCH, (count, 1, 1)) * (torch.rand(count, 1, 1) < 0.5)
    begun = position >= short
    return Batch(values * begun, observed & begun)


def run(model: Any, batch: Batch) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The model's distribution at every step, for the step a patch later, and its loc and scale."""
    no_ids = torch.zeros_like(batch.values, dtype=torch.int)
    output = model(batch.values, batch.observed, no_ids)
    return output.distribution, output.loc, output.scale


def loss_of(model: Any, context: Batch, truth: Batch) -> torch.Tensor:
    """Mean negative log likelihood of each patch of the truth, given the context before it."""
    last = slice(None, -PATCH)
    distribution, loc, scale = run(
        model, Batch(context.values[..., last], context.observed[..., last])
    )
    target = (truth.values[..., PATCH:] - loc) / scale
    known = truth.observed[..., PATCH:]
    return -(distribution.log_prob(target) * known).sum() / known.sum()


def rolled_out(model: Any, batch: Batch, patches: int) -> Batch:
    """The batch with patches before its last drawn from the model, each given those before it.

    The truth after them is as likely as it was, so that the model learns to be as uncertain in a
    long forecast as it has to be.
    """
    last = batch.values.shape[-1] - PATCH
    first = last - patches * PATCH
    context = batch.values[..., :first]
    inputs = MaskedTimeseries(
        series=context,
        padding_mask=batch.observed[..., :first],
        id_mask=torch.zeros_like(context, dtype=torch.int),
        timestamp_seconds=torch.zeros_like(context, dtype=torch.int),
        time_interval_seconds=torch.zeros(context.shape[:2], dtype=torch.int),
    )
    forecast = TotoForecaster(model).forecast(
        inputs, prediction_length=last - first, num_samples=1, samples_per_batch=1
    )
    values, observed = batch.values.clone(), batch.observed.clone()
    values[..., first:last] = forecast.samples[..., 0]
    observed[..., first:last] = True
    return Batch(values, observed)


def rate_at(step: int, settings: Training) -> float:
    """The learning rate, as a part of the greatest."""
    rise = max(1, min(200, settings.steps // 10))
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, settings.steps - rise))


def train(settings: Training) -> tuple[Any, list[dict[str, float]]]:
    """Train a model; return it, and its mean losses every so many steps."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    toto = Toto(**ARCHITECTURE)
    bundled = Bundled(BUNDLED, HELD_OUT)
    optimizer = torch.optim.AdamW(
        toto.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, settings))
    rows: list[dict[str, float]] = []
    recent: list[float] = []
    start = time.perf_counter()
    for step in track(range(settings.steps), "training", transient=True):
        truth = make_batch(bundled, settings)
        rolls = step >= settings.rollout_from * settings.steps
        context = rolled_out(toto.model, truth, settings.rollout) if rolls else truth
        optimizer.zero_grad()
        loss = loss_of(toto.model, context, truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(toto.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(float(loss))
        if len(recent) == STEPS_OF_A_ROW or step + 1 == settings.steps:
            seconds = round(time.perf_counter() - start, 1)
            rows.append({"step": step + 1, "loss": round(mean(recent), 4), "seconds": seconds})
            print("step {step}  loss {loss:.3f}  {seconds:.0f} s".format_map(rows[-1]))
            recent.clear()
    return toto.eval(), rows


def save(folder: Path, toto: Any, settings: Training, losses: list[dict[str, float]]) -> None:
    """Write the checkpoint as upstream reads it, and how it came about."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(toto.state_dict(), folder / "model.safetensors")
    write_whole(folder / "config.json", json.dumps(ARCHITECTURE, indent=2) + "\n")
    installed = machine.facts("cpu")
    facts = {
        "date": installed["date"],
        "processor": installed["device"],
        "torch": installed["torch"],
        "toto": installed["toto"],
        "parameters": sum(weights.numel() for weights in toto.parameters()),
        "data": {"file": BUNDLED.name, "columns": COLUMNS, "training_rows": HELD_OUT},
        "settings": asdict(settings),
        "seconds": losses[-1]["seconds"],
        "losses": losses,
    }
    write_whole(folder / "training_log.json", json.dumps(facts, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=Training.steps, help="optimiser's steps")
    parser.add_argument("--seed", type=int, default=Training.seed, help="of weights and data")
    parser.add_argument("--out", type=Path, default=DEMO, help="folder of the checkpoint")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    # What is right by construction would be checked at every step.
    torch.distributions.Distribution.set_default_validate_args(False)
    settings = Training(steps=options.steps, seed=options.seed)
    with toto_compile_patch.patched():
        toto, losses = train(settings)
    save(options.out, toto, settings, losses)


if __name__ == "__main__":
    main()

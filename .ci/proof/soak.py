#!/usr/bin/env python3
"""Ten thousand forecasts in one process, by several threads: are they right, and does nothing grow?

    python .ci/proof/soak.py                                        minutes
    python .ci/proof/soak.py --forecasts 500 --threads 2 --out soak.json

Small models of every scaler and distribution, series of many shapes, means and samples, one by one
and by forecast_many. Each thread has copies of the models, whose weights it edits now and then, and
which it drops and copies anew; the originals are shared by all and stay as they are. Means must be
those that upstream made beforehand, alone, to rounding; of samples, as many must lie below
upstream's quantiles as should. Memory, objects, tensors, file descriptors and threads must not
grow. What is forecast depends on the seed alone, never on which thread is faster.

Exit code 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

import torch
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch
from toto_compile_patch.tools import machine

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from toto_cases import PATCH, SCALERS, series, small_model  # noqa: E402

ROUNDS = 20
"""Between rounds no forecast is under way, and what is alive is counted."""

REFERENCE_DRAWS = 2000
QUANTILES = (0.1, 0.5, 0.9)
DEVIATIONS = 5.0
"""Of a share of samples, in standard deviations, before it counts as wrong."""

GROWTH_MB = 16.0
"""By which memory may be greater in the last third of the rounds than in the one before."""

GROWTH_OF_OBJECTS = 0.0005
"""Likewise, as a part of all objects: what is counted here grows a little itself."""


class Shape(NamedTuple):
    """A series and a horizon."""

    length: int
    variates: int
    batch: int | None
    horizon: int

    def series(self) -> MaskedTimeseries:
        """The series; the same at every call."""
        return series(self.length, self.variates, self.batch)


SHAPES = (
    Shape(5, 1, None, 3),
    Shape(24, 1, 2, 2 * PATCH),
    Shape(40, 3, None, PATCH),
    Shape(41, 2, 1, PATCH + 3),
    Shape(72, 1, None, 3 * PATCH),
)
SAMPLED = (Shape(40, 2, None, 2 * PATCH), Shape(25, 1, 1, PATCH))
KINDS = tuple(
    (scaler, distribution)
    for scaler in SCALERS
    for distribution in ("MixtureOfStudentTsOutput", "StudentTOutput")
)
EDITED = (False, True)
"""The two states of a model's weights."""


def built(kind: int, seed: int) -> Any:
    """A backbone of a kind, with random weights."""
    scaler, distribution = KINDS[kind]
    components = {"k_components": 3} if distribution.startswith("Mixture") else None
    return small_model(
        seed,
        scaler_cls=f"<class 'model.scaler.{scaler}'>",
        output_distribution_classes=[f"<class 'model.distribution.{distribution}'>"],
        output_distribution_kwargs=components,
    ).model


def copied(kind: int, original: Any, seed: int) -> Any:
    """Another backbone with an original's weights.

    Building one seeds torch's generator, from which all threads draw: with a seed of its own each
    time, so that no two forecasts of samples have the same random numbers.
    """
    model = built(kind, seed)
    model.load_state_dict(original.state_dict())
    return model


def edit(model: Any, edited: bool, how: int) -> None:
    """Bring a model's weights to one of their two states, in one of three ways."""
    weight = model.transformer.layers[0].attention.wO.weight
    other = model.unembed.bias
    factor = 2.0 if edited else 0.5
    if how == 0:
        with torch.no_grad():
            weight.mul_(factor)
            other.mul_(factor)
    elif how == 1:
        weight.data.mul_(factor)
        other.data.mul_(factor)
        toto_compile_patch.refresh(model)
    else:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name in ("transformer.layers.0.attention.wO.weight", "unembed.bias"):
            state[name] *= factor
        model.load_state_dict(state)


@dataclass(frozen=True)
class Truth:
    """What upstream forecasts, alone, before anything is patched.

    Attributes:
        means: by kind of model, state of its weights, and shape.
        quantiles: of the last time step of the first variate, likewise.
    """

    means: dict[tuple[int, bool, Shape], torch.Tensor]
    quantiles: dict[tuple[int, bool, Shape], list[float]]

    @classmethod
    def of_upstream(cls, originals: list[Any]) -> Truth:
        """Let upstream's code forecast everything once."""
        means: dict[tuple[int, bool, Shape], torch.Tensor] = {}
        quantiles: dict[tuple[int, bool, Shape], list[float]] = {}
        for kind, original in enumerate(originals):
            model = copied(kind, original, seed=0)
            for edited in EDITED:
                if edited:
                    edit(model, edited, how=0)
                forecaster = TotoForecaster(model)
                for shape in SHAPES:
                    found = forecaster.forecast(shape.series(), shape.horizon).mean
                    means[kind, edited, shape] = found.clone()
                for shape in SAMPLED:
                    drawn = forecaster.forecast(
                        shape.series(), shape.horizon, REFERENCE_DRAWS, REFERENCE_DRAWS
                    ).samples
                    quantiles[kind, edited, shape] = torch.quantile(
                        last_step(drawn), torch.tensor(QUANTILES)
                    ).tolist()
        return cls(means, quantiles)


def last_step(samples: torch.Tensor) -> torch.Tensor:
    """Those of the first variate's last step, of ``[batch] variate time_steps samples``."""
    return samples[0, 0, -1] if samples.ndim > 3 else samples[0, -1]


@dataclass
class Seen:
    """What a thread saw.

    Attributes:
        counts: forecasts of each way to make them, edits, and new models.
        worst: the greatest difference of a mean, in parts of what is allowed.
        wrong: what was not as it should be.
        below: how many samples lay below each quantile, and how many there were, by truth.
    """

    counts: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)
    below: dict[tuple[int, bool, Shape], list[int]] = field(default_factory=dict)

    def mean(self, found: torch.Tensor, key: tuple[int, bool, Shape], truth: Truth) -> None:
        """Compare a mean forecast with upstream's."""
        expected = truth.means[key]
        allowed = 1e-5 * (expected.abs() + key[2].series().series.std())
        part = float(((found - expected).abs() / allowed).max())
        self.worst = max(self.worst, part)
        if found.shape != expected.shape or not part <= 1:
            self.wrong.append(f"mean of {KINDS[key[0]]}, edited: {key[1]}, {key[2]}: {part:.3g}")

    def samples(self, found: torch.Tensor, key: tuple[int, bool, Shape], truth: Truth) -> None:
        """Count samples below upstream's quantiles."""
        if not found.isfinite().all():
            self.wrong.append(f"samples of {KINDS[key[0]]}, {key[2]} are not finite")
        drawn = last_step(found)
        counts = [int((drawn < value).sum()) for value in truth.quantiles[key]] + [len(drawn)]
        before = self.below.get(key, [0] * len(counts))
        self.below[key] = [one + other for one, other in zip(before, counts, strict=True)]


@dataclass
class Owned:
    """A model that one thread alone has, and the state of its weights."""

    kind: int
    original: Any
    model: Any = None
    edited: bool = False

    def build(self, seed: int) -> None:
        """Drop the model, and make another copy."""
        self.model, self.edited = copied(self.kind, self.original, seed), False


class Worker:
    """What one thread forecasts, round after round."""

    def __init__(self, number: int, seed: int, truth: Truth, originals: list[Any]) -> None:
        self.random = Random(1000 * seed + number)
        self.truth, self.seen = truth, Seen()
        self.owned = [Owned(kind, original) for kind, original in enumerate(originals)]
        for one in self.owned:
            one.build(self.random.getrandbits(32))

    def forecast(self, count: int) -> None:
        """Make a number of forecasts; at the end one with each model, so that each is prepared."""
        made = 0
        while made < count - len(self.owned):
            one = self.random.choice(self.owned)
            self._change(one)
            if self.random.random() < 0.2:
                # All threads share the originals, which stay as they are.
                one = Owned(one.kind, one.original, one.original)
            made += self._forecast(one, count - len(self.owned) - made)
        for one in self.owned:
            self._one_mean(one, SHAPES[0])

    def _change(self, one: Owned) -> None:
        """Now and then."""
        chance = self.random.random()
        if chance < 0.02:
            one.build(self.random.getrandbits(32))
            self.seen.counts["models dropped and made anew"] += 1
        elif chance < 0.06:
            one.edited = not one.edited
            edit(one.model, one.edited, self.random.randrange(3))
            self.seen.counts["edits of weights"] += 1

    def _forecast(self, one: Owned, most: int) -> int:
        way = self.random.random()
        if way < 0.15 and most >= len(SHAPES):
            return self._many_means(one)
        if way < 0.25 and most >= 3:
            return self._many_samples(one)
        if way < 0.5:
            return self._samples(one, self.random.choice(SAMPLED))
        return self._one_mean(one, self.random.choice(SHAPES))

    def _one_mean(self, one: Owned, shape: Shape) -> int:
        found = TotoForecaster(one.model).forecast(shape.series(), shape.horizon).mean
        self.seen.mean(found, (one.kind, one.edited, shape), self.truth)
        self.seen.counts["means"] += 1
        return 1

    def _samples(self, one: Owned, shape: Shape) -> int:
        per_batch = self.random.choice((4, 8, 16))
        found = TotoForecaster(one.model).forecast(shape.series(), shape.horizon, 16, per_batch)
        self.seen.samples(found.samples, (one.kind, one.edited, shape), self.truth)
        self.seen.counts["samples"] += 1
        return 1

    def _many_means(self, one: Owned) -> int:
        """Windows of one horizon: the first steps of a mean are those of a shorter one."""
        horizon = min(shape.horizon for shape in SHAPES)
        shapes = self.random.sample(SHAPES, len(SHAPES))
        found = toto_compile_patch.forecast_many(
            TotoForecaster(one.model), [shape.series() for shape in shapes], horizon
        )
        for shape, forecast in zip(shapes, found, strict=True):
            key = (one.kind, one.edited, shape)
            self.seen.mean(self._as_upstream(forecast.mean, key), key, self.truth)
        self.seen.counts["means by forecast_many"] += len(shapes)
        return len(shapes)

    def _as_upstream(self, found: torch.Tensor, key: tuple[int, bool, Shape]) -> torch.Tensor:
        """A shorter mean, with the rest of upstream's."""
        rest = self.truth.means[key][..., found.shape[-1] :]
        return torch.cat([found, rest], dim=-1)

    def _many_samples(self, one: Owned) -> int:
        shape = self.random.choice(SAMPLED)
        found = toto_compile_patch.forecast_many(
            TotoForecaster(one.model),
            [shape.series()] * 3,
            shape.horizon,
            num_samples=16,
            samples_per_batch=16,
        )
        for forecast in found:
            self.seen.samples(forecast.samples, (one.kind, one.edited, shape), self.truth)
        self.seen.counts["samples by forecast_many"] += 3
        return 3


@dataclass(frozen=True)
class Reading:
    """What is alive after so many forecasts."""

    forecasts: int
    memory_mb: float
    objects: int
    tensors: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls, forecasts: int) -> Reading:
        """While nothing is under way."""
        gc.collect()
        alive = gc.get_objects()
        tensors = sum(issubclass(type(one), torch.Tensor) for one in alive)
        return cls(
            forecasts,
            resident_bytes() / 2**20,
            len(alive),
            tensors,
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
        )


def resident_bytes() -> int:
    """Memory of this process, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def complaints_about(readings: list[Reading]) -> list[str]:
    """What grew from the second to the last third of the readings: nothing may."""
    third = len(readings) // 3
    middle, last = readings[third : 2 * third], readings[2 * third :]

    def grown(name: str) -> float:
        before, after = (median(getattr(one, name) for one in part) for part in (middle, last))
        return float(after - before)

    limits = {
        "memory_mb": GROWTH_MB,
        "objects": GROWTH_OF_OBJECTS * readings[-1].objects,
        "tensors": 0,
        "descriptors": 0,
        "threads": 0,
    }
    return [
        f"{name.replace('_', ' ')} grew by {grown(name):.6g}"
        for name, limit in limits.items()
        if grown(name) > limit
    ]


def complaints_about_samples(seen: list[Seen]) -> list[str]:
    """Where the samples of all threads together do not lie as upstream's do."""
    found = []
    for key in {key for one in seen for key in one.below}:
        rows = [one.below[key] for one in seen if key in one.below]
        *below, count = map(sum, zip(*rows, strict=True))
        for quantile, share in zip(QUANTILES, (number / count for number in below), strict=True):
            deviation = (quantile * (1 - quantile) * (1 / count + 1 / REFERENCE_DRAWS)) ** 0.5
            if abs(share - quantile) > DEVIATIONS * deviation:
                found.append(
                    f"{share:.1%} of {count} samples of {KINDS[key[0]]}, edited: {key[1]}, "
                    f"{key[2]} lie below upstream's {quantile:.0%} quantile"
                )
    return found


def soak(forecasts: int, threads: int, seed: int) -> dict[str, Any]:
    """Forecast, and judge."""
    originals = [built(kind, seed=kind) for kind in range(len(KINDS))]
    truth = Truth.of_upstream(originals)
    toto_compile_patch.apply(fallback="error")
    workers = [Worker(number, seed, truth, originals) for number in range(threads)]
    readings: list[Reading] = []
    start = time.monotonic()
    for reading in _rounds(workers, forecasts):
        readings.append(reading)
        print(json.dumps(asdict(reading)), flush=True)
    seen = [worker.seen for worker in workers]
    wrong = [line for one in seen for line in one.wrong]
    complaints = wrong[:20] + complaints_about_samples(seen) + complaints_about(readings)
    return {
        **machine.facts("cpu"),
        "python": sys.version.split()[0],
        "threads": threads,
        "seed": seed,
        "seconds": round(time.monotonic() - start),
        "counts": dict(sorted(sum((one.counts for one in seen), Counter()).items())),
        "worst_mean": max(one.worst for one in seen),
        "wrong": len(wrong),
        "complaints": complaints,
        "readings": [asdict(reading) for reading in readings],
    }


def _rounds(workers: list[Worker], forecasts: int) -> Iterator[Reading]:
    """Forecast round after round, each in new threads; what is alive after each."""
    for number in range(1, ROUNDS + 1):
        so_far = forecasts * number // ROUNDS
        before = forecasts * (number - 1) // ROUNDS
        with ThreadPoolExecutor(len(workers)) as pool:
            shares = [
                (so_far - before) * (index + 1) // len(workers)
                - (so_far - before) * index // len(workers)
                for index in range(len(workers))
            ]
            running: list[Future[None]] = [
                pool.submit(worker.forecast, share)
                for worker, share in zip(workers, shares, strict=True)
            ]
        for one in running:
            one.result()
        del running, pool
        yield Reading.now(so_far)


def main() -> int:
    """Soak, say what was seen, and keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forecasts", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what was seen here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = soak(options.forecasts, options.threads, options.seed)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    shown = {name: value for name, value in found.items() if name != "readings"}
    print(json.dumps(shown, indent=1))
    return int(bool(found["complaints"]))


if __name__ == "__main__":
    sys.exit(main())

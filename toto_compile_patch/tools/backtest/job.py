"""What was asked for, as far as it decides the forecasts."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from typing import Any

from toto_compile_patch.settings import ENV_TOGGLE, variable_of
from toto_compile_patch.tools.series.layout import Wanted


@dataclass(frozen=True)
class Job:
    """What decides the rows of a backtest, down to their last bit.

    An option that is not here says where the work is done and how fast, and may be another one
    when a run goes on. The names are those of the options.

    Attributes:
        id: column that names the series; None: a known one, if there is any.
        time: column of times; None: one that holds times.
        time_format: of the times, as ``strptime`` has it; None: as they are.
        decimal: mark before the decimals of a CSV file's numbers; None: as they are.
        target: column to forecast; None: a known one, or the only one of numbers.
        wide: whether each column is a series.
        known: columns whose values are known ahead.
        freq: step of the times, as pandas writes it; None: as they lie.
        horizon: steps to forecast.
        windows: of a series, at most; 0: as many as fit.
        step: steps between two windows.
        context: steps that a forecast starts from, at most.
        min_context: steps that it starts from, at least.
        samples: paths to draw; 0 asks for means.
        samples_per_batch: paths that upstream's code draws at once.
        quantiles: levels, in their order.
        model: what ``models.load`` knows.
        device: a torch device.
        dtype: of the model and the series.
        seed: from which each window's own seed is made.
        season: steps after which a series repeats itself; None: by the distance of its times.
        memory: bytes that may be in use for forecasts that are made together.
        shard: windows of a part.
        threads: that torch computes with: sums are split among them, and round accordingly.
        settings: environment variables of this package, with their values.
    """

    id: str | None
    time: str | None
    time_format: str | None
    decimal: str | None
    target: str | None
    wide: bool
    known: tuple[str, ...]
    freq: str | None
    horizon: int
    windows: int
    step: int
    context: int
    min_context: int
    samples: int
    samples_per_batch: int
    quantiles: tuple[float, ...]
    model: str
    device: str
    dtype: str
    seed: int
    season: int | None
    memory: int
    shard: int
    threads: int
    settings: tuple[tuple[str, str], ...]

    @property
    def wanted(self) -> Wanted:
        """What it says of the file."""
        targets = () if self.target is None else (self.target,)
        others = (*targets, *self.known)
        written = (self.time_format, self.decimal)
        return Wanted(self.id, self.time, *written, others, each_is_a_series=self.wide)

    @property
    def shortest(self) -> int:
        """Steps of the shortest series that a window fits into."""
        return self.min_context + self.horizon

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels of the quantiles that there are: none of a mean forecast."""
        return self.quantiles if self.samples else ()

    def as_json(self) -> dict[str, Any]:
        """Its values by name, as they are kept."""
        return {
            name: list(map(list, value)) if name == "settings" else value
            for name, value in asdict(self).items()
        } | {"known": list(self.known), "quantiles": list(self.quantiles)}


def job_of(options: argparse.Namespace) -> Job:
    """The job that the options describe; device and threads, as far as they name them."""
    return Job(
        **{name: getattr(options, name) for name in _AS_GIVEN},
        known=tuple(options.known or ()),
        step=options.step or options.horizon,
        quantiles=tuple(options.quantiles),
        device=options.device or "",
        threads=options.threads or 0,
        settings=settings_of_environment(),
    )


_AS_GIVEN = (
    *("id", "time", "time_format", "decimal", "target", "wide", "freq", "horizon", "windows"),
    *("context", "min_context", "samples", "samples_per_batch", "model", "dtype", "seed"),
    *("season", "memory", "shard"),
)


def settings_of_environment() -> tuple[tuple[str, str], ...]:
    """This package's environment variables, but for those that no forecast depends on."""
    beside = (variable_of("log"), variable_of("auto"))
    found = ((name, value) for name, value in os.environ.items() if name not in beside)
    return tuple(sorted(pair for pair in found if pair[0].startswith(ENV_TOGGLE)))

"""Series at even steps, and the windows that fit into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.notation import Doubles
from toto_compile_patch.tools.series.reader import RawSeries
from toto_compile_patch.tools.series.single import LARGEST
from toto_compile_patch.tools.series.steps import even, seconds_between

TOO_SHORT = "too short"


@dataclass(frozen=True)
class Problem:
    """Why a series or a window has no forecast.

    Attributes:
        item: the series.
        window: index of the window; None: none of the series' windows has one.
        kind: in two or three words.
        message: in a sentence.
    """

    item: str
    window: int | None
    kind: str
    message: str


@dataclass(frozen=True)
class Regular:
    """A series at even steps.

    Attributes:
        item: its id.
        times: of its steps, in nanoseconds since 1970.
        values: the target, then what is known ahead; a gap repeats the last value before it, and
            is 0 where there is none (``variate step``).
        observed: False where a value stands in for a gap (``variate step``).
        interval: seconds between two steps, at the median.
        origins: the first step of each window's horizon.
    """

    item: str
    times: npt.NDArray[np.int64]
    values: Doubles
    observed: npt.NDArray[np.bool_]
    interval: int
    origins: tuple[int, ...]


def regular(raw: RawSeries, path: str, job: Job) -> Regular | Problem:
    """A series with its missing rows filled in as gaps, or why it cannot be forecast.

    Args:
        raw: its rows.
        path: of the file, for messages.
        job: what was asked for.

    Raises:
        UsageError: its times do not lie on even steps.
    """
    what = f"{path}, series {raw.item!r}"
    steps = even(raw.times, job.freq)
    if steps is None:
        raise UsageError(_why_uneven(raw.times, what, job))
    values = np.full((len(raw.values), len(steps)), np.nan)
    values[:, steps.get_indexer(raw.times)] = raw.values
    if problem := _problem(raw.item, values, job):
        return problem
    observed = ~np.isnan(values)
    if not observed.all():
        values = pd.DataFrame(values.T).ffill().fillna(0.0).to_numpy().T
    interval, origins = seconds_between(steps), _origins(len(steps), job)
    return Regular(raw.item, steps.asi8, values, observed, interval, origins)


def _why_uneven(times: pd.DatetimeIndex, what: str, job: Job) -> str:
    if job.freq is not None:
        return (
            f"{what}: its times do not lie on --freq {job.freq}, beginning with {times[0]}: "
            "give another one"
        )
    steps = np.diff(times.asi8)
    lengths, counts = np.unique(steps, return_counts=True)
    usual = int(lengths[counts.argmax()])
    # Where all are multiples of it, the longest is too long to be filled with gaps.
    odd = steps % usual != 0
    at = int((odd if odd.any() else steps).argmax())
    cure = "resample the series to even steps first"
    common = pd.Timedelta(int(np.gcd.reduce(steps)))
    if even(times, common) is not None:
        step = pd.tseries.frequencies.to_offset(common).freqstr
        cure = f"give their step with --freq, such as {step}, or {cure}"
    return (
        f"{what}: its times are not evenly spaced (mostly by {pd.Timedelta(usual)}, but "
        f"{times[at]} is followed by {times[at + 1]}): {cure}"
    )


def _problem(item: str, values: Doubles, job: Job) -> Problem | None:
    steps = values.shape[-1]
    if steps < job.shortest:
        return Problem(
            item,
            None,
            TOO_SHORT,
            f"it has {steps} steps; a context of {job.min_context} and a horizon of {job.horizon} "
            f"need {job.shortest}",
        )
    if np.isnan(values[0]).all():
        return Problem(item, None, "all missing", "it holds nothing but gaps")
    bad = ~np.isnan(values) & ~(np.abs(values) < LARGEST)
    if bad.any():
        return Problem(
            item, None, "not a number", f"it holds {values[bad][0]:g}, which no model can take"
        )
    return None


def _origins(steps: int, job: Job) -> tuple[int, ...]:
    """The last window ends with the series; each starts at least ``min_context`` steps on."""
    last = steps - job.horizon
    fit = (last - job.min_context) // job.step + 1
    count = min(fit, job.windows) if job.windows else fit
    return tuple(last - job.step * back for back in reversed(range(count)))

"""Whether two sides say the same: what chance explains, and what it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from toto_compile_patch.tools.series.single import Floats
from toto_compile_patch.tools.turns import QUANTILES
from toto_compile_patch.tools.windows import Window

LARGEST_MEAN_DIFFERENCE = 1e-3
"""Between mean forecasts, in standard deviations of the context, to call it rounding."""

FLOAT32_STEPS = 32
"""Steps of float32, at the context's level, that are rounding in any case."""

JUDGED = (0, 4, 8)
"""Of ``QUANTILES``: 10, 50 and 90 %."""

STRETCHES = 4
"""Time steps of a forecast whose distances are taken to be independent of each other, at most."""

SEEN = 1.25
"""Shifts of all quantiles by so many times what chance explains are seen nine times out of ten, and
those by what it explains, every second time at least: so found by simulation, of normal and of
heavy-tailed forecasts, for 1 to 16 windows of 8 to 512 samples and horizons of 1 and 96."""

LARGEST_UNSEEN = 1 / 6
"""Widths of the interval from 10 to 90 %: a shift by more must not go unseen, or there was too
little to judge samples by.

A normal forecast that is a sixth of its interval too high (0.43 standard deviations) has a mean
absolute error 9 % greater, and its interval holds 4 points less of the truth: anything beyond is a
loss that a user would mind.
"""


@dataclass(frozen=True)
class Judgement:
    """Distances of patched from upstream, and what they may be.

    Attributes:
        mean: greatest distance of a mean forecast, in standard deviations of its context.
        means_agree: whether that is rounding.
        distance: mean distance of the 10, 50 and 90 % quantiles, in widths of upstream's interval
            between the outer two; None for mean forecasts.
        between_seeds: that distance of upstream from itself with another seed.
        explained: the most that chance explains.
        samples: that the quantiles were made from; None for mean forecasts.
    """

    mean: float
    means_agree: bool
    distance: float | None = None
    between_seeds: float | None = None
    explained: float | None = None
    samples: int | None = None

    @property
    def samples_agree(self) -> bool | None:
        """Whether samples differ no more than chance makes them.

        None where chance explains so much that a difference worth a user's notice could hide in
        it. Where they differ by more still, they do differ, however few they are.
        """
        if self.distance is None or self.explained is None:
            return True
        if self.distance > self.explained:
            return False
        return True if self.smallest_seen <= LARGEST_UNSEEN else None

    @property
    def smallest_seen(self) -> float:
        """The smallest shift of samples that is seen nine times out of ten, in widths of the
        interval."""
        return SEEN * (self.explained or 0.0)

    @property
    def same(self) -> bool | None:
        """Whether both sides say the same; None where there is too little to judge by."""
        return self.samples_agree if self.means_agree else False

    @property
    def samples_needed(self) -> int:
        """Samples that would be enough to judge by, in as many windows: a power of two."""
        times = self.smallest_seen / LARGEST_UNSEEN
        # Chance falls with the square root of their number.
        return 2 ** math.ceil(math.log2(max(1.0, (self.samples or 0) * times**2)))


def judge_means(upstream: Floats, patched: Floats, windows: list[Window]) -> tuple[float, bool]:
    """Greatest distance of mean forecasts (``window variate horizon``), and whether it is rounding.

    In standard deviations of each context; in those of upstream's forecast about the context's mean
    where they are greater: of a series that hardly moves (prices of a hundred-thousandth, say),
    upstream forecasts far more than the series ever did, and rounds accordingly.
    """
    known = np.stack([window.known for window in windows])
    center = np.nanmean(known, axis=-1, keepdims=True)
    strays = np.sqrt(((upstream - center) ** 2).mean(axis=-1, keepdims=True))
    std = np.maximum(np.nanstd(known, axis=-1, keepdims=True), strays)
    level = np.nanmax(np.abs(known), axis=-1, keepdims=True)
    rounding = FLOAT32_STEPS * float(np.finfo(np.float32).eps) * level
    distance = np.abs(upstream - patched)
    agree = bool((distance <= LARGEST_MEAN_DIFFERENCE * std + rounding).all())
    return float((distance / np.maximum(std, rounding + 1e-30)).max()), agree


def judge(
    upstream: Floats,
    patched: Floats,
    other_seed: Floats,
    samples: int,
    means: tuple[float, bool],
) -> Judgement:
    """Judge quantiles by upstream's own with another seed.

    A window, or a column, counts as much as any other, however far it swings: all distances are in
    widths of its interval. What chance explains is four standard deviations more than the mean
    distance of two seeds (as seen, or as the samples let one expect: whichever is greater), since
    distances of two normal variables vary by 0.76 of their mean.

    Args:
        upstream: quantiles, ``window quantile variate horizon``; likewise the other two.
        samples: that each of them was made from.
        means: of ``judge_means``.
    """
    width = (upstream[:, -1] - upstream[:, 0]).mean(-1)[:, None, :, None]
    width = np.maximum(width, np.finfo(np.float32).tiny)
    levels = list(JUDGED)

    def distance(one: Floats) -> float:
        return float((np.abs(one - upstream)[:, levels] / width).mean())

    expected = float((_expected(upstream, samples)[:, levels] / width).mean())
    between_seeds = distance(other_seed)
    independent = len(upstream) * min(STRETCHES, upstream.shape[-1])
    more = 1 + 4 * 0.76 / math.sqrt(independent)
    rounding = LARGEST_MEAN_DIFFERENCE
    return Judgement(
        *means,
        distance=distance(patched),
        between_seeds=between_seeds,
        explained=more * max(between_seeds, expected) + rounding,
        samples=samples,
    )


def _expected(quantiles: Floats, samples: int) -> Floats:
    """Mean distance of two estimates of each quantile, of the shape of the quantiles.

    The standard error of a sample quantile at level p is sqrt(p (1 - p) / samples) over the density
    there, which its neighbours give; in the tails they give too much, which is made up for.
    """
    levels = np.array(QUANTILES)
    slope = np.gradient(quantiles, levels, axis=1)
    slope[:, [0, -1]] *= 1.5
    error = np.sqrt(levels * (1 - levels) / samples)[:, None, None] * slope
    return np.asarray(2 / math.sqrt(math.pi) * error)

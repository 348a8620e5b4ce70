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
    """

    mean: float
    means_agree: bool
    distance: float | None = None
    between_seeds: float | None = None
    explained: float | None = None

    @property
    def samples_agree(self) -> bool:
        """Whether samples differ no more than chance makes them."""
        return self.distance is None or self.explained is None or self.distance <= self.explained

    @property
    def same(self) -> bool:
        """Whether both sides say the same."""
        return self.means_agree and self.samples_agree


def judge_means(upstream: Floats, patched: Floats, windows: list[Window]) -> tuple[float, bool]:
    """Greatest distance of mean forecasts (``window variate horizon``), and whether it is rounding.

    In standard deviations of each context.
    """
    known = np.stack([window.known for window in windows])
    std = np.nanstd(known, axis=-1, keepdims=True)
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

"""The work in shards: what is forecast together, and makes one part of the output.

They depend on the file and the job alone. So does then what is forecast together, and with it the
last bit of each forecast, whoever makes it and in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.regular import Problem, Regular
from toto_compile_patch.tools.series.notation import Doubles


@dataclass(frozen=True)
class Piece:
    """A stretch of a series, and windows that are cut from it.

    Attributes:
        item: id of the series.
        times: of its steps, in nanoseconds since 1970.
        values: without gaps, as of ``Regular`` (``variate step``).
        observed: False where a value stands in for a gap (``variate step``).
        interval: seconds between two steps, at the median.
        spacing: seconds between two steps, at the mean: more, where weekends are left out.
        origins: the first step of each window's horizon.
        first: index of the first of the windows.
    """

    item: str
    times: npt.NDArray[np.int64]
    values: Doubles
    observed: npt.NDArray[np.bool_]
    interval: int
    spacing: float
    origins: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Shard:
    """Windows that are forecast together.

    Attributes:
        index: its place in the order.
        pieces: the series that they are cut from.
        problems: series of this place in the file that cannot be forecast.
    """

    index: int
    pieces: tuple[Piece, ...]
    problems: tuple[Problem, ...]

    @property
    def windows(self) -> int:
        """How many."""
        return sum(len(piece.origins) for piece in self.pieces)


def shards_of(found: Iterable[Regular | Problem], job: Job) -> Iterator[Shard]:
    """Cut the work into shards of up to ``job.shard`` windows, in the order of the file.

    A series that fits into one is not spread over two. One that cannot be forecast counts as a
    window.
    """
    tray = _Tray()
    for one in found:
        if isinstance(one, Problem):
            if tray.used == job.shard:
                yield tray.empty()
            tray.put(one)
            continue
        done = 0
        while done < len(one.origins):
            left, room = len(one.origins) - done, job.shard - tray.used
            if not room or room < left <= job.shard:
                yield tray.empty()
                continue
            tray.put(_piece(one, done, min(left, room), job))
            done += min(left, room)
    if tray.used:
        yield tray.empty()


class _Tray:
    """What is put into the next shard."""

    def __init__(self) -> None:
        self._index = -1
        self._begin()

    def _begin(self) -> None:
        self._index += 1
        self._pieces: list[Piece] = []
        self._problems: list[Problem] = []
        self.used = 0

    def put(self, one: Piece | Problem) -> None:
        """Put in what fits."""
        if isinstance(one, Problem):
            self._problems.append(one)
            self.used += 1
        else:
            self._pieces.append(one)
            self.used += len(one.origins)

    def empty(self) -> Shard:
        """The shard, after which the next one begins."""
        shard = Shard(self._index, tuple(self._pieces), tuple(self._problems))
        self._begin()
        return shard


def _piece(series: Regular, first: int, count: int, job: Job) -> Piece:
    origins = series.origins[first : first + count]
    start = max(0, origins[0] - job.context)
    part = slice(start, origins[-1] + job.horizon)
    return Piece(
        item=series.item,
        times=series.times[part],
        values=series.values[:, part],
        observed=series.observed[:, part],
        interval=series.interval,
        spacing=float(np.diff(series.times).mean() / 1e9),
        origins=tuple(origin - start for origin in origins),
        first=first,
    )

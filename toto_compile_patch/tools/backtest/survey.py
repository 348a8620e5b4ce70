"""The first pass over the file: everything is checked, and nothing is forecast yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.regular import TOO_SHORT, Problem, Regular, regular
from toto_compile_patch.tools.backtest.shards import Shard, shards_of
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.screen import ProgressLine
from toto_compile_patch.tools.series.reader import RawSeries, Reader
from toto_compile_patch.tools.series.steps import named_step
from toto_compile_patch.tools.wording import counted


@dataclass(frozen=True)
class Plan:
    """How much work there is.

    Attributes:
        series: in the file.
        broken: of these, how many cannot be forecast.
        fewer: of these, how many are too short for as many windows as were asked for.
        windows: to forecast.
        shards: that they are cut into.
        timezone: of the times.
        file: what was found out about the file, in words.
    """

    series: int
    broken: int
    fewer: int
    windows: int
    shards: int
    timezone: str | None
    file: str


def shards_in(reader: Reader, path: str, job: Job) -> Iterator[Shard]:
    """The work that a file holds, in its order.

    Raises:
        UsageError: the file, or the times of a series, cannot be used.
    """
    return shards_of((regular(raw, path, job) for raw in reader.series()), job)


def survey(reader: Reader, path: str, job: Job) -> Plan:
    """Go through the whole file, and say how much work there is.

    Raises:
        UsageError: the file, or the times of a series, cannot be used, or none of its series.
    """
    counts = _Counts(job, reader.is_calendar)

    def counted(progress: ProgressLine) -> Iterator[Regular | Problem]:
        for raw in reader.series():
            one = regular(raw, path, job)
            counts.add(one, raw)
            if counts.series % 100 == 0:
                progress.say(f"checking: {counts.series} series")
            yield one

    windows = shards = 0
    with ProgressLine(1) as progress:
        progress.say("checking the file")
        for shard in shards_of(counted(progress), job):
            windows, shards = windows + shard.windows, shards + 1
    if not windows:
        raise UsageError(f"{path} {counts.why_none()}")
    file = "; ".join([reader.notes, *counts.told()])
    return Plan(counts.series, counts.broken, counts.fewer, windows, shards, reader.timezone, file)


class _Counts:
    def __init__(self, job: Job, is_calendar: bool) -> None:
        self._job = job
        self.series = self.broken = self.fewer = self._sorted = self._longest = 0
        self._step: str | None = None
        self._is_calendar = is_calendar
        self._first: Problem | None = None

    def add(self, one: Regular | Problem, raw: RawSeries) -> None:
        self.series += 1
        self._sorted += raw.was_sorted
        self._longest = max(self._longest, len(raw.times))
        if isinstance(one, Regular):
            self.fewer += len(one.origins) < self._job.windows
            self._step = self._step or (named_step(raw.times) if self._is_calendar else None)
            return
        self.broken += 1
        if self._first is None or self._first.kind == TOO_SHORT:
            self._first = one

    def told(self) -> Iterator[str]:
        """What was found out about the times of the series, in words."""
        if self._step is not None:
            yield self._step
        if self._sorted:
            yield f"{counted(self._sorted, 'series', 'series')} sorted by time"

    def why_none(self) -> str:
        """Why no window can be forecast."""
        job, first = self._job, self._first
        if first is None:
            return "holds no rows: give a longer file"
        if first.kind == TOO_SHORT:
            rows = counted(self._longest, "row")
            return (
                f"is too short for --horizon {job.horizon}: its longest series has {rows}, and "
                f"with --min-context {job.min_context} a window needs {job.shortest}: ask for less"
            )
        return (
            f"holds no series that can be forecast ({first.item!r}: {first.message}): correct the "
            "file"
        )

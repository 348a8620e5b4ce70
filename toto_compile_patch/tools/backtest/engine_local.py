"""All forecasts in this process."""

from __future__ import annotations

from collections.abc import Iterator

from toto_compile_patch.tools.backtest.forecasting import Forecasting
from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.parts import Part
from toto_compile_patch.tools.backtest.shards import Shard


class Local:
    """An engine of one process: this one.

    Args:
        job: what is asked for.
        timezone: of the times.
    """

    name = "in one process"

    def __init__(self, job: Job, timezone: str | None) -> None:
        self._job, self._timezone = job, timezone

    def __enter__(self) -> Local:
        self._forecasting = Forecasting(self._job, self._timezone)
        return self

    def __exit__(self, *_: object) -> None: ...

    def parts(self, shards: Iterator[Shard]) -> Iterator[Part]:
        """The parts, in the order of the shards."""
        return map(self._forecasting.part, shards)

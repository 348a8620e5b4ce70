"""What stands in the place of a forecast that cannot be made, among many that can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from toto_compile_patch.errors import in_a_line


@dataclass(frozen=True, eq=False)
class FailedForecast:
    """The place of a window that cannot be forecast, in what ``forecast_many`` gives.

    Whoever asks it for what a forecast has gets its error raised: a window that failed is never
    taken for one that did not.

    Attributes:
        index: the window's place in the order, from 0 on.
        error: what was raised for it.
    """

    index: int
    error: Exception

    def _raise(self, *args: Any) -> NoReturn:
        raise self.error

    mean = samples = median = std = property(_raise)
    quantile = _raise

    def __repr__(self) -> str:
        return f"FailedForecast(index={self.index}, error={in_a_line(self.error)!r})"

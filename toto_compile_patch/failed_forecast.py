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

    def __post_init__(self) -> None:
        object.__setattr__(self, "_raised_at", self.error.__traceback__)

    def __reduce__(self) -> tuple[Any, ...]:
        # Where it was raised cannot be pickled.
        return FailedForecast, (self.index, self.error)

    def _raise(self, *args: Any) -> NoReturn:
        # Else it would tell of every look before this one as well.
        raise self.error.with_traceback(vars(self)["_raised_at"])

    mean = samples = median = std = property(_raise)
    quantile = _raise

    def __repr__(self) -> str:
        return f"FailedForecast(index={self.index}, error={in_a_line(self.error)!r})"

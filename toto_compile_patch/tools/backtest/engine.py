"""Where forecasts are made."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

from toto_compile_patch.tools.backtest.parts import Part
from toto_compile_patch.tools.backtest.shards import Shard


class Engine(Protocol):
    """Makes forecasts, from when it is entered until it is left."""

    @property
    def name(self) -> str:
        """Where, in words."""
        ...

    def __enter__(self) -> Engine:
        """Begin.

        Raises:
            UsageError: the model is not to be had, or what the engine needs.
        """
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def parts(self, shards: Iterator[Shard]) -> Iterator[Part]:
        """The parts, in whatever order they are done; shards are read as they are needed."""
        ...

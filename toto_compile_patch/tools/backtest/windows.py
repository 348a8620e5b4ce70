"""Windows, cut from a stretch of a series as the model takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.regular import Problem
from toto_compile_patch.tools.backtest.shards import Piece
from toto_compile_patch.tools.series.single import Floats
from toto_compile_patch.tools.series.steps import season_of
from toto_compile_patch.tools.windows import Window
from toto_compile_patch.tools.wording import counted

if TYPE_CHECKING:
    from toto.data.util.dataset import MaskedTimeseries

_SECOND = 10**9


@dataclass(frozen=True)
class Cut:
    """One forecast to make.

    Attributes:
        item: id of the series.
        index: of the window in the series.
        cutoff: time of the last value of the context, in nanoseconds since 1970.
        season: steps after which the series repeats itself, fewer than the context has.
        window: the target, then what is known ahead; the truth is the target's.
        future: what is known ahead, over the horizon (``variate horizon``).
    """

    item: str
    index: int
    cutoff: int
    season: int
    window: Window
    future: Floats

    def inputs(self, device: str) -> MaskedTimeseries:
        """The context as upstream takes it."""
        inputs = self.window.inputs().to(torch.device(device))
        if len(self.future):
            inputs = inputs._replace(num_exogenous_variables=len(self.future))
        return inputs

    def known_ahead(self, device: str) -> torch.Tensor | None:
        """What is known ahead, as upstream takes it."""
        return torch.from_numpy(self.future).to(device) if len(self.future) else None

    def seed(self, seed: int) -> int:
        """The window's own seed, of 63 bits: another one for each series and time, and the same
        one whatever else is forecast."""
        text = f"{seed}\n{self.item}\n{self.cutoff}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


def cuts_of(piece: Piece, job: Job) -> Iterator[Cut | Problem]:
    """The windows of a stretch, or why one cannot be forecast."""
    values = np.ascontiguousarray(piece.values, dtype=job.dtype)
    season = job.season or season_of(piece.interval, piece.spacing, job.context)
    for index, origin in enumerate(piece.origins, piece.first):
        past = slice(max(0, origin - job.context), origin)
        ahead = slice(origin, origin + job.horizon)
        if problem := _problem(piece, index, past, ahead, job):
            yield problem
            continue
        yield Cut(
            item=piece.item,
            index=index,
            cutoff=int(piece.times[origin - 1]),
            season=season if season < origin - past.start else 1,
            window=_window(piece, values, past, ahead),
            future=np.ascontiguousarray(values[1:, ahead]),
        )


def _window(piece: Piece, values: Any, past: slice, ahead: slice) -> Window:
    return Window(
        values=np.ascontiguousarray(values[:, past]),
        observed=np.ascontiguousarray(piece.observed[:, past]),
        seconds=piece.times[past] // _SECOND,
        interval=piece.interval,
        truth=np.where(piece.observed[:1, ahead], piece.values[:1, ahead], np.nan),
    )


def _problem(piece: Piece, index: int, past: slice, ahead: slice, job: Job) -> Problem | None:
    if not piece.observed[0, past].any():
        told = f"its context, of {counted(past.stop - past.start, 'step')}, holds nothing but gaps"
        return Problem(piece.item, index, "context missing", told)
    for name, known in zip(job.known, piece.observed[1:, ahead], strict=True):
        if not known.any():
            told = f"nothing is known ahead of {name!r}: fill it in, or leave out --known {name}"
            return Problem(piece.item, index, "covariate missing", told)
    return None

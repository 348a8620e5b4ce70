"""A forecast's own random numbers, begun by one draw from the process's generator.

A forecast that has to begin again begins its own numbers anew. To set back the process's generator
instead would repeat what another thread, or the user's own code, has drawn meanwhile.

Where windows are forecast together, each has numbers of its own, begun by a seed of its own: they
are the same whatever stands beside it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch


class RandomStream(Protocol):
    """Random numbers, in the order in which a forecast asks for them.

    Attributes:
        windows: how many of a batch's parts have numbers of their own.
    """

    @property
    def windows(self) -> int:
        """How many of a batch's parts have numbers of their own."""

    def uniform(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """The next uniform numbers, ``batch ...``, in [0, 1)."""


@dataclass(frozen=True)
class OneStream:
    """Numbers for a batch as a whole, from a generator; None: the process's own."""

    generator: torch.Generator | None
    windows = 1

    def uniform(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """The next uniform numbers, ``batch ...``, in [0, 1)."""
        return torch.rand(shape, dtype=dtype, device=device, generator=self.generator)


@dataclass(frozen=True)
class StreamOfEachWindow:
    """Numbers for each of the equal parts that a batch consists of, from its own generator."""

    generators: tuple[torch.Generator, ...]

    @property
    def windows(self) -> int:
        """How many of a batch's parts have numbers of their own."""
        return len(self.generators)

    def uniform(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """The next uniform numbers, ``batch ...``, in [0, 1)."""
        numbers = torch.empty(shape, dtype=dtype, device=device)
        parts = numbers.chunk(self.windows)
        for part, generator in zip(parts, self.generators, strict=True):
            part.uniform_(generator=generator)
        return numbers


class RandomNumbers(Protocol):
    """Where the random numbers of a forecast come from."""

    def from_the_start(self) -> RandomStream:
        """All of them, from the first one on."""


class OwnRandomNumbers:
    """Random numbers that are a forecast's alone.

    A seed of the process's generator gives the same forecast again. Nothing is drawn from it for a
    forecast that draws nothing.

    Args:
        device: of the forecast.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seed: int | None = None

    @property
    def seed(self) -> int:
        """What they begin with; drawn when it is first asked for."""
        if self._seed is None:
            self._seed = _drawn_seed(self._device)
        return self._seed

    @property
    def next_seed(self) -> int:
        """What ``seed`` would be if it were asked for now, on CUDA; nothing is drawn.

        It will be another one if somebody else draws meanwhile.
        """
        if self._seed is not None:
            return self._seed
        return 0 if _here.draws_nothing else _next_seed(self._device)

    def from_the_start(self) -> OneStream:
        """All of them, from the first one on."""
        return OneStream(torch.Generator(self._device).manual_seed(self.seed))


@dataclass(frozen=True)
class GivenRandomNumbers:
    """Those of a given generator, or of torch's own, from its current state on."""

    generator: torch.Generator | None

    def from_the_start(self) -> OneStream:
        """Those of that generator, where it stands."""
        return OneStream(self.generator)


@dataclass(frozen=True)
class RandomNumbersOfWindows:
    """Those of several windows that are forecast together.

    Attributes:
        device: of the forecast.
        seeds: of each window.
    """

    device: torch.device
    seeds: tuple[int, ...]

    def from_the_start(self) -> StreamOfEachWindow:
        """All of them, from the first one on."""
        return StreamOfEachWindow(
            tuple(torch.Generator(self.device).manual_seed(seed) for seed in self.seeds)
        )


class _DrawsOfThread(threading.local):
    """How this thread's forecasts draw.

    Attributes:
        draws_nothing: they begin with any number, and draw none from the process's.
        seeds: of the windows of a batch; None: it is one, with a seed from the process's generator.
    """

    draws_nothing = False
    seeds: tuple[int, ...] | None = None


_here = _DrawsOfThread()


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Let this thread's forecasts begin with any number, and draw none from the process's."""
    before, _here.draws_nothing = _here.draws_nothing, True
    try:
        yield
    finally:
        _here.draws_nothing = before


@contextmanager
def drawn_for_each(seeds: tuple[int, ...]) -> Iterator[None]:
    """Let this thread's forecasts be of several windows, as equal parts of a batch.

    Args:
        seeds: of each window.
    """
    before, _here.seeds = _here.seeds, seeds
    try:
        yield
    finally:
        _here.seeds = before


def numbers_of_a_forecast(device: torch.device) -> RandomNumbers:
    """The random numbers of this thread's next forecast."""
    if _here.seeds is not None:
        return RandomNumbersOfWindows(device, _here.seeds)
    return OwnRandomNumbers(device)


def _drawn_seed(device: torch.device) -> int:
    if _here.draws_nothing:
        return 0
    if device.type != "cuda":
        return int(torch.empty((), dtype=torch.int64, device=device).random_())
    # Forecasts of a device draw one at a time (see ``graphs.one_at_a_time``): no two draw the same.
    seed = _next_seed(device)
    _move_on(device)
    return seed


def _next_seed(device: torch.device) -> int:
    """The seed that follows from the state of a GPU's generator, which is kept on the host.

    To read a number that a GPU has drawn is to wait for all that it was given to do.
    """
    return seed_from(torch.cuda.get_rng_state(device).numpy().tobytes())


def _move_on(device: torch.device) -> None:
    """Move the generator of a GPU on by a draw, of which nothing is read."""
    with torch.cuda.device(device):
        torch.empty((), device=device).uniform_()


def seed_from(data: bytes) -> int:
    """A seed of 63 bits that follows from any bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1

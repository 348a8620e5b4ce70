"""A forecast's own random numbers, begun by one draw from the process's generator.

A forecast that has to begin again begins its own numbers anew. To set back the process's generator
instead would repeat what another thread, or the user's own code, has drawn meanwhile.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch


class RandomNumbers(Protocol):
    """Where the random numbers of a forecast come from."""

    def from_the_start(self) -> torch.Generator | None:
        """A generator of them, from the first one on; None: the process's own."""


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

    def from_the_start(self) -> torch.Generator:
        """A generator of them, from the first one on."""
        return torch.Generator(self._device).manual_seed(self.seed)


@dataclass(frozen=True)
class GivenRandomNumbers:
    """Those of a given generator, or of torch's own, from its current state on."""

    generator: torch.Generator | None

    def from_the_start(self) -> torch.Generator | None:
        """That generator, where it stands."""
        return self.generator


class _DrawsOfThread(threading.local):
    draws_nothing = False


_here = _DrawsOfThread()


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Let this thread's forecasts begin with any number, and draw none from the process's."""
    before, _here.draws_nothing = _here.draws_nothing, True
    try:
        yield
    finally:
        _here.draws_nothing = before


def _drawn_seed(device: torch.device) -> int:
    if _here.draws_nothing:
        return 0
    if device.type == "cuda":
        return _drawn_without_waiting(device)
    return int(torch.empty((), dtype=torch.int64, device=device).random_())


def _drawn_without_waiting(device: torch.device) -> int:
    """To read a number that a GPU has drawn is to wait for all that it was given to do.

    The state of its generator is kept on the host. It is read, and moved on by a draw; forecasts
    of a device do so one at a time (see ``graphs.one_at_a_time``), and so no two read the same.
    """
    with torch.cuda.device(device):
        state = torch.cuda.get_rng_state(device)
        torch.empty((), device=device).uniform_()
    digest = hashlib.blake2b(state.numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

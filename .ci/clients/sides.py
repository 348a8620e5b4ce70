"""One client of Toto, run by upstream's code and patched: whether both say the same, and how fast.

Each side has a process of its own for all of a client's cases, and they take turns, never two at
once. A third process, patched with ``rng="upstream"``, draws upstream's random numbers, so that
samples can be compared one by one too.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

import toto_compile_patch
from toto_compile_patch.tools.workers import Worker

Floats = npt.NDArray[np.floating[Any]]

QUANTILES = (0.1, 0.5, 0.9)
"""What a case returns of its samples, along its first axis."""

TURNS = 3
"""Timed forecasts of each side, unless a case has its own number, after one that is not timed."""

ROUNDING = 1e-5
"""The most that means, and quantiles of the same draws, may differ by, in standard deviations of
the series."""

CHANCE = 2.0
"""How many times as far from upstream as upstream is from itself, with another seed, patched
quantiles may be: chance alone makes it about 1."""


class ClientError(RuntimeError):
    """A client was not reached, or does not say the same patched."""


@dataclass(frozen=True)
class Side:
    """Which code forecasts, and by which random numbers."""

    name: str
    rng: str | None

    @property
    def patched(self) -> bool:
        """Whether the patch is applied."""
        return self.rng is not None

    @functools.cached_property
    def bring_about(self) -> Callable[[], None]:
        """What makes it so in a process; it can be sent to another one.

        It is one object, since joblib starts other workers where it is given another.
        """
        if self.rng is None:
            return toto_compile_patch.revert
        return functools.partial(toto_compile_patch.apply, rng=self.rng, fallback="error")


UPSTREAM = Side("upstream", None)
PATCHED = Side("patched", "fast")
SAME_DRAWS = Side("patched, upstream's draws", "upstream")


@dataclass(frozen=True)
class Case:
    """One way in which a client is used.

    Attributes:
        name: what it is, in words.
        forecast: what the client makes on a side from a seed: quantiles of samples at
            ``QUANTILES``, along the first axis, or a mean forecast.
        deviation: the standard deviation of the series; the smallest, if there are several.
        draws: whether it returns quantiles of samples.
        in_workers: whether the client forecasts in processes of its own, so that ``forecast``
            itself raises where the fast path was not taken.
        at_least: how many times faster patched has to be.
        turns: timed forecasts of each side.
    """

    name: str
    forecast: Callable[[int, Side], Floats]
    deviation: float
    draws: bool = True
    in_workers: bool = False
    at_least: float = 1.0
    turns: int = TURNS


@dataclass(frozen=True)
class Client:
    """A library that forecasts by Toto.

    Attributes:
        name: what people call it.
        distribution: the one whose version is the client's.
        recipe: what to write so that it runs patched.
        pitfalls: what else one has to know, in Markdown.
        cases: the ways in which it is used.
        checks: further functions that raise where something is wrong, each run in a process of
            its own.
        end: called at the end of each process that has run the cases.
    """

    name: str
    distribution: str
    recipe: str
    pitfalls: str
    cases: tuple[Case, ...]
    checks: tuple[Callable[[], None], ...] = ()
    end: Callable[[], None] = lambda: None


def client_of(module: str) -> Client:
    """The client that a module of this folder defines."""
    client: Client = importlib.import_module(module).CLIENT
    return client


@dataclass(frozen=True)
class _Answer:
    values: Floats
    seconds: float


def _forecasts(questions: Iterator[tuple[int, int]], module: str, side: Side) -> Iterator[Any]:
    """The work of one side: an answer for each case's index and seed."""
    side.bring_about()
    client = client_of(module)
    yield None
    try:
        for index, seed in questions:
            yield _forecast(client.cases[index], seed, side)
    finally:
        client.end()
    yield None


def _forecast(case: Case, seed: int, side: Side) -> _Answer:
    before = toto_compile_patch.last_path()
    start = time.perf_counter()
    values = case.forecast(seed, side)
    seconds = time.perf_counter() - start
    path = toto_compile_patch.last_path()
    if not case.in_workers:
        if side.patched and (path is before or path is None or path.taken != "fast"):
            raise ClientError(f"the fast path was not taken, but {path}")
        if not side.patched and path is not None and path.taken == "fast":
            raise ClientError("the fast path was taken, though nothing was to be patched")
    if not np.isfinite(values).all():
        raise ClientError("a forecast is not finite")
    return _Answer(np.asarray(values, float), seconds)


def measure(module: str, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """The figures of each of a client's cases, by their names.

    Args:
        module: the client's, in this folder.
        say: is told what is being done.

    Raises:
        ClientError: patched does not say the same, or is not faster.
        WorkerError: a side cannot forecast, or the fast path was not taken.
    """
    found = {}
    cases = client_of(module).cases
    with ExitStack() as stack:
        workers = {}
        for side in (UPSTREAM, PATCHED, SAME_DRAWS):
            workers[side] = stack.enter_context(Worker(side.name, _forecasts, module, side))
            workers[side].receive()
        for index, case in enumerate(cases):
            say(case.name)
            found[case.name] = _measure(index, case, workers)
            say(", ".join(f"{name} {figure:.3g}" for name, figure in found[case.name].items()))
        for worker in workers.values():
            worker.ask(None)
    return found


def _measure(index: int, case: Case, workers: dict[Side, Worker]) -> dict[str, float]:
    def ask(side: Side, seed: int) -> _Answer:
        answer: _Answer = workers[side].ask((index, seed))
        return answer

    both = (UPSTREAM, PATCHED)
    answers = {side: [ask(side, 0)] for side in both}
    for turn in range(1, case.turns + 1):
        for side in both if turn % 2 else both[::-1]:
            answers[side].append(ask(side, turn))
    upstream, patched = answers[UPSTREAM], answers[PATCHED]
    timed = list(zip(upstream[1:], patched[1:], strict=True))
    figures = {
        "upstream": statistics.median(one.seconds for one, _ in timed),
        "patched": statistics.median(other.seconds for _, other in timed),
        "ratio": statistics.median(one.seconds / other.seconds for one, other in timed),
    }
    exact = [ask(SAME_DRAWS, 0)] if case.draws else patched[:1]
    figures["rounding"] = float(np.abs(exact[0].values - upstream[0].values).max() / case.deviation)
    if case.draws:
        pairs = zip(upstream, patched, strict=True)
        figures["distance"] = _mean_distance([(u.values, p.values) for u, p in pairs])
        seeds = combinations([one.values for one in upstream], 2)
        figures["between_seeds"] = _mean_distance(list(seeds))
    _judge(case, figures)
    return figures


def _mean_distance(pairs: list[tuple[Floats, Floats]]) -> float:
    """Mean distance of quantiles, in widths of the interval between the outer ones."""
    distances = []
    for one, other in pairs:
        width = (one[-1] - one[0]).mean()
        distances.append(np.abs(one - other).mean() / width)
    return float(np.mean(distances))


def _judge(case: Case, figures: dict[str, float]) -> None:
    """Raise where figures are not what they have to be."""
    told = f"{case.name}: {figures}"
    if not figures["rounding"] <= ROUNDING:
        raise ClientError(f"patched differs from upstream by more than rounding: {told}")
    if case.draws and not figures["distance"] <= CHANCE * figures["between_seeds"]:
        raise ClientError(f"samples differ by more than those of two seeds: {told}")
    if not figures["ratio"] >= case.at_least:
        raise ClientError(f"patched is not {case.at_least:g} times as fast: {told}")

"""Forecasts by the workers of a Ray cluster, each of which loads the model once."""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from toto_compile_patch.errors import in_a_line
from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools.backtest.forecasting import Forecasting
from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.parts import Part
from toto_compile_patch.tools.backtest.shards import Shard
from toto_compile_patch.tools.checks import UsageError, pip_install_or_extra
from toto_compile_patch.tools.wording import counted

_SECONDS_TO_CONNECT = 10

IN_FLIGHT = 2
"""Shards that a worker has: one that it forecasts, and one that is on its way meanwhile."""

MOST_TRIES = 5
"""Workers that may die over one shard before it is taken for the cause."""


@dataclass(frozen=True)
class Cluster:
    """Where the workers are, and how many.

    Attributes:
        address: of a cluster that runs; None: one is started on this machine.
        workers: how many; None: as many as there is room for.
        cpus: of each.
        gpus: of each.
    """

    address: str | None
    workers: int | None
    cpus: float
    gpus: float


class Worker:
    """What a worker does; its process may be killed and begun anew at any time."""

    def __init__(self, job: Job, timezone: str | None) -> None:
        for name in [name for name in os.environ if name.startswith(ENV_TOGGLE)]:
            del os.environ[name]
        os.environ.update(job.settings)
        self._job, self._timezone = job, timezone
        self._forecasting: Forecasting | None = None

    def begin(self) -> None:
        """Load the model.

        It is not done when the process begins: what is raised then, Ray tells in a page.
        """
        if self._forecasting is None:
            self._forecasting = Forecasting(self._job, self._timezone)

    def part(self, shard: Shard, tries: Any) -> Part:
        """Forecast the windows of a shard; what counts its tries is an actor of ``Tries``."""
        import ray

        if ray.get(tries.count.remote(shard.index)) > MOST_TRIES:
            raise UsageError(_why_given_up(shard))
        self.begin()
        assert self._forecasting is not None
        return self._forecasting.part(shard)


class Tries:
    """Counts how often a shard was begun, beside the workers, which may not live to tell."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def count(self, shard: int) -> int:
        """How often it was begun, this time included."""
        self._counts[shard] += 1
        return self._counts[shard]


class OnRay:
    """An engine of several processes, on one machine or many.

    Args:
        job: what is asked for.
        timezone: of the times.
        cluster: where, and how many workers.
        shards: how many there are: no more workers are of use.

    Raises:
        UsageError: Ray is not installed.
    """

    def __init__(self, job: Job, timezone: str | None, cluster: Cluster, shards: int) -> None:
        self._ray = import_ray()
        self._job, self._timezone, self._cluster = job, timezone, cluster
        self._most = shards
        self.name = "by Ray"

    def __enter__(self) -> OnRay:
        _connect(self._ray, self._cluster)
        try:
            count = _count(self._ray, self._cluster, self._most)
            self.name = f"by {counted(count, 'worker')} of Ray"
            self._pool = _Pool(self._ray, self._job, self._timezone, self._cluster, count)
            # One is enough to begin: others may have to wait for machines to be started.
            self._pool.wait([])
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def parts(self, shards: Iterator[Shard]) -> Iterator[Part]:
        """The parts, as they are done. A shard whose worker died is given to another one.

        Raises:
            UsageError: worker after worker died.
        """
        in_flight: dict[Any, tuple[int, Shard]] = {}
        again: list[Shard] = []
        rest = _Rest(shards, again)
        while True:
            while (worker := self._pool.free()) is not None and (shard := rest.next()):
                in_flight[self._pool.send(worker, shard)] = worker, shard
            if not in_flight and rest.is_empty:
                return
            for reference in self._pool.wait(list(in_flight)):
                worker, shard = in_flight.pop(reference)
                part = self._pool.receive(reference, worker)
                if part is None:
                    again.append(shard)
                else:
                    yield part


class _Rest:
    """Shards that no worker has: those that one has lost, and those that are still to be read."""

    def __init__(self, shards: Iterator[Shard], again: list[Shard]) -> None:
        self._shards, self._again = shards, again
        self._ended = False

    @property
    def is_empty(self) -> bool:
        return self._ended and not self._again

    def next(self) -> Shard | None:
        if self._again:
            return self._again.pop()
        shard = next(self._shards, None)
        self._ended = shard is None
        return shard


class _Pool:
    """Workers, and how many shards each of them has. Where one is gone for good, as when its
    machine is, another one takes its place."""

    def __init__(
        self, ray: ModuleType, job: Job, timezone: str | None, cluster: Cluster, count: int
    ) -> None:
        self._ray = ray
        kept = {"max_restarts": -1, "max_task_retries": -1}
        self._tries = ray.remote(Tries).options(num_cpus=0, **kept).remote()
        kind = ray.remote(Worker).options(num_cpus=cluster.cpus, num_gpus=cluster.gpus, **kept)
        self._new = partial(kind.remote, job, timezone)
        self._numbers = itertools.count()
        self._workers: dict[int, Any] = {}
        self._loads: dict[int, int] = {}
        self._starting: dict[Any, int] = {}
        self._deaths = 0
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        number = next(self._numbers)
        self._workers[number] = self._new()
        self._starting[self._workers[number].begin.remote()] = number

    def free(self) -> int | None:
        """The worker that has the least to do, if it can take another shard."""
        number = min(self._loads, key=self._loads.__getitem__, default=None)
        return None if number is None or self._loads[number] >= IN_FLIGHT else number

    def send(self, number: int, shard: Shard) -> Any:
        """Give a shard to a worker; returns what stands for its part."""
        self._loads[number] += 1
        return self._workers[number].part.remote(shard, self._tries)

    def wait(self, in_flight: list[Any]) -> list[Any]:
        """Wait until a part is done, or a worker has started: those of the parts that are done."""
        done, _ = self._ray.wait([*in_flight, *self._starting])
        for reference in [one for one in done if one in self._starting]:
            number = self._starting.pop(reference)
            self._loads[number] = 0
            self.receive(reference, number)
        return [one for one in done if one in in_flight]

    def receive(self, reference: Any, number: int) -> Part | None:
        """What a worker has made; None where it is lost.

        Raises:
            UsageError: it cannot be made, or worker after worker died.
        """
        errors = self._ray.exceptions
        try:
            made: Part | None = self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UsageError):
                raise UsageError(str(error.cause)) from None
            raise
        except errors.RayError as error:
            self._replace(number, error)
            return None
        if number in self._loads and made is not None:
            self._loads[number] -= 1
            self._deaths = 0
        return made

    def _replace(self, number: int, error: Exception) -> None:
        if number not in self._workers:
            return
        self._deaths += 1
        if self._deaths > MOST_TRIES:
            raise UsageError(
                f"--engine ray: worker after worker is lost ({in_a_line(error)}): see Ray's logs, "
                "give each worker more --cpus-per-worker, or fewer --workers"
            )
        self._loads.pop(number, None)
        with suppress(Exception):
            self._ray.kill(self._workers[number])
        del self._workers[number]
        self._start()


def import_ray() -> ModuleType:
    """Ray, if it is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"--engine ray needs Ray ({in_a_line(error)}): {pip_install_or_extra('ray')}"
        ) from None
    found: ModuleType = ray
    return found


def _connect(ray: ModuleType, cluster: Cluster) -> None:
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    # What one worker says is enough, and is said in a line.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        # One that is started for this run: it need not report to anybody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        asked = math.ceil((cluster.workers or 0) * cluster.cpus)
        how |= {"num_cpus": max(cores or 1, asked), "include_dashboard": False}
    _check_reachable(address)
    try:
        ray.init(address=address, **how)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster at --address {address} ({in_a_line(error)}): correct it, or start one"
        ) from None


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes before it says so."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster at --address {address} ({error}): correct it, or start one"
        ) from None


def _count(ray: ModuleType, cluster: Cluster, most: int) -> int:
    """How many workers there are to be."""
    there = ray.cluster_resources()
    rooms = [
        int(there.get(kind, 0) // each)
        for kind, each in (("CPU", cluster.cpus), ("GPU", cluster.gpus))
        if each
    ]
    room = min(rooms, default=1)
    if not room or ((cluster.workers or 0) > room and not cluster.address):
        workers = counted(cluster.workers or 1, "worker")
        raise UsageError(
            f"--engine ray has no room for {workers} of {_room(cluster.cpus, cluster.gpus)}: ask "
            f"for no more than its {_room(there.get('CPU', 0), there.get('GPU', 0))}"
        )
    return max(1, min(cluster.workers or room, most))


def _room(cpus: float, gpus: float) -> str:
    return f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"


def _why_given_up(shard: Shard) -> str:
    items = f"{shard.pieces[0].item!r} to {shard.pieces[-1].item!r}" if shard.pieces else "none"
    return (
        f"{MOST_TRIES} workers died over part {shard.index} (series {items}), perhaps for want of "
        "memory: give less --memory, or fewer --samples"
    )

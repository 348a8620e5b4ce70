"""Which column of a file is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.checks import UsageError

IDS = ("item_id", "unique_id", "series_id", "id")
TIMES = ("timestamp", "ds", "time", "datetime", "date")
TARGETS = ("target", "y", "value")


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        id: that names the series; None: the file holds one series, or each target is one.
        time: that gives the times.
        targets: to be forecast: one, or in a wide file one for each series.
        known: known ahead.
        wide: whether each target is a series.
    """

    id: str | None
    time: str
    targets: tuple[str, ...]
    known: tuple[str, ...]
    wide: bool

    @property
    def of_a_row(self) -> list[str]:
        """Those of a row of a long file."""
        return [*([self.id] if self.id else []), self.time, *self.targets, *self.known]


def columns_of(path: str, names: Sequence[str], job: Job) -> Columns:
    """Find the columns, by the names asked for or by known ones.

    Args:
        path: of the file, for messages.
        names: of all its columns.
        job: what was asked for.

    Raises:
        UsageError: one is missing, or there are two of a name.
    """
    if len(set(names)) < len(names):
        raise UsageError(f"{path} has columns of one name: {_listed(names)}: rename one")
    time = _found(path, names, "time", job.time, TIMES)
    for column in job.known:
        _found(path, names, "known", column, ())
    if job.wide:
        targets = tuple(name for name in names if name not in (time, *job.known))
        if not targets:
            raise UsageError(f"{path} has no column beside {_listed(names)}: there is no series")
        return Columns(None, time, targets, job.known, wide=True)
    target = _found(path, names, "target", job.target, TARGETS)
    named = _found(path, names, "id", job.id, IDS) if job.id else _known(names, IDS)
    found = Columns(named, time, (target,), job.known, wide=False)
    if len(set(found.of_a_row)) < len(found.of_a_row):
        raise UsageError(
            f"{path}: one column cannot be two things: {_listed(found.of_a_row)}: "
            "correct --id, --time, --target or --known"
        )
    return found


def _found(
    path: str, names: Sequence[str], what: str, asked: str | None, known: Sequence[str]
) -> str:
    name = _known(names, known) if asked is None else asked
    if name is None:
        raise UsageError(
            f"{path} has no column named {', '.join(known[:-1])} or {known[-1]}: name one with "
            f"--{what}; it has {_listed(names)}"
        )
    if name not in names:
        raise UsageError(
            f"{path} has no column {name!r}: correct --{what}; it has {_listed(names)}"
        )
    return name


def _known(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of the known names that a column has, in whatever case."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in known if name in by_lower), None)


_MOST_LISTED = 20


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more

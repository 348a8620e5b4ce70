"""Which columns of a file a backtest reads."""

from __future__ import annotations

from collections.abc import Sequence

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.layout import TARGETS, Layout, known
from toto_compile_patch.tools.series.reader import Columns
from toto_compile_patch.tools.series.tables import listed


def columns_of(layout: Layout, job: Job) -> Columns:
    """Find the columns: those asked for, known names, and else by what they hold.

    Args:
        layout: of the file.
        job: what was asked for.

    Raises:
        UsageError: one is missing.
    """
    path, names = layout.table.path, layout.table.columns
    if layout.time is None:
        raise UsageError(
            f"{path} has no column of times: name it with --time; it has {listed(names)}"
        )
    for column in job.known:
        layout.named("known", column)
    if job.wide:
        targets = tuple(name for name in layout.others() if name not in job.known)
        if not targets:
            beside = listed((layout.time, *job.known))
            raise UsageError(f"{path} has no column beside {beside}: give each series one")
        return Columns(None, layout.time, targets, job.known, wide=True)
    found = Columns(layout.id, layout.time, (_target(layout, job),), job.known, wide=False)
    if len(set(found.of_a_row)) < len(found.of_a_row):
        raise UsageError(
            f"{path}: one column cannot be two things: {listed(found.of_a_row)}: "
            "correct --id, --time, --target or --known"
        )
    return found


def _target(layout: Layout, job: Job) -> str:
    names: Sequence[str] = layout.table.columns
    if job.target is not None:
        return layout.named("target", job.target)
    if name := known(names, TARGETS):
        return name
    return layout.only_number("target", job.known)

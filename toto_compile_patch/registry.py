"""The one place that installs and removes patches: all or nothing, under one lock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from toto_compile_patch.compiled_code import compiled_code_follows
from toto_compile_patch.errors import PatchConflictError, UnsupportedTotoError
from toto_compile_patch.sites import State
from toto_compile_patch.table import TABLE, Patch
from toto_compile_patch.upstream import TESTED_VERSIONS, distribution

_logger = logging.getLogger("toto_compile_patch")

BUSY_TIMEOUT_S = 10.0
"""How long a change of patches waits for other threads to leave compiled code."""


@dataclass(frozen=True)
class Step:
    """One change to one site, and how to undo it."""

    do: Callable[[], None]
    undo: Callable[[], None]


lock = threading.RLock()
"""Held during every change of patches."""


def change(wanted: Iterable[str], *, strict: bool, force: bool = False) -> tuple[str, ...]:
    """Make exactly the wanted patches stand; all or nothing.

    Args:
        wanted: names of patches.
        strict: raise where a wanted patch cannot stand, instead of leaving it out.
        force: restore a symbol even where somebody replaced ours.

    Returns:
        Names of the patches that stand now.

    Raises:
        UnsupportedTotoError: strict, and the code to be replaced was not tested.
        PatchConflictError: somebody replaced a symbol that is to be restored.
        CompiledCodeBusyError: another thread does not leave compiled code.
    """
    wanted = set(wanted)
    with lock:
        stands = [patch for patch in TABLE if patch.name in wanted and _fits(patch, strict)]
        leaves = [patch for patch in reversed(TABLE) if patch not in stands]
        steps = [step for patch in leaves for step in _removals(patch, force)]
        steps += [step for patch in stands for step in _installations(patch)]
        if steps:
            _run(steps)
        return tuple(patch.name for patch in stands)


def state_of(patch: Patch) -> tuple[State, str]:
    """The live state of a patch: that of its worst site, with what there is to say about it."""
    states = [site.state() for site in patch.sites()]
    worst = max((state for state, _ in states), key=list(State).index)
    return worst, "; ".join(reason for state, reason in states if reason and state is worst)


def _fits(patch: Patch, strict: bool) -> bool:
    """Whether a wanted patch can stand; one that somebody patched over stands as it is."""
    state, why = state_of(patch)
    if state is State.REPLACED:
        _logger.warning("patch %s: %s; left as it is", patch.name, why)
    if state is not State.UNAVAILABLE:
        return True
    message = (
        f"patch {patch.name} does not fit the installed {distribution()}: {why} "
        f"(tested: {TESTED_VERSIONS})"
    )
    if strict:
        raise UnsupportedTotoError(f"{message}. apply(strict=False) leaves such patches out.")
    _logger.warning("%s; patch left out", message)
    return False


def _installations(patch: Patch) -> list[Step]:
    missing = (site for site in patch.sites() if site.state()[0] is State.NOT_APPLIED)
    return [Step(site.install, site.restore) for site in missing]


def _removals(patch: Patch, force: bool) -> list[Step]:
    steps = []
    for site in reversed(patch.sites()):
        state, why = site.state()
        if state is State.REPLACED and not force:
            raise PatchConflictError(
                f"{why}; take that out first, or restore upstream's own with revert(force=True)"
            )
        if state in (State.APPLIED, State.REPLACED):
            steps.append(Step(site.restore, site.install))
    return steps


def _run(steps: list[Step]) -> None:
    """Run all the steps; if one fails, undo those before it."""
    with compiled_code_follows(BUSY_TIMEOUT_S):
        done: list[Step] = []
        try:
            for step in steps:
                step.do()
                done.append(step)
        except BaseException:
            for step in reversed(done):
                step.undo()
            raise

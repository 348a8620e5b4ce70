"""The one place that installs and removes patches: all or nothing, under one lock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toto_compile_patch.compiled_code import drop_compiled_code, let_others_run, others_kept_out
from toto_compile_patch.errors import PatchConflictError, UnsupportedTotoError
from toto_compile_patch.locks import Lock
from toto_compile_patch.private_names import why_without
from toto_compile_patch.settings import Settings, put_in_force, wanted
from toto_compile_patch.sites import Site, State
from toto_compile_patch.table import TABLE, Patch
from toto_compile_patch.tested_code import HOW_TO_COMPARE
from toto_compile_patch.upstream import TESTED_VERSIONS, distribution

_logger = logging.getLogger("toto_compile_patch")

BUSY_TIMEOUT_S = 10.0
"""How long a change of patches waits for other threads to leave compiled code."""


@dataclass(frozen=True)
class Step:
    """One change: what stands now and what is to stand, both known before anything is touched.

    ``put`` makes either of them stand. Repeating it changes nothing, so that a step can be undone
    without knowing whether it was done, or half done.
    """

    put: Callable[[Any], None]
    found: Any
    wanted: Any


lock = Lock()
"""Held during every change of patches."""


def change(settings: Settings | None, *, force: bool = False) -> tuple[str, ...]:
    """Make exactly the wanted patches stand, and the settings hold; all or nothing.

    An interrupt is an error like any other: what was found is put back, and it is raised. If a
    second one comes while that is done, some patches stand and others do not; the next change
    finds out which, and mends it.

    Args:
        settings: what is wanted; None: upstream's own code.
        force: restore a symbol even where somebody replaced ours.

    Returns:
        Names of the patches that stand now.

    Raises:
        UnsupportedTotoError: strict, and the code to be replaced was not tested.
        PatchConflictError: somebody replaced a symbol that is to be restored.
        CompiledCodeBusyError: another thread does not leave compiled code.
    """
    with lock.held:
        try:
            names = settings.patches if settings and settings.enabled else ()
            strict = settings is None or settings.strict
            stands = [patch for patch in TABLE if patch.name in names and _fits(patch, strict)]
            leaves = [patch for patch in reversed(TABLE) if patch not in stands]
            steps = [step for patch in leaves for step in _removals(patch, force)]
            steps += [step for patch in stands for step in _installations(patch)]
            if steps:
                _run([Step(put_in_force, wanted(), settings), *steps])
            else:
                put_in_force(settings)
            return tuple(patch.name for patch in stands)
        finally:
            let_others_run()
            for patch in TABLE:
                for site in patch.sites():
                    site.settle()


def state_of(patch: Patch) -> tuple[State, str]:
    """The live state of a patch: that of its worst site, with what there is to say about it."""
    if missing := why_without(patch.name):
        return State.UNAVAILABLE, missing
    states = [site.state() for site in patch.sites()]
    worst = max((state for state, _ in states), key=list(State).index)
    return worst, "; ".join(reason for state, reason in states if reason and state is worst)


def _fits(patch: Patch, strict: bool) -> bool:
    """Whether a wanted patch can stand; where somebody patched over it, it is left as it is.

    Raises:
        UnsupportedTotoError: it cannot, and ``strict`` holds.
    """
    state, why = state_of(patch)
    if state is State.REPLACED:
        _logger.warning("patch %s: %s; left as it is", patch.name, why)
    if state is not State.UNAVAILABLE:
        return True
    if why_without(patch.name):
        message = f"patch {patch.name} does not fit the installed torch: {why}"
        advice = "It was made for another version of torch"
    else:
        message = (
            f"patch {patch.name} does not fit the installed {distribution()}: {why} "
            f"(tested: {TESTED_VERSIONS})"
        )
        advice = HOW_TO_COMPARE
    if strict:
        raise UnsupportedTotoError(
            f"{message}. {advice}; apply(strict=False) leaves such patches out."
        )
    _logger.warning("%s; patch left out", message)
    return False


def _installations(patch: Patch) -> list[Step]:
    """The steps that put a patch in, wherever upstream's own code stands."""
    missing = (site for site in patch.sites() if site.state()[0] is State.NOT_APPLIED)
    return [_step(site, site.claim()) for site in missing]


def _removals(patch: Patch, force: bool) -> list[Step]:
    """The steps that take a patch out, last place first.

    Raises:
        PatchConflictError: somebody replaced ours, and it is not to be forced.
    """
    steps = []
    for site in reversed(patch.sites()):
        state, why = site.state()
        if state is State.REPLACED and not force:
            raise PatchConflictError(
                f"{why}; take that out first, or restore upstream's own with revert(force=True)"
            )
        if state in (State.APPLIED, State.REPLACED):
            steps.append(_step(site, site.original))
    return steps


def _step(site: Site, occupant: Any) -> Step:
    return Step(site.put, site.live(), occupant)


def _run(steps: list[Step]) -> None:
    """Run all the steps; if anything fails, put back what was found.

    What was compiled is dropped first. No compiled code then contradicts what stands, wherever
    this is interrupted: what is gone is compiled again, from the code that stands. It is dropped
    once more where another thread compiled the old code in between.
    """
    try:
        with others_kept_out(BUSY_TIMEOUT_S):
            drop_compiled_code()
            for step in steps:
                step.put(step.wanted)
        with others_kept_out(BUSY_TIMEOUT_S):
            drop_compiled_code()
    except BaseException:
        for step in reversed(steps):
            step.put(step.found)
        raise

"""The one place that installs and removes patches: all or nothing, under one lock.

A patch is installed in every carrier that is loaded and wanted; a carrier that is imported later is
added by a change of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
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
from toto_compile_patch.upstream import (
    TESTED_VERSIONS,
    TotoCode,
    codes,
    distribution,
    leave_alone,
)

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


def change(
    settings: Settings | None, *, force: bool = False, late: Collection[str] = ()
) -> tuple[str, ...]:
    """Make exactly the wanted patches stand, and the settings hold; all or nothing.

    An interrupt is an error like any other: what was found is put back, and it is raised. If a
    second one comes while that is done, some patches stand and others do not; the next change
    finds out which, and mends it.

    Args:
        settings: what is wanted; None: upstream's own code.
        force: restore a symbol even where somebody replaced ours.
        late: carriers that were imported after ``apply()``. One that does not fit is left as it
            is, with a warning in the log, where ``strict`` would raise.

    Returns:
        Names of the patches that stand now.

    Raises:
        UnsupportedTotoError: strict, and the code to be replaced was not tested.
        PatchConflictError: somebody replaced a symbol that is to be restored.
        CompiledCodeBusyError: another thread does not leave compiled code.
    """
    with lock.held:
        try:
            stands = [place for code in codes() for place in _standing(code, settings, late)]
            stay = {id(site) for patch, code in stands for site in patch.sites(code)}
            leaves = [place for place in reversed(_everywhere()) if place not in stands]
            steps = _removals(leaves, force, stay) + _installations(stands)
            if steps:
                _run([Step(put_in_force, wanted(), settings), *steps])
            else:
                put_in_force(settings)
            applied = {patch.name for patch, _ in stands}
            return tuple(patch.name for patch in TABLE if patch.name in applied)
        finally:
            let_others_run()
            for patch, code in _everywhere():
                for site in patch.sites(code):
                    site.settle()


def state_of(patch: Patch, code: TotoCode) -> tuple[State, str]:
    """The live state of a patch in a carrier: that of its worst site, with what there is to say."""
    if missing := why_without(patch.name):
        return State.UNAVAILABLE, missing
    states = [site.state() for site in patch.sites(code)]
    if not states:
        return State.NOTHING_TO_PATCH, f"`{code.carrier}` has no such place"
    worst = max((state for state, _ in states), key=list(State).index)
    return worst, "; ".join(reason for state, reason in states if reason and state is worst)


def _everywhere() -> list[tuple[Patch, TotoCode]]:
    return [(patch, code) for code in codes() for patch in TABLE]


def _standing(
    code: TotoCode, settings: Settings | None, late: Collection[str]
) -> list[tuple[Patch, TotoCode]]:
    """The patches that are to stand in a carrier.

    Raises:
        UnsupportedTotoError: one does not fit, ``strict`` holds, and the carrier is not late.
    """
    if not settings or not settings.enabled or not settings.wants(code.carrier):
        return []
    patches = [patch for patch in TABLE if patch.name in settings.patches]
    try:
        standing = [(patch, code) for patch in patches if _fits(patch, code, settings.strict)]
    except UnsupportedTotoError as error:
        if code.carrier not in late:
            raise
        leave_alone(code.carrier, str(error))
        return []
    leave_alone(code.carrier, "")
    return standing


def _fits(patch: Patch, code: TotoCode, strict: bool) -> bool:
    """Whether a wanted patch can stand; where somebody patched over it, it is left as it is.

    Raises:
        UnsupportedTotoError: it cannot, and ``strict`` holds.
    """
    state, why = state_of(patch, code)
    if state is State.REPLACED:
        _logger.warning(
            "patch %s: %s; left as it is. To have ours: take that out, or revert(force=True) and "
            "apply() again",
            patch.name,
            why,
        )
    if state is not State.UNAVAILABLE:
        return True
    if why_without(patch.name):
        message = f"patch {patch.name} does not fit the installed torch: {why}"
        advice = "It was made for another version of torch"
    else:
        message = (
            f"patch {patch.name} does not fit the installed {distribution(code.carrier)}: {why} "
            f"(tested: {TESTED_VERSIONS})"
        )
        advice = HOW_TO_COMPARE
    if strict:
        raise UnsupportedTotoError(
            f"{message}. {advice}; apply(strict=False) leaves such patches out."
        )
    _logger.warning("%s; patch left out", message)
    return False


def _installations(places: Sequence[tuple[Patch, TotoCode]]) -> list[Step]:
    """The steps that put patches in, wherever upstream's own code stands."""
    sites = {id(site): site for patch, code in places for site in patch.sites(code)}
    missing = (site for site in sites.values() if site.state()[0] is State.NOT_APPLIED)
    return [_step(site, site.claim()) for site in missing]


def _removals(
    places: Sequence[tuple[Patch, TotoCode]], force: bool, stay: Collection[int]
) -> list[Step]:
    """The steps that take patches out, last place first.

    Args:
        places: the patches and the carriers.
        force: whether to restore what somebody replaced as well.
        stay: identities of the sites that another patch or carrier goes on wanting.

    Raises:
        PatchConflictError: somebody replaced ours, and it is not to be forced.
    """
    sites = {id(site): site for patch, code in places for site in reversed(patch.sites(code))}
    steps = []
    for site in (site for key, site in sites.items() if key not in stay):
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

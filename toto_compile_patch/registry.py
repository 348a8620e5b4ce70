"""The table of patches, and the one place that installs and removes them."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from toto_compile_patch.compiled_code import compiled_code_follows
from toto_compile_patch.errors import PatchConflictError, UnsupportedTotoError
from toto_compile_patch.sites import Site, State
from toto_compile_patch.upstream import TESTED_VERSIONS, distribution

log = logging.getLogger("toto_compile_patch")

BUSY_TIMEOUT_S = 10.0
"""How long a change of patches waits for other threads to leave compiled code."""


@dataclass(frozen=True)
class Patch:
    """One row of the table.

    Attributes:
        name: what users call it.
        why: what it is for, in half a sentence.
    """

    name: str
    why: str

    def sites(self) -> tuple[Site, ...]:
        """The places that it replaces, in order."""
        module = importlib.import_module(f"toto_compile_patch.patches.{self.name}")
        sites: tuple[Site, ...] = module.sites()
        return sites

    def state(self) -> tuple[State, str]:
        """The live state of all its sites together, the least applied one speaking for all."""
        states = [site.state() for site in self.sites()]
        for state in (State.REPLACED, State.UNAVAILABLE, State.NOT_APPLIED):
            reasons = [reason for found, reason in states if found is state]
            if reasons:
                return state, "; ".join(filter(None, reasons))
        return State.APPLIED, "; ".join(filter(None, (reason for _, reason in states)))


TABLE = (
    Patch("kv_cache", "the cache's positions live on the host: no wait for the device, no guard"),
    Patch("positional_embedding", "what reads the cache runs outside compiled code, after a break"),
    Patch("dynamo_config", "scalars captured, room for recompilations, dynamic shapes at once"),
    Patch("compile_method", "toto.compile() compiles the backbone instead of nothing"),
)

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
        kept: list[str] = []
        steps: list[Callable[[], Callable[[], None]]] = []
        for patch in reversed(TABLE):
            if patch.name not in wanted:
                steps += [_removal(site) for site in reversed(patch.sites()) if _stands(site, force)]
        for patch in TABLE:
            if patch.name not in wanted:
                continue
            states = [site.state() for site in patch.sites()]
            problems = [why for state, why in states if state in (State.REPLACED, State.UNAVAILABLE)]
            if problems and any(state is State.UNAVAILABLE for state, _ in states):
                _refuse(patch.name, problems, strict)
                steps += [_removal(site) for site in patch.sites() if _stands(site, force)]
                continue
            for why in problems:
                log.warning("%s: %s; left as it is", patch.name, why)
            kept.append(patch.name)
            steps += [
                _installation(site)
                for site, (state, _) in zip(patch.sites(), states, strict=True)
                if state is State.NOT_APPLIED
            ]
        if steps:
            _run(steps)
        return tuple(kept)


def _stands(site: Site, force: bool) -> bool:
    """Whether a site that is not wanted has to be restored."""
    state, why = site.state()
    if state is State.REPLACED and not force:
        raise PatchConflictError(
            f"{why}; take that out first, or restore upstream's own with revert(force=True)"
        )
    return state in (State.APPLIED, State.REPLACED)


def _refuse(name: str, problems: list[str], strict: bool) -> None:
    message = (
        f"patch {name} does not fit the installed {distribution()}: {'; '.join(problems)} "
        f"(tested: {TESTED_VERSIONS})"
    )
    if strict:
        raise UnsupportedTotoError(f"{message}. apply(strict=False) leaves such patches out.")
    log.warning("%s; patch left out", message)


def _installation(site: Site) -> Callable[[], Callable[[], None]]:
    def step() -> Callable[[], None]:
        site.install()
        return site.restore

    return step


def _removal(site: Site) -> Callable[[], Callable[[], None]]:
    def step() -> Callable[[], None]:
        site.restore()
        return site.install

    return step


def _run(steps: list[Callable[[], Callable[[], None]]]) -> None:
    """Run the steps, each of which returns its own undoing; undo all of them if one fails."""
    with compiled_code_follows(BUSY_TIMEOUT_S):
        undo: list[Callable[[], None]] = []
        try:
            for step in steps:
                undo.append(step())
        except BaseException:
            for undoing in reversed(undo):
                undoing()
            raise

"""One place where a patch takes hold: how it is installed, seen live, and restored exactly."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch._dynamo.config as dynamo_config
import wrapt

from toto_compile_patch.upstream import MISSING, describe, know_own, symbol, unknown, untested


class State(str, Enum):
    """What is found where a patch would stand, from best to worst."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    REPLACED = "replaced"
    UNAVAILABLE = "unavailable"


class Site(Protocol):
    """A replaceable place. ``install`` and ``restore`` are called under the registry's lock."""

    @property
    def symbol(self) -> str:
        """Dotted name of the place."""

    def state(self) -> tuple[State, str]:
        """The live state, with a reason where it is neither applied nor not applied."""

    def install(self) -> None:
        """Put the replacement there; the state must be not applied."""

    def restore(self) -> None:
        """Put back, object for object, what ``install`` found."""


@dataclass
class AttributeSite:
    """An attribute of an upstream class or module, replaced through wrapt.

    Attributes:
        owner: the class or module.
        attribute: the attribute's name.
        build: makes the replacement from the original. It must return a plain function or
            class: a ``wrapt.FunctionWrapper`` is silently bypassed in compiled code. It must
            give the same replacement again for the same original.
        needs: other (owner, attribute) pairs whose code the replacement relies on.
    """

    owner: Any
    attribute: str
    build: Callable[[Any], Any]
    needs: tuple[tuple[Any, str], ...] = ()
    _original: Any = field(default=MISSING, init=False, repr=False)
    _replacement: Any = field(default=MISSING, init=False, repr=False)
    _installed: bool = field(default=False, init=False, repr=False)

    @property
    def symbol(self) -> str:
        return symbol(self.owner, self.attribute)

    def state(self) -> tuple[State, str]:
        current = vars(self.owner).get(self.attribute, MISSING)
        # Somebody who patched over us may put ours back after we were taken out.
        if self._replacement is not MISSING and current is self._replacement:
            return State.APPLIED, ""
        if self._installed and current is not self._original:
            return State.REPLACED, f"{self.symbol} is now {_occupant(current)}"
        if reason := untested(self.owner, self.attribute):
            return State.UNAVAILABLE, f"{self.symbol}: {reason}"
        for owner, attribute in self.needs:
            if reason := unknown(owner, attribute):
                return State.UNAVAILABLE, f"{symbol(owner, attribute)}: {reason}"
        return State.NOT_APPLIED, ""

    def install(self) -> None:
        original = vars(self.owner).get(self.attribute, MISSING)
        replacement = wrapt.wrap_object(self.owner, self.attribute, self.build)  # type: ignore[arg-type]
        know_own(replacement)
        self._original, self._replacement = original, replacement
        self._installed = True

    def restore(self) -> None:
        if self._original is MISSING:
            if self.attribute in vars(self.owner):
                delattr(self.owner, self.attribute)
        else:
            setattr(self.owner, self.attribute, self._original)
        self._installed = False


def _occupant(current: Any) -> str:
    return "deleted" if current is MISSING else describe(current)


@dataclass
class DynamoSettingSite:
    """A setting of ``torch._dynamo.config``, in force in every thread.

    Newer torch keeps a setting's value in a ContextVar: an assignment reaches the calling thread
    alone, and no other thread can take it back. The setting's whole entry is therefore replaced
    by a copy whose default is our value; the old entry, with the values that threads gave it,
    comes back as it was. A value that the user sets meanwhile wins; the thread that restores
    keeps it.

    Attributes:
        name: the setting's name.
        value: makes our value from the one found.
    """

    name: str
    value: Callable[[Any], Any]
    _original: Any = field(default=MISSING, init=False, repr=False)
    _replacement: Any = field(default=MISSING, init=False, repr=False)
    _ours: Any = field(default=MISSING, init=False, repr=False)

    @property
    def symbol(self) -> str:
        return f"torch._dynamo.config.{self.name}"

    def state(self) -> tuple[State, str]:
        entry = _entries().get(self.name)
        if entry is None or not hasattr(entry, "user_override"):
            return State.UNAVAILABLE, f"{self.symbol}: this torch keeps it in an unknown way"
        if self._replacement is MISSING:
            return State.NOT_APPLIED, ""
        if entry is not self._replacement:
            return State.REPLACED, f"{self.symbol} has another entry now"
        live = getattr(dynamo_config, self.name)
        return State.APPLIED, "" if live == self._ours else f"{self.symbol} was set to {live} since"

    def install(self) -> None:
        original = _entries()[self.name]
        ours = self.value(getattr(dynamo_config, self.name))
        replacement = copy(original)
        if setting_is_per_thread(self.name):
            replacement.user_override = ContextVar(self.name, default=ours)
        _entries()[self.name] = replacement
        setattr(dynamo_config, self.name, ours)
        self._original, self._replacement, self._ours = original, replacement, ours

    def restore(self) -> None:
        """Put the old entry back; a value that this thread's user gave since stays."""
        live = getattr(dynamo_config, self.name)
        # An assignment also tells torch that its hash of the settings is stale.
        setattr(dynamo_config, self.name, live)
        _entries()[self.name] = self._original
        if live != self._ours:
            setattr(dynamo_config, self.name, live)
        self._original = self._replacement = self._ours = MISSING


def _entries() -> dict[str, Any]:
    return getattr(dynamo_config, "_config", {})


def setting_is_per_thread(name: str) -> bool:
    """Whether this torch keeps a dynamo setting for each thread apart."""
    return isinstance(_entries()[name].user_override, ContextVar)

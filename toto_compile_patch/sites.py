"""One place where a patch takes hold: what stands there, what stood there, what is to stand there.

An interrupt may come between any two instructions. So what stood at a place and what will is
written down before the place is touched, and whether ours stands there is asked of the place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch._dynamo.config as dynamo_config
import wrapt

from toto_compile_patch.upstream import (
    MISSING,
    describe,
    remember_as_own,
    symbol,
    why_unknown,
    why_untested,
)


class State(str, Enum):
    """What is found where a patch would stand, from best to worst."""

    NOTHING_TO_PATCH = "nothing to patch"
    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    REPLACED = "replaced"
    UNAVAILABLE = "unavailable"


@dataclass
class Site(ABC):
    """A replaceable place, and the record of it. All but ``state`` needs the registry's lock.

    Attributes:
        original: what stood there when ours was last made; MISSING before that, or where the
            owner merely inherits or lacks the attribute.
        _replacement: what was last made to stand there; MISSING before that.
        _claimed: ours may stand there, or did when somebody put something over it. True from
            before ours is put there until the original is seen there again: an interrupt can
            leave it True where ours is gone, but never False where ours stands.
    """

    original: Any = field(default=MISSING, init=False, repr=False)
    _replacement: Any = field(default=MISSING, init=False, repr=False)
    _claimed: bool = field(default=False, init=False, repr=False)

    @property
    @abstractmethod
    def symbol(self) -> str:
        """Dotted name of the place."""

    @abstractmethod
    def state(self) -> tuple[State, str]:
        """The live state, with a reason where it is neither applied nor not applied."""

    @abstractmethod
    def live(self) -> Any:
        """What stands there now, or MISSING."""

    @abstractmethod
    def put(self, occupant: Any) -> None:
        """Let an object, or MISSING, stand there. Doing it again changes nothing."""

    @abstractmethod
    def _make(self) -> Any:
        """Our replacement for what stands there now."""

    def claim(self) -> Any:
        """Write down what stands there, and what will: the replacement, which is returned."""
        replacement = self._make()
        self.original, self._replacement = self.live(), replacement
        self._claimed = True
        return replacement

    def settle(self) -> None:
        """Give up the claim where the original stands again."""
        if self.live() is self.original:
            self._claimed = False

    def _is_ours(self, occupant: Any) -> bool:
        return occupant is self._replacement is not MISSING

    def _put_over_ours(self, occupant: Any) -> bool:
        return self._claimed and occupant is not self.original


@dataclass
class AttributeSite(Site):
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

    @property
    def symbol(self) -> str:
        return symbol(self.owner, self.attribute)

    def state(self) -> tuple[State, str]:
        current = self.live()
        # Somebody who patched over us may put ours back after we were taken out.
        if self._is_ours(current):
            return State.APPLIED, ""
        if self._put_over_ours(current):
            return State.REPLACED, f"{self.symbol} is now {_occupant(current)}"
        if reason := why_untested(self.owner, self.attribute):
            return State.UNAVAILABLE, f"{self.symbol}: {reason}"
        for owner, attribute in self.needs:
            if reason := why_unknown(owner, attribute):
                return State.UNAVAILABLE, f"{symbol(owner, attribute)}: {reason}"
        return State.NOT_APPLIED, ""

    def live(self) -> Any:
        return vars(self.owner).get(self.attribute, MISSING)

    def put(self, occupant: Any) -> None:
        if occupant is not MISSING:
            wrapt.apply_patch(self.owner, self.attribute, occupant)
        elif self.attribute in vars(self.owner):
            delattr(self.owner, self.attribute)

    def _make(self) -> Any:
        # The two halves of wrapt.wrap_object, between which the record is written.
        *_, original = wrapt.resolve_path(self.owner, self.attribute)
        replacement = self.build(original)
        remember_as_own(replacement)
        return replacement


def _occupant(current: Any) -> str:
    return "deleted" if current is MISSING else describe(current)


@dataclass
class DynamoSettingSite(Site):
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
    _ours: Any = field(default=MISSING, init=False, repr=False)

    @property
    def symbol(self) -> str:
        return f"torch._dynamo.config.{self.name}"

    def state(self) -> tuple[State, str]:
        entry = self.live()
        if entry is MISSING or not hasattr(entry, "user_override"):
            return State.UNAVAILABLE, f"{self.symbol}: this torch keeps it in an unknown way"
        if self._is_ours(entry):
            live = getattr(dynamo_config, self.name)
            since = "" if live == self._ours else f"{self.symbol} was set to {live} since"
            return State.APPLIED, since
        if self._put_over_ours(entry):
            return State.REPLACED, f"{self.symbol} has another entry now"
        return State.NOT_APPLIED, ""

    def live(self) -> Any:
        return _entries().get(self.name, MISSING)

    def put(self, occupant: Any) -> None:
        """Let an entry stand there; a value that this thread's user gave ours since stays."""
        if self._is_ours(self.live()):
            given = getattr(dynamo_config, self.name)
            self._assign_again()
            if occupant is self.original and given != self._ours:
                _give(occupant, given)
        _entries()[self.name] = occupant
        if self._is_ours(occupant):
            self._assign_again()

    def _assign_again(self) -> None:
        """Tell torch that its hash of the settings is stale; only an assignment does."""
        setattr(dynamo_config, self.name, getattr(dynamo_config, self.name))

    def _make(self) -> Any:
        self._ours = self.value(getattr(dynamo_config, self.name))
        replacement = copy(self.live())
        if setting_is_per_thread(self.name):
            replacement.user_override = ContextVar(self.name, default=self._ours)
        else:
            replacement.user_override = self._ours
        return replacement


def _entries() -> dict[str, Any]:
    return getattr(dynamo_config, "_config", {})


def _give(entry: Any, value: Any) -> None:
    """Give a setting's entry a value; in this thread alone, where torch keeps one for each."""
    if isinstance(entry.user_override, ContextVar):
        entry.user_override.set(value)
    else:
        entry.user_override = value


def setting_is_per_thread(name: str) -> bool:
    """Whether this torch keeps a dynamo setting for each thread apart, as far as can be told."""
    entry = _entries().get(name)
    return isinstance(getattr(entry, "user_override", None), ContextVar)

"""Interrupt apply(), revert() and patched() at one place after the other, and look at what is left.

Run as a program, in an interpreter of its own: ``python interrupted.py [SCENARIO ...] [OPTIONS]``.
Prints one line of JSON, a ``Tally`` for each scenario. A place is an event of a tracing function:
the k-th line, or the k-th instruction, of the package's own code since the call began. What is
found afterwards is compared with what stood before the package touched anything, by means that are
not the package's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch._dynamo
import torch._dynamo.config as dynamo_config

# All of upstream that the package imports, so that what is interrupted is the package's own code.
import toto.inference.forecaster
import toto.model.toto  # noqa: F401

import toto_compile_patch

PACKAGE = str(Path(toto_compile_patch.__file__).parent) + os.sep
CORE = ("api.py", "compiled_code.py", "registry.py", "settings.py", "sites.py")
"""Of the package, what changes the process, and is interrupted between instructions as well."""

NOT_COMPARED = ("__annotations__", "__warningregistry__")
"""What Python itself puts into a namespace when it is read."""


class Interrupt(KeyboardInterrupt):
    """Raised by the tracing function, and never by anything else."""


class Failure(MemoryError):
    """Likewise, as an error that ordinary code catches."""


# What stands ------------------------------------------------------------------------------------


def owners() -> dict[str, Any]:
    """Every module of upstream's, and every class that one of them defines."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "toto" and isinstance(module, ModuleType):
            found[name] = module
            for cls in list(vars(module).values()):
                if isinstance(cls, type) and cls.__module__.split(".")[0] == "toto":
                    found[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return found


def everything() -> dict[tuple[str, str], Any]:
    """The very objects that all owners hold, dynamo's entries, and what some of these hold."""
    found = {
        (owner, name): value
        for owner, namespace in OWNERS.items()
        for name, value in vars(namespace).items()
        if name not in NOT_COMPARED
    }
    for name, entry in ENTRIES.items():
        found["dynamo", name] = entry
        # Torch itself writes into the entries of settings that are lists, when it reads them.
        for key, value in vars(entry).items() if name in SETTINGS else ():
            found[f"dynamo.{name}", key] = value
    return found


def differences(before: dict[tuple[str, str], Any]) -> set[tuple[str, str]]:
    """Where other objects stand now, or none, or some where there were none."""
    now = everything()
    missing = object()
    return {
        place
        for place in before.keys() | now.keys()
        if before.get(place, missing) is not now.get(place, missing)
    }


def process() -> tuple[Any, ...]:
    """What else the package changes in a process."""
    logger = logging.getLogger("toto_compile_patch")
    homes = [type(finder).__module__ for finder in sys.meta_path]
    finders = homes.count("toto_compile_patch.import_hook")
    return tuple(logger.handlers), logger.level, sys.getswitchinterval(), finders


OWNERS = owners()
ENTRIES: dict[str, Any] = vars(dynamo_config)["_config"]
SETTINGS = {
    name: getattr(dynamo_config, name) for name in ("capture_scalar_outputs", "recompile_limit")
}
PRISTINE = everything()
PROCESS = process()
PLACES: dict[str, set[tuple[str, str]]] = {}
"""Where each patch alone makes a difference."""


def learn_places() -> None:
    """Find out what each patch changes, by its effect."""
    for name in toto_compile_patch.settings.PATCH_NAMES:
        toto_compile_patch.apply([name])
        PLACES[name] = {place for place in differences(PRISTINE) if "dynamo." not in place[0]}
        assert PLACES[name], name
        toto_compile_patch.revert()


def standing() -> tuple[set[str], set[str]]:
    """The patches that stand wholly, and those of which only a part stands; by live attributes."""
    changed = differences(PRISTINE)
    whole = {name for name, places in PLACES.items() if places <= changed}
    return whole, {name for name, places in PLACES.items() if places & changed} - whole


# What interrupts --------------------------------------------------------------------------------


@dataclass
class Interrupter:
    """A tracing function that raises at the k-th place, and again ``then`` places later.

    Attributes:
        at: which place, from 1 on; 0: nowhere, count them only.
        then: places from the first interrupt to a second one; 0: there is none.
        opcodes: instructions of CORE are the places, instead of lines of the whole package.
        inside_reset: lines of ``torch._dynamo.reset`` are the places (of a first interrupt).
        error: what is raised.
        seen: places so far.
        where: the places at which it raised.
        first: the place at which each line, or instruction, comes for the first time.
    """

    at: int
    then: int = 0
    opcodes: bool = False
    inside_reset: bool = False
    error: type[BaseException] = Interrupt
    seen: int = 0
    where: list[str] = field(default_factory=list)
    first: dict[tuple[Any, int], int] = field(default_factory=dict)

    def run(self, call: Callable[[], Any]) -> bool:
        """Whether the call ended undisturbed."""
        # That of a measurement of coverage, if there is one.
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        except (Interrupt, Failure):
            return False
        finally:
            sys.setprofile(None)
            sys.settrace(before)
        return True

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if self.inside_reset and not self.where:
            return self._place if frame.f_code is torch._dynamo.reset.__code__ else None
        if not file.startswith(PACKAGE):
            return None
        if self.opcodes:
            if not file.endswith(CORE):
                return None
            frame.f_trace_opcodes = True
        return self._place

    def _place(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event != ("opcode" if self.opcodes else "line"):
            return self._place
        self.seen += 1
        if not self.at:
            offset = frame.f_lasti if self.opcodes else frame.f_lineno
            self.first.setdefault((frame.f_code, offset), self.seen)
        first, second = not self.where, len(self.where) == 1
        if (first and self.seen == self.at) or (second and self.then and self.seen == self.then):
            code = frame.f_code
            self.where.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
            if first and self.then:
                self.seen = 0
                # Python takes a tracing function that raises away; this puts it back.
                sys.setprofile(self._trace_again)
            raise self.error
        return self._place

    def _trace_again(self, frame: FrameType, event: str, argument: Any) -> None:
        if sys.gettrace() is None and len(self.where) == 1:
            sys.settrace(self._enter)
            above: FrameType | None = frame
            while above is not None:
                above.f_trace = self._enter(above, "call", None)
                above = above.f_back


# What is interrupted ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What is done before, what is interrupted, and the states that may be found then.

    Attributes:
        prepare: brings about the state before, from upstream's own.
        call: what is interrupted.
        before: names of the patches that stand, and are wanted, before.
        after: likewise at the end of the call, or within the block that it opens.
        inner: likewise within a block, inside that one if there is one. They may still stand where
            the interrupt comes when ``__enter__`` has ended its work, or before ``__exit__`` has
            begun its own.
        compiled: something is compiled before the call.
    """

    prepare: Callable[[], Any]
    call: Callable[[], Any]
    before: tuple[str, ...]
    after: tuple[str, ...]
    inner: tuple[str, ...] = ()
    compiled: bool = False


ALL = toto_compile_patch.settings.PATCH_NAMES
SOME = ("kv_cache", "compile_method", "dynamo_config")
OTHERS = ("dynamo_config", "positional_embedding", "fast_decode")
block = toto_compile_patch.patched(SOME)


def nothing() -> None:
    pass


def apply_some() -> None:
    toto_compile_patch.apply(SOME, log="warning")


def apply_others() -> None:
    toto_compile_patch.apply(OTHERS, rng="upstream", strict=False, log="error")


def apply_switched_off() -> None:
    os.environ["TOTO_COMPILE_PATCH"] = "0"
    try:
        toto_compile_patch.apply()
    finally:
        del os.environ["TOTO_COMPILE_PATCH"]


def enter_and_leave() -> None:
    with toto_compile_patch.patched(OTHERS):
        pass


@toto_compile_patch.patched(OTHERS)
def decorated() -> None:
    pass


def nested() -> None:
    with toto_compile_patch.patched(SOME):
        decorated()


def leave() -> None:
    block.__exit__(None, None, None)


inner = toto_compile_patch.patched(OTHERS)


def enter_both() -> None:
    block.__enter__()
    inner.__enter__()


def leave_both() -> None:
    try:
        inner.__exit__(None, None, None)
    finally:
        block.__exit__(None, None, None)


FIRST_APPLY = Scenario(nothing, toto_compile_patch.apply, (), ALL)
SCENARIOS = {
    "apply": Scenario(nothing, toto_compile_patch.apply, (), ALL),
    "apply others": Scenario(apply_some, apply_others, SOME, OTHERS),
    "switched off": Scenario(apply_some, apply_switched_off, SOME, ()),
    "revert": Scenario(toto_compile_patch.apply, toto_compile_patch.revert, ALL, ()),
    "enter": Scenario(nothing, block.__enter__, (), (), inner=SOME),
    "exit": Scenario(block.__enter__, leave, SOME, ()),
    "block": Scenario(nothing, enter_and_leave, (), OTHERS),
    "decorator": Scenario(apply_some, decorated, SOME, OTHERS),
    "nested": Scenario(nothing, nested, (), SOME, inner=OTHERS),
    "exit nested": Scenario(enter_both, leave_both, SOME, (), inner=OTHERS),
    "apply compiled": Scenario(apply_some, apply_others, SOME, OTHERS, compiled=True),
    "revert compiled": Scenario(
        toto_compile_patch.apply, toto_compile_patch.revert, ALL, (), compiled=True
    ),
}


def plus_one(x: Any) -> Any:
    return x + 1


def compile_something() -> None:
    torch.compile(plus_one, backend="eager")(torch.ones(1))


# What is found ----------------------------------------------------------------------------------


@dataclass
class Tally:
    """How many places were interrupted, what was wrong at which, and where a lock stayed held."""

    places: int = 0
    changed: int = 0
    wrong: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.places += other.places
        self.changed += other.changed
        self.wrong += other.wrong
        self.held += other.held


LOCKS = (type(threading.Lock()), type(threading.RLock()))


def first_places(call: Callable[[], Any]) -> list[int]:
    """Where each line of the package comes for the first time."""
    interrupter = Interrupter(0)
    assert interrupter.run(call)
    return sorted(interrupter.first.values())


def release_locks() -> list[str]:
    """Names of the package's locks that an interrupt left held; gives them up.

    A tracing function can raise after the body of a ``with`` and before its lock is given up. A
    signal cannot: Python looks for signals where a call has returned, not there.
    """
    held = []
    for name, module in list(sys.modules.items()):
        if name.startswith("toto_compile_patch"):
            for attribute, lock in list(vars(module).items()):
                lock = getattr(lock, "held", lock)
                if isinstance(lock, LOCKS) and is_held(lock):
                    held.append(f"{name}.{attribute}")
                    while is_held(lock):
                        lock.release()
    return held


def is_held(lock: Any) -> bool:
    held: bool = lock._is_owned() if hasattr(lock, "_is_owned") else lock.locked()
    return held


LEAVES = ("__enter__", "__exit__", "<listcomp>", "_close", "call")
"""Functions in which an interrupt can keep a block from being left; the last one is what a
decorator makes, whose ``with`` statement Python leaves in several instructions."""


def complaints(
    scenario: Scenario, whole_only: bool, compiled_of: Any, function: str = ""
) -> Iterator[str]:
    """What is wrong with the state that an interrupt left, which came in a function."""
    whole, partly = standing()
    states = {row.name: row.state for row in toto_compile_patch.status()}
    if {name for name, state in states.items() if state == "applied"} != whole:
        yield f"status() says {states}, but {whole} stand"
    if partly & {name for name, state in states.items() if state == "applied"}:
        yield f"status() does not tell that of {partly} only a part stands"
    for name in ALL:
        if toto_compile_patch.is_applied(name) != (name in whole):
            yield f"is_applied({name}) is not what stands"
    if whole_only:
        allowed = [set(scenario.before), set(scenario.after)]
        if function in LEAVES:
            allowed.append(set(scenario.inner))
        if partly or whole not in allowed:
            yield f"half a state: {whole} stand, and part of {partly}"
        if toto_compile_patch.is_applied() != bool(whole):
            yield f"is_applied() is not whether what was asked for stands: {whole}"
    elif toto_compile_patch.is_applied() and not whole:
        yield "is_applied() is True, though nothing stands"
    if compiled_of is not None and still_compiled() and differences(compiled_of):
        yield "code that was compiled of other patches is still there"


def still_compiled() -> bool:
    return any(code() is not None for code in torch._dynamo.convert_frame.input_codes.seen)


def repair() -> Iterator[str]:
    """A plain revert(), after which everything is upstream's own, and apply() works."""
    toto_compile_patch.revert()
    yield from what_is_left("revert()")
    toto_compile_patch.apply()
    if not toto_compile_patch.is_applied():
        yield f"apply() does not work afterwards: {toto_compile_patch.status()}"
    toto_compile_patch.revert()
    yield from what_is_left("apply() and revert()")


def what_is_left(after: str) -> Iterator[str]:
    if left := differences(PRISTINE):
        yield f"{after} left {sorted(left)}"
    if process() != PROCESS:
        yield f"{after} left {process()}, not {PROCESS}"
    if (now := {name: getattr(dynamo_config, name) for name in SETTINGS}) != SETTINGS:
        yield f"{after} left {now}"
    if toto_compile_patch.is_applied() or toto_compile_patch.settings.wanted() is not None:
        yield f"{after} left something wanted, or said to stand"


def interrupt(scenario: Scenario, interrupter: Interrupter, tally: Tally) -> bool:
    """Interrupt once, and look; whether the call ended before the place came."""
    scenario.prepare()
    compiled_of = None
    if scenario.compiled:
        compile_something()
        compiled_of = everything()
    undisturbed = interrupter.run(scenario.call)
    if interrupter.where:
        where = " then ".join(interrupter.where)
        found: list[str] = []
        try:
            tally.held += [f"{where}: {lock}" for lock in release_locks()]
            if not PLACES:
                # The first apply(): it must work now, so that what it does can be learnt.
                found += [] if undisturbed else first_state()
                found += repair()
                learn_places()
            else:
                tally.changed += bool(standing()[0] != set(scenario.before))
                once = len(interrupter.where) == 1
                found += complaints(scenario, once, compiled_of, where.split()[-1])
                found += repair()
        except BaseException as error:
            found.append(f"{type(error).__name__}: {error}")
        tally.places += 1
        tally.wrong += [f"{where}: {what}" for what in found]
        if found:
            make_pristine()
    toto_compile_patch.revert()
    return undisturbed


def first_state() -> Iterator[str]:
    """Before anything is known of the patches: status() must tell all or nothing, and truly."""
    changed = bool({place for place in differences(PRISTINE) if "dynamo." not in place[0]})
    rows = toto_compile_patch.status()
    applied = [row.name for row in rows if row.state == "applied"]
    if len(applied) not in (0, len(ALL)) or changed != bool(applied):
        yield f"half a state: {rows}"
    if toto_compile_patch.is_applied() != changed:
        yield f"is_applied() is not what stands: {rows}"


def make_pristine() -> None:
    """After a failure, so that it is not counted again at the next place."""
    for (owner, name), value in everything().items():
        if not owner.startswith("dynamo"):
            wanted = PRISTINE.get((owner, name), PRISTINE)
            if wanted is PRISTINE:
                delattr(OWNERS[owner], name)
            elif wanted is not value:
                setattr(OWNERS[owner], name, wanted)
    for (owner, name), value in PRISTINE.items():
        if owner == "dynamo":
            ENTRIES[name] = value
    sys.setswitchinterval(PROCESS[2])


# One place after the other ----------------------------------------------------------------------


def places_of(
    scenario: Scenario, first: int | None, others: int | None, file: str = "", **how: Any
) -> list[int]:
    """Where each line (of a file) comes for the first time, and others.

    None: all of them, else so many.
    """
    interrupter = Interrupter(0, **how)
    scenario.prepare()
    if scenario.compiled:
        compile_something()
    assert interrupter.run(scenario.call)
    toto_compile_patch.revert()
    firsts = sorted(
        place for (code, _), place in interrupter.first.items() if code.co_filename.endswith(file)
    )
    rest = sorted(set(range(1, interrupter.seen + 1)) - set(firsts))
    return sorted(some(firsts, first) + some(rest, others))


def some(places: list[int], most: int | None) -> list[int]:
    if most is None or most >= len(places):
        return places
    return random.Random(0).sample(places, most)


def in_this_process(scenario: Scenario, places: list[int], twice: bool, **how: Any) -> Tally:
    tally = Tally()
    chance = random.Random(0)
    for place in places:
        then = chance.randint(1, 60) if twice else 0
        interrupt(scenario, Interrupter(place, then, **how), tally)
    return tally


def in_forks(scenario: Scenario, first: int | None, others: int | None, file: str) -> Tally:
    """Each place in a process of its own, in which nothing of the package was imported by apply.

    The places are those of a process that counted them.
    """
    with child() as answer:
        if answer.mine:
            answer.send(places_of(scenario, first, others, file))
    places = answer.received
    tally = Tally()
    for place in places:
        with child() as answer:
            if answer.mine:
                found = Tally()
                interrupt(scenario, Interrupter(place), found)
                answer.send(asdict(found))
        tally.add(Tally(**answer.received))
    return tally


@dataclass
class Answer:
    mine: bool
    pipe: int
    received: Any = None

    def send(self, answer: Any) -> None:
        os.write(self.pipe, json.dumps(answer).encode())


@contextmanager
def child() -> Iterator[Answer]:
    """Run the body in a forked process, too; what that one sends is received in this one."""
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        answer = Answer(True, writes)
        try:
            yield answer
        except BaseException:
            answer.send({"places": 1, "wrong": [traceback.format_exc()]})
        finally:
            os._exit(0)
    os.close(writes)
    answer = Answer(False, reads)
    yield answer
    with os.fdopen(reads, "rb") as pipe:
        received = pipe.read()
    os.waitpid(process, 0)
    answer.received = json.loads(received or b'{"wrong": ["the process died"], "places": 1}')


# Real signals -----------------------------------------------------------------------------------


def by_signals(cycles: int, compiled: bool) -> Tally:
    """Real SIGINTs at random moments of apply(), revert() and blocks, often several in one call."""
    chance = random.Random(0)
    calls: list[Callable[[], Any]] = [
        *(apply_some, apply_others, toto_compile_patch.apply, toto_compile_patch.revert),
        *(enter_and_leave, decorated, nested, apply_switched_off),
    ]
    took = {call: seconds(call) for call in calls}
    toto_compile_patch.revert()
    tally = Tally()
    # What may be found: no single change is looked at here, but all in a row.
    anything = Scenario(nothing, nothing, (), ())
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT) if armed else None)
    for _ in range(cycles):
        call = chance.choice(calls)
        compiled_of = None
        if compiled:
            compile_something()
            compiled_of = everything()
        moment = took[call] * chance.random() + 1e-6
        again = max(moment / 7, 1e-4) if chance.random() < 0.3 else 0
        came = interrupted_by_signal(call, moment, again)
        if os.environ.get("TOTO_COMPILE_PATCH"):
            del os.environ["TOTO_COMPILE_PATCH"]
        tally.places += came
        held = release_locks()
        tally.held += [f"{call.__name__}: {lock}" for lock in held]
        found = list(complaints(anything, False, compiled_of))
        if chance.random() < 0.5:
            found += repair()
        tally.wrong += [f"{getattr(call, '__name__', call)}: {what}" for what in found]
        if found:
            make_pristine()
    tally.wrong += repair()
    return tally


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


armed = False
"""Whether an alarm that goes off becomes an interrupt."""


def interrupted_by_signal(call: Callable[[], Any], moment: float, again: float) -> bool:
    """Whether a signal came before the call ended."""
    global armed
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, moment, again)
            armed = True
            call()
        finally:
            armed = False
    except KeyboardInterrupt:
        return True
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), help="default: all")
    parser.add_argument("--first", type=int, help="so many lines, where they come first (all)")
    parser.add_argument("--file", default="", help="lines of this file (first apply)")
    parser.add_argument("--others", type=int, help="so many other places (all)")
    parser.add_argument("--opcodes", action="store_true", help="between instructions")
    parser.add_argument("--errors", action="store_true", help="errors in place of interrupts")
    parser.add_argument("--inside-reset", action="store_true", help="within torch._dynamo.reset")
    parser.add_argument("--twice", action="store_true", help="a second interrupt soon after")
    parser.add_argument("--signals", type=int, help="so many calls, interrupted by real signals")
    options = parser.parse_args()
    how = {
        "opcodes": options.opcodes,
        "inside_reset": options.inside_reset,
        "error": Failure if options.errors else Interrupt,
    }
    if options.scenarios == ["first apply"]:
        tallies = {
            "first apply": in_forks(FIRST_APPLY, options.first, options.others, options.file)
        }
    else:
        toto_compile_patch.apply()
        toto_compile_patch.revert()
        learn_places()
        tallies = {}
        if options.signals:
            for compiled in (False, True):
                tallies[f"signals {compiled=}"] = by_signals(options.signals, compiled)
        else:
            for name in options.scenarios:
                places = places_of(SCENARIOS[name], options.first, options.others, **how)
                tallies[name] = in_this_process(SCENARIOS[name], places, options.twice, **how)
    print(json.dumps({name: asdict(tally) for name, tally in tallies.items()}))


if __name__ == "__main__":
    main()

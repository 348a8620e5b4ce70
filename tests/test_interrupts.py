"""An interrupt at any place of apply(), revert() and patched() leaves a state that is whole.

Either the whole change has happened or none of it; ``is_applied()`` and ``status()`` say what
stands; nothing that was compiled contradicts it; a plain ``revert()`` restores every owner of
upstream's, object for object, and ``apply()`` works again. ``interrupted.py`` tells how that is
found out. Everything runs in processes of its own: tracing and signals are the process's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
import pytest

PROGRAM = Path(__file__).with_name("interrupted.py").read_text()


def tallies(*arguments: str) -> dict[str, dict[str, Any]]:
    """What the program found, by scenario, once nothing that it found is wrong."""
    run = forked.python(PROGRAM, arguments=arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
    for name, tally in found.items():
        assert tally["wrong"] == [], name
    return found


def places(found: dict[str, dict[str, Any]]) -> int:
    return sum(tally["places"] for tally in found.values())


def some_or_all(
    some: tuple[str, ...], at_least: int, everything: tuple[str, ...], more: int
) -> pytest.MarkDecorator:
    """Some places always, and all of them where there is time for what is slow."""
    return pytest.mark.parametrize(
        ("how_many", "at_least"),
        [(some, at_least), pytest.param(everything, more, marks=pytest.mark.slow)],
        ids=["some", "all"],
    )


@pytest.mark.fault(
    injected="an interrupt",
    where="every line of apply(), revert() and patched() where it comes first, and others",
    observed="it is raised; all patches of the change stand, or none",
    afterwards="status() says what stands; a plain revert() restores every object of upstream's, "
    "and apply() works",
)
@some_or_all(("--first", "40", "--others", "5"), 130, ("--others", "20"), 500)
def test_at_every_line(how_many: tuple[str, ...], at_least: int) -> None:
    found = tallies("apply", "revert", "block", *how_many)
    assert places(found) > at_least
    # Some places come before the change, and some after it.
    changed = sum(tally["changed"] for tally in found.values())
    assert 0 < changed < places(found)


@pytest.mark.slow
@pytest.mark.fault(
    injected="an error for want of memory",
    where="every line of apply(), revert() and patched() where it comes first, and others",
    observed="it is raised; all patches of the change stand, or none",
    afterwards="status() says what stands; a plain revert() restores every object of upstream's, "
    "and apply() works",
)
def test_by_an_error_at_every_line() -> None:
    """An error can be caught where an interrupt is not, and is undone as well."""
    found = tallies("apply", "apply others", "revert", "block", "--others", "5", "--errors")
    assert places(found) > 500
    assert all(0 < tally["changed"] < tally["places"] for tally in found.values())


@pytest.mark.slow
@pytest.mark.fault(
    injected="an interrupt, and a second one",
    where="every line of torch._dynamo.reset",
    observed="it is raised; nothing has changed",
    afterwards="status() says what stands; a plain revert() restores every object of upstream's, "
    "and apply() works; no compiled code of other patches is left",
)
@pytest.mark.parametrize("how_many", [(), ("--twice",)], ids=["once", "twice"])
def test_while_compiled_code_is_dropped(how_many: tuple[str, ...]) -> None:
    """An error within ``torch._dynamo.reset`` changes nothing."""
    found = tallies("apply compiled", "revert compiled", "--inside-reset", *how_many)
    assert places(found) > 30
    if not how_many:
        assert all(tally["changed"] == 0 for tally in found.values())


@pytest.mark.slow
def test_in_the_first_apply_and_its_imports() -> None:
    assert places(tallies("first apply", "--first", "12", "--others", "3")) > 14


@some_or_all(("--first", "6"), 5, (), 20)
def test_where_the_first_apply_defines_operators(how_many: tuple[str, ...], at_least: int) -> None:
    """Torch keeps what an import that was interrupted had defined, and refuses it a second time."""
    found = tallies("first apply", "--file", "operators.py", "--others", "0", *how_many)
    assert places(found) > at_least


@pytest.mark.slow
@pytest.mark.fault(
    injected="SIGINT, often several",
    where="random moments of apply(), revert() and blocks",
    observed="KeyboardInterrupt; no lock is held",
    afterwards="status() says what stands; a plain revert() restores every object of upstream's, "
    "and apply() works",
)
def test_by_real_signals() -> None:
    found = tallies("--signals", "300")
    assert places(found) > 300
    assert all(tally["held"] == [] for tally in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "calls",
    [
        ("apply others", "switched off", "enter"),
        ("exit", "decorator", "nested"),
        ("exit nested", "apply compiled", "revert compiled"),
    ],
)
def test_at_every_line_of_every_call(calls: tuple[str, ...]) -> None:
    assert places(tallies(*calls, "--others", "10")) > 400


@pytest.mark.slow
def test_between_instructions() -> None:
    assert places(tallies("--first", "60", "--others", "10", "--opcodes")) > 700


@pytest.mark.slow
@pytest.mark.fault(
    injected="two interrupts",
    where="any line, and again while the first is undone",
    observed="status() tells of a part that stands",
    afterwards="status() says what stands; a plain revert() restores every object of upstream's, "
    "and apply() works",
)
def test_by_a_second_interrupt_while_the_first_is_undone() -> None:
    assert places(tallies("--first", "30", "--others", "30", "--twice")) > 600

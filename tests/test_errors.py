"""Whether an error is of the handler of a signal, whatever the handler is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from toto_compile_patch.errors import is_of_a_signal, that_led_to

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no such signals")


class OutOfTime(Exception):
    """What a limit of time raises."""


def function(number: int, frame: Any) -> None:
    helper()


def helper() -> None:
    raise OutOfTime


def with_a_limit(limit: str, number: int, frame: Any) -> None:
    raise OutOfTime(limit)


class Limit:
    """A limit of time as a library has it."""

    def method(self, number: int, frame: Any) -> None:
        raise OutOfTime

    def __call__(self, number: int, frame: Any) -> None:
        raise OutOfTime


HANDLERS = {
    "function": function,
    "method": Limit().method,
    "partial": partial(with_a_limit, "a second"),
    "object": Limit(),
}


@pytest.fixture
def handled() -> Iterator[Callable[[Any], None]]:
    before = signal.getsignal(signal.SIGUSR1)

    def handle(handler: Any) -> None:
        signal.signal(signal.SIGUSR1, handler)

    yield handle
    signal.signal(signal.SIGUSR1, before)


def error_of(raises: Callable[[], object]) -> Exception:
    try:
        raises()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("kind", HANDLERS)
def test_of_a_handler(kind: str, handled: Callable[[Any], None]) -> None:
    handled(HANDLERS[kind])
    assert is_of_a_signal(error_of(lambda: signal.raise_signal(signal.SIGUSR1)))


def test_what_was_raised_for_one_of_a_handler(handled: Callable[[Any], None]) -> None:
    def wrapped() -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except OutOfTime:
            raise ValueError from None

    handled(function)
    error = error_of(wrapped)
    assert is_of_a_signal(error)
    assert [type(one) for one in that_led_to(error)] == [ValueError, OutOfTime]


def test_a_cause_beside_one_of_a_handler(handled: Callable[[Any], None]) -> None:
    def wrapped() -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except OutOfTime:
            raise ValueError from KeyError()

    handled(function)
    error = error_of(wrapped)
    assert is_of_a_signal(error)
    assert {type(one) for one in that_led_to(error)} == {ValueError, KeyError, OutOfTime}


def test_what_was_dealt_with_before_is_no_part_of_it(handled: Callable[[Any], None]) -> None:
    """Whoever is out of time may forecast less, which fails for another reason."""

    def less() -> None:
        raise LookupError

    handled(function)
    try:
        signal.raise_signal(signal.SIGUSR1)
    except OutOfTime:
        error = error_of(less)
    assert type(error.__context__) is OutOfTime
    assert that_led_to(error) == [error]
    assert not is_of_a_signal(error)


def test_of_somebody_else(handled: Callable[[Any], None]) -> None:
    handled(function)
    assert not is_of_a_signal(error_of(helper))
    assert not is_of_a_signal(OutOfTime())


def test_no_handler_is_called_where_an_interrupt_is_usual(handled: Callable[[Any], None]) -> None:
    for usual in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler):
        handled(usual)
        assert not is_of_a_signal(error_of(helper))

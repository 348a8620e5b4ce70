"""Notes what a place of the package says; executed there, with ``HEARD`` the file to write to.

It imports nothing of the package's and is imported by nobody, so that it works wherever a file of
the package is executed. A test is known by the variable that pytest sets, in processes too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any


def note(place: str, said: Any) -> Any:
    """Note an error, a refusal or a text, and hand it on."""
    kind = type(said).__name__
    if kind == "Refusal":
        _write(place, "", said.reason + (f". To have it fast: {said.cure}" if said.cure else ""))
    elif kind == "Finding":
        _write(place, "", said.what + (f" To do: {said.cure}" if said.cure else ""))
    else:
        _write(place, "" if isinstance(said, str) else kind, str(said))
    return said


def call(place: str, function: Callable[..., Any], *arguments: Any, **words: Any) -> Any:
    """Note what is given to a function that says it, and call that."""
    text, *values = arguments if isinstance(arguments[0], str) else arguments[1:]
    _write(place, "", text % tuple(values) if values else text)
    return function(*arguments, **words)


def _write(place: str, kind: str, text: str) -> None:
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
    line = json.dumps({"place": place, "kind": kind, "text": text, "test": test}) + "\n"
    try:
        file = os.open(globals()["HEARD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        return
    os.write(file, line.encode())
    os.close(file)

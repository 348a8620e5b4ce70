"""Run a function in a Python process of its own.

What a command measures or watches there starts from a fresh interpreter, and keeps its counters,
its compiled code and its end to itself.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MODULE = "toto_compile_patch.tools.own_process"


def run_in_process(
    function: Callable[..., None],
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> tuple[int, Any]:
    """Call ``function(answer, *arguments)`` in a new Python, and wait for its end.

    Args:
        function: a function of a module. It gives what is to come back to its first argument,
            once: plain data, which travels as JSON. What it raises ends its process.
        *arguments: for the function; the standard input is its own.
        environment: variables beside those that are set here.
        stdout: where its output goes, as ``subprocess`` has it; None: where this process's goes.
        stderr: likewise.

    Returns:
        The exit code, negative for a signal, and the answer; None where there was none.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        code = subprocess.run(
            [sys.executable, "-m", MODULE, str(file), name, *arguments],
            env={**os.environ, **(environment or {})},
            stdout=stdout,
            stderr=stderr,
        ).returncode
        answer = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return code, answer


def _main() -> None:
    file, name, *arguments = sys.argv[1:]
    module, _, function = name.partition(":")

    def answer(found: Any) -> None:
        whole = Path(f"{file}.part")
        whole.write_text(json.dumps(found, default=str), encoding="utf-8")
        whole.replace(file)

    getattr(importlib.import_module(module), function)(answer, *arguments)


if __name__ == "__main__":
    _main()

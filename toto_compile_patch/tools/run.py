"""``python -m toto_compile_patch run``: a script, unchanged, patched.

Another Python takes this one's place, with the same flags, and runs the script itself; the folder
``hook`` on its PYTHONPATH does the rest, in it and in every Python that it starts.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from toto_compile_patch.tools.checks import UsageError

_HOOK = str(Path(__file__).resolve().with_name("hook"))


def run(options: argparse.Namespace) -> int:
    """Run the script or module that was named; returns on Windows alone.

    Raises:
        UsageError: it cannot be run, or not patched.
    """
    program = _program(options)
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise UsageError("Python's -E, -I and -S ignore what patches the script: leave them out")
    command = [sys.executable, *_flags(sys.orig_argv), *program]
    return _become(command, _environment(os.environ))


def _program(options: argparse.Namespace) -> list[str]:
    """The command line after Python's own flags."""
    if options.module is not None:
        if not options.module:
            raise UsageError("give a module: run -m MODULE [ARGS]")
        return ["-m", *options.module, *options.script]
    if not options.script:
        raise UsageError("give a script or a module: run SCRIPT [ARGS], or run -m MODULE [ARGS]")
    script = options.script[0]
    if not os.path.exists(script):
        raise UsageError(f"no file {script}: give the path of a script")
    if os.path.isdir(script) and not os.path.exists(os.path.join(script, "__main__.py")):
        raise UsageError(f"{script} is a folder without a __main__.py: give the path of a script")
    return list(options.script)


def _flags(command: Sequence[str]) -> list[str]:
    """Python's own flags in a command line of it: those before the script, -m or -c."""
    flags: list[str] = []
    words = iter(command[1:])
    for word in words:
        if word.startswith("--"):
            flags += [word, next(words, "")]
            continue
        split = re.fullmatch("-([^-cmWX]*)([cmWX]?)(.*)", word, re.DOTALL)
        if not split or word == "-":
            break
        plain, last, value = split.groups()
        if last in ("c", "m"):
            flags += [f"-{plain}"] if plain else []
            break
        flags.append(word)
        if last and not value:
            flags.append(next(words, ""))
    return flags


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment with the hook first on PYTHONPATH."""
    path = environ.get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != _HOOK:
        path = f"{_HOOK}{os.pathsep}{path}" if path else _HOOK
    return {**environ, "PYTHONPATH": path}


def _become(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a command in this process's place: its signals and its exit code are ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform != "win32":
        os.execve(command[0], command, environment)
    # There, a process that replaces itself has ended for whoever waits for it.
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue

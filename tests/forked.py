"""Scripts in processes of their own, which need not import again what toto imports.

An interpreter takes ten seconds to import gluonts, lightning and torch. Here, one process has
imported them, and each script runs in a fork of it; neither toto nor this package is imported
there. Where a test is about a fresh interpreter, or about what is imported, it starts one itself.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

TIMEOUT_S = 840
"""Within pytest's own limit, so that what a script has printed by then is shown."""

if sys.platform == "win32":
    _CONTEXT = multiprocessing.get_context("spawn")
else:
    _CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gluonts.torch"])


def python(code: str, *folders: Path, arguments: Sequence[str] = ()) -> CompletedProcess[str]:
    """Run code as ``python -c`` does, with the environment of this process.

    Args:
        code: indented or not.
        folders: what comes before all others on its path.
        arguments: its ``sys.argv[1:]``.
    """
    with tempfile.TemporaryDirectory() as kept:
        outputs = [os.path.join(kept, name) for name in ("stdout", "stderr")]
        path = ["", *map(str, folders), *sys.path]
        environment = dict(os.environ)
        given = (textwrap.dedent(code), ["-c", *arguments], path, environment, outputs)
        process = _CONTEXT.Process(target=_run, args=given)
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        stdout, stderr = (Path(output).read_text() for output in outputs)
        return CompletedProcess(("python", *arguments), process.exitcode, stdout, stderr)


def _run(
    code: str,
    arguments: list[str],
    path: list[str],
    environment: dict[str, str],
    outputs: list[str],
) -> None:
    """Be that script: what it prints goes to two files, its standard output and error."""
    for descriptor, output in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path = arguments, path
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), vars(main))

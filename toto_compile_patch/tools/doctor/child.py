"""Run a script as ``python`` would, watched, and write what was seen to a file.

    python -m toto_compile_patch.tools.doctor.child REPORT SCRIPT [ARGUMENTS...]

Ends as the script ends: with its exit code, or with its traceback and 1.
"""

from __future__ import annotations

import importlib.metadata
import json
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from toto_compile_patch.tools.doctor.watch import Watch


def main() -> None:
    report, script, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        # ``python -m`` puts the working directory there; ``python SCRIPT``, that of the script.
        sys.path[0] = str(Path(script).resolve().parent)
    watch = Watch()
    watch.start()
    error: BaseException | None = None
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException as raised:
        error = raised
    Path(report).write_text(json.dumps(_seen(watch, error), default=str), encoding="utf-8")
    if isinstance(error, SystemExit):
        raise error
    if error is not None:
        error.__traceback__ = _own_frames_left_out(error.__traceback__, script)
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _seen(watch: Watch, error: BaseException | None) -> dict[str, Any]:
    seen = watch.observed()
    failed = error is not None and not isinstance(error, SystemExit)
    seen["error"] = f"{type(error).__name__}: {error}" if failed else ""
    seen["torch"] = ""
    with suppress(importlib.metadata.PackageNotFoundError):
        seen["torch"] = importlib.metadata.version("torch")
    return seen


def _own_frames_left_out(traceback: TracebackType | None, script: str) -> TracebackType | None:
    """From the script's first frame on; nothing where it has none, as in a SyntaxError."""
    rest = traceback
    while rest is not None and rest.tb_frame.f_code.co_filename != script:
        rest = rest.tb_next
    return rest


if __name__ == "__main__":
    main()

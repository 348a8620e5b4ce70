"""Run a user's script, watched.

    python -m toto_compile_patch.tools.doctor.run_watched REPORT SCRIPT [ARGUMENTS...]

runs a script as ``python`` would, and writes what was seen to a file. A user's program is to have
its own arguments, its standard input and its own end, which no worker process leaves it. Nothing
imports this module: Python would warn of that when it runs it.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from toto_compile_patch.tools.doctor.watch import Watch


def run(report: str, script: str, *arguments: str) -> None:
    """Run a script in this process as ``python`` would, and write what was seen to a file.

    Ends as the script ends: with its exit code, or with its traceback and 1.
    """
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
    failed = error is not None and not isinstance(error, SystemExit)
    seen = {**watch.observed(), "error": f"{type(error).__name__}: {error}" if failed else ""}
    Path(report).write_text(json.dumps(seen, default=str), encoding="utf-8")
    if isinstance(error, SystemExit):
        raise error
    if error is not None:
        traceback = error.__traceback__
        # From the script's first frame on; nothing where it has none, as in a SyntaxError.
        while traceback is not None and traceback.tb_frame.f_code.co_filename != script:
            traceback = traceback.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


if __name__ == "__main__":
    run(*sys.argv[1:])

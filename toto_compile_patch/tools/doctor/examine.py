"""The command ``doctor``: an examination, its report, its exit code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toto_compile_patch.tools.checks import UsageError, check_json, is_stdout, write_json
from toto_compile_patch.tools.doctor.environment import examine_environment
from toto_compile_patch.tools.doctor.findings import Examined
from toto_compile_patch.tools.doctor.rendering import show_environment, show_examination
from toto_compile_patch.tools.doctor.script import examine_script


def run(options: argparse.Namespace) -> int:
    """Examine, report, and return 0 (healthy) or 1 (something waits for a cure).

    Raises:
        UsageError: there is no such script, or no place for the figures.
    """
    if options.script == []:
        raise UsageError("--script: name a script")
    script, *arguments = options.script or [None]
    if script is not None and not Path(script).is_file():
        raise UsageError(f"no such script: {script}")
    check_json(options.json)
    to_stdout = is_stdout(options.json)
    found: Examined
    if script is None:
        found = environment = examine_environment()
        if not to_stdout:
            show_environment(environment, sys.stdout)
    else:
        found = seen = examine_script(Path(script), arguments, keep_stdout=not to_stdout)
        if not to_stdout:
            show_examination(seen, sys.stdout)
    write_json(options.json, found.as_json())
    return 0 if found.healthy else 1

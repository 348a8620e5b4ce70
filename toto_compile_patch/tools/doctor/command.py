"""The command: an examination, its report, its exit code."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TypeAlias

from toto_compile_patch.tools.checks import UsageError, check_json, is_stdout, write_whole
from toto_compile_patch.tools.doctor import report
from toto_compile_patch.tools.doctor.environment import Environment, examine_environment
from toto_compile_patch.tools.doctor.script import Examination, examine_script

_Found: TypeAlias = Environment | Examination


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
    found: _Found
    if script is None:
        found = examine_environment()
    else:
        found = examine_script(Path(script), arguments, keep_stdout=not to_stdout)
    if not to_stdout:
        _show(found)
    if options.json:
        write_whole(options.json, json.dumps(found.as_json(), indent=2) + "\n")
    return 0 if found.healthy else 1


def _show(found: _Found) -> None:
    if isinstance(found, Examination):
        report.show_examination(found, sys.stdout)
    else:
        report.show_environment(found, sys.stdout)

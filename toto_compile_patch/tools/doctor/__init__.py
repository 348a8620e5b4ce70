"""``doctor``: look at an environment, or at a script that runs in it, and say what is in the way.

Needs nothing but Python, so that it runs where something is broken; rich makes it prettier.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from toto_compile_patch.tools.checks import UsageError, is_stdout, report
from toto_compile_patch.tools.doctor.environment import Environment, examine_environment
from toto_compile_patch.tools.doctor.examination import Examination
from toto_compile_patch.tools.doctor.rendering import show
from toto_compile_patch.tools.doctor.script import examine_script


def run(options: argparse.Namespace) -> int:
    """Examine, report, and return 0 (healthy) or 1 (something waits for a cure).

    Raises:
        UsageError: there is no such script, or the figures cannot be written.
    """
    found: Environment | Examination
    if options.script is None:
        found = examine_environment()
    elif not options.script:
        raise UsageError("--script names no script: give its path, then its arguments")
    else:
        script, *arguments = options.script
        if not Path(script).is_file():
            raise UsageError(f"no file {script}: give the path of a script")
        found = examine_script(Path(script), arguments, keep_stdout=not is_stdout(options.json))
    report(options.json, found.as_json(), lambda: show(found))
    return 0 if found.healthy else 1

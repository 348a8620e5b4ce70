"""Keep what came of the tests of one stack: .ci/proof/long calls it.

    python .ci/proof/long_tests.py STACK JUNIT_XML RESULTS_JSON

Runs in the environment in which the tests have run, whose versions it writes down.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import toto_compile_patch
from toto_compile_patch.tools import machine

PACKAGES = ("numpy", "pandas", "pytest")
LONGEST = 10


def outcome(junit: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, in what time, and which took longest."""
    suite = ElementTree.parse(junit).getroot()[0]
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    cases = [(float(case.attrib["time"]), case) for case in suite.iter("testcase")]
    cases.sort(key=lambda timed: timed[0], reverse=True)
    return {
        "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"],
        "failed": counts["failures"] + counts["errors"],
        "skipped": counts["skipped"],
        "seconds": round(float(suite.attrib["time"])),
        "failures": [
            called(case)
            for _, case in cases
            if case.find("failure") is not None or case.find("error") is not None
        ],
        "longest": {called(case): round(seconds) for seconds, case in cases[:LONGEST]},
    }


def called(case: ElementTree.Element) -> str:
    """A test's name, as pytest takes it."""
    module, _, group = case.attrib["classname"].partition(".Test")
    within = f"Test{group}::" if group else ""
    return f"{module.replace('.', '/')}.py::{within}{case.attrib['name']}"


def main() -> None:
    """Put the outcome of one stack beside the other's."""
    stack, junit, results = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    found = json.loads(results.read_text()) if results.exists() else {}
    found[stack] = {
        **machine.facts("cpu"),
        "package": toto_compile_patch.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **outcome(junit),
    }
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Upstream's own tests, run where they are installed, pass with the patches applied."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_upstreams_own_tests_pass(tmp_path: Path) -> None:
    plugin = "apply_to_upstreams_tests"
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", plugin]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--pyargs", "toto.test"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 15
    assert "failed" not in run.stdout

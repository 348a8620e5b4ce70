"""What the README lists is what the package has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import toto_compile_patch
from toto_compile_patch import settings
from toto_compile_patch.table import TABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("patch", TABLE, ids=lambda patch: patch.name)
def test_every_patch_is_listed_with_its_purpose(patch: object) -> None:
    name, why = patch.name, patch.why  # type: ignore[attr-defined]
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    assert why in row


def test_every_environment_variable_is_listed() -> None:
    for name, variable in vars(settings).items():
        if name.startswith("ENV_"):
            assert f"| `{variable}` |" in README


def test_every_public_name_is_listed() -> None:
    for name in toto_compile_patch.__all__:
        assert f"`{name}" in README, name


def test_its_figures_are_those_of_the_results() -> None:
    tables = ROOT / ".ci" / "tables.py"
    assert subprocess.run([sys.executable, str(tables), "--check"]).returncode == 0

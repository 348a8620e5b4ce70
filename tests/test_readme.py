"""What README and docs list is what the package has."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toto.model.toto import Toto
from toto_cases import small_model

import toto_compile_patch
from toto_compile_patch.settings import ENV_TOGGLE, SETTINGS, Setting, variable_of
from toto_compile_patch.table import TABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "README.md", ROOT / "MAINTAINING.md", *sorted((ROOT / "docs").rglob("*.md")))


@pytest.mark.parametrize("patch", TABLE, ids=lambda patch: patch.name)
def test_every_patch_is_listed_with_its_purpose(patch: object) -> None:
    name, why = patch.name, patch.why  # type: ignore[attr-defined]
    page = (ROOT / "docs" / "how_it_works.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    assert why in row
    assert f"`{name}`" in README


def test_the_toggle_is_listed() -> None:
    assert f"| `{ENV_TOGGLE}` |" in README


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_listed_with_its_purpose_values_and_default(setting: Setting) -> None:
    start = f"| `{variable_of(setting.name)}` |"
    row = next(line for line in README.splitlines() if line.startswith(start))
    assert setting.purpose in row
    assert all(f"`{choice}`" in row for choice in setting.choices)
    defaults = {None: "not shown", True: "`1`"}
    assert row.endswith(f"| {defaults.get(setting.default, f'`{setting.default}`')} |")


def test_the_arguments_of_apply_are_listed() -> None:
    signature = inspect.signature(toto_compile_patch.apply)
    names = [f"{one.name}={one.default}" for one in signature.parameters.values()]
    assert f"| `apply({names[0]}, *, {', '.join(names[1:])})` |" in README


def test_its_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small model in place of the published one, which has to be downloaded."""
    programs = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (program,) = (one for one in programs if "from_pretrained" in one)
    rows = [f"2026-01-01 {hour:02}:00,{hour},{20 - hour}" for hour in range(24)]
    (tmp_path / "temperatures.csv").write_text("\n".join(["time,inside,outside", *rows]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Toto, "from_pretrained", lambda name: small_model())
    exec(program, {})
    assert "tensor([[[" in capsys.readouterr().out
    path = toto_compile_patch.last_path()
    assert path is not None
    assert path.taken == "fast"


def test_every_public_name_is_listed() -> None:
    for name in toto_compile_patch.__all__:
        assert f"`{name}" in README, name


def test_it_is_a_page() -> None:
    assert README.count("\n") <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
            }


def test_figures_are_those_of_the_results() -> None:
    tables = ROOT / ".ci" / "tables.py"
    assert subprocess.run([sys.executable, str(tables), "--check"]).returncode == 0

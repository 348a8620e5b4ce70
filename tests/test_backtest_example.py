"""examples/backtest.py as a user runs it: the table, the A/B toggle, and bad input."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "backtest.py"
# One patch: no decode step for upstream to compile.
QUICK = (
    *("--device", "cpu", "--compile", "default"),
    *("--windows", "2", "--context", "64", "--horizon", "24", "--samples", "0"),
)


def backtest(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_three_ways_are_compared(tmp_path: Path) -> None:
    run = backtest(*QUICK, "--json", tmp_path / "result.json")
    assert run.returncode == 0, run.stderr
    assert "demo model" in run.stdout
    ways = {
        way["way"]: way["health"]
        for way in json.loads((tmp_path / "result.json").read_text())["ways"]
    }
    eager, compiled, patched = ways.values()
    assert list(ways) == ["upstream, eager", "upstream, compiled", "patched"]
    assert eager["graphs"] == 0
    assert compiled["graphs"] > 0
    assert set(patched.values()) == {0}


@pytest.mark.slow
def test_the_toggle_runs_upstream_untouched_and_says_so() -> None:
    run = backtest(*QUICK, TOTO_COMPILE_PATCH="0")
    assert run.returncode == 0, run.stderr
    assert "TOTO_COMPILE_PATCH=0" in run.stdout
    assert "untouched" in run.stdout
    assert "nothing is patched" in run.stdout


def rows(path: Path, *cells: object) -> Path:
    path.write_text("\n".join(["hour,load", *(f"{i},{cell}" for i, cell in enumerate(cells))]))
    return path


@pytest.mark.parametrize(
    ("case", "arguments", "says"),
    [
        ("missing file", ["--csv", "nowhere.csv", "--column", "load"], "no file nowhere.csv"),
        ("missing column", ["--csv", "good.csv", "--column", "power"], "hour, load"),
        ("text", ["--csv", "text.csv", "--column", "load"], "'twelve' is not a number"),
        ("gaps only", ["--csv", "gaps.csv", "--column", "load"], "nothing but gaps"),
        ("too short", ["--csv", "good.csv", "--column", "load"], "200 rows"),
        ("no horizon", ["--horizon", "0"], "--horizon"),
        ("mode", ["--compile", "fastest"], "fastest"),
        ("samples", ["--samples", "10", "--samples-per-batch", "3"], "--samples"),
        ("model", ["--model", "./nowhere"], "nowhere"),
    ],
)
def test_bad_input_gets_one_clear_line(
    case: str,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "good.csv", *range(200))
    rows(tmp_path / "text.csv", *range(50), "twelve", *range(1000))
    rows(tmp_path / "gaps.csv", *[""] * 1000)
    # In this process, which has imported torch already.
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert left.value.code == 2, case
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("backtest.py: error: ")
    assert says in error

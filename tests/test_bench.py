"""``python -m toto_compile_patch``: what it refuses, and that a small run adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from toto_compile_patch.tools import bench, cli, machine
from toto_compile_patch.tools.workloads import WORKLOADS, chosen


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "toto_compile_patch", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workload", "W99"], "choose from W1"),
        (["--pairs", "0"], "at least 1"),
        (["--dtype", "int8"], "float32"),
        (["--device", "abacus"], "abacus"),
        (["--json", "nowhere/at/all.json"], "no directory"),
    ],
)
def test_bad_usage_gets_one_clear_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["bench", *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    assert says in capsys.readouterr().err.replace("\n", "")


def test_the_toggle_leaves_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "0")
    assert cli.main(["bench", "--workload", "W4"]) == 2
    assert "TOTO_COMPILE_PATCH=0" in capsys.readouterr().err


def test_help_lists_the_workloads() -> None:
    text = run("bench", "--help").stdout
    assert all(f"  {name} " in text for name in WORKLOADS)


def test_a_name_stands_for_its_variants() -> None:
    assert chosen(["W5"]) == ["W5-96", "W5-192", "W5-336", "W5-720"]
    assert chosen(["W2"]) == ["W2"]


def test_the_peak_is_this_processs() -> None:
    before = machine.peak_bytes(torch.device("cpu"))
    block = torch.ones(50_000_000)
    grown = machine.peak_bytes(torch.device("cpu")) - before
    assert 0 <= grown <= 1.5 * block.numel() * 4


@pytest.mark.parametrize(
    ("asked", "made", "says"),
    [
        (2, 2, ["W9: 2 pairs of measurements"]),
        (5, 1, ["W9: 1 pair of measurements, for which the --budget was enough, not 5"]),
        (5, 5, []),
    ],
)
@pytest.mark.parametrize("measured", ["8 of 8 batches of 64", "1 of 8 batches of 64"])
def test_how_many_pairs_there_were_is_said(
    asked: int, made: int, says: list[str], measured: str
) -> None:
    sides: dict[str, dict[str, Any]] = {
        bench.UPSTREAM: {"measured": measured, "ratios": [2] * made}
    }
    told = list(bench._notes("W9", {**sides, "disturbed": False}, sides, asked))
    batches = [f"W9: upstream measured on {measured}, times the rest"]
    assert told == [*(batches if measured.startswith("1") else []), *says]


@pytest.mark.slow
def test_what_upstream_cannot_do_is_said(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run("bench", "--workload", "W9", "--dtype", "bfloat16", "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert "W9: could not be measured" in done.stdout
    assert "failed" in json.loads(figures.read_text())["workloads"]["W9"]


@pytest.mark.slow
def test_a_small_workload_is_measured_on_both_sides(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    # With time enough for all pairs, however busy the machine is.
    arguments = ("--workload", "W9", "--pairs", "3", "--budget", "1000000")
    done = run("bench", *arguments, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert "W9" in done.stdout
    row = json.loads(figures.read_text())["workloads"]["W9"]
    assert row[bench.UPSTREAM]["ratio"] > 2
    assert len(row[bench.UPSTREAM]["ratios"]) == 3
    assert row[bench.UPSTREAM]["seconds"] > row[bench.PATCHED]["seconds"]
    assert 0.5 < row[bench.PATCHED]["peak_gb"] < 4

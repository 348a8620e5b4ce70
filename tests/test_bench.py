"""``python -m toto_compile_patch``: what it refuses, and that a small run adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toto_cases import tiny_model

from toto_compile_patch.tools import bench, cli, machine, models
from toto_compile_patch.tools.compile_health import CompileHealth
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


def test_the_peak_is_known_where_the_system_has_no_files_about_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    before = machine.peak_bytes(cpu)
    monkeypatch.setattr(machine, "_read_bytes", lambda file, field: 0)
    # Up to what the program held that this one took the place of.
    assert machine.peak_bytes(cpu) >= 0.9 * before


@pytest.mark.parametrize(
    ("free", "asked", "fits"),
    [(10**12, None, 64), (10**12, 16, 16), (3 * 10**6, None, 4), (1, None, 1)],
)
def test_upstream_draws_no_more_at_once_than_there_is_memory_for(
    free: int, asked: int | None, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda device: free)
    # A sample takes three times 40 steps of 768 numbers of 4 bytes: 0.37 MB, of 80% of the memory.
    assert bench._that_fits(WORKLOADS["W9"], torch.device("cpu"), asked) == fits


@pytest.mark.parametrize(("own_groups", "groups"), [(True, [0, 1, 2]), (False, [0, 0, 0])])
def test_series_have_groups_of_their_own_where_the_workload_says_so(
    own_groups: bool, groups: list[int]
) -> None:
    load = replace(WORKLOADS["W9"], batch=3, own_groups=own_groups)
    made = bench.series(load, torch.device("cpu"), torch.float32)
    assert made.id_mask[:, 0, 0].tolist() == groups
    assert (made.id_mask == made.id_mask[:, :1, :1]).all()


def test_what_to_know_of_a_workload_is_noted() -> None:
    accuracy = {"difference": 0.012, "between_seeds": 0.34, "error": 5.67891, "error_before": 5.6}
    sides: dict[str, dict[str, Any]] = {
        bench.UPSTREAM: {"measured": "8 of 8 batches of 64", "ratios": [2] * 5, "spread": 1.7},
        bench.PATCHED: {"spread": 1.1},
        "patched, bf16": {"accuracy": accuracy},
    }
    row = {**sides, "disturbed": True, "stolen": 0.25}
    assert list(bench._notes("W9", row, sides, 5)) == [
        "W9, patched, bf16: median forecast off by 0.012 of the series' standard deviation (two "
        "seeds: 0.34); mean error 5.679, before 5.6",
        "W9: the machine was disturbed (25% of its time stolen, spread 1.7 and 1.1): measure again",
    ]


class CountingSide(bench.Side):
    """Writes down what is done with it."""

    def put_in_force(self) -> None:
        super().put_in_force()
        done.append("applied")

    def forecast(self, *asked: Any) -> Any:
        done.append("forecast")
        return super().forecast(*asked)


done: list[str] = []


@pytest.mark.parametrize("settings", [{}, {"runtime": "eager"}])
def test_a_turn_is_many_forecasts_in_a_row(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "MOST_IN_A_TURN", 3)
    monkeypatch.setattr(bench, "SECONDS_OF_A_TURN", float("inf"))
    load = WORKLOADS["W9"]
    side = CountingSide(models.toto_ts().TotoForecaster(tiny_model().model), settings)
    trial = bench.Trial(side, load, bench.series(load, torch.device("cpu"), torch.float32))
    done.clear()
    trial.take_turn()
    # As a user's program does, which calls apply() once.
    assert done == ["applied", "forecast", "forecast", "forecast"]
    assert [seconds > 0 for seconds in trial.wall] == [True]


@pytest.fixture
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A benchmark that takes seconds: of a tiny model, that torch traces and does not compile."""

    def model(device: torch.device, dtype: torch.dtype) -> Any:
        return tiny_model().model.to(device, dtype)

    monkeypatch.setattr(bench, "base_model", model)
    torch._dynamo.reset()
    with torch.compiler.set_stance("default", force_backend="eager"):
        yield
    torch._dynamo.reset()


def test_every_side_that_is_asked_for_is_measured(
    tiny_base: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--compile", "default", "--precision", "model,bf16", "--pairs", "1", "--no-memory")
    assert cli.main(["bench", "--workload", "W9", *asked, "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    row = figures["workloads"]["W9"]
    sides = {side: found for side, found in row.items() if isinstance(found, dict)}
    assert list(sides) == [bench.UPSTREAM, bench.PATCHED, "patched, bf16", bench.COMPILED]
    assert [side for side in sides if "accuracy" in sides[side]] == ["patched, bf16"]
    accuracy = sides["patched, bf16"]["accuracy"]
    assert 0 < accuracy["difference"] < accuracy["between_seeds"]
    assert [side for side in sides if "first_seconds" in sides[side]] == list(sides)[2:]
    assert sides[bench.COMPILED]["first_seconds"] > 0
    assert {found["peak_gb"] for found in sides.values()} == {None}


@pytest.mark.parametrize("side", [bench.UPSTREAM, bench.COMPILED])
def test_the_compiled_side_is_compiled_where_its_memory_is_measured(
    side: str, tiny_base: None
) -> None:
    options = Namespace(device="cpu", dtype="float32", compile="default", per_batch=None)
    options.precision, options.runtime = ["model"], ["eager"]
    with CompileHealth() as health:
        assert bench.peak_bytes_of(options, "WM", side) > 0
    assert (health.graphs > 0) == (side == bench.COMPILED)


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

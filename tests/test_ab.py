"""``ab``: what it refuses, how it judges, and a comparison from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ab_cases import figures_of

from toto_compile_patch.tools import cli, scores
from toto_compile_patch.tools.ab.judgement import judge, judge_means
from toto_compile_patch.tools.ab.words import setting_of, verdicts
from toto_compile_patch.tools.series.single import read_series
from toto_compile_patch.tools.turns import QUANTILES, Job
from toto_compile_patch.tools.windows import Window

HOURS = pd.date_range("2024-01-01", periods=400, freq="h").strftime("%Y-%m-%d %H:%M").tolist()


def table(path: Path, hours: list[str], load: list[object]) -> Path:
    rows = zip(hours, load, strict=False)
    path.write_text(
        "\n".join(["time,load,price", *(f"{hour},{cell},1{cell}" for hour, cell in rows)])
    )
    return path


def numbers(count: int = 400) -> list[object]:
    return [round(100 + 10 * np.sin(i / 4) + i % 7, 2) for i in range(count)]


@pytest.mark.parametrize(
    ("case", "arguments", "says"),
    [
        ("no file", ["nowhere.csv"], "no file nowhere.csv"),
        ("missing column", ["good.csv", "--column", "power"], "time, load, price"),
        ("column not named", ["good.csv"], "--column"),
        ("text", ["text.csv", "--column", "load"], "data row 51: 'twelve' is not a number"),
        ("duplicates", ["twice.csv", "--column", "load"], "2024-01-01 07:00:00 is there twice"),
        ("one row", ["one.csv", "--column", "load"], "1 row;"),
        ("no rows", ["none.csv", "--column", "load"], "no rows"),
        ("empty", ["empty.csv"], "is empty"),
        ("gaps only", ["gaps.csv", "--column", "load"], "nothing but gaps"),
        ("too long", ["good.csv", "--column", "load", "--context", "4000"], "400 rows"),
        ("more cells", ["wide.csv", "--column", "load"], "more cells than its header"),
        ("one name twice", ["same.csv"], "load, load"),
        ("nothing to forecast", ["ends.csv", "--column", "load"], "nothing but gaps from data row"),
        ("a folder", ["."], ". is a folder"),
        ("json is the report", ["--json", "toto_ab.png"], "--json"),
        ("a model that is none", ["--model", "broken"], "broken"),
        ("not parquet", ["good.parquet", "--column", "load"], "good.parquet"),
        ("model", ["good.csv", "--column", "load", "--model", "./nowhere"], "nowhere"),
        ("samples", ["--samples", "10", "--samples-per-batch", "3"], "--samples-per-batch"),
        ("report", ["--report", "nowhere/ab.html"], "no directory nowhere"),
        ("report's name", ["--report", "ab.pdf"], ".html"),
        ("season", ["good.csv", "--column", "load", "--season", "300"], "--season"),
        ("windows", ["--windows", "0"], "--windows"),
        ("mode", ["--compile", "fastest"], "fastest"),
    ],
)
def test_bad_input_gets_one_clear_line(
    case: str,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "good.csv", HOURS, numbers())
    table(tmp_path / "text.csv", HOURS, [*numbers(50), "twelve", *numbers(300)])
    table(tmp_path / "twice.csv", [*HOURS[:8], *HOURS[7:]], numbers())
    table(tmp_path / "one.csv", HOURS, numbers(1))
    table(tmp_path / "none.csv", HOURS, [])
    table(tmp_path / "gaps.csv", HOURS, [""] * 400)
    table(tmp_path / "ends.csv", HOURS, [*numbers(100), *[""] * 300])
    (tmp_path / "empty.csv").touch()
    (tmp_path / "wide.csv").write_text("time,load\n" + "1,2,3\n" * 20)
    (tmp_path / "same.csv").write_text("time,load,load\n1,2,3\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "good.parquet").write_text("time,load\n1,2\n")
    before = sorted(tmp_path.iterdir())
    try:
        code = cli.main(["ab", *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2, case
    lines = capfd.readouterr().err.strip().splitlines()
    assert says in lines[-1]
    assert "error: " in lines[-1]
    assert len(lines) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_toggle_leaves_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "0")
    assert cli.main(["ab", "--no-report"]) == 2
    assert "TOTO_COMPILE_PATCH=0" in capfd.readouterr().err


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    for module in [name for name in sys.modules if name.startswith("toto_compile_patch.tools.ab")]:
        monkeypatch.delitem(sys.modules, module)
    assert cli.main(["ab", "--no-report"]) == 2
    assert "rich is missing: pip install rich" in capsys.readouterr().err


def window(values: list[float], truth: list[float]) -> Window:
    context = np.array([values], np.float32)
    return Window(
        values=np.nan_to_num(context),
        observed=~np.isnan(context),
        seconds=np.arange(len(values)),
        interval=1,
        truth=np.array([truth]),
    )


def test_the_naive_scale_skips_gaps() -> None:
    # Pairs one season of 2 apart: (1, 4) and (6, 2); the others meet a gap.
    scale = scores.naive_scale(window([1, np.nan, 4, 2, np.nan, 5], [0.0]), 2)
    assert scale == pytest.approx([3.0])
    assert np.isnan(scores.naive_scale(window([1, 2, 1, 2], [0.0]), 2)).all()


def test_the_naive_forecast_repeats_the_season() -> None:
    assert scores.seasonal_naive(window([9, 1, 2, 3], [0.0] * 5), 3).tolist() == [[1, 2, 3, 1, 2]]


def test_the_pinball_loss_is_that_of_a_point_forecast() -> None:
    # All quantiles at one point: twice the pinball loss averages to the absolute error.
    quantiles = np.full((9, 1, 2), 3.0)
    assert scores.pinball(quantiles, np.array([[5.0, np.nan]]))[0, 0] == pytest.approx(2.0)


def test_the_pinball_loss_of_uniform_quantiles() -> None:
    quantiles = np.array(QUANTILES)[:, None, None]
    expected = np.mean([2 * level * (1 - level) for level in QUANTILES])
    assert scores.pinball(quantiles, np.array([[1.0]]))[0, 0] == pytest.approx(expected)


def test_the_interval_is_closed_and_skips_what_nobody_knows() -> None:
    quantiles = np.linspace(0, 1, 9)[:, None, None] + np.zeros((1, 4))
    covered = scores.covered(quantiles, np.array([[1.0, -0.1, 0.5, np.nan]]))
    assert covered[0, :3].tolist() == [1, 0, 1]
    assert np.isnan(covered[0, 3])


@pytest.mark.parametrize(
    ("frequency", "season"), [("h", 24), ("15min", 96), ("D", 7), ("MS", 12), ("7D", 52), ("3D", 1)]
)
def test_the_season_follows_from_the_interval(frequency: str, season: int, tmp_path: Path) -> None:
    times = pd.date_range("2020-01-01", periods=400, freq=frequency).strftime("%Y-%m-%d %H:%M")
    series = read_series(table(tmp_path / "a.csv", times.tolist(), numbers()), ["load"])
    assert series.season(512) == season
    assert series.season(1) == 1


def test_a_parquet_file_reads_like_a_csv_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"load": numbers()}, pd.date_range("2024-01-01", periods=400, freq="h"))
    frame.to_parquet(tmp_path / "a.parquet")
    found = read_series(tmp_path / "a.parquet")
    expected = read_series(table(tmp_path / "a.csv", HOURS, numbers()), ["load"])
    assert found.columns == ("load",)
    assert (found.values == expected.values).all()
    assert (found.seconds == expected.seconds).all()
    assert (found.interval, found.timed) == (3600, True)


def test_rows_of_the_file_and_time_steps_are_told_apart(tmp_path: Path) -> None:
    figures = figures_of(tmp_path)
    assert figures.setting["data"] == "a.csv, 400 rows: load"
    hours = [hour for i, hour in enumerate(HOURS) if i not in (30, 31, 50)]
    load = [*numbers(396), ""]
    series = read_series(table(tmp_path / "b.csv", hours, load), ["load"])
    job = Job("demo", "cpu", "default", 24, 8, 8)
    facts = {"device": "a machine", "torch": "2.7.0", "toto": "toto-ts 0.2.0", "date": "today"}
    told = setting_of(replace(figures.data, series=series), job, facts)["data"]
    assert told == "b.csv, 397 rows, 400 time steps, 4 gaps: load"


def test_chance_alone_is_the_same(tmp_path: Path) -> None:
    judgement = figures_of(tmp_path).judgement
    assert judgement.same
    assert judgement.distance == pytest.approx(judgement.between_seeds, rel=0.3)


@pytest.mark.parametrize(
    ("change", "means_agree", "samples_agree"),
    [
        ({"shift": 0.25}, True, False),
        ({"spread": 0.7}, True, False),
        ({"spread": 1.4}, True, False),
        ({"mean_shift": 0.002}, False, True),
        ({"mean_shift": 0.0001}, True, True),
    ],
)
def test_another_forecast_is_not_the_same(
    change: dict[str, Any], means_agree: bool, samples_agree: bool, tmp_path: Path
) -> None:
    figures = figures_of(tmp_path, **change)
    assert figures.judgement.means_agree is means_agree
    assert figures.judgement.samples_agree is samples_agree
    said = [verdict.good for verdict in verdicts(figures)][1:]
    assert said == [means_agree, samples_agree]


@pytest.mark.parametrize(("windows", "horizon"), [(1, 1), (16, 1), (1, 96), (16, 96)])
@pytest.mark.parametrize("uneven", [False, True])
def test_chance_is_seldom_taken_for_a_difference(windows: int, horizon: int, uneven: bool) -> None:
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        size = np.exp(2 * generator.normal(size=(windows, 1, 1, 1))) if uneven else 1.0
        shape = (windows, 1, horizon, 64)
        sides = (size * generator.standard_t(3, shape) for _ in range(3))
        one, two, three = (
            np.moveaxis(np.quantile(side, QUANTILES, axis=-1), 0, 1) for side in sides
        )
        wrong += judge(one, two, three, 64, (0.0, True)).samples_agree is False
    assert wrong <= 4


def test_rounding_at_a_high_level_is_no_difference() -> None:
    high = [window([2e6 + i % 3 for i in range(50)], [2e6])]
    mean = np.array([[[2e6]]])
    assert judge_means(mean, mean + 0.25, high)[1]
    assert not judge_means(mean, mean + 25.0, high)[1]


def test_figures_are_json_even_where_nothing_is_known(tmp_path: Path) -> None:
    figures = figures_of(tmp_path)
    figures.accuracies[0] = replace(figures.accuracies[0], mae=float("nan"))
    text = json.dumps(figures.as_json(), allow_nan=False)
    assert json.loads(text)["accuracy"][0]["mae"] is None


@pytest.mark.slow
def test_compiled_ways_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    table(tmp_path / "a.csv", HOURS, numbers())
    monkeypatch.chdir(tmp_path)
    # What is asked for to be compiled is not, which would take a minute.
    environ = {"TORCHDYNAMO_DISABLE": "1", "FORCE_COLOR": "1", "COLUMNS": "200", "LINES": "50"}
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    sizes = ("--windows", "1", "--context", "64", "--horizon", "8", "--samples", "0")
    kept = ("--compile", "default", "--json", "ab.json", "--no-report")
    assert cli.main(["ab", "a.csv", "--column", "load", *sizes, *kept]) == 0
    said = capfd.readouterr()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "ab.json"]
    [verdict] = [line for line in said.out.splitlines() if "mean forecasts, which" in line]
    assert verdict.endswith("%")
    assert len(verdict) > 120
    found = json.loads((tmp_path / "ab.json").read_text())
    ways = ["upstream, eager", "upstream, compiled", "patched, compiled"]
    assert [speed["way"] for speed in found["speed"]] == ways
    # Of means, no other seed is tried.
    assert [row["way"] for row in found["accuracy"]] == [*ways, "seasonal naive"]
    assert found["mae_change_of_another_seed"] is None
    assert found["same"] is True


@pytest.mark.slow
def test_a_comparison_from_end_to_end(tmp_path: Path) -> None:
    load = numbers()
    load[380:384] = ["", "", "", ""]
    table(tmp_path / "a.csv", [*HOURS[:200], *HOURS[201:]], load)
    arguments = "a.csv --column load --column price --samples 128 --windows 4 --json ab.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "toto_compile_patch", "ab", *arguments.split()],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "6 gaps" in done.stdout
    assert (
        "times:     column time, hourly, 1 missing row filled in as gaps; season 24" in done.stdout
    )
    found = json.loads((tmp_path / "ab.json").read_text())
    assert found["same"] is True
    assert found["season"] == 24
    assert [speed["path"] for speed in found["speed"]] == ["upstream's code", "fast path, eager"]
    assert found["judgement"]["mean"] < 1e-4
    assert {row["column"] for row in found["accuracy"]} == {"load", "price"}
    page = (tmp_path / "toto_ab.html").read_text()
    assert "the same forecast" in page
    assert "<img" in page
    assert "load, price of a.csv, by the demo model" in page
    assert (tmp_path / "toto_ab.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.csv", "ab.json", "toto_ab.html", "toto_ab.png")
    ]


@pytest.mark.slow
def test_too_little_to_judge_by_fails_no_run(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", HOURS, numbers())
    arguments = "a.csv --column load --samples 8 --windows 1 --no-report --json ab.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "toto_compile_patch", "ab", *arguments.split()],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "too little to judge samples by" in done.stdout
    assert json.loads((tmp_path / "ab.json").read_text())["same"] is None

"""``backtest``: what it refuses, what it writes, and that a run goes on as if nothing had been."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from backtest_cases import (
    HORIZON,
    QUICK,
    by_row,
    contents,
    long_table,
    parts,
    read_output,
    series_values,
    start,
)
from torch.nn.modules.module import register_module_forward_hook

from toto_compile_patch.tools import cli, models

pytest.importorskip("pyarrow", exc_type=ImportError)

from toto_compile_patch.tools.backtest.scoring import quantiles_of
from toto_compile_patch.tools.backtest.survey import survey

STARTS = ("2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00")
HOURS = pd.date_range("2024-01-01", periods=80, freq="h").strftime("%Y-%m-%d %H:%M").tolist()
EVENTS = list(enumerate(pd.to_datetime("2024-01-01") + pd.to_timedelta(np.arange(40) ** 2, "D")))


def run(*arguments: object) -> int:
    """The exit code of the command."""
    try:
        return cli.main(["backtest", *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)


def write(path: Path, header: str, rows: list[tuple[object, ...]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def rows_of(item: object, hours: list[str] = HOURS) -> list[tuple[object, ...]]:
    return [(item, hour, 10 + i % 7) for i, hour in enumerate(hours)]


@pytest.fixture
def bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    header = "item_id,timestamp,target"
    good = rows_of("a")

    def file(name: str, rows: list[tuple[object, ...]], header: str = header) -> None:
        write(tmp_path / f"{name}.csv", header, rows)

    file("good", [*good, *rows_of("b")])
    file("power", [(*row, i) for i, row in enumerate(good)], "item_id,timestamp,power,cost")
    file("twice", [*good[:5], good[4], *good[5:]])
    file("text", [*good[:30], ("a", HOURS[30], "twelve"), *good[31:]])
    file("when", [*good[:30], ("a", "soon", 1), *good[31:]])
    file("nameless", [*good[:30], ("", HOURS[30], 1), *good[31:]])
    file("uneven", [*good[:30], ("a", "2024-01-02 06:07", 1), *good[31:]])
    file("events", [("a", f"{time.date()} 12:00:{second:02}", 1) for second, time in EVENTS])
    file("wide", [(hour, i, "shop") for i, hour in enumerate(HOURS)], "timestamp,one,two")
    commas = [f"{hour};{i},5" for i, hour in enumerate(HOURS)]
    (tmp_path / "commas.csv").write_text("\n".join(["timestamp;target", *commas]))
    file("years", [*good, ("a", "2034-01-01 00:00", 1)])
    file("again", [*good, *rows_of("b"), *rows_of("a")])
    file("none", [])
    file("gaps", [("a", hour, "") for hour in HOURS])
    file("more", [(*row, 1) for row in good])
    file("semicolons", [], "item_id;timestamp;target")
    file("same", [], "item_id,timestamp,target,target")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "good.parquet").write_text("no Parquet file\n")
    (tmp_path / "there").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.csv"], "no file nowhere.csv"),
        (["power.csv"], "name what to forecast with --target: power, cost"),
        (["good.csv", "--target", "power"], "'power'"),
        (["good.csv", "--id", "shop"], "'shop'"),
        (["good.csv", "--time", "when"], "'when'"),
        (["good.csv", "--known", "price"], "'price'"),
        (["good.csv", "--known", "target"], "two things"),
        (["good.csv", "--wide", "--id", "item_id"], "--wide"),
        (["twice.csv"], "series 'a': 2024-01-01 04:00:00 is there twice: leave one"),
        (["text.csv"], "data row 31: 'twelve' is not a number"),
        (["when.csv"], "data row 31: 'soon' is not a time"),
        (["nameless.csv"], "data row 31: the id"),
        (["uneven.csv"], "give their step with --freq, such as min, or resample the series"),
        (["events.csv"], "): resample the series to even steps first"),
        (["wide.csv", "--wide"], "or take this column out of the file"),
        (["commas.csv", "--decimal", "."], "if it is a gap, or give --decimal ,"),
        (["years.csv"], "but 2024-01-04 07:00:00 is followed by 2034-01-01 00:00:00)"),
        (["good.csv", "--freq", "D"], "--freq D"),
        (["good.csv", "--freq", "soon"], "--freq soon"),
        (["again.csv"], "series 'a' comes again in data row 161: sort"),
        (["none.csv"], "no rows"),
        (["gaps.csv"], "nothing but gaps"),
        (["more.csv"], "more cells than its header"),
        (["semicolons.csv"], "no rows"),
        (["same.csv"], "columns of one name: item_id, timestamp, target, target"),
        (["empty.csv"], "empty.csv is empty"),
        (["good.parquet"], "good.parquet cannot be read as Parquet"),
        (["there"], "there is a folder"),
        (["nothing://good.csv"], "nothing"),
        (["good.csv", "--horizon", "70"], "its longest series has 80 rows"),
        (["good.csv", "--horizon", "0"], "--horizon"),
        (["good.csv", "--windows", "-1"], "--windows"),
        (["good.csv", "--min-context", "600"], "--min-context 600"),
        (["good.csv", "--samples", "10", "--samples-per-batch", "3"], "--samples-per-batch"),
        (["good.csv", "--quantiles", "0.9,0.1"], "--quantiles"),
        (["good.csv", "--quantiles", "0,1"], "--quantiles"),
        (["good.csv", "--memory", "much"], "--memory"),
        (["good.csv", "--cpus-per-worker", "some"], "--cpus-per-worker"),
        (["good.csv", "--model", "./nowhere"], "nowhere"),
        (["good.csv", "--device", "abacus"], "abacus"),
        (["good.csv", "--workers", "2"], "--engine ray"),
        (["good.csv", "--output", "there"], "there exists already"),
        (["good.csv", "--output", "good.csv/out"], "good.csv/out cannot be written"),
        (["good.csv", "--output", "there", "--resume", "--json", "no/where.json"], "no/where.json"),
    ],
)
def test_bad_input_gets_one_clear_line(
    arguments: list[str], says: str, bad_files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(bad_files.rglob("*"))
    assert run("--horizon", 8, "--output", "out", *arguments) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert says in lines[-1]
    assert "error: " in lines[-1]
    assert len(lines) == 1
    assert sorted(bad_files.rglob("*")) == before


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("pyarrow.parquet", [], "pip install 'pyarrow>=14,<26'"),
        ("ray", ["--engine", "ray"], "pip install ray (this package's extra ray)"),
    ],
)
def test_what_is_not_installed_is_named(
    module: str,
    arguments: list[str],
    says: str,
    bad_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run("good.csv", "--horizon", 8, "--output", "out", *arguments) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert says in line
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("memory", "500MB", 500 * 2**20),
        ("memory", "1.5 gib", 1.5 * 2**30),
        ("memory", "4096", 4096),
        ("cpus-per-worker", "0.5", 0.5),
        ("gpus-per-worker", "0", 0),
    ],
)
def test_what_workers_may_use_is_read_as_it_is_written(
    option: str, text: str, value: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from toto_compile_patch.tools import backtest

    given: dict[str, Any] = {}

    def take(options: argparse.Namespace) -> int:
        given.update(vars(options))
        return 0

    monkeypatch.setattr(backtest, "run", take)
    file = write(tmp_path / "a.csv", "item_id,timestamp,target", rows_of("a"))
    out = tmp_path / "out"
    assert run(file, "--horizon", HORIZON, "--output", out, f"--{option}", text) == 0
    assert given[option.replace("-", "_")] == value


def test_every_row_is_the_forecast_of_its_window_alone(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.parquet", series=40, rows=100)
    arguments = (*QUICK, "--samples", 0, "--dtype", "float64", "--windows", 5, "--shard", 64)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "out", *arguments) == 0
    found = read_output(tmp_path / "out")
    assert len(found) == 200
    assert not found.duplicated(["item_id", "window"]).any()
    model = models.load("demo").double().model
    forecaster = models.toto_ts().TotoForecaster(model)
    for item, rows in table.groupby("item_id", sort=False):
        values, times = rows.target.to_numpy(), rows.timestamp.tolist()
        for window in range(5):
            end = len(values) - (5 - window) * HORIZON
            row = found[(found.item_id == item) & (found.window == window)].iloc[0]
            assert row.cutoff == times[end - 1]
            assert row.truth == pytest.approx(values[end : end + HORIZON])
            alone = forecaster.forecast(window_of(values[max(0, end - 64) : end]), HORIZON)
            assert row["mean"] == pytest.approx(alone.mean[0, 0].tolist(), rel=1e-9, abs=1e-9)


def window_of(values: Any) -> Any:
    series = torch.tensor(values, dtype=torch.float64)[None]
    return models.toto_ts().MaskedTimeseries(
        series=series,
        padding_mask=torch.ones_like(series, dtype=torch.bool),
        id_mask=torch.zeros_like(series, dtype=torch.int),
        timestamp_seconds=torch.arange(series.shape[-1]).expand(series.shape) * 3600,
        time_interval_seconds=torch.tensor([3600]),
    )


def test_the_columns_of_the_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = long_table(tmp_path / "a.csv", series=3, rows=100)
    arguments = (*QUICK, "--quantiles", "0.05,0.5,0.95", "--json", tmp_path / "a.json")
    assert run(tmp_path / "a.csv", "--output", tmp_path / "out", *arguments) == 0
    said = capfd.readouterr().out
    assert "3 series, 3 windows forecast" in said
    assert "fast path" in said
    found = read_output(tmp_path / "out")
    assert list(found.columns) == [
        *("item_id", "cutoff", "window", "mean", "0.05", "0.5", "0.95", "truth"),
        *("mase", "wql", "coverage", "mase_naive"),
    ]
    low, median, high, truth = (np.stack(found[name]) for name in ("0.05", "0.5", "0.95", "truth"))
    assert ((low <= median) & (median <= high)).all()
    assert found.coverage.tolist() == pytest.approx(
        ((low <= truth) & (truth <= high)).mean(axis=1).tolist()
    )
    last = table.groupby("item_id").tail(64 + HORIZON).groupby("item_id").target
    context = np.stack([values.to_numpy()[:64] for _, values in last])
    # Of hours, a season is a day.
    scale = np.abs(context[:, 24:] - context[:, :-24]).mean(axis=1)
    # The context is in float32.
    mase = np.abs(truth - median).mean(axis=1) / scale
    assert found.mase.tolist() == pytest.approx(mase, rel=1e-5)
    naive = np.abs(truth - context[:, 40 : 40 + HORIZON]).mean(axis=1)
    assert found.mase_naive.tolist() == pytest.approx(naive / scale, rel=1e-5)
    miss = np.stack([truth - low, truth - median, truth - high])
    level = np.array([0.05, 0.5, 0.95])[:, None, None]
    loss = 2 * np.maximum(level * miss, (level - 1) * miss).mean(axis=(0, 2))
    assert found.wql.tolist() == pytest.approx(loss / np.abs(truth).mean(axis=1))
    kept = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert kept["scores"]["mase"] == pytest.approx(found.mase.mean())
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["scores"] == kept["scores"]
    assert figures["paths"] == ["fast path, eager"]
    assert (tmp_path / "out" / "errors.csv").read_text() == "item_id,window,kind,message\n"


def test_columns_by_name_and_in_parquet_and_csv(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.parquet", series=3, rows=100)
    arguments = (*QUICK, "--shard", 2)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "known", *arguments) == 0
    table.columns = ["Shop", "When", "Sold"]
    table.to_csv(tmp_path / "named.csv", index=False)
    named = ("--id", "Shop", "--time", "When", "--target", "Sold")
    out = tmp_path / "named"
    assert run(tmp_path / "named.csv", "--output", out, *arguments, *named) == 0
    assert parts(tmp_path / "known") == parts(out)
    # The first of several names that are known, in whatever case.
    table.columns = ["Unique_ID", "ds", "y"]
    table.assign(date="never", value=1.0).to_csv(tmp_path / "other.csv", index=False)
    assert run(tmp_path / "other.csv", "--output", tmp_path / "other", *arguments) == 0
    assert parts(tmp_path / "known") == parts(tmp_path / "other")


def test_a_wide_file_and_a_single_series(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.parquet", series=3, rows=100)
    arguments = (*QUICK, "--windows", 2)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "long", *arguments) == 0
    wide = table.pivot(index="timestamp", columns="item_id", values="target").reset_index()
    for name in ("wide.parquet", "wide.csv"):
        path = tmp_path / name
        wide.to_parquet(path) if name.endswith("parquet") else wide.to_csv(path, index=False)
        out = tmp_path / f"out {name}"
        assert run(path, "--output", out, *arguments, "--wide") == 0
        assert parts(out) == parts(tmp_path / "long")
    one = ("--target", "series 1")
    wide.to_csv(tmp_path / "one.csv", index=False)
    assert run(tmp_path / "one.csv", "--output", tmp_path / "one", *arguments, *one) == 0
    (found, expected) = (by_row(tmp_path / name) for name in ("one", "long"))
    assert found == {key: row for key, row in expected.items() if key[0] == "series 1"}


def test_no_chunk_of_a_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = long_table(tmp_path / "a.parquet", series=3, rows=100)
    table.to_csv(tmp_path / "a.csv", index=False)
    wide = table.pivot(index="timestamp", columns="item_id", values="target").reset_index()
    wide.to_parquet(tmp_path / "w.parquet")
    wide.to_csv(tmp_path / "w.csv", index=False)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "whole", *QUICK) == 0
    monkeypatch.setattr("toto_compile_patch.tools.series.tables._ROWS", 7)
    monkeypatch.setattr("toto_compile_patch.tools.series.reader._WIDE_BYTES", 1)
    for name in ("a.parquet", "a.csv", "w.parquet", "w.csv"):
        more = ["--wide"] if name.startswith("w") else []
        assert run(tmp_path / name, "--output", tmp_path / f"out {name}", *QUICK, *more) == 0
        assert parts(tmp_path / f"out {name}") == parts(tmp_path / "whole")


def test_columns_of_a_wide_file_begin_and_end_with_their_values(tmp_path: Path) -> None:
    wide = pd.DataFrame({"time": HOURS, "a": series_values(0, 80), "b": series_values(1, 80)})
    wide.loc[:19, "b"] = wide.loc[70:, "b"] = np.nan
    wide.to_csv(tmp_path / "a.csv", index=False)
    assert run(tmp_path / "a.csv", "--wide", "--output", tmp_path / "out", *QUICK) == 0
    rows = read_output(tmp_path / "out").set_index("item_id")
    assert rows.cutoff["a"] == pd.Timestamp(HOURS[79 - HORIZON])
    assert rows.cutoff["b"] == pd.Timestamp(HOURS[69 - HORIZON])
    assert not np.isnan(rows.truth["b"]).any()


def test_no_library_of_totos_warns(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.csv", series=1, rows=100)
    table.assign(price=1.5).to_csv(tmp_path / "a.csv", index=False)
    arguments = ("a.csv", "--output", "out", "--known", "price", *QUICK, "--samples", 0)
    done = subprocess.run(
        [sys.executable, "-m", "toto_compile_patch", "backtest", *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("backtest: ")] == []


def test_what_is_known_ahead_is_used(tmp_path: Path) -> None:
    # Longer than a patch of the demo model: the second one follows what is known of the first.
    horizon = 32
    table = long_table(tmp_path / "a.csv", series=2, rows=100)
    table["price"] = table.target.shift(-3).fillna(0.0)
    table.to_csv(tmp_path / "a.csv", index=False)
    plain = (*QUICK, "--samples", 0, "--dtype", "float64", "--horizon", horizon)
    for name, known in (("with", ["--known", "price"]), ("without", [])):
        out = tmp_path / name
        assert run(tmp_path / "a.csv", "--output", out, *plain, *known) == 0
    found, without = read_output(tmp_path / "with"), read_output(tmp_path / "without")
    assert not np.allclose(np.stack(found["mean"]), np.stack(without["mean"]))
    series = table[table.item_id == "series 0"]
    both = torch.tensor(series[["target", "price"]].to_numpy().T)
    past, ahead = both[:, 100 - horizon - 64 : 100 - horizon], both[1:, 100 - horizon :]
    inputs = window_of(past[0].numpy())._replace(
        series=past,
        padding_mask=torch.ones_like(past, dtype=torch.bool),
        id_mask=torch.zeros_like(past, dtype=torch.int),
        timestamp_seconds=torch.arange(64).expand(past.shape) * 3600,
        time_interval_seconds=torch.tensor([3600, 3600]),
        num_exogenous_variables=1,
    )
    model = models.load("demo").double().model
    forecaster = models.toto_ts().TotoForecaster(model)
    alone = forecaster.forecast(inputs, horizon, future_exogenous_variables=ahead)
    assert found["mean"][0] == pytest.approx(alone.mean[0, 0].tolist(), rel=1e-9, abs=1e-9)


def test_missing_rows_and_cells_are_gaps(tmp_path: Path) -> None:
    values = series_values(0, 100)
    hours = pd.date_range("2024-01-01", periods=100, freq="h")
    frame = pd.DataFrame({"time": hours, "y": values})
    missing = [50, 51, 95]
    frame.drop(missing).to_csv(tmp_path / "rows.csv", index=False)
    frame.assign(y=frame.y.where(~frame.index.isin(missing))).to_csv(
        tmp_path / "cells.csv", index=False
    )
    arguments = (*QUICK, "--samples", 0, "--dtype", "float64")
    for name in ("rows", "cells"):
        assert run(tmp_path / f"{name}.csv", "--output", tmp_path / name, *arguments) == 0
    assert parts(tmp_path / "rows") == parts(tmp_path / "cells")
    found = read_output(tmp_path / "rows").iloc[0]
    assert np.isnan(found.truth).tolist() == [i == 95 for i in range(100 - HORIZON, 100)]
    values[[50, 51]] = values[49]
    past = slice(100 - HORIZON - 64, 100 - HORIZON)
    inputs = window_of(values[past])
    known = torch.tensor([i not in missing for i in range(100)])[None, past]
    forecaster = models.toto_ts().TotoForecaster(models.load("demo").double().model)
    alone = forecaster.forecast(inputs._replace(padding_mask=known), HORIZON)
    assert found["mean"] == pytest.approx(alone.mean[0, 0].tolist(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("freq", ["B", "MS", "QE", "W-WED", "15min"])
def test_times_of_a_calendar_with_rows_missing(freq: str, tmp_path: Path) -> None:
    times = pd.date_range("2020-01-01", periods=100, freq=freq).delete([40, 70])
    pd.DataFrame({"ds": times, "y": series_values(0, 98)}).to_csv(tmp_path / "a.csv", index=False)
    arguments = (*QUICK, "--windows", 0, "--min-context", 40)
    assert run(tmp_path / "a.csv", "--output", tmp_path / "out", *arguments) == 0
    found = read_output(tmp_path / "out")
    assert len(found) == (100 - 40) // HORIZON
    assert found.cutoff.iloc[-1] == times[-1 - HORIZON]


def test_windows_and_steps(tmp_path: Path) -> None:
    hours = pd.date_range("2024-01-01", periods=60, freq="h")
    pd.DataFrame({"ds": hours, "y": series_values(0, 60)}).to_csv(tmp_path / "a.csv", index=False)

    def cutoffs(name: str, *more: object) -> list[int]:
        out = tmp_path / name
        assert run(tmp_path / "a.csv", "--output", out, *QUICK, *more) == 0
        found = read_output(out)
        assert found.window.tolist() == list(range(len(found)))
        return [hours.get_loc(cutoff) for cutoff in found.cutoff]

    assert cutoffs("default") == [51]
    assert cutoffs("three", "--windows", 3, "--step", 5) == [41, 46, 51]
    # Fewer fit than were asked for.
    assert cutoffs("many", "--windows", 100, "--step", 10, "--min-context", 12) == [
        11,
        21,
        31,
        41,
        51,
    ]
    assert cutoffs("all", "--windows", 0, "--min-context", 44) == [43, 51]


def test_where_nothing_is_known_ahead_of_a_window_it_is_left_out(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.parquet", series=2, rows=100)
    table["price"] = 1.0
    table.loc[
        (table.item_id == "series 1") & (table.groupby("item_id").cumcount() >= 92), "price"
    ] = np.nan
    table.to_parquet(tmp_path / "a.parquet", index=False)
    arguments = (*QUICK, "--windows", 2, "--known", "price")
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "out", *arguments) == 0
    assert set(by_row(tmp_path / "out")) == {("series 0", 0), ("series 0", 1), ("series 1", 0)}
    [error] = errors(tmp_path / "out")
    assert (error["item_id"], error["window"], error["kind"]) == (
        "series 1",
        "1",
        "covariate missing",
    )
    assert "leave out --known price" in error["message"]


def errors(folder: Path) -> list[dict[str, str]]:
    with open(folder / "errors.csv") as file:
        return list(csv.DictReader(file))


def test_every_path_is_told_that_a_forecast_took_while_others_waited(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.csv", series=3, rows=264)
    # The first waits for the last, of its shape; the one between them is forecast meanwhile.
    table = table[(table.item_id == "series 1") | (table.groupby("item_id").cumcount() < 40)]
    table.to_csv(tmp_path / "a.csv", index=False)
    hook = register_module_forward_hook(lambda *_: hook.remove())
    arguments = (*QUICK, "--context", 256, "--memory", "100KB", "--json", tmp_path / "a.json")
    try:
        assert run(tmp_path / "a.csv", "--output", tmp_path / "out", *arguments) == 0
    finally:
        hook.remove()
    assert json.loads((tmp_path / "a.json").read_text())["paths"] == [
        "fast path, eager",
        "upstream's code (there are global forward hooks)",
    ]


def test_a_forecast_that_is_no_number_costs_itself_alone(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.parquet", series=2, rows=100)
    # Within what float32 holds, as no forecast of it is.
    huge = 1.6e38 * np.where(np.arange(100) % 2, 1.0, -1.0)
    table.loc[table.item_id == "series 1", "target"] = huge
    table.to_parquet(tmp_path / "a.parquet", index=False)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "out", *QUICK) == 0
    assert set(by_row(tmp_path / "out")) == {("series 0", 0)}
    [error] = errors(tmp_path / "out")
    assert (error["item_id"], error["window"], error["kind"]) == (
        "series 1",
        "0",
        "forecast failed",
    )
    assert "not a number, or an infinite one" in error["message"]


def test_where_no_forecast_can_be_made_each_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    long_table(tmp_path / "a.parquet", series=2, rows=100)
    monkeypatch.setenv("TOTO_COMPILE_PATCH_FALLBACK", "error")
    hook = register_module_forward_hook(lambda *_: None)
    try:
        assert run(tmp_path / "a.parquet", "--output", tmp_path / "out", *QUICK) == 1
    finally:
        hook.remove()
    found = errors(tmp_path / "out")
    assert [(one["item_id"], one["kind"]) for one in found] == [
        ("series 0", "forecast failed"),
        ("series 1", "forecast failed"),
    ]
    assert all("global forward hooks" in one["message"] for one in found)
    assert "2 series, 0 windows forecast" in capfd.readouterr().out


@pytest.mark.fault(
    injected="series of gaps, infinities, or too short",
    where="a file for backtest",
    observed="errors.csv tells of each",
    afterwards="all other rows are as without them",
)
def test_what_is_broken_costs_itself_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = long_table(tmp_path / "a.parquet", series=6, rows=100)
    arguments = (*QUICK, "--windows", 2, "--shard", 4)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "good", *arguments) == 0
    table.loc[table.item_id == "series 1", "target"] = np.nan
    table = table[(table.item_id != "series 3") | (table.groupby("item_id").cumcount() < 20)]
    table.loc[(table.item_id == "series 4") & (table.timestamp == STARTS[2]), "target"] = np.inf
    late = table.timestamp >= pd.Timestamp(STARTS[0]) + pd.Timedelta(hours=98)
    table.loc[(table.item_id == "series 5") & ~late, "target"] = np.nan
    table.to_parquet(tmp_path / "b.parquet", index=False)
    capfd.readouterr()
    assert run(tmp_path / "b.parquet", "--output", tmp_path / "bad", *arguments) == 0
    assert "context missing" in capfd.readouterr().out
    with open(tmp_path / "bad" / "errors.csv") as file:
        found = [(line["item_id"], line["window"], line["kind"]) for line in csv.DictReader(file)]
    assert found == [
        ("series 1", "", "all missing"),
        ("series 3", "", "too short"),
        ("series 4", "", "not a number"),
        ("series 5", "0", "context missing"),
        ("series 5", "1", "context missing"),
    ]
    rows = by_row(tmp_path / "bad")
    assert set(rows) == {(f"series {i}", window) for i in (0, 2) for window in (0, 1)}
    good = by_row(tmp_path / "good")
    for key, row in rows.items():
        assert row["mean"] == pytest.approx(good[key]["mean"], rel=1e-5)


def test_a_shard_is_cut_by_the_file_alone(tmp_path: Path) -> None:
    sizes = {"a": 3, "b": 9, "c": 3, "d": 2}
    frames = []
    for item, windows in sizes.items():
        rows = 32 + windows * HORIZON
        hours = pd.date_range("2024-01-01", periods=rows, freq="h")
        values = series_values(len(item), rows)
        frames.append(pd.DataFrame({"id": item, "ds": hours, "y": values}))
    pd.concat(frames).to_csv(tmp_path / "a.csv", index=False)
    arguments = (*QUICK, "--windows", 0, "--shard", 4, "--min-context", 32)
    assert run(tmp_path / "a.csv", "--output", tmp_path / "out", *arguments) == 0
    found = [
        "".join(pd.read_parquet(path).item_id)
        for path in sorted((tmp_path / "out").glob("part-*.parquet"))
    ]
    # What fits into one part is not spread over two; what does not, fills what room there is.
    assert found == ["aaab", "bbbb", "bbbb", "ccc", "dd"]


def test_a_series_that_cannot_be_forecast_does_not_overfill_a_part(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.parquet", series=2, rows=100)
    table = table[(table.item_id != "series 1") | (table.groupby("item_id").cumcount() < 5)]
    table.to_parquet(tmp_path / "a.parquet", index=False)
    arguments = (*QUICK, "--windows", 2, "--shard", 2)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "out", *arguments) == 0
    assert [path.name for path in sorted((tmp_path / "out").glob("errors-*"))] == [
        "errors-000001.csv"
    ]
    assert len(parts(tmp_path / "out")) == 2


@pytest.mark.fault(
    injected="the file is emptied while it is read",
    where="backtest, before it forecasts",
    observed="one line, exit code 2",
    afterwards="nothing is written",
)
def test_a_file_that_is_emptied_meanwhile_holds_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    long_table(tmp_path / "a.csv", series=2, rows=100)

    def survey_later(*arguments: Any) -> Any:
        (tmp_path / "a.csv").write_text("item_id,timestamp,target\n")
        return survey(*arguments)

    monkeypatch.setattr("toto_compile_patch.tools.backtest.asked.survey", survey_later)
    assert run(tmp_path / "a.csv", "--output", tmp_path / "out", *QUICK) == 2
    assert "a.csv holds no rows: give a longer file" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("times", "told", "untold"),
    [
        (pd.date_range("2024-01-01", periods=80, freq="h"), "hourly", "sorted"),
        (pd.date_range("2024-01-01", periods=80, freq="h")[::-1], "1 series sorted by time", "?"),
        (range(80), "times in column ds", "every"),
    ],
)
def test_what_was_found_out_about_the_times_is_said(
    times: Any, told: str, untold: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"ds": times, "y": series_values(0, 80)}).to_csv(tmp_path / "a.csv", index=False)
    assert run(tmp_path / "a.csv", "--output", tmp_path / "out", *QUICK) == 0
    printed = capfd.readouterr()
    said, note = (line for line in printed.err.splitlines() if "backtest: " in line)
    assert told in said
    assert untold not in said
    # The model is not one to rely on.
    assert "the demo model is a toy" in note
    assert "note:      the demo model is a toy" in printed.out


def test_whoever_waits_at_a_terminal_sees_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    long_table(tmp_path / "a.parquet", series=100, rows=40)
    arguments = (*QUICK, "--samples", 0, "--context", 24)

    def said(out: str) -> tuple[list[str], str]:
        assert run(tmp_path / "a.parquet", "--output", tmp_path / out, *arguments) == 0
        told = capfd.readouterr()
        return told.out.splitlines(), told.err

    lines, progress = said("file")
    [figures] = [line.split() for line in lines if line.startswith("MASE of the mean")]
    assert "checking" not in progress
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "30", "LINES": "50"}
    for name, text in terminal.items():
        monkeypatch.setenv(name, text)
    lines, progress = said("terminal")
    assert lines[-3:] == [
        "MASE of the mean",
        f"  this model: {figures[-2]}",
        f"  seasonal naive: {figures[-1]}",
    ]
    assert "checking: 100 series" in progress


@pytest.mark.parametrize("puts_whole", [True, False])
def test_wherever_fsspec_writes(
    puts_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    if not puts_whole:
        # As a store is taken of which nothing is known.
        monkeypatch.setattr("toto_compile_patch.tools.backtest.place._PUT_WHOLE", frozenset())
    long_table(tmp_path / "a.parquet", series=3, rows=100)
    files = fsspec.filesystem("memory")
    files.pipe_file("/in/a.parquet", (tmp_path / "a.parquet").read_bytes())
    arguments = (*QUICK, "--shard", 2)
    try:
        assert run("memory://in/a.parquet", "--output", "memory://out", *arguments) == 0
        assert run(tmp_path / "a.parquet", "--output", tmp_path / "out", *arguments) == 0
        for name in ("part-000000.parquet", "part-000001.parquet", "scores.json", "errors.csv"):
            assert files.cat_file(f"/out/{name}") == (tmp_path / "out" / name).read_bytes()
        there = sorted(Path(name).name for name in files.ls("/out", detail=False))
        assert there == sorted(path.name for path in (tmp_path / "out").iterdir())
        assert run("memory://in/a.parquet", "--output", "memory://out", *arguments) == 2
    finally:
        files.rm("/in", recursive=True)
        files.rm("/out", recursive=True)


def test_what_a_kill_has_left_half_written_goes(tmp_path: Path) -> None:
    long_table(tmp_path / "a.parquet", series=4, rows=100)
    arguments = (tmp_path / "a.parquet", *QUICK, "--shard", 2)
    assert run(*arguments, "--output", tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    (tmp_path / "out" / "part-000001.parquet").unlink()
    (tmp_path / "out" / ".part-000001.parquet.0a1b2c3d").write_bytes(b"PAR1 and no more")
    assert run(*arguments, "--output", tmp_path / "out", "--resume") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.fault(
    injected="SIGKILL or Ctrl-C",
    where="backtest, between parts",
    observed="parts that are there are whole; Ctrl-C says how to go on",
    afterwards="--resume ends with the very files of a run that was not stopped",
)
def test_a_run_that_was_stopped_goes_on_to_the_same_result(
    how: signal.Signals, tmp_path: Path
) -> None:
    table = long_table(tmp_path / "a.parquet", series=60, rows=100)
    table.loc[table.item_id == "series 7", "target"] = np.nan
    table.to_parquet(tmp_path / "a.parquet", index=False)
    arguments = (tmp_path / "a.parquet", *QUICK, "--windows", 5, "--shard", 2)
    assert run(*arguments, "--output", tmp_path / "whole") == 0
    out = tmp_path / "stopped"
    process = start(*arguments, "--output", out)
    while len(list(out.glob("part-*.parquet"))) < 10:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(how)
    said = process.communicate()[1]
    there = len(list(out.glob("part-*.parquet")))
    whole = len(parts(tmp_path / "whole"))
    assert 10 <= there < whole
    assert not (out / "scores.json").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"{there} of {whole} parts" in said
        assert "--resume" in said
        assert not list(out.glob(".*"))
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    # As a kill in the middle of writing leaves it.
    (out / ".part-000100.parquet.0a1b2c3d").write_bytes(b"PAR1 and no more")
    assert run(*arguments, "--output", out, "--resume") == 0
    assert contents(out) == contents(tmp_path / "whole")
    # None was made twice.
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert written.items() <= now.items()
    # Nothing is left to do, and nothing changes.
    assert run(*arguments, "--output", out, "--resume") == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_to_go_on_takes_the_same_file_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    long_table(tmp_path / "a.csv", series=2, rows=100)
    out = ("--output", tmp_path / "out")
    # Where no run was begun, one is.
    assert run(tmp_path / "a.csv", *QUICK, *out, "--resume") == 0
    before = contents(tmp_path / "out")
    capfd.readouterr()

    def refused(*more: object) -> str:
        assert run(tmp_path / "a.csv", *QUICK, *out, "--resume", *more) == 2
        *_, line = capfd.readouterr().err.strip().splitlines()
        return line

    assert "--samples 16, and this is 32" in refused("--samples", 32)
    assert "--windows 1, and this is 2" in refused("--windows", 2)
    monkeypatch.setenv("TOTO_COMPILE_PATCH_PRECISION", "bf16")
    assert "TOTO_COMPILE_PATCH_PRECISION=bf16" in refused()
    monkeypatch.delenv("TOTO_COMPILE_PATCH_PRECISION")
    monkeypatch.setattr("toto_compile_patch.tools.backtest.output.__version__", "0.0.1")
    assert "version" in refused()
    monkeypatch.undo()
    assert run(tmp_path / "a.csv", *QUICK, *out, "--resume") == 0
    long_table(tmp_path / "a.csv", series=3, rows=100)
    assert "another file" in refused()
    assert contents(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").touch()
    arguments = (*QUICK, "--resume", "--output", tmp_path / "other")
    assert run(tmp_path / "a.csv", *arguments) == 2
    assert "run.json" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.fault(
    injected="a full disk",
    where="backtest",
    observed="one line, exit code 2",
    afterwards="no half a part; --resume ends with the very files",
)
def test_a_full_disk_ends_it_and_it_goes_on_with_room(tmp_path: Path) -> None:
    long_table(tmp_path / "a.parquet", series=20, rows=100)
    arguments = (tmp_path / "a.parquet", *QUICK, "--shard", 2)
    assert run(*arguments, "--output", tmp_path / "whole") == 0
    largest = max(len(part) for part in parts(tmp_path / "whole").values())
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", f"size={max(4 * largest, 16_384)}", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(small, capture_output=True).returncode == 0
    try:
        process = start(
            *arguments, "--output", disk / "out", limit=None if mounted else largest - 1
        )
        _, said = process.communicate()
        assert process.returncode == 2
        # What was found out about the file, and the error.
        assert len(said.strip().splitlines()) == 2
        assert "No space left" in said or "File too large" in said
        assert "--resume" in said
        assert not list((disk / "out").glob(".*"))
        if mounted:
            assert parts(disk / "out")
            subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert run(*arguments, "--output", disk / "out", "--resume") == 0
        assert contents(disk / "out") == contents(tmp_path / "whole")
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def test_the_toggle_gives_the_same_rows_by_upstreams_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_table(tmp_path / "a.parquet", series=5, rows=100)
    plain = (*QUICK, "--windows", 2, "--samples", 0)
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "patched", *plain) == 0
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "0")
    arguments = (*plain, "--json", tmp_path / "a.json")
    assert run(tmp_path / "a.parquet", "--output", tmp_path / "upstream", *arguments) == 0
    assert json.loads((tmp_path / "a.json").read_text())["paths"] == ["upstream's code"]
    found, expected = by_row(tmp_path / "patched"), by_row(tmp_path / "upstream")
    assert list(found) == list(expected)
    for key, row in found.items():
        scale = np.abs(expected[key]["mean"]).max()
        assert row["mean"] == pytest.approx(expected[key]["mean"], abs=1e-6 * scale)
        assert row["truth"] == expected[key]["truth"]


def test_seeds_are_those_of_the_window(tmp_path: Path) -> None:
    table = long_table(tmp_path / "a.parquet", series=4, rows=100)
    table[table.item_id == "series 2"].to_csv(tmp_path / "b.csv", index=False)
    table.to_csv(tmp_path / "a.csv", index=False)
    seeds = {}
    for name, file, more in (
        ("all", "a.csv", []),
        ("one", "b.csv", []),
        ("other", "b.csv", ["--seed", 1]),
    ):
        arguments = (*QUICK, "--dtype", "float64", *more)
        assert run(tmp_path / file, "--output", tmp_path / name, *arguments) == 0
        seeds[name] = by_row(tmp_path / name)["series 2", 0]["0.9"]
    # Whatever else is forecast, up to rounding.
    assert seeds["all"] == pytest.approx(seeds["one"], rel=1e-6)
    assert seeds["other"] != pytest.approx(seeds["one"], rel=1e-3)


@pytest.mark.parametrize("samples", [1, 2, 7, 256])
def test_quantiles_are_numpys(samples: int) -> None:
    drawn = 100 + torch.randn(5, samples)
    levels = [0.5, 0.0, 0.025, 0.1, 0.9, 1.0]
    expected = np.quantile(drawn.double().numpy(), levels, axis=-1)
    np.testing.assert_allclose(quantiles_of(drawn, levels), expected, rtol=1e-14)

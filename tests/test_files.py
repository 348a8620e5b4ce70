"""Files as people have them are read rightly, or refused in a line that names the cure."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from people_files import CASES, LOAD, Case, read

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.layout import Layout, Wanted
from toto_compile_patch.tools.series.reader import Columns, Reader
from toto_compile_patch.tools.series.single import read_series
from toto_compile_patch.tools.series.tables import open_table


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_read_rightly_or_refused(case: Case, tmp_path: Path) -> None:
    if case.name.endswith("parquet"):
        pytest.importorskip("pyarrow", exc_type=ImportError)
    if case.refused:
        with pytest.raises(UsageError) as refusal:
            read(case, tmp_path)
        assert case.says in str(refusal.value).replace(f"{tmp_path}/", "")
        assert "\n" not in str(refusal.value)
        return
    series = read(case, tmp_path)
    values = LOAD if case.values is None else case.values
    np.testing.assert_array_equal(series.values[0], values)
    assert case.says in "; ".join(series.notes)
    assert series.timed == (case.start is not None)
    if case.start is not None:
        assert pd.Timestamp(series.seconds[0], unit="s") == pd.Timestamp(case.start)
        assert series.interval == case.step
        assert (np.diff(series.seconds) > 0).all()
    assert series.season(512) == case.season


READ = [case for case in CASES if not case.refused and case.start and "item" not in case.options]


@pytest.mark.parametrize("case", READ, ids=lambda case: case.name)
def test_a_backtest_reads_the_same(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it is asked, and a few rows at a time."""
    monkeypatch.setattr("toto_compile_patch.tools.series.tables._ROWS", 7)
    if case.name.endswith("parquet"):
        pytest.importorskip("pyarrow", exc_type=ImportError)
    path = tmp_path / case.name
    case.write(path)
    options = dict(case.options)
    column = options.pop("column", None)
    layout = Layout(open_table(str(path)), Wanted(**options))
    assert layout.time is not None
    target = column or layout.only_number("target")
    reader = Reader(layout, Columns(None, layout.time, (target,), (), wide=False))
    (raw,), (again,) = reader.series(), reader.series()
    np.testing.assert_array_equal(raw.values, again.values)
    series = read(case, tmp_path)
    known = ~np.isnan(series.values[0])
    found = ~np.isnan(raw.values[0])
    np.testing.assert_array_equal(raw.values[0][found], series.values[0][known])
    seconds = raw.times[found].asi8 // 10**9
    np.testing.assert_array_equal(seconds, series.seconds[known])


SAMPLE_ENDS = 20_000
"""Rows by which the columns of a file are judged."""


@pytest.mark.parametrize(
    ("early", "late", "says"),
    [
        ("101.25", "1,234.50", ""),
        ("1 234", "1.5", ""),
        ("1.100", "1.234.100", "'1.234.100' is not a number"),
        ("900", "1.234", "'1.234' may be 1234 or 1.234: say which mark"),
        ("12,5", "1234.5", "'1234.5' is not a number"),
    ],
)
def test_what_comes_after_the_first_rows_is_read_alike_or_refused(
    early: str, late: str, says: str, tmp_path: Path
) -> None:
    rows = SAMPLE_ENDS + 50_000
    times = pd.date_range("2024-01-01", periods=rows, freq="min").strftime("%Y-%m-%d %H:%M")
    cells = [early if i < rows - 9 else late for i in range(rows)]
    lines = [f"{time}\t{cell}" for time, cell in zip(times, cells, strict=True)]
    (tmp_path / "a.tsv").write_text("\n".join(["time\tload", *lines]))

    def by_backtest() -> np.ndarray:  # type: ignore[type-arg]
        layout = Layout(open_table(str(tmp_path / "a.tsv")), Wanted())
        reader = Reader(layout, Columns(None, "time", ("load",), (), wide=False))
        (raw,), (again,) = reader.series(), reader.series()
        np.testing.assert_array_equal(raw.values, again.values)
        return raw.values

    if says:
        for read_it in (by_backtest, lambda: read_series(tmp_path / "a.tsv")):
            with pytest.raises(UsageError, match=re.escape(says)):
                read_it()
        return
    np.testing.assert_array_equal(by_backtest(), read_series(tmp_path / "a.tsv").values)


def test_one_column_tells_how_several_others_are_written(tmp_path: Path) -> None:
    lines = [f'2024-01-{day:02},{day}.25,"{day},250","{day},125"' for day in range(1, 32)]
    (tmp_path / "a.csv").write_text("\n".join(["time,close,volume,trades", *lines]))
    series = read_series(tmp_path / "a.csv", ["volume", "trades"])
    days = np.arange(1, 32)
    np.testing.assert_array_equal(series.values, [1000 * days + 250, 1000 * days + 125])


def test_steps_below_a_second_are_told(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=60, freq="100ms").strftime("%Y-%m-%d %H:%M:%S.%f")
    rows = [f"{time},{i % 7}" for i, time in enumerate(times)]
    (tmp_path / "a.csv").write_text("\n".join(["time,load", *rows]))
    series = read_series(tmp_path / "a.csv")
    assert series.notes[1] == "column time, every 100 milliseconds, which Toto takes for a second"
    assert series.interval == 1


@pytest.mark.parametrize(("wide", "rows"), [(False, []), (True, [0])])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_file_that_loses_its_rows_before_it_is_read(
    name: str, wide: bool, rows: list[int], tmp_path: Path
) -> None:
    def write(table: pd.DataFrame) -> None:
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow", exc_type=ImportError)
            table.to_parquet(tmp_path / name)
        else:
            table.to_csv(tmp_path / name, index=False)

    times = pd.date_range("2024-01-01", periods=len(LOAD), freq="h")
    table = pd.DataFrame({"time": times, "load": LOAD})
    write(table)
    layout = Layout(open_table(str(tmp_path / name)), Wanted())
    reader = Reader(layout, Columns(None, "time", ("load",), (), wide))
    write(table[:0])
    assert [len(raw.times) for raw in reader.series()] == rows


def test_a_column_of_a_wide_file_that_is_empty_keeps_its_gaps(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=60, freq="h")
    table = pd.DataFrame({"time": times, "a": [None, *LOAD[1:]], "b": [None] * 60})
    table.to_csv(tmp_path / "a.csv", index=False)
    layout = Layout(open_table(str(tmp_path / "a.csv")), Wanted())
    found = list(Reader(layout, Columns(None, "time", ("a", "b"), (), wide=True)).series())
    assert [(raw.item, len(raw.times)) for raw in found] == [("a", 59), ("b", 60)]
    assert np.isnan(found[1].values).all()

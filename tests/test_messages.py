"""Messages that no other test brings about: what is wrong is said, and what to do about it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, small_model

import toto_compile_patch
from toto_compile_patch.tools import cli, models
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.layout import Wanted
from toto_compile_patch.tools.series.single import read_series

HOURS = pd.date_range("2024-01-01", periods=60, freq="h")
LATER = pd.date_range(HOURS[-1], periods=70_000, freq="h")[1:]
"""More than is looked at when it is found out how a file is written."""


def csv(header: str = "time,load", **changed: Any) -> bytes:
    """A file of hourly values; of some rows, other cells."""
    rows = [f"{time},{5 + row % 7}" for row, time in enumerate(HOURS)]
    for row, cells in changed.items():
        rows[int(row.removeprefix("row"))] = cells
    return "\n".join([header, *rows]).encode() + b"\n"


def of_items(item: str) -> bytes:
    return "\n".join(
        ["item_id,time,load", *(f"{item},{time},{5 + row % 7}" for row, time in enumerate(HOURS))]
    ).encode()


FILES: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "two things.csv": (
        csv(),
        {"id": "time", "time": "time"},
        "cannot be both --id and --time: correct one",
    ),
    "times.csv": (csv(), {"columns": ["time"]}, "name another column"),
    "no year.csv": (csv(), {"time_format": "%d.%m."}, "names no year: write it as"),
    "no form.csv": (csv(), {"time_format": "%Y-%Q"}, "is no form of times: write it as"),
    "nameless item.csv": (csv(), {"item": "a"}, "name the column of --item a with --id"),
    "other item.csv": (of_items("a"), {"item": "b"}, "has no --item b in column 'item_id': it has"),
    "picture.csv": (bytes(range(256)) * 20, {}, "save it as CSV in UTF-8"),
    "spaces.csv": (csv().replace(b",", b"  "), {}, "separate the cells by commas"),
    "cut.csv.gz": (gzip.compress(csv())[:-40], {}, "fetch it again"),
    "late.csv": (
        csv() + b"".join(b"%s,5\n" % str(time).encode() for time in LATER) + b"\xff\xfe,5\n",
        {},
        "but not all of it: save it in UTF-8",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_of_a_file(name: str, tmp_path: Path) -> None:
    content, asked, says = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    given = dict(asked)
    columns, item = given.pop("columns", []), given.pop("item", None)
    with pytest.raises(UsageError) as caught:
        read_series(path, columns, Wanted(**given), item)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "asked", "says"),
    [
        ({"lists": [[row] for row in range(60)]}, [], "give another table"),
        ({"time": HOURS, "load": range(60)}, ["time"], "holds times: name another column"),
        (
            {"time": HOURS, "load": [float("inf"), *map(float, range(59))]},
            [],
            "choose another --column, or leave the cell empty if it is a gap",
        ),
    ],
)
def test_of_a_table(columns: dict[str, Any], asked: list[str], says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(UsageError) as caught:
        read_series(path, asked)
    assert says in str(caught.value)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last line of what a command that is refused says."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_bytes(csv())
    return tmp_path / "a.csv"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--known load --known load", "name each column once"),
        ("--freq=-1h", "does not go on: give a frequency"),
        ("--output nosuch://place", "choose another folder"),
        ("--quantiles 0.9,0.1", "increasing numbers between 0 and 1"),
        ("--memory much", "give a size as 500MB or 2GB"),
        ("--device cuda:99", "choose another one, or --device cpu"),
    ],
)
def test_of_a_backtest(
    arguments: str, says: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments.split()
    if "--output" not in given:
        given += ["--output", str(table.parent / "out")]
    assert says in told(capsys, "backtest", table, "--horizon", 4, *given)


def test_of_a_run_whose_record_is_broken(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "out"
    out.mkdir()
    (out / "run.json").write_text("{")
    arguments = ("--horizon", 4, "--output", out, "--resume")
    assert "begin anew in another folder" in told(capsys, "backtest", table, *arguments)


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (b"load,cost\n" + b"5,6\n7,8\n" * 30, "", "name it with --time"),
        (csv(), "--wide --known load", "give each series one"),
    ],
)
def test_of_the_columns_of_a_backtest(
    content: bytes, arguments: str, says: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_bytes(content)
    given = ("--horizon", 4, "--output", table.parent / "out", *arguments.split())
    assert says in told(capsys, "backtest", table, *given)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("bench --workload W3 --per-batch 100", "choose one that does"),
        ("doctor --script", "give its path"),
        ("fingerprints nowhere", "give that of a package toto"),
        ("ab --device cuda:99", "choose another one, or --device cpu"),
    ],
)
def test_of_other_commands(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in told(capsys, *arguments.split())


def test_of_a_model_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="cannot load 'nobody/nothing', which is no directory"):
        models.load("nobody/nothing")


def test_of_a_model_that_is_none(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = table.parent / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors").write_bytes(b"none")
    given = ("--horizon", 4, "--output", table.parent / "out", "--model", broken)
    line = told(capsys, "backtest", table, *given)
    assert "give a Hugging Face id that can be reached, or the directory of a checkpoint" in line


class Mine(torch.nn.Parameter):
    """A weight of somebody's own class."""


def other_weight(model: Any) -> None:
    model.unembed.weight = Mine(model.unembed.weight.detach().clone())


def other_axis(model: Any) -> None:
    model.scaler.dim = 2


def overlapping(model: Any) -> None:
    model.patch_embed.stride = PATCH // 2


def other_patches(model: Any) -> None:
    model.scaler.patch_size = 2 * PATCH


def other_rotary(model: Any) -> None:
    model.transformer.rotary_emb.interpolate_factor = 2.0


def mixed(model: Any) -> None:
    model.transformer.layers[0].attention.wO.double()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_weight, "unembed.weight is a Mine"),
        (other_axis, "the scaler does not scale along the last axis"),
        (overlapping, "patches overlap"),
        (other_patches, "the scaler's patches are not the model's"),
        (other_rotary, "the rotary embedding is not upstream's"),
        (mixed, "convert them: forecaster.model.to(device, dtype)"),
    ],
)
def test_of_a_forecast(change: Callable[[Any], None], says: str) -> None:
    toto_compile_patch.apply(fallback="error")
    model = small_model().model
    change(model)
    with pytest.raises(toto_compile_patch.FallbackError) as caught:
        TotoForecaster(model).forecast(series(40), PATCH)
    assert says in str(caught.value)
    assert "apply(fallback='upstream')" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: toto_compile_patch.apply(mode=3), TypeError, "mode must be one of default"),  # type: ignore[arg-type]
        (lambda: toto_compile_patch.apply(carriers="toto3"), ValueError, "choose from "),
        (
            lambda: toto_compile_patch.apply(carriers="clone"),
            toto_compile_patch.TotoNotFoundError,
            "leave out carriers",
        ),
        (
            lambda: toto_compile_patch.warmup(None, series(40), 8, runs=0),  # type: ignore[arg-type]
            ValueError,
            "runs must be at least 1",
        ),
        (lambda: toto_compile_patch.refresh(3), TypeError, "give a Toto, a TotoBackbone or"),
    ],
)
def test_of_a_call(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)
    assert not toto_compile_patch.is_applied()

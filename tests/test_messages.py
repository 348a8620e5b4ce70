"""Messages that no other test brings about: what is wrong is said, and what to do about it."""

from __future__ import annotations

import dataclasses
import gzip
import os
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pandas as pd
import pytest
import torch
from toto.inference.forecaster import TotoForecaster
from toto.model.transformer import TransformerLayer
from toto_cases import PATCH, series, small_model

import toto_compile_patch
from toto_compile_patch.tools import cli, models
from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.layout import Wanted
from toto_compile_patch.tools.series.single import read_series

HOURS = pd.date_range("2024-01-01", periods=60, freq="h")
TOOLS = "toto_compile_patch.tools"
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
    "other item.csv": (
        of_items("a"),
        {"item": "b"},
        "in column 'item_id': choose one that is there: a",
    ),
    "picture.csv": (bytes(range(256)) * 20, {}, "save it as CSV in UTF-8"),
    "spaces.csv": (csv().replace(b",", b"  "), {}, "separate the cells by commas"),
    "cut.csv.gz": (gzip.compress(csv())[:-40], {}, "fetch it again"),
    "late.csv": (
        csv() + b"".join(b"%s,5\n" % str(time).encode() for time in LATER) + b"\xff\xfe,5\n",
        {},
        "but not all of it: save it in UTF-8",
    ),
    "open.csv": (csv(row20='2024-01-01 20:00:00,"5'), {}, "close the quotation mark"),
    "open and long.csv": (
        csv(row20='2024-01-01 20:00:00,"5') + b"5\n" * 100_000,
        {},
        "close the quotation mark",
    ),
    "more.csv": (csv(row50="2024-01-03 02:00:00,5,6"), {}, "name every column there"),
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
    ("name", "missing", "says"),
    [
        ("a.parquet", "pyarrow", "a.parquet without pyarrow: pip install pyarrow"),
        ("a.csv.zst", "zstandard", "install what that names, or give a plain file"),
    ],
)
def test_of_a_file_that_takes_another_package(
    name: str, missing: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(csv())
    for module in [missing, *(one for one in sys.modules if one.startswith(f"{missing}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as caught:
        read_series(tmp_path / name, [])
    assert says in str(caught.value)
    assert missing in str(caught.value)


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


@pytest.fixture
def no_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--known load --known load", "name each column once"),
        ("--freq=-1h", "does not go on: give a frequency"),
        ("--output nosuch://place", "choose another folder"),
        ("--quantiles 0.9,0.1", "increasing numbers between 0 and 1"),
        ("--memory much", "give a size as 500MB or 2GB"),
        ("--model owner/name --workers 2", "--workers is for --engine ray: add that"),
        ("--device cuda:99", "choose another one, or --device cpu"),
        ("--output s3://bucket/out", "Install s3fs to access S3): install that, or choose another"),
    ],
)
def test_of_a_backtest(
    arguments: str,
    says: str,
    table: Path,
    capsys: pytest.CaptureFixture[str],
    no_s3fs: None,
) -> None:
    given = arguments.split()
    if "--output" not in given:
        given += ["--output", str(table.parent / "out")]
    assert says in told(capsys, "backtest", table, "--horizon", 4, *given)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://bucket/a.csv", "(Install s3fs to access S3): install what that names"),
        ("file://{folder}", "is a folder: give the path"),
    ],
)
def test_of_an_address(
    address: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_s3fs: None
) -> None:
    file, out = address.format(folder=tmp_path), tmp_path / "out"
    assert says in told(capsys, "backtest", file, "--horizon", 4, "--output", out)


def test_of_a_folder_of_something_else(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--horizon", 4, "--output", table.parent, "--resume")
    assert "it holds no run.json): choose another" in told(capsys, "backtest", table, *arguments)


def test_of_a_file_that_is_cut_while_it_is_forecast(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_bytes(of_items("a") + b"\n" + of_items("b").partition(b"\n")[2])
    load = models.load

    def cut_and_load(model: str) -> Any:
        table.write_bytes(of_items("a"))
        return load(model)

    monkeypatch.setattr(models, "load", cut_and_load)
    given = ("--horizon", 4, "--samples", 4, "--shard", 1, "--output", table.parent / "out")
    assert "begin anew in another folder" in told(capsys, "backtest", table, *given)


def test_of_a_toto_without_exogenous_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Path
) -> None:
    """As toto-ts 0.1 has none."""
    table.write_bytes(b"time,load,cost\n" + csv().partition(b"\n")[2].replace(b"\n", b",5\n"))
    code = models.toto_ts()
    names = [name for name in code.MaskedTimeseries._fields if "exogenous" not in name]
    older = dataclasses.replace(code, MaskedTimeseries=namedtuple("MaskedTimeseries", names))
    monkeypatch.setattr(models, "toto_ts", lambda: older)
    given = ("--horizon", 4, "--target", "load", "--known", "cost", "--output", table.parent / "o")
    assert "pip install 'toto-ts>=0.2'" in told(capsys, "backtest", table, *given)


def test_of_a_ray_that_cannot_be_imported(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (table.parent / "ray").mkdir()
    broken = table.parent / "ray" / "__init__.py"
    broken.write_text("raise ImportError('built for another Python')")
    monkeypatch.syspath_prepend(table.parent)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    given = ("--horizon", 4, "--output", table.parent / "out", "--engine", "ray")
    line = told(capsys, "backtest", table, *given)
    assert (
        "(ImportError: built for another Python): pip install ray (this package's extra ray)"
        in line
    )


BOTH_SIDES = ("ab --no-report", "bench --workload W4")


@pytest.mark.parametrize("command", [*BOTH_SIDES, "backtest {table} --horizon 4 --output {out}"])
def test_of_a_toto_that_somebody_has_patched(
    command: str, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(models.RANDOM, "base", models.SMALL)
    monkeypatch.setattr(TransformerLayer, "forward", lambda self, *args: None)
    arguments = command.format(table=table, out=table.parent / "out").split()
    line = told(capsys, *arguments)
    assert "TransformerLayer.forward" in line
    assert "apply(strict=False) leaves such patches out" in line


@pytest.mark.parametrize("command", BOTH_SIDES)
def test_of_a_toto_that_no_patch_fits(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(models.RANDOM, "base", models.SMALL)
    monkeypatch.setattr(TransformerLayer, "forward", lambda self, *args: None)
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "fast_decode")
    monkeypatch.setenv("TOTO_COMPILE_PATCH_STRICT", "0")
    assert "ask `toto-compile-patch doctor` why" in told(capsys, *command.split())


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
        ("bench --runtime eager,compile --json no/where.json", "make it first"),
        ("ab --device cuda:99", "choose another one, or --device cpu"),
    ],
)
def test_of_other_commands(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in told(capsys, *arguments.split())


def test_of_a_file_that_may_not_be_read(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Root may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: path != table)
    assert told(capsys, "ab", table, "--no-report").endswith(
        "may not be read: give the path of a CSV or Parquet file"
    )


def test_of_a_model_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="cannot load 'nobody/nothing', which is no directory"):
        models.load("nobody/nothing")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A model that cannot be loaded."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"none")
    return tmp_path / "model"


def test_of_a_model_that_is_none(
    table: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--horizon", 4, "--output", table.parent / "out", "--model", broken)
    line = told(capsys, "backtest", table, *given)
    assert "give a Hugging Face id that can be reached, or the directory of a checkpoint" in line


@pytest.mark.slow
def test_of_a_start_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cli.main(["start"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("start: error: the forecast failed: first_forecasts: ")
    assert "no-such-compiler" in line


@pytest.mark.slow
def test_of_a_side_that_cannot_begin(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = told(capsys, "ab", "--no-report", "--model", broken)
    assert "give a Hugging Face id that can be reached, or the directory of a checkpoint" in last


def test_of_a_library_for_reports_that_lacks_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the wait."""
    (tmp_path / "jinja2").mkdir()
    (tmp_path / "jinja2" / "__init__.py").write_text("import markupsafe_of_another_name")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [one for one in sys.modules if one.startswith(("jinja2", f"{TOOLS}.ab"))]:
        monkeypatch.delitem(sys.modules, module)
    given = ("--report", tmp_path / "a.html", "--windows", 1, "--samples", 0)
    line = told(capsys, "ab", *given, "--json", tmp_path / "a.json")
    assert "markupsafe_of_another_name is missing: pip install markupsafe-of-another-name" in line
    assert not (tmp_path / "a.json").exists()


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


def without_values(model: Any) -> None:
    model.to("meta")


def mixed(model: Any) -> None:
    model.transformer.layers[0].attention.wO.double()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_weight, "unembed.weight is a Mine, not a dense torch.nn.Parameter"),
        (other_axis, "the scaler does not scale along the last axis"),
        (overlapping, "the model's patches overlap"),
        (other_patches, "the scaler's patches are not the model's"),
        (other_rotary, "the rotary embedding is not upstream's"),
        (mixed, "convert them: forecaster.model.to(device, dtype)"),
        (without_values, "load them as floating-point numbers"),
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


RELOADED = """\
import importlib
import toto.model.util
import toto_compile_patch
toto_compile_patch.apply()
toto_compile_patch.revert()
importlib.reload(toto.model.util)
toto_compile_patch.apply()
"""

OTHER_TORCH = """\
import torch
del torch.no_grad
import toto_compile_patch
toto_compile_patch.apply()
"""


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (RELOADED, "where it was reloaded, start the process anew"),
        (OTHER_TORCH, "install one that was, such as pip install torch==2.7.0"),
    ],
    ids=["reloaded", "other torch"],
)
def test_of_a_process(program: str, says: str) -> None:
    run = forked.python(program)
    line = run.stderr.strip().splitlines()[-1]
    assert line.startswith("toto_compile_patch.errors.UnsupportedTotoError: ")
    assert says in line


def test_of_an_operator_that_is_called_by_hand() -> None:
    import toto_compile_patch.decode.operators  # noqa: F401

    rows = torch.ones(2, 8)
    with pytest.raises(RuntimeError, match=r"call forecast\(\)"):
        torch.ops.toto_compile_patch.attend(rows, rows, rows)

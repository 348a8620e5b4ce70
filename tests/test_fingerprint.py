"""Fingerprints tell code apart, and nothing else."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import FunctionType

import pytest
import toto
import wrapt
from toto.inference.forecaster import TotoForecaster

from toto_compile_patch.fingerprint import fingerprint, fingerprint_source
from toto_compile_patch.sites import AttributeSite
from toto_compile_patch.table import TABLE
from toto_compile_patch.tested_code import FINGERPRINTS, INHERITED
from toto_compile_patch.tools.cli import main
from toto_compile_patch.upstream import load, symbol, why_untested

SOURCE = '''
def scale(self, values: list[int], by: int = 2) -> list[int]:
    """Multiply."""
    total: int = 0  # a comment
    return [f"{v * by}!r" for v in values]
'''


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace("# a comment", ""),
        SOURCE.replace('    """Multiply."""\n', ""),
        SOURCE.replace(": list[int]", "").replace("-> list[int]", "").replace(": int", ""),
        SOURCE.replace("v * by", "v*by").replace("\n    return", "\n\n\n    return"),
        "\n".join("        " + line for line in SOURCE.split("\n")),
    ],
)
def test_layout_comments_and_annotations_do_not_count(same: str) -> None:
    assert fingerprint_source(same) == fingerprint_source(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("v * by", "v + by"), ("= 2", "= 3"), ("total", "other"), ("!r", "!s")]
)
def test_code_counts(old: str, new: str) -> None:
    assert fingerprint_source(SOURCE.replace(old, new)) != fingerprint_source(SOURCE)


def test_the_fingerprint_does_not_depend_on_the_python_version() -> None:
    # A constant: the same on every Python that the tests are run with.
    assert fingerprint_source(SOURCE) == "1eacaec1c9bf4826"


def test_a_wrapper_has_no_fingerprint_of_its_own() -> None:
    def plain(x: int) -> int:
        return x

    wrapped = wrapt.FunctionWrapper(plain, lambda call, _, args, kwargs: call(*args, **kwargs))
    assert fingerprint(plain) is not None
    assert fingerprint(wrapped) is None
    assert fingerprint(functools.partial(plain, 1)) is None
    assert fingerprint(functools.wraps(plain)(lambda x: x + 1)) != fingerprint(plain)


def test_each_wrapper_of_no_grad_may_have_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it has from torch 2.15 on."""
    wrapper = vars(TotoForecaster)["generate_mean"]
    monkeypatch.setattr(wrapper, "__code__", wrapper.__code__.replace())
    assert why_untested(TotoForecaster, "generate_mean") is None


def test_a_wrapper_of_another_module_is_not_no_grads(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = vars(TotoForecaster)["generate_mean"]
    other = FunctionType(wrapper.__code__, {}, closure=wrapper.__closure__)
    monkeypatch.setattr(TotoForecaster, "generate_mean", functools.wraps(wrapper)(other))
    assert why_untested(TotoForecaster, "generate_mean") is not None


def test_the_command_knows_the_installed_toto(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert main(["fingerprints", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "All of them are known." in printed
    found = json.loads(file.read_text())
    assert found["folder"] == str(Path(toto.__file__).parent)
    for one in found["definitions"]:
        assert set(one["found"]) <= set(one["known"])
        assert one["symbol"] in printed
        assert all(digits in printed for digits in one["known"])


@pytest.mark.parametrize(
    ("file", "pattern", "edited", "name", "state"),
    [
        (
            "rope.py",
            r"(def get_scale\(.*?\):\n)",
            r"\1        self.x = 0\n",
            "get_scale",
            "DIFFERS",
        ),
        ("rope.py", "def get_scale", "def get_the_scale", "get_scale", "NOT FOUND"),
        (
            "attention.py",
            r"(class TimeWiseMultiheadAttention\(.*?\):\n)",
            r"\1    def forward(self): ...\n",
            "TimeWiseMultiheadAttention.forward",
            "DIFFERS: was inherited",
        ),
    ],
)
def test_the_command_names_the_definition_that_was_edited(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    pattern: str,
    edited: str,
    name: str,
    state: str,
) -> None:
    copy = Path(shutil.copytree(Path(toto.__file__).parent, tmp_path / "toto"))
    source = copy / "model" / file
    changed, edits = re.subn(pattern, edited, source.read_text(), count=1, flags=re.S)
    assert edits == 1
    source.write_text(changed)
    assert main(["fingerprints", str(copy)]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  toto.")]
    assert line.endswith(f".{name}: {state}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_the_figures_go_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Its reader, who waits for nothing.
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        folder = str(Path(toto.__file__).parent)
        assert main(["fingerprints", folder, "--json", str(pipe)]) == 0
        assert json.load(reader)["folder"] == folder
    assert pipe.is_fifo()


def test_the_command_wants_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fingerprints", "no/such/folder"]) == 2
    assert capsys.readouterr().err.startswith("fingerprints: error: no folder")


def test_a_folder_without_toto_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "toto.py").write_text("class Something: ...\n")
    assert main(["fingerprints", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"fingerprints: error: {tmp_path} holds no package toto: give the folder that holds its "
        "model and inference, such as site-packages/toto\n"
    )
    assert not said.out


def test_the_command_wants_a_folder_where_toto_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "toto", None)
    assert main(["fingerprints"]) == 2
    assert "pip install toto-ts, or give a package's FOLDER" in capsys.readouterr().err


def test_all_that_is_replaced_or_relied_on_has_its_line() -> None:
    code = load("toto")
    every = [site for patch in TABLE for site in patch.sites(code)]
    sites = [site for site in every if isinstance(site, AttributeSite)]
    places = [(site.owner, site.attribute) for site in sites]
    places += [need for site in sites for need in site.needs] + list(code.bypassed)
    # A class that several modules bind is fingerprinted where it is defined.
    symbols = {symbol(*place) for place in places if place[1] != "KVCache"}
    assert symbols <= {*FINGERPRINTS, *INHERITED}

"""The package runs nothing that it reads, and leaves nothing that others can read."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toto_compile_patch.tools.doctor.script import examine_script
from toto_compile_patch.tools.workers import call_apart

sys.path.append(str(Path(__file__).parent.parent / ".ci" / "proof"))

from dangerous_calls import (
    BUILTINS,
    REASONS,
    RUNS_WHAT_IT_READS,
    is_dangerous,
    mentions,
    mentions_in,
)


def test_every_call_that_could_be_dangerous_has_a_reason() -> None:
    found = mentions()
    assert [one for one in found if not one.reason] == []
    assert {(one.file, one.what) for one in found} == set(REASONS)


def test_nothing_that_is_read_is_run() -> None:
    names = {one.what for one in mentions() if one.file != "the line of activate"}
    assert not names & set(BUILTINS)
    assert not {name for name in names if is_dangerous(name, RUNS_WHAT_IT_READS)}
    assert not {name for name in names if "=" in name}


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle\npickle.load(file)", "pickle.load"),
        ("from pickle import loads as read\nread(b'')", "pickle.loads"),
        ("import torch as t\nload = t.load", "torch.load"),
        ("t = model.load(weights_only=False)", "weights_only=False"),
        ("t = model.load(weights_only=asked)", "weights_only=asked"),
        ("import os\nos.system('ls')", "os.system"),
        ("import os\nos.execvp('ls', [])", "os.execvp"),
        ("import subprocess as s\ns.run('ls', shell=True)", "shell=True"),
        ("import subprocess as s\ns.run('ls', shell=True)", "subprocess.run"),
        ("eval(os.environ['X'])", "eval"),
        ("list(map(exec, texts))", "exec"),
        ("import numpy as np\nnp.load(file)", "numpy.load"),
        ("open('/tmp/known')", "/tmp"),
        ("from tempfile import mktemp\nmktemp()", "tempfile.mktemp"),
        ("spec.loader.exec_module(module)", "exec_module"),
    ],
)
def test_what_is_looked_for_is_found(code: str, what: str) -> None:
    assert what in [one.what for one in mentions_in("file.py", code)]


def test_what_is_harmless_is_not_found() -> None:
    code = "import torch, os, re\nmodel.eval()\ntorch.compile(f)\nos.environ\nre.compile('')\n"
    assert list(mentions_in("file.py", code)) == []
    assert list(mentions_in("file.py", "def compile(model): ...\ncompile(model)")) == []


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go, of processes too, of a user who hides nothing from others."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    # Torch's own, which newer ones make when they are imported.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    before = os.umask(0)
    yield folder
    os.umask(before)


def rights_of_others(folder: str) -> list[int]:
    """The rights that others have to each file and folder that lies there."""
    return [stat.S_IMODE(entry.stat().st_mode) & 0o077 for entry in os.scandir(folder)]


def test_what_a_worker_process_writes_is_private(temporary: Path) -> None:
    assert call_apart(rights_of_others, str(temporary)) == [0]
    assert list(temporary.iterdir()) == []


def test_what_the_doctor_writes_is_private(temporary: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import os\nfound = [e.stat().st_mode & 0o077 for e in os.scandir({str(temporary)!r})]\n"
        "assert found and not any(found), found\n"
    )
    assert examine_script(script, []).exit_code == 0
    assert list(temporary.iterdir()) == []

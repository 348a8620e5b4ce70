"""What can be answered without torch is: its import takes seconds, and here it ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import toto_compile_patch

ROOT = Path(toto_compile_patch.__file__).parent.parent

STUB = "raise RuntimeError('torch was imported')\n"

BACKTEST = ("backtest", "good.csv", "--horizon", "8", "--output", "out")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to work in, with a package ``torch`` that cannot be imported beside it."""
    stub, work = tmp_path / "stub" / "torch", tmp_path / "work"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(STUB)
    (work / "there").mkdir(parents=True)
    rows = [f"2024-01-{day:02},{day}" for day in range(1, 31)]
    (work / "good.csv").write_text("\n".join(["timestamp,target", *rows]))
    (work / "bad.csv").write_text("\n".join(["timestamp,target", *rows, "2024-01-31,twelve"]))
    (work / "script.py").touch()
    return work


def answered(
    folder: Path, command: Sequence[str], **environ: str
) -> subprocess.CompletedProcess[str]:
    """What a whole process says, in which nothing can import torch."""
    paths = [str(folder.parent / "stub"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environ},
        capture_output=True,
        text=True,
    )


def refused(folder: Path, command: Sequence[str], **environ: str) -> str:
    """The one line that a process says before it ends with exit code 2, having changed nothing."""
    before = sorted(folder.rglob("*"))
    done = answered(folder, command, **environ)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert sorted(folder.rglob("*")) == before
    return line


def in_the_module(*arguments: str) -> tuple[str, ...]:
    return ("-m", "toto_compile_patch", *arguments)


def test_the_stub_does_end_whoever_imports_torch(folder: Path) -> None:
    done = answered(folder, in_the_module(*BACKTEST))
    assert "RuntimeError: torch was imported" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version"], f"toto-compile-patch {toto_compile_patch.__version__}\n"),
        (["--help"], "exit codes"),
        *((name, "usage") for name in ("ab", "backtest", "run", "doctor", "bench", "start")),
        *((name, "usage") for name in ("activate", "deactivate", "fingerprints")),
    ],
)
def test_what_is_asked_of_the_command_line(
    arguments: list[str] | str, says: str, folder: Path
) -> None:
    asked = arguments if isinstance(arguments, list) else [arguments, "--help"]
    done = answered(folder, in_the_module(*asked))
    assert (done.returncode, done.stderr) == (0, "")
    assert says.lower() in done.stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ab", "nowhere.csv"], "there is no file nowhere.csv"),
        (["ab", "there"], "there is a folder"),
        (["ab", "--json", "no/where.json"], "no directory no"),
        (["ab", "--json", "there"], "there cannot be written"),
        (["ab", "--report", "no/where.html"], "no directory no"),
        (["ab", "--report", "page.pdf"], "named .html"),
        (["ab", "--json", "toto_ab.png"], "is the report"),
        (["ab", "--model", "./nowhere"], "--model ./nowhere"),
        (["ab", "--model", "there"], "holds no config.json"),
        (["ab", "--device", "abacus"], "cpu, cuda or cuda:N"),
        (["ab", "--device", "cuda:-1"], "cpu, cuda or cuda:N"),
        (["ab", "--samples", "10", "--samples-per-batch", "3"], "not a multiple"),
        (["ab", "--samples-per-batch", "300"], "--samples 512 is not a multiple"),
        (["ab", "--compile", "fastest"], "fastest"),
        (["backtest", "nowhere.csv", *BACKTEST[2:]], "there is no file nowhere.csv"),
        (["backtest", "there", *BACKTEST[2:]], "there is a folder"),
        ([*BACKTEST, "--output", "there"], "there exists already"),
        ([*BACKTEST, "--output", "good.csv/out"], "good.csv/out cannot be written"),
        ([*BACKTEST, "--output", ".", "--resume"], "not the folder of a run"),
        ([*BACKTEST, "--output", "nothing://out"], "nothing"),
        ([*BACKTEST, "--json", "no/where.json"], "no directory no"),
        ([*BACKTEST, "--model", "./nowhere"], "--model ./nowhere"),
        ([*BACKTEST, "--device", "abacus"], "cpu, cuda or cuda:N"),
        ([*BACKTEST, "--samples", "10", "--samples-per-batch", "3"], "not a multiple"),
        ([*BACKTEST, "--wide", "--id", "shop"], "--wide"),
        ([*BACKTEST, "--min-context", "600"], "--min-context 600"),
        ([*BACKTEST, "--known", "price", "--known", "price"], "each column once"),
        ([*BACKTEST, "--quantiles", "0.9,0.1"], "increasing numbers"),
        ([*BACKTEST, "--workers", "2"], "--engine ray"),
        ([*BACKTEST, "--address", "auto"], "--engine ray"),
        ([*BACKTEST, "--freq", "soon"], "--freq soon"),
        (["ab", "bad.csv"], "data row 31: 'twelve' is not a number"),
        (["ab", "good.csv", "--column", "load"], "no column 'load'"),
        (["ab", "good.csv", "--windows", "30"], "good.csv has 30 rows"),
        (["ab", "good.csv", "--time-format", "%Q"], "--time-format '%Q'"),
        (["backtest", "bad.csv", *BACKTEST[2:]], "data row 31: 'twelve' is not a number"),
        ([*BACKTEST, "--horizon", "20"], "good.csv is too short for --horizon 20"),
        ([*BACKTEST, "--target", "load"], "no column 'load'"),
        (["run"], "give a script or a module"),
        (["run", "nowhere.py"], "no file nowhere.py"),
        (["run", "there"], "a folder without a __main__.py"),
        (["run", "-m"], "give a module"),
        (["bench", "--workload", "W99"], "choose from W1"),
        (["bench", "--device", "abacus"], "cpu, cuda or cuda:N"),
        (["bench", "--runtime", "magic"], "'magic'"),
        (["bench", "--workload", "W3", "--per-batch", "100"], "256 samples of W3"),
        (["bench", "--json", "no/where.json"], "no directory no"),
        (["start", "--json", "no/where.json"], "no directory no"),
        (["start", "--mode", "fastest"], "fastest"),
        (["doctor", "--script"], "names no script"),
        (["doctor", "--script", "nowhere.py"], "no file nowhere.py: give the path"),
        (["doctor", "--json", "no/where.json"], "no directory no"),
        (["fingerprints", "nowhere"], "no folder nowhere"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], says: str, folder: Path) -> None:
    line = refused(folder, in_the_module(*arguments))
    assert "error: " in line
    assert says in line


TWO_SIDES = (("ab",), ("bench",), ("start",))


@pytest.mark.parametrize("arguments", TWO_SIDES)
def test_the_toggle_leaves_nothing_to_compare(arguments: tuple[str, ...], folder: Path) -> None:
    line = refused(folder, in_the_module(*arguments), TOTO_COMPILE_PATCH="off")
    assert "TOTO_COMPILE_PATCH=off leaves nothing to compare upstream with: unset it" in line


@pytest.mark.parametrize("arguments", [*TWO_SIDES, BACKTEST, ("run", "script.py")])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TOTO_COMPILE_PATCH", "fsat_decode"),
        ("TOTO_COMPILE_PATCH_RUNTIME", "quick"),
        ("TOTO_COMPILE_PATCH_CARRIERS", "boat"),
    ],
)
def test_a_variable_has_a_value_that_it_cannot_have(
    arguments: tuple[str, ...], name: str, text: str, folder: Path
) -> None:
    line = refused(folder, in_the_module(*arguments), **{name: text})
    assert name in line
    assert text in line
    assert "choose" in line


TOOLS = " (this package's extra tools)"

WITHOUT = """\
import sys
for name in {missing!r}:
    sys.modules[name] = None
from toto_compile_patch.tools.cli import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    ("missing", "arguments", "says"),
    [
        (["rich"], ["ab"], f"rich is missing: pip install rich{TOOLS}"),
        (
            ["rich", "matplotlib", "jinja2"],
            ["ab"],
            f"rich, matplotlib and jinja2 are missing: pip install rich matplotlib jinja2{TOOLS}",
        ),
        (["toto", "rich"], ["ab"], "toto and rich are missing: pip install toto-ts rich"),
        (
            ["matplotlib", "rich"],
            ["ab", "--no-report"],
            f"rich is missing: pip install rich{TOOLS}",
        ),
        (["torch"], ["bench"], "torch is missing: pip install torch==2.7.0"),
        (["toto"], ["start"], "toto is missing: pip install toto-ts"),
        (["pandas"], BACKTEST, f"pandas is missing: pip install pandas{TOOLS}"),
        (["pyarrow"], BACKTEST, "pip install 'pyarrow>=14,<26'"),
        (
            ["ray"],
            [*BACKTEST, "--engine", "ray"],
            "ray is missing: pip install ray (this package's extra ray)",
        ),
        (["rich"], ["fingerprints"], f"rich is missing: pip install rich{TOOLS}"),
    ],
)
def test_a_package_is_missing(
    missing: list[str], arguments: Sequence[str], says: str, folder: Path
) -> None:
    code = WITHOUT.format(missing=missing, arguments=list(arguments))
    assert refused(folder, ("-c", code)).endswith(says)


def test_nobody_waits_for_an_answer(folder: Path) -> None:
    seconds = []
    for arguments in (["--version"], ["--help"], ["ab", "nowhere.csv"], ["--version"]):
        start = time.perf_counter()
        answered(folder, in_the_module(*arguments))
        seconds.append(time.perf_counter() - start)
    # Torch alone takes two to five; the machine may be busy now and then.
    assert sorted(seconds)[1] < 1.0

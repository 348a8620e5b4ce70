"""The examples as a user runs them, on a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
EVIDENCE = ROOT / ".ci" / "evidence"
SMALL = ("--model", "small", "--context", "128", "--horizon", "80", "--samples", "4")


def run(script: str, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    interpreter = "bash" if script.endswith(".sh") else sys.executable
    return subprocess.run(
        [interpreter, str(EXAMPLES / script), *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, **environ},
        capture_output=True,
        text=True,
    )


def output_of(script: str, *arguments: object, **environ: str) -> str:
    done = run(script, *arguments, **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_start_takes_the_demo_model_and_the_fast_path() -> None:
    printed = output_of("quickstart.py")
    assert "(1, 7, 336, 256)" in printed
    assert "taken='fast'" in printed


@pytest.mark.slow
def test_the_toggle_runs_a_script_by_upstreams_code_and_then_patched() -> None:
    printed = output_of("ab_toggle.sh", EXAMPLES / "quickstart.py", *SMALL)
    upstream, patched = printed.split("TOTO_COMPILE_PATCH=1")
    assert "upstream, unpatched" in upstream
    assert "taken='fast'" in patched
    for part in (upstream, patched):
        assert "(1, 7, 80, 4)" in part
        assert "whole run: " in part


@pytest.mark.slow
def test_the_toggle_stops_where_the_script_fails() -> None:
    done = run("ab_toggle.sh", EXAMPLES / "quickstart.py", "--horizon", "0")
    assert done.returncode == 2
    assert "TOTO_COMPILE_PATCH=1" not in done.stdout


@pytest.mark.slow
def test_the_gluonts_predictor_is_patched_and_scored() -> None:
    printed = output_of("gluonts_predictor.py", *SMALL, "--windows", "2")
    assert "forecasts:                   4, 80 hours each" in printed
    assert "MASE:" in printed
    assert "mean weighted quantile loss:" in printed
    assert "nan" not in printed
    assert "taken='fast'" in printed


@pytest.mark.slow
def test_a_pipeline_that_compiles_its_model_runs_the_compiled_fast_path() -> None:
    printed = output_of("compiled_pipeline.py", *SMALL, "--windows", "3", "--backend", "eager")
    assert "0 breaks, 0 recompilations, 0 limit hits" in printed
    assert "taken='fast'" in printed
    assert "runtime='compile'" in printed


@pytest.mark.slow
def test_what_each_way_compiles_is_counted(tmp_path: Path) -> None:
    rows = ("wrap_toto", "apply_and_wrap_model")
    file = tmp_path / "counts.json"
    output_of(str(EVIDENCE / "obvious_fixes.py"), "--rows", *rows, "--calls", "1", "--json", file)
    nothing, fast = json.loads(file.read_text())["rows"].values()
    assert nothing["graphs"] == 0
    assert fast["path"] == "fast, compile"
    assert fast["graphs"] > 0
    assert fast["graph_breaks"] == fast["recompilations"] == 0


RUNS_OF_A_WRAPPER = """
import recipes
from toto_compile_patch.tools import models

recipes.backbone.KVCache = recipes.HostIndexKVCache
print(recipes.wrapper_runs(models.load("small").model, "eager"))
"""


@pytest.mark.slow
def test_compiled_code_does_not_run_a_wrapper_by_wrapt() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUNS_OF_A_WRAPPER], cwd=EVIDENCE, capture_output=True, text=True
    )
    assert done.stdout.strip() == "{'eager': 3, 'compiled': 0}", done.stderr


@pytest.mark.slow
def test_a_model_that_is_not_there_gets_one_clear_line() -> None:
    done = run("quickstart.py", "--model", "./nowhere")
    assert done.returncode == 2
    assert (
        done.stderr.strip().splitlines()[-1].startswith("quickstart.py: error: --model ./nowhere")
    )
    assert "Traceback" not in done.stderr

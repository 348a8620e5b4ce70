"""The doctor: what it finds in an environment, and in scripts that it runs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch
from toto_compile_patch.errors import TotoNotFoundError
from toto_compile_patch.patches import fast_decode
from toto_compile_patch.path_taken import PathTaken
from toto_compile_patch.settings import in_force
from toto_compile_patch.tools import activate
from toto_compile_patch.tools.cli import main
from toto_compile_patch.tools.compile_health import Compilation, CompileHealth, Place
from toto_compile_patch.tools.doctor import environment, products, watch
from toto_compile_patch.tools.doctor.diagnosis import diagnose
from toto_compile_patch.tools.doctor.examination import Examination, Group
from toto_compile_patch.tools.doctor.findings import problems
from toto_compile_patch.tools.doctor.places import function_at, short
from toto_compile_patch.tools.doctor.products import Products
from toto_compile_patch.tools.doctor.rendering import show
from toto_compile_patch.tools.doctor.script import examine_script
from toto_compile_patch.tools.doctor.trial import Trial

HERE = Path(__file__).parent

PRELUDE = f"""\
import sys
sys.path.insert(0, {str(HERE)!r})
"""

MODEL = """\
import torch
from toto_cases import series, small_model, tiny_model
from toto.inference.forecaster import TotoForecaster
"""

BACKTEST = """\
# Three layers and a limit of four, which are quicker than twelve and eight.
torch._dynamo.config.recompile_limit = 4
toto = small_model(num_layers=3, spacewise_every_n_layers=3)
toto.model.compile(backend="eager")
forecaster = TotoForecaster(toto.model)
for length in (40, 48):
    forecaster.forecast(series(length), prediction_length=24)
"""

APPLY = "import toto_compile_patch; toto_compile_patch.apply()\n"


def doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user would run it."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TORCH")}
    return subprocess.run(
        [sys.executable, "-m", "toto_compile_patch", "doctor", *arguments],
        capture_output=True,
        text=True,
        env={**kept, "COLUMNS": "100", **environ},
    )


def examined(folder: Path, code: str, *arguments: str, **environ: str) -> dict[str, Any]:
    """What the doctor says of a script, as JSON."""
    script = folder / "script.py"
    script.write_text(PRELUDE + textwrap.dedent(code))
    found = folder / "found.json"
    run = doctor("--json", str(found), "--script", str(script), *arguments, **environ)
    report: dict[str, Any] = json.loads(found.read_text())
    assert run.returncode == (0 if report["healthy"] else 1), run.stderr
    return {**report, "stdout": run.stdout, "stderr": run.stderr}


def told(report: dict[str, Any], part: str) -> dict[str, Any]:
    """The one finding that says this."""
    found = [finding for finding in report["findings"] if part in finding["what"]]
    assert len(found) == 1, report["findings"]
    return found[0]


def line_of(folder: Path, text: str) -> str:
    lines = (folder / "script.py").read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.startswith(text))
    return f"script.py:{number}"


# The environment.


def test_what_is_installed_and_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    assert main(["doctor", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["healthy"]
    assert found["versions"]["toto"].startswith(("toto-ts ", "timecopilot-toto "))
    assert {row["state"] for row in found["patches"]} == {"applied"}
    assert not [symbol for symbol in found["symbols"] if symbol["problem"]]
    assert "toto.model.util.KVCache" in {symbol["name"] for symbol in found["symbols"]}
    [trial] = found["trials"]
    assert (trial["device"], trial["path"]["taken"], trial["error"]) == ("cpu", "fast", "")
    *_, last = capsys.readouterr().out.splitlines()
    assert last == found["last_word"]
    assert "Nothing is in the way: a small forecast took the fast path." in last
    assert "toto-compile-patch ab" in last


def test_plain_text_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "fast_decode           applied\n" in printed
    assert printed.splitlines()[-1].startswith("Nothing is in the way: ")


@pytest.mark.parametrize(
    ("text", "says", "cure"),
    [
        ("0", "leaves upstream untouched", "unset TOTO_COMPILE_PATCH"),
        ("fsat_decode", "unknown patch 'fsat_decode'", "unset it"),
    ],
)
def test_a_toggle_that_stops_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    says: str,
    cure: str,
) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH", text)
    assert main(["doctor", "--json", "-"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert cure in told(found, says)["cure"]
    assert found["trials"] == []
    assert found["last_word"].startswith("In the way: ")
    assert says in found["last_word"]
    assert cure in found["last_word"]
    assert found["variables"]["TOTO_COMPILE_PATCH"] == text
    # What else is said has nothing to do with it.
    assert len([one for one in found["findings"] if one["level"] != "note"]) == 1
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["doctor"]) == 1
    assert "reached" not in capsys.readouterr().out


def test_what_is_found_ends_with_a_full_stop_before_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH_LOG", "loud")
    assert main(["doctor"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert ", error, critical. To do next: set that variable" in last


def test_a_foreign_patch_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from toto.model.transformer import TransformerLayer

    monkeypatch.setattr(TransformerLayer, "forward", lambda self, *args: None)
    found = environment.examine_environment()
    assert not found.healthy
    report = found.as_json()
    assert "TransformerLayer.forward" in told(report, "apply() fails")["cure"]
    assert "toto.model.transformer.TransformerLayer.forward" in {
        symbol.name for symbol in found.symbols if symbol.problem
    }


def state_of_the_process() -> list[Any]:
    from torch.backends import cuda

    return [
        torch.get_rng_state().tolist(),
        toto_compile_patch.last_path(),
        [row.state for row in toto_compile_patch.status()],
        in_force(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        cuda.matmul.allow_tf32,
        warnings.filters[:],
        dict(os.environ),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of_the_process()
    with monkeypatch.context() as context:
        if fails:
            context.setattr(fast_decode, "forecast", broken)
        assert environment.examine_environment().healthy != fails
    assert state_of_the_process() == before


def broken(*arguments: object, **keywords: object) -> None:
    raise RuntimeError("illegal instruction\nin a kernel")


def test_a_forecast_that_is_not_fast() -> None:
    hook = register_module_forward_hook(lambda *_: None)
    try:
        found = environment.examine_environment()
    finally:
        hook.remove()
    assert not found.healthy
    [finding] = problems(found.findings)
    assert "on cpu was made by upstream's code: there are global forward hooks" in finding.what
    assert finding.cure == "remove them before forecasting"
    assert found.last_word == f"In the way: {finding.what} To do next: {finding.cure}"


def test_a_forecast_without_the_patch_that_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "kv_cache")
    [finding] = problems(environment.examine_environment().findings)
    assert "TOTO_COMPILE_PATCH=kv_cache leaves out fast_decode" in finding.what
    assert "unset TOTO_COMPILE_PATCH" in finding.cure


@pytest.mark.parametrize(
    ("owner", "attribute", "says", "cure"),
    [
        (fast_decode, "forecast", "and not by upstream's code", "set TOTO_COMPILE_PATCH=0"),
        (TotoForecaster, "forecast", "by upstream's code as well", "in a new environment"),
    ],
)
def test_a_forecast_that_fails(
    owner: Any, attribute: str, says: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, attribute, broken)
    found = environment.examine_environment()
    assert not found.healthy
    [finding] = problems(found.findings)
    assert f"fails, {says}: RuntimeError: illegal instruction." in finding.what
    assert cure in finding.cure
    assert cure in found.last_word


def test_a_forecast_that_fails_in_a_known_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH_FALLBACK", "error")
    hook = register_module_forward_hook(lambda *_: None)
    try:
        [finding] = problems(environment.examine_environment().findings)
    finally:
        hook.remove()
    assert "global forward hooks" in finding.what
    assert "forbids upstream's code" in finding.what
    assert "apply(fallback='upstream')" in finding.cure


# Matrix products.


def products_of(*ratios: float) -> Products:
    least, middle, greatest = ratios
    return Products("cpu", "bf16", 256, (100.0, 100.0 * middle), (least, middle, greatest))


@pytest.mark.parametrize(
    ("found", "pays", "says"),
    [
        (products_of(3.0, 4.0, 5.0), True, "precision='bf16' pays on cpu: its products run at 400"),
        (products_of(0.1, 0.5, 1.1), False, "precision='bf16' does not pay on cpu"),
        (products_of(1.1, 1.1, 1.1), False, "s at 100, and from 1.2 times as fast on it does"),
        (products_of(0.5, 1.5, 4.0), None, "cannot be told now"),
    ],
)
def test_whether_16_bits_pay(found: Products, pays: bool | None, says: str) -> None:
    assert found.pays is pays
    assert says in found.sentence
    assert "float32's at 100" in found.sentence


def test_products_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    cpu = torch.device("cpu")
    turns = products._in_turn(cpu, lambda: begun.append("a"), lambda: begun.append("b"))
    assert begun == ["a", "b"] * (1 + products._MOST_TURNS)
    assert len(turns) == products._MOST_TURNS
    start = time.perf_counter()
    slow = products._in_turn(cpu, lambda: time.sleep(0.05), lambda: None)
    assert len(slow) == products._FEWEST_TURNS
    assert time.perf_counter() - start < 2


def test_what_this_machine_reaches() -> None:
    found = products.measure()
    assert {(one.device, one.precision) for one in found} >= {("cpu", "bf16")}
    for one in found:
        least, middle, greatest = one.ratios
        assert 0 < least <= middle <= greatest
        assert min(one.gflops) > 0


def test_16_bits_that_are_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "measure", lambda: [products_of(0.1, 0.5, 1.1)])
    assert environment.examine_environment().findings == []
    monkeypatch.setenv("TOTO_COMPILE_PATCH_PRECISION", "bf16")
    [finding] = environment.examine_environment().findings
    assert finding.level == "trap"
    assert "unset TOTO_COMPILE_PATCH_PRECISION" in finding.cure


def test_products_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "measure", broken)
    found = environment.examine_environment()
    assert found.healthy
    assert "RuntimeError: illegal instruction" in found.findings[0].what


@pytest.mark.parametrize(
    ("distribution", "installed", "level", "cure"),
    [
        ("huggingface_hub", "1.2.0", "trap", "huggingface_hub<1"),
        ("wrapt", "2.2.0", "problem", "wrapt>=1.16"),
        ("wrapt", "1.15.0", "problem", "wrapt>=1.16"),
        ("torch", "2.14.1+cu130", "note", "pytest"),
        ("torch", "2.6.0", "problem", "torch==2.7.0"),
    ],
)
def test_versions_that_are_traps(
    monkeypatch: pytest.MonkeyPatch, distribution: str, installed: str, level: str, cure: str
) -> None:
    real = environment.version
    assert environment.examine_environment().findings == []
    monkeypatch.setattr(
        environment,
        "version",
        lambda name: installed if name == distribution else real(name),
    )
    [finding] = environment.examine_environment().findings
    assert (finding.level, installed in finding.what) == (level, True)
    assert cure in finding.cure


def test_no_compiler_is_a_trap_and_a_problem_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "_cuda", lambda: "no device")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert [f.level for f in environment.examine_environment().findings] == ["trap"]
    monkeypatch.setenv("TOTO_COMPILE_PATCH_RUNTIME", "compile")
    found = environment.examine_environment()
    [finding] = problems(found.findings)
    assert "no-such-compiler" in finding.what
    assert told(found.as_json(), "what is compiled was not tried")["level"] == "note"
    assert found.trials[0].path == PathTaken("fast", runtime="eager")


def test_other_traps(monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.version
    monkeypatch.setattr(
        environment, "version", lambda name: "0.0.30" if name == "xformers" else real(name)
    )
    monkeypatch.setattr(environment, "_cuda", lambda: "no device")
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("TOTO_COMPILE_PATCH", "fast_decode")
    report = environment.examine_environment().as_json()
    assert report["healthy"]
    assert "use_memory_efficient_attention=False" in told(report, "xformers")["cure"]
    assert "unset" in told(report, "TORCHDYNAMO_DISABLE")["cure"]
    assert "compile_method" in told(report, "toto.compile() compiles nothing")["cure"]
    assert "recompile_limit = 64" in told(report, "recompile_limit is 8")["cure"]
    assert told(report, "has not been tested; 3.10, 3.11, 3.12, 3.13")["level"] == "note"


def test_a_patch_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from toto.model.transformer import TransformerLayer

    monkeypatch.setattr(TransformerLayer, "forward", lambda self, *args: None)
    monkeypatch.setenv("TOTO_COMPILE_PATCH_STRICT", "0")
    found = environment.examine_environment()
    left_out = [one for one in problems(found.findings) if "is unavailable" in one.what]
    assert [one.what.split()[1] for one in left_out] == ["positional_embedding", "fast_decode"]
    for one in left_out:
        assert "TransformerLayer.forward" in one.what
        assert "or take out what replaced it" in one.cure


def test_another_runtime_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH_RUNTIME", "cudagraph")
    finding = told(environment.examine_environment().as_json(), "on cpu was made in runtime eager")
    assert finding["level"] == "note"


def test_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_cuda", lambda: "12.6, one device")
    monkeypatch.setitem(sys.modules, "triton", None)
    finding = told(environment.examine_environment().as_json(), "There is no Triton")
    assert (finding["level"], finding["cure"]) == ("trap", "pip install triton")


def test_a_toto_of_no_distribution_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict[str, list[str]])
    assert environment.examine_environment().versions["toto"] == "of no distribution"


def test_products_are_not_measured_where_no_torch_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = environment.version
    monkeypatch.setattr(environment, "version", lambda name: "" if name == "torch" else real(name))
    found = environment.examine_environment()
    assert found.versions["torch"] == "not installed"
    assert found.products == []
    assert not [one for one in found.findings if "products" in one.what]


def test_an_apply_that_fails_in_no_known_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toto_compile_patch, "patched", broken)
    found = environment.examine_environment()
    [finding] = problems(found.findings)
    assert finding.what.startswith("apply() fails: RuntimeError('illegal instruction")
    assert found.last_word.endswith("To do next: mend that, and ask the doctor again")


@pytest.mark.parametrize(
    ("is_there", "level", "says"),
    [
        (True, "note", "This environment is activated"),
        (False, "trap", "does nothing in this environment, which is not activated"),
    ],
)
def test_whether_the_environment_is_activated(
    is_there: bool, level: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "activated.pth"
    monkeypatch.setattr(activate, "place", lambda: file)
    assert environment.examine_environment().findings == []
    monkeypatch.setenv("TOTO_COMPILE_PATCH_AUTO", "1")
    if is_there:
        file.touch()
    [finding] = environment.examine_environment().findings
    assert finding.level == level
    assert says in finding.what


WITHOUT = """\
import sys
for name in {names!r}:
    sys.modules[name] = None
from toto_compile_patch.tools.cli import main
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["toto", "autogluon"], "pip install toto-ts"),
        (["rich", "torch"], "pip install torch==2.7.0"),
    ],
)
def test_on_a_sick_environment(names: list[str], says: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(names=names)], capture_output=True, text=True
    )
    assert run.returncode == 1, run.stderr
    assert says in run.stdout
    *_, last = run.stdout.splitlines()
    assert last.startswith("In the way")
    assert says in last
    assert "Traceback" not in run.stderr


WITHOUT_A_NAME = """\
import torch._dynamo
del torch._dynamo.mark_dynamic
from toto_compile_patch.tools.cli import main
main(["doctor", "--json", "-"])
"""


@pytest.mark.slow
def test_what_a_newer_torch_leaves_out_is_named() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_A_NAME], capture_output=True, text=True)
    found = json.loads(run.stdout)
    finding = told(found, "No compiled forecasts here")
    assert "has no torch._dynamo.mark_dynamic" in finding["what"]
    assert finding["level"] == "trap"
    assert {row["state"] for row in found["patches"]} == {"applied"}


def test_a_missing_dependency_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(*arguments: object) -> None:
        missing = ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")
        raise TotoNotFoundError("toto cannot be imported") from missing

    with monkeypatch.context() as context:
        context.setattr("toto_compile_patch.api._bring_about", apply)
        [finding] = problems(environment.examine_environment().findings)
    assert "pkg_resources" in finding.what
    assert finding.cure == "pip install 'setuptools<81'"


@pytest.mark.parametrize(
    "arguments",
    [["--script"], ["--script", "no/such.py", "--flag"], ["--json", "no/such/dir.json"]],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("doctor: error: ")


def test_help_says_what_is_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "not those that it starts" in " ".join(capsys.readouterr().out.split())


# Scripts.


@pytest.mark.slow
def test_a_call_that_compiles_nothing(tmp_path: Path) -> None:
    code = """\
toto = tiny_model()
toto.compile()
torch.compile(toto.model)
forecaster = TotoForecaster(toto.model)
for _ in range(3):
    forecaster.forecast(series(40), prediction_length=8)
print("printed by the script", sys.argv[1:])
"""
    report = examined(tmp_path, MODEL + code, "--windows", "8")
    finding = told(report, "NOTHING WAS COMPILED")
    assert f"toto.compile() at {line_of(tmp_path, 'toto.compile')}" in finding["what"]
    assert f"torch.compile(model) at {line_of(tmp_path, 'torch.compile')}" in finding["what"]
    assert "toto_compile_patch.apply()" in finding["cure"]
    [way] = report["forecasts"]
    assert (way["path"], way["count"], way["compiled"]) == ("upstream", 3, False)
    assert way["place"] == line_of(tmp_path, "    forecaster.forecast")
    printed, heading = report["stdout"].split("doctor: ", 1)
    assert printed.strip().startswith("printed by the script ['--windows', '8']")
    *_, last = heading.splitlines()
    assert last.startswith("In the way: NOTHING WAS COMPILED")
    assert last.endswith(f"To do next: {finding['cure']}")
    assert len(report["findings"]) == 1


@pytest.mark.slow
def test_a_compiled_backtest_of_upstreams(tmp_path: Path) -> None:
    report = examined(tmp_path, MODEL + BACKTEST)
    finding = told(report, "falls to pieces")
    assert "positional_embedding" in finding["what"]
    assert "limit was hit in TransformerLayer.forward" in finding["what"]
    assert "cut short" in finding["what"]
    assert "toto_compile_patch.apply()" in finding["cure"]
    counts = report["counts"]
    assert counts["limit_hits"] >= 1
    assert sum(group["count"] for group in report["recompilations"]) == counts["recompilations"]
    recompiled = sum(function["recompilations"] for function in report["functions"])
    assert recompiled == counts["recompilations"]
    functions = {function["name"]: function for function in report["functions"]}
    layer = functions["TransformerLayer.forward"]
    assert layer["limit_hits"] >= 1
    assert layer["place"].startswith("toto/model/transformer.py:")
    assert functions["KVCache.seq_len"]["breaks"] > 0
    assert 0 < sum(function["graphs"] for function in report["functions"]) <= counts["graphs"]
    assert not [name for name in functions if name.startswith("torch_dynamo_resume")]
    reasons = {group["reason"]: group for group in report["recompilations"]}
    assert "TransformerLayer.forward" in reasons["layer_idx == N"]["functions"]
    assert len(reasons["layer_idx == N"]["functions"]) > 1
    assert {"inputs", "q"} <= set(reasons["size along axis 2 of N"]["values"])
    assert any(group["place"].startswith("toto/model/util.py:") for group in report["breaks"])
    assert all(way["compiled"] for way in report["forecasts"])
    *lines, last = report["stdout"].splitlines()
    assert max(map(len, lines)) <= 100
    assert last.startswith("In the way")
    assert "Upstream's compiled model falls to pieces: " in last
    assert "To do next: before the first forecast: " in last


def test_the_patched_backtest_is_healthy(tmp_path: Path) -> None:
    report = examined(tmp_path, APPLY + MODEL + BACKTEST)
    # On a busy machine, compiling this takes long.
    assert not [f for f in report["findings"] if not f["what"].startswith("Compiling took")]
    assert {way["path"] for way in report["forecasts"]} == {"fast"}
    assert {way["runtime"] for way in report["forecasts"]} == {"compile"}
    assert sum(way["count"] for way in report["forecasts"]) == 2
    assert report["counts"]["graphs"] > 0
    assert report["counts"]["graph_breaks"] == 0
    *_, last = report["stdout"].splitlines()
    assert last == report["last_word"]
    assert report["healthy"] == (last == "Nothing is in the way.")
    seconds = report["seconds"]
    assert seconds["compiling"] > seconds["forecasting"] > 0
    assert f"Compiling took {seconds['compiling']:.1f} s" in report["stdout"]


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["toto_compile_patch/own", "toto_compile_patch_of_mine"])
def test_a_checkout_is_not_taken_for_the_users_code(tmp_path: Path, beside: str) -> None:
    package = Path(toto_compile_patch.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("demo"))
    folder = tmp_path / beside
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    code = """\
toto = toto_compile_patch.compile(tiny_model(), backend="eager")
forecaster = TotoForecaster(toto.model)
forecaster.forecast(series(40), prediction_length=8)
print(toto_compile_patch.__file__)
"""
    script.write_text(PRELUDE + APPLY + MODEL + code)
    found = tmp_path / "found.json"
    options = ["doctor", "--json", str(found), "--script", str(script.relative_to(tmp_path))]
    run = subprocess.run(
        [sys.executable, "-m", "toto_compile_patch", *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert str(tmp_path / package.name) in run.stdout, run.stderr
    report = json.loads(found.read_text())
    [way] = report["forecasts"]
    assert way["path"] == "fast"
    assert way["place"] == line_of(folder, "forecaster.forecast")
    assert report["calls"][0]["place"] == line_of(folder, "toto = ")


@pytest.mark.slow
def test_forecasts_that_fall_back_and_a_script_that_raises(tmp_path: Path) -> None:
    code = """\
import toto_compile_patch, os, torch._dynamo
os.environ["TORCHDYNAMO_CAPTURE_SCALAR_OUTPUTS"] = "1"
toto = tiny_model()
forecaster = TotoForecaster(toto.model)
forecaster.forecast(series(40), prediction_length=8)
toto_compile_patch.apply()
with torch.autocast("cpu"):
    forecaster.forecast(series(40), prediction_length=8)
toto.model.train()
forecaster.forecast(series(40), prediction_length=8, num_samples=4, samples_per_batch=2)
raise LookupError("as it happens")
"""
    report = examined(tmp_path, MODEL + code)
    assert (report["exit_code"], report["error"]) == (1, "LookupError: as it happens")
    assert told(report, "The script failed with LookupError: as it happens")
    early = told(report, "unpatched, before apply()")
    assert (
        line_of(tmp_path, "forecaster.forecast(series(40), prediction_length=8)") in early["what"]
    )
    assert "model.eval()" in told(report, "although patched")["cure"]
    assert "training mode" in told(report, "although patched")["what"]
    assert "capture_scalar_outputs" in told(report, "set too late")["cure"]
    assert told(report, "within torch.autocast('cpu')")["level"] == "note"
    first, *others, last = report["stderr"].split("Traceback")[1].strip().splitlines()[1:]
    assert "script.py" in first
    assert last == "LookupError: as it happens"
    assert not any("runpy" in line for line in others)


@pytest.mark.parametrize(
    ("code", "exit_code", "says"),
    [
        ("sys.exit(3)", 3, "ended with exit code 3"),
        ("raise SystemExit", 0, "No forecast was seen"),
        ("x = (", 1, "SyntaxError"),
        ("import os; os._exit(0)", 0, "left without its end"),
        ("import os; os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
        ("raise ModuleNotFoundError(\"No module named 'toto'\")", 1, "toto is not installed"),
        (
            "raise TypeError(\"Toto._from_pretrained() missing 'proxies'\")",
            1,
            "breaks upstream's Toto.from_pretrained",
        ),
    ],
)
@pytest.mark.fault(
    injected="a script raises, exits, or is interrupted",
    where="doctor --script",
    observed="the script's own end is told",
    afterwards="the doctor reports what it saw",
)
def test_how_a_script_may_end(tmp_path: Path, code: str, exit_code: int, says: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(PRELUDE + code)
    found = examine_script(script, [])
    assert found.exit_code == exit_code
    assert any(says in finding.what for finding in found.findings)
    assert found.healthy == (code == "raise SystemExit")
    next_step = "show the doctor a script that forecasts" if found.healthy else "In the way"
    assert next_step in found.last_word


def test_a_toto_whose_forecasts_cannot_be_counted(tmp_path: Path) -> None:
    for package in ("toto", "toto/inference"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "toto" / "inference" / "forecaster.py").write_text("class TotoForecaster: ...\n")
    report = examined(tmp_path, "import toto.inference.forecaster\n")
    assert told(report, "could not be counted")["level"] == "note"


def test_the_script_runs_as_python_would_run_it(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("x = 1\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, beside\n"
        "print(json.dumps([__name__, __file__, sys.argv, sys.path[0], 'torch' in sys.modules]))\n"
    )
    by_python, by_doctor = (
        subprocess.run([*command, str(script), "-x"], capture_output=True, text=True, check=True)
        for command in (
            [sys.executable],
            [sys.executable, "-m", "toto_compile_patch", "doctor", "--script"],
        )
    )
    assert by_doctor.stdout.splitlines()[0] == by_python.stdout.strip()
    assert by_doctor.stderr == by_python.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has no safe path yet")
def test_a_path_that_is_safe_stays_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text("x = 1\n")
    script = tmp_path / "script.py"
    script.write_text("import beside\n")
    assert examine_script(script, []).exit_code == 0
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    package = str(Path(toto_compile_patch.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    found = examine_script(script, [])
    assert found.error == "ModuleNotFoundError: No module named 'beside'"


def watched(folder: Path, code: str) -> dict[str, Any]:
    """What is seen of a script, which runs in a fork of a process that has imported torch."""
    script, report = folder / "script.py", folder / "report.json"
    script.write_text(PRELUDE + MODEL + code)
    run = "from toto_compile_patch.tools.doctor import run_watched; import sys; "
    done = forked.python(
        f"{run}run_watched.run(*sys.argv[1:])", arguments=(str(report), str(script))
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(report.read_text())
    return seen


def test_what_raised_is_no_forecast(tmp_path: Path) -> None:
    code = """\
import toto_compile_patch
toto_compile_patch.apply(fallback="error")
forecaster = TotoForecaster(tiny_model().model)
forecaster.model.train()
try:
    forecaster.forecast(series(40), prediction_length=8)
except toto_compile_patch.FallbackError:
    forecaster.model.eval()
forecaster.forecast(series(40), prediction_length=8)
"""
    seen = watched(tmp_path, code)
    [forecast] = seen["forecasts"]
    assert (forecast["path"], forecast["count"]) == ("fast", 1)
    assert forecast["place"] == "script.py:14"


def test_forecasts_of_methods_that_nothing_decorates_cannot_be_counted() -> None:
    class TotoForecaster:
        def forecast(self) -> None: ...

        def generate_mean(self) -> None: ...

        def generate_samples(self) -> None: ...

    one = watch.Watch()
    one._watch_forecaster("toto", SimpleNamespace(TotoForecaster=TotoForecaster))
    assert not one.countable


@pytest.mark.parametrize(("carrier", "countable"), [("toto", False), ("timecopilot", True)])
def test_a_module_that_makes_no_forecasts_is_missed_where_it_stands_for_toto_alone(
    carrier: str, countable: bool
) -> None:
    one = watch.Watch()
    one._watch_forecaster(carrier, SimpleNamespace(TotoForecaster=object))
    assert one.countable is countable


def test_json_to_stdout_is_nothing_but_json(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('printed')")
    run = doctor("--json", "-", "--script", str(script))
    assert json.loads(run.stdout)["healthy"]
    assert "printed" in run.stderr


def seen(**changes: Any) -> Examination:
    known = {"script": "s.py", "exit_code": 0, "error": "", "observed": True}
    return Examination(**{**known, **changes})


def way(**changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"path": "fast", "reason": "", "runtime": "eager", "compiled": False}
    known |= {"patches": [], "autocast": "", "place": "s.py:1", "count": 2, "first": 0}
    known |= {"device": "cpu", "carrier": "", "cure": ""}
    return {**known, **changes}


COUNTS = ("graphs", "graph_breaks", "recompilations", "limit_hits", "cudagraph_skips")


@pytest.mark.parametrize(
    ("found", "says", "cure"),
    [
        (seen(forecasts=[way(path="upstream")]), "2 forecasts were made", "apply()"),
        (
            seen(
                forecasts=[way(path="upstream")],
                variables={"TOTO_COMPILE_PATCH": "off"},
            ),
            "unpatched",
            "unset TOTO_COMPILE_PATCH",
        ),
        (
            seen(
                forecasts=[way()],
                calls=[{"how": "function", "target": "Toto", "place": "s.py:3"}],
            ),
            "torch.compile(toto) at s.py:3: Toto has no forward",
            "the fast path needs no compiling",
        ),
        (
            seen(
                forecasts=[way()],
                calls=[{"how": "function", "target": "TotoBackbone", "place": "s.py:3"}],
            ),
            "torch.compile(model) at s.py:3: its result is not what the forecaster holds",
            "the fast path needs no compiling",
        ),
        (
            seen(
                forecasts=[way()],
                calls=[{"how": "method", "target": "TotoBackbone", "place": "s.py:3"}],
            ),
            "model.compile() at s.py:3: no forecaster calls this model",
            "the fast path needs no compiling",
        ),
        (
            seen(
                forecasts=[way(path="upstream", compiled=True)],
                counts=dict.fromkeys(COUNTS, 7),
                breaks=[Group("int() of a tensor", ["KVCache.seq_len"], count=3)],
            ),
            "The recompile limit was not reached; further lengths may.",
            "toto_compile_patch.apply()",
        ),
        (
            seen(forecasts=[way(), way(path="upstream", first=2)]),
            "unpatched, after revert()",
            "patched() around all",
        ),
        (
            seen(
                forecasts=[way(path="upstream", compiled=True, patches=["kv_cache"])],
                limits=[Group("recompile_limit = 8", ["Net.forward"], count=1)],
            ),
            "recompile limit was hit in Net.forward",
            "recompile_limit",
        ),
        (
            seen(
                forecasts=[way(compiled=True)],
                seconds={"compiling": 40.04, "forecasting": 3.0},
            ),
            "Compiling took 40 s, and all forecasts together 3.0 s",
            "leave out toto.compile()",
        ),
        (
            seen(
                forecasts=[way(compiled=True, device="cuda")],
                seconds={"compiling": 40.0, "forecasting": 39.0},
            ),
            "less than it cost to compile them",
            "make many forecasts in one process",
        ),
        (
            seen(
                forecasts=[way(path="upstream", carrier="toto.toto")],
                unreached=[{"name": "toto.toto", "folder": "/x", "advice": "write toto"}],
            ),
            "2 forecasts were made by `toto.toto`, which apply() does not reach, at s.py:1.",
            "write toto",
        ),
        (
            seen(
                forecasts=[way()],
                unreached=[{"name": "toto2", "folder": "/x", "advice": "another model"}],
            ),
            "`toto2` is loaded, and apply() does not reach it (/x).",
            "another model",
        ),
        (
            seen(forecasts=[way()], skips={"skipping cudagraphs due to cpu device (arg0)": 2}),
            "2 graphs not captured",
            "mode='default'",
        ),
        (
            seen(forecasts=[way(reason="no memory for a graph")]),
            "2 forecasts were made in runtime eager: no memory for a graph",
            "",
        ),
    ],
)
def test_diagnoses(found: Examination, says: str, cure: str) -> None:
    [finding] = diagnose(found, [], True)
    assert says in finding.what
    assert cure in finding.cure


@pytest.mark.parametrize(
    ("forecasts", "countable", "says"),
    [([], True, "No forecast was seen"), ([way()], False, "could not be counted")],
)
def test_what_could_not_be_seen_is_noted(
    forecasts: list[dict[str, Any]], countable: bool, says: str
) -> None:
    [finding] = diagnose(seen(forecasts=forecasts), [], countable)
    assert (finding.level, says in finding.what) == ("note", True)


@pytest.mark.parametrize(
    "seconds",
    [
        None,
        {"compiling": 9.0, "forecasting": 0.1},
        {"compiling": 40.0, "forecasting": 41.0},
    ],
)
def test_compiling_that_is_short_or_serves_many(seconds: dict[str, float] | None) -> None:
    assert list(diagnose(seen(forecasts=[way(compiled=True)], seconds=seconds), [], True)) == []


def test_patches_for_compiled_models_alone_are_healthy() -> None:
    ways = [way(path="upstream", compiled=True, patches=["kv_cache", "positional_embedding"])]
    assert list(diagnose(seen(forecasts=ways), [], True)) == []


# What is shown, and what is seen.


def shown(found: Any, capsys: pytest.CaptureFixture[str]) -> str:
    show(found)
    return " ".join(capsys.readouterr().out.split())


def test_a_long_table_says_how_much_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    ways = [way(place=f"s.py:{line}") for line in range(1, 15)]
    text = shown(seen(forecasts=ways), capsys)
    assert "s.py:12" in text
    assert "s.py:13" not in text
    assert "... and 2 more: --json has them all" in text
    assert "more" not in shown(seen(forecasts=ways[:12]), capsys)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "the fast path, eager"),
        ({"path": "upstream"}, "upstream, unpatched"),
        ({"path": "upstream", "reason": "hooks"}, "upstream: hooks"),
        ({"path": "upstream", "patches": ["kv_cache"]}, "upstream, with kv_cache"),
        ({"path": "upstream", "carrier": "toto2"}, "toto2, not reached by apply()"),
    ],
)
def test_what_made_a_forecast_is_shown(
    changes: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f" 2 {says} no s.py:1 " in shown(seen(forecasts=[way(**changes)]), capsys)


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        (Trial("cpu", PathTaken("fast", runtime="eager"), 0.25), "the fast path, eager 0.25"),
        (Trial("cpu", PathTaken("upstream", "hooks"), 0.25), "upstream: hooks 0.25"),
        (Trial("cpu", None, 0.25), "upstream, unpatched 0.25"),
        (Trial("cpu", error="KeyError: 3"), "nobody: KeyError: 3 0.00"),
    ],
)
def test_what_made_a_small_forecast_is_shown(
    trial: Trial, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = environment.Environment({"Python": "3.11"}, [], {}, [], [], [trial], [])
    assert f" cpu {says} " in shown(found, capsys)


def test_of_a_process_that_died_nothing_is_shown_but_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    died = seen(observed=False, exit_code=-9, error="killed by SIGKILL")
    assert "torch.compile" not in shown(died, capsys)
    assert "torch.compile: no graph was compiled" in shown(seen(), capsys)


@pytest.mark.parametrize("seconds", [None, {"compiling": 2.0, "forecasting": 1.0}])
def test_what_compiling_took_is_shown_where_torch_tells(
    seconds: dict[str, float] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = seen(torch="2.7.0", counts=dict.fromkeys(COUNTS, 1), seconds=seconds)
    text = shown(found, capsys)
    assert "torch 2.7.0: 1 graph, 1 graph break, 1 recompilation, 1 recompile limit hit" in text
    assert ("Compiling took 2.0 s" in text) == (seconds is not None)


def test_compiling_outside_of_forecasts_is_none_of_their_time() -> None:
    def compiled(began: float, seconds: float) -> Compilation:
        return Compilation(Place("a.py", 1, "f"), "", "", True, began, seconds)

    one = watch.Watch(spans=[(10.0, 14.0)])
    health = CompileHealth(compilations=[compiled(11.0, 1.0), compiled(20.0, 8.0)])
    assert one._seconds(health) == {"compiling": 9.0, "forecasting": 3.0}


def test_a_forecast_within_another_is_timed_once() -> None:
    one = watch.Watch()
    for _ in range(2):
        with one._timed(), one._timed():
            pass
    assert len(one.spans) == 2


def test_what_a_library_asked_for_has_no_place() -> None:
    found: list[str] = []
    names = {"found": found, "asked_from": watch._asked_from, "frame": sys._getframe}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(exec, "found.append(asked_from(frame()))", names).result()
        pool.submit(lambda: found.append(watch._asked_from(sys._getframe()))).result()
    assert found[0] == ""
    assert found[1].startswith("test_doctor.py:")


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short.cache_clear()
    file = tmp_path / "code.py"
    file.write_text(
        "class A:\n    @property\n    def f(self):\n        def g(): 0\n        return g\n"
    )
    assert [function_at(str(file), line) for line in (2, 3, 4, 5)] == ["A.f", "A.f", "A.f.g", "A.f"]
    assert function_at(str(file), 1, "otherwise") == "otherwise"
    assert function_at("no such file", 1, "otherwise") == "otherwise"
    assert short(str(file)) == "code.py"
    assert short("/x/lib/python3/site-packages/toto/model/util.py") == "toto/model/util.py"
    assert short(environment.__file__) == "toto_compile_patch/tools/doctor/environment.py"

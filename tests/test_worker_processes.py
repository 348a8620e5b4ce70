"""Forecasts in worker processes and threads, by each recipe of the README, and what is sent there.

Each recipe is a script in an interpreter of its own: it forecasts in its workers and in the parent,
and prints which code made the workers' forecasts, and by how much their means differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SCRIPT = """\
import multiprocessing, os, pickle, sys
from concurrent.futures import ThreadPoolExecutor

import torch
import toto_compile_patch
from toto.inference.forecaster import TotoForecaster
from toto_cases import forecast, series, tiny_model

LENGTHS = (24, 40)

def work(length):
    mean = forecast(tiny_model().model, series(length), 16).mean
    return made(mean)

def use(forecaster):
    return made(forecaster.forecast(series(40), prediction_length=16).mean)

def use_sent(sent):
    return use(pickle.loads(sent))

def made(mean):
    path = toto_compile_patch.last_path()
    return os.getpid(), path and path.taken, mean.tolist()

def compare(found, expected):
    for (worker, taken, mean), (parent, _, own) in zip(found, expected, strict=True):
        where = "same process" if worker == parent else "another process"
        print(where, taken, "equal" if mean == own else "close" if torch.allclose(
            torch.tensor(mean), torch.tensor(own), rtol=1e-5) else "different")
"""

RECIPES = {
    "spawn": """
        context = multiprocessing.get_context("spawn")
        with context.Pool(2, initializer=toto_compile_patch.apply) as pool:
            found = pool.map(work, LENGTHS)
        """,
    "forkserver": """
        context = multiprocessing.get_context("forkserver")
        with context.Pool(2, initializer=toto_compile_patch.apply) as pool:
            found = pool.map(work, LENGTHS)
        """,
    "fork": """
        toto_compile_patch.apply()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map(work, LENGTHS)
        """,
    "threads": """
        toto_compile_patch.apply()
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(work, LENGTHS))
        """,
    "loky": """
        from joblib import Parallel, delayed, parallel_config
        with parallel_config(backend="loky", initializer=toto_compile_patch.apply):
            found = Parallel(n_jobs=2)(delayed(work)(length) for length in LENGTHS)
        """,
    "ray": """
        import ray
        hook = {"worker_process_setup_hook": toto_compile_patch.apply}
        ray.init(num_cpus=2, include_dashboard=False, runtime_env=hook)
        found = ray.get([ray.remote(work).remote(length) for length in LENGTHS])
        ray.shutdown()
        """,
}
NEEDS = {"loky": "joblib", "ray": "ray"}
BY_THEMSELVES = ("fork", "threads")
STARTS_AFRESH = [name for name in RECIPES if name not in BY_THEMSELVES]


def run(folder: Path, main: str, *, arguments: tuple[str, ...] = (), **environ: str) -> list[str]:
    """Run a script whose main part is given, and give the lines that it prints."""
    script = folder / "script.py"
    script.write_text(f'{SCRIPT}\nif __name__ == "__main__":\n{textwrap.indent(main, "    ")}\n')
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    threads = {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(
        [sys.executable, *arguments, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, **threads, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def recipe(name: str) -> str:
    """A recipe's lines; skips the test where what it needs is not installed."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name in ("fork", "forkserver") and sys.platform == "win32":
        pytest.skip("Windows has no fork")
    return textwrap.dedent(RECIPES[name])


COMPARE = "toto_compile_patch.apply()\ncompare(found, [work(length) for length in LENGTHS])\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_workers_forecast_by_the_fast_path(name: str, tmp_path: Path) -> None:
    where = "same process" if name == "threads" else "another process"
    assert run(tmp_path, recipe(name) + COMPARE) == [f"{where} fast equal"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS_AFRESH)
def test_without_its_line_a_worker_that_starts_afresh_is_unpatched(
    name: str, tmp_path: Path
) -> None:
    lines = recipe(name)
    for written in (", initializer=toto_compile_patch.apply", ", runtime_env=hook"):
        lines = lines.replace(written, "")
    assert run(tmp_path, lines + COMPARE) == ["another process None close"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS_AFRESH)
def test_run_patches_every_worker(name: str, tmp_path: Path) -> None:
    lines = recipe(name)
    for written in (", initializer=toto_compile_patch.apply", ", runtime_env=hook"):
        lines = lines.replace(written, "")
    command = ("-m", "toto_compile_patch", "run")
    assert run(tmp_path, lines + COMPARE, arguments=command) == ["another process fast equal"] * 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("patched", [True, False])
def test_a_fork_after_a_forecast_by_a_single_thread(patched: bool, tmp_path: Path) -> None:
    main = f"""
torch.set_num_threads(1)
if {patched}:
    toto_compile_patch.apply()
expected = [work(length) for length in LENGTHS]
with multiprocessing.get_context("fork").Pool(2) as pool:
    compare(pool.map_async(work, LENGTHS).get(timeout=300), expected)
"""
    taken = "fast" if patched else "None"
    assert run(tmp_path, main, OMP_NUM_THREADS="2") == [f"another process {taken} equal"] * 2


SEND = """
forecaster = TotoForecaster(tiny_model().model)
{before}
expected = use(forecaster)
context = multiprocessing.get_context("spawn")
with context.Pool(1, {initializer}) as pool:
    compare([pool.apply(use, (forecaster,))], [expected])
compare([use(forecaster)], [expected])
"""


@pytest.mark.slow
@pytest.mark.parametrize("sender", [True, False])
@pytest.mark.parametrize("receiver", [True, False])
def test_a_forecaster_that_is_sent_to_a_worker(
    sender: bool, receiver: bool, tmp_path: Path
) -> None:
    before = "toto_compile_patch.apply()" if sender else ""
    initializer = "initializer=toto_compile_patch.apply" if receiver else ""
    there, here = ("fast" if patched else "None" for patched in (receiver, sender))
    equal = "equal" if sender == receiver else "close"
    found = run(tmp_path, SEND.format(before=before, initializer=initializer))
    assert found == [f"another process {there} {equal}", f"same process {here} equal"]


PICKLED = """
forecaster = TotoForecaster(tiny_model().model)
plain = pickle.dumps(forecaster)
upstream = use(forecaster)
toto_compile_patch.apply({settings})
{compiled}
expected = use(forecaster)
forecaster.forecast(series(24), prediction_length=16, num_samples=4, samples_per_batch=4)
assert toto_compile_patch.last_path().taken == "fast"
assert len(pickle.dumps(forecaster)) < 1.01 * len(plain) + 1000
sent = {pickler}.dumps(forecaster)
print(b"toto_compile_patch" in sent, len(sent) < 1.1 * len(plain))
compare([use_sent(sent)], [expected])
toto_compile_patch.revert()
with multiprocessing.get_context("spawn").Pool(1) as pool:
    compare([pool.apply(use_sent, (sent,))], [upstream])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "compiled"),
    [("", ""), ("precision='bf16'", ""), ("", "forecaster.model.compile(backend='eager')")],
)
@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_what_is_prepared_for_a_forecaster_does_not_travel(
    settings: str, compiled: str, pickler: str, tmp_path: Path
) -> None:
    pytest.importorskip(pickler)
    lines = PICKLED.format(settings=settings, compiled=compiled, pickler=pickler)
    assert run(tmp_path, f"import {pickler}\n{lines}") == [
        "False True",
        "same process fast equal",
        "another process None equal",
    ]

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
MODEL = tiny_model().model

def work(length):
    return made(forecast(MODEL, series(length), 16).mean)

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
        equal = torch.allclose(torch.tensor(mean), torch.tensor(own), rtol=1e-6)
        print(where, taken, "equal" if equal else "different")
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


QUICK = ("fork",)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in RECIPES if n not in QUICK)]
)
def test_workers_forecast_by_the_fast_path(name: str, tmp_path: Path) -> None:
    where = "same process" if name == "threads" else "another process"
    assert run(tmp_path, recipe(name) + COMPARE) == [f"{where} fast equal"] * 2


def unpatched(name: str) -> str:
    """A recipe without what patches its workers."""
    lines = recipe(name)
    for written in (", initializer=toto_compile_patch.apply", ", runtime_env=hook"):
        lines = lines.replace(written, "")
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spawn", *NEEDS])
def test_without_its_line_a_worker_that_starts_afresh_is_unpatched(
    name: str, tmp_path: Path
) -> None:
    assert run(tmp_path, unpatched(name) + COMPARE) == ["another process None equal"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spawn", *NEEDS])
def test_run_patches_every_worker(name: str, tmp_path: Path) -> None:
    command = ("-m", "toto_compile_patch", "run")
    found = run(tmp_path, unpatched(name) + COMPARE, arguments=command)
    assert found == ["another process fast equal"] * 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.fault(
    injected="a fork",
    where="after a forecast",
    observed="the children forecast",
    afterwards="equal to the parent's",
)
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


# Python's own pickle refuses upstream's model, which holds a static method.

SEND = """
import cloudpickle
forecaster = TotoForecaster(MODEL)
upstream = use(forecaster)
spawn = multiprocessing.get_context("spawn")
with spawn.Pool(1) as plain, spawn.Pool(1, initializer=toto_compile_patch.apply) as patched:
    for pool in (plain, patched):
        compare([pool.apply(use_sent, (cloudpickle.dumps(forecaster),))], [upstream])
    toto_compile_patch.apply()
    compare([use(forecaster)], [upstream])
    for pool in (plain, patched):
        compare([pool.apply(use_sent, (cloudpickle.dumps(forecaster),))], [upstream])
"""


@pytest.mark.slow
@pytest.mark.fault(
    injected="a forecaster is sent to another process",
    where="patched to unpatched, and back",
    observed="it forecasts there by the code of that process",
    afterwards="equal forecasts",
)
def test_a_forecaster_that_is_sent_to_a_worker(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    there = ["another process None equal", "another process fast equal"]
    assert run(tmp_path, SEND) == [*there, "same process fast equal", *there]


PREPARED = """
import cloudpickle
forecaster = TotoForecaster(MODEL)
before = cloudpickle.dumps(forecaster)
toto_compile_patch.apply()
for compiled in (False, True):
    if compiled:
        forecaster.model.compile(backend="eager")
    expected = use(forecaster)
    forecaster.forecast(series(24), prediction_length=16, num_samples=4, samples_per_batch=4)
    assert toto_compile_patch.last_path().taken == "fast"
    sent = cloudpickle.dumps(forecaster)
    print(b"toto_compile_patch" in sent, len(sent) < len(before) + 1000)
    compare([use_sent(sent)], [expected])
"""


@pytest.mark.slow
@pytest.mark.fault(
    injected="a forecaster is pickled",
    where="after forecasts, compiled or not",
    observed="nothing of the package's is in it",
    afterwards="equal forecasts",
)
def test_what_is_prepared_for_a_forecaster_does_not_travel(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    assert run(tmp_path, PREPARED) == ["False True", "same process fast equal"] * 2

#!/usr/bin/env python3
"""Which branches of the package do the tests take?

    python .ci/proof/branch_coverage.py                           the fast tests, and some slow ones
    python .ci/proof/branch_coverage.py --data FOLDER tests/test_many.py     these; runs add up
    python .ci/proof/branch_coverage.py --data FOLDER -- -n 2 -m slow        pytest's own options
    python .ci/proof/branch_coverage.py --data FOLDER --report    what the runs found so far

Processes that tests start count too: commands, workers, forks. coverage is installed into a virtual
environment of its own, which finds everything else in the one that runs this. The figures go to
results/coverage.json. Code that a GPU alone can run is named in GPU_ALONE, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quality_tables import coverage_table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "toto_compile_patch"
RESULTS = HERE / "results" / "coverage.json"

SLOW = (
    "tests/test_ab.py::test_a_comparison_from_end_to_end",
    "tests/test_ab.py::test_compiled_ways_on_a_terminal_without_what_a_report_takes",
    "tests/test_bench.py::test_a_small_workload_is_measured_on_both_sides",
    "tests/test_bench.py::test_what_upstream_cannot_do_is_said",
    "tests/test_doctor.py::test_a_compiled_backtest_of_upstreams",
    "tests/test_interrupted_commands.py::test_a_side_of_ab_that_is_killed",
)
"""Slow tests that take branches which no fast test takes."""

GPU_ALONE: dict[str, tuple[str, ...]] = {
    "decode/gpu_kernels/attention.py": ("_attend_to_few", "_attend_of_samples"),
    "decode/gpu_kernels/layers.py": ("_sum_and_norm", "_by_heads"),
    "decode/gpu_kernels/products.py": ("_linear_of_few_rows", "_linear_in_three_passes"),
    "decode/gpu_kernels/sampling.py": ("_draw",),
    "decode/gpu_kernels/scaling.py": ("_deviation", "_scale_context", "_scale_patch"),
    "decode/recorder.py": (
        "_CudaGraph.replay",
        "CudaRecorder.why_not",
        "CudaRecorder.record",
        "CudaRecorder._stream",
        "CudaRecorder._pool",
        "CudaRecorder._give_up",
        "_end_by_hand",
        "_autocast_without_cache",
        "_nothing_collected",
    ),
}
"""Of each file, the functions that nothing but a GPU can run; a kernel's branches are Triton's."""

SHOWS_COVERAGE = (
    "tests/test_import_hook.py::test_the_package_imports_nothing_heavy",
    *(
        f"tests/test_run_command.py::test_it_runs_as_if_alone[{command}]"
        for command in (
            "processes.py --start spawn 1 2",
            "processes.py --start spawn 1 13",
            "-m processes --start spawn 1 13",
        )
    ),
)
"""Tests of all that a process imports or prints, among which is what coverage does there."""

_CONFIGURATION = """\
[run]
branch = true
parallel = true
data_file = {data}/.coverage
source = {package}
patch = subprocess, _exit, execv, fork
concurrency = thread, multiprocessing
sigterm = true
disable_warnings = no-data-collected, module-not-measured, module-not-imported
[paths]
package =
    {package}
    */toto_compile_patch
"""


def main() -> int:
    """Run tests, or report; exit code 1 where a test failed."""
    options = _parse()
    with TemporaryDirectory() as folder, _data(options.data) as data:
        python = _environment(Path(folder))
        configuration = Path(folder, "coverage.ini")
        configuration.write_text(_CONFIGURATION.format(data=data, package=PACKAGE))
        coverage = (str(python), "-m", "coverage")
        settings = f"--rcfile={configuration}"
        left_out = [f"--deselect={test}" for test in SHOWS_COVERAGE]
        failed = False
        if not options.report:
            for tests in [options.tests] if options.tests else [["-m", "not slow"], [*SLOW]]:
                if tests:
                    command = [*coverage, "run", settings, "-m", "pytest", "-q", *left_out, *tests]
                    failed |= bool(subprocess.run(command, cwd=ROOT, env=_environ()).returncode)
        if options.report or not options.data:
            found = Path(folder, "found.json")
            for command in (
                [*coverage, "combine", "--append", "--quiet", settings],
                [*coverage, "json", "--quiet", settings, "-o", str(found)],
            ):
                subprocess.run(command, cwd=ROOT, check=True)
            kept = {**_facts(), **_figures(json.loads(found.read_text()))}
            RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            print(coverage_table())
    return int(failed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tests", nargs="*", help="arguments of pytest, in place of all")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="keep what is measured here")
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser.parse_args()


@contextmanager
def _data(folder: Path | None) -> Iterator[Path]:
    """Where what is measured is kept."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
    else:
        with TemporaryDirectory() as made:
            yield Path(made)


def _environment(folder: Path) -> Path:
    """A virtual environment with coverage, which also finds what is installed here."""
    root = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    python = root / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.check_output([python, "-c", code], text=True).strip())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages)]
    subprocess.run([*pip, "--disable-pip-version-check", "coverage>=7.10"], check=True)
    # After coverage's own file of this kind, which begins to measure.
    here = sysconfig.get_path("purelib")
    (packages / "b_others.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return python


def _environ() -> dict[str, str]:
    """This repository's package is tested, wherever another one is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _facts() -> dict[str, str]:
    sys.path.insert(0, str(ROOT))
    from toto_compile_patch.tools.machine import facts

    return facts("cpu") | {"date": date.today().isoformat()}


def _figures(measured: dict[str, Any]) -> dict[str, Any]:
    """Branches of each file, those that a GPU alone takes apart, and which no test takes."""
    files, apart = {}, {"branches": 0, "covered": 0}
    for path, file in sorted(measured["files"].items()):
        name = str(Path(path).resolve().relative_to(PACKAGE)) if Path(path).is_absolute() else path
        name = name.removeprefix("toto_compile_patch/")
        counts = _counts(file["summary"])
        missing = [tuple(arc) for arc in file["missing_branches"]]
        for function in GPU_ALONE.get(name, ()):
            part = file["functions"][function]
            of_gpu = _counts(part["summary"])
            missing = [arc for arc in missing if list(arc) not in part["missing_branches"]]
            for count, value in of_gpu.items():
                counts[count] -= value
                apart[count] += value
        lines = (PACKAGE / name).read_text().splitlines()
        counts["missing"] = [
            {"line": start, "to": end, "text": lines[start - 1].strip()} for start, end in missing
        ]
        files[name] = counts
    total = {
        count: sum(file[count] for file in files.values()) for count in ("branches", "covered")
    }
    functions = [f"{name}: {function}" for name in GPU_ALONE for function in GPU_ALONE[name]]
    return {"total": total, "gpu": {**apart, "functions": functions}, "files": files}


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    return {"branches": summary["num_branches"], "covered": summary["covered_branches"]}


if __name__ == "__main__":
    sys.exit(main())

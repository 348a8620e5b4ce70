#!/usr/bin/env python3
"""Do the tests notice faults? Put small ones into the code, one at a time, and see.

    python .ci/proof/mutation.py                     a sample of each module's mutants
    python .ci/proof/mutation.py --draw 1000000      all of them
    python .ci/proof/mutation.py --survivors         those that survived, with today's tests
    python .ci/proof/mutation.py --trials 300        by random_forecasts.py; nothing is kept

A mutant is killed if one of its module's tests fails, or computes far longer than without the
fault. Each has a process of its own, forked from one that has imported torch and upstream but not
this package, in a copy of the repository. What is mutated is in mutants.py. What became of each is
kept in results/mutation_*.json as soon as it is known, and is not tested again while the module
stays as it is; why a survivor survives is in survivors.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import subprocess
import sys
import traceback
from datetime import date
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NoReturn

from mutants import mutants
from quality_tables import mutation_table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
PACKAGE = "toto_compile_patch"

_EQUALITY = (
    *(f"tests/test_decode_equality.py::test_means[{part}]" for part in range(2)),
    *(
        f"tests/test_decode_equality.py::test_same_seed_samples_in_float64[{part}]"
        for part in (2, 3)
    ),
)
_OTHER_WAYS = (
    "tests/test_decode_equality.py::test_16_bit_samples_work_on_a_cpu",
    "tests/test_decode_equality.py::test_autocast_and_inference_mode",
    "tests/test_decode_equality.py::test_extreme_values_are_replaced_as_upstream_does",
    "tests/test_pretend_gpu.py::test_a_replay_forecasts_what_it_is_given",
)
_SAMPLES = (
    "tests/test_decode_sampling.py::test_draws_follow_the_exact_mixture[3-shared]",
    "tests/test_decode_sampling.py::test_draws_follow_the_exact_mixture[24-one each]",
    "tests/test_decode_sampling.py::test_a_component_without_probability_is_never_chosen",
    "tests/test_decode_sampling.py::test_no_number_below_one_chooses_beyond_the_last_component",
    "tests/test_decode_sampling.py::test_counting_chooses_what_searching_does",
    "tests/test_decode_sampling.py::test_samples_differ_from_one_another",
)
TESTS = {
    "registry": (
        "tests/test_apply_revert.py",
        "tests/test_private_names.py",
        "tests/test_carriers.py::test_a_carrier_that_comes_later_and_does_not_fit",
        "tests/test_doctor.py::test_a_patch_that_is_left_out",
    ),
    "decode/scaling": ("tests/test_scaling.py", *_EQUALITY, *_OTHER_WAYS, "tests/test_fused.py"),
    "decode/sampling": (*_EQUALITY, *_SAMPLES, *_OTHER_WAYS),
    "decode/head": (
        "tests/test_head.py",
        *_EQUALITY,
        *_OTHER_WAYS,
        "tests/test_other_models.py",
    ),
    "decode/attention": (
        "tests/test_rotation.py",
        "tests/test_shared_context.py",
        *_EQUALITY,
        *_OTHER_WAYS,
        "tests/test_fused.py",
    ),
    "decode/weights": (
        "tests/test_prepared_weights.py",
        *_EQUALITY,
        *_OTHER_WAYS,
        "tests/test_fast_decode.py::TestChangedWeights",
        "tests/test_runtime.py::TestPrecision",
        "tests/test_graph_key.py",
        "tests/test_other_models.py",
    ),
}
"""The tests of each module, in the order of pytest."""

_IMPORTED_ONCE = (
    "pandas",
    "pytest",
    "pytest_timeout",
    "scipy.stats",
    "torch._dynamo",
    "toto.inference.forecaster",
)
_PATIENCE = 4.0
"""How many times the processor's time that it takes without a fault a mutant is given."""


def main() -> int:
    """Mutate, test, and keep what was found."""
    options = _parse()
    modules = options.modules.split(",")
    for module in modules:
        if module not in TESTS:
            sys.exit(f"error: no module {module}; choose among {', '.join(TESTS)}")
    facts = _facts()
    _import_what_is_not_mutated()
    with TemporaryDirectory(prefix="mutation") as folder:
        copy = _copy_of_the_repository(Path(folder))
        for module in modules:
            _judge(module, options, facts, copy)
    if not options.trials:
        print(mutation_table())
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", default=",".join(TESTS), help="names, between commas")
    parser.add_argument("--draw", type=int, default=40, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=1, help="of the drawing")
    parser.add_argument(
        "--cases", type=int, default=160, help="random models of each test that takes some"
    )
    parser.add_argument(
        "--survivors", action="store_true", help="only those that survived the last time"
    )
    parser.add_argument(
        "--trials", type=int, default=0, help="let random forecasts judge, so many of them"
    )
    return parser.parse_args()


def _import_what_is_not_mutated() -> None:
    """What every fork needs. With one thread: a fork cannot use its parent's."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.remove(str(HERE))
    for name in _IMPORTED_ONCE:
        import_module(name)
    assert PACKAGE not in sys.modules


def _copy_of_the_repository(folder: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _judge(module: str, options: argparse.Namespace, facts: dict[str, str], copy: Path) -> None:
    """Test a module's mutants, and keep what became of each."""
    file = copy / PACKAGE / f"{module}.py"
    source = file.read_text()
    possible = mutants(source)
    known = {} if options.trials else _known(module, source)
    drawn = random.Random(options.seed).sample(possible, len(possible))[: options.draw]
    if options.survivors:
        wanted = [one for one in possible if known.get(one.name) == ""]
    else:
        wanted = [one for one in drawn if one.name not in known]
    untouched, seconds = _outcome(module, copy, options, limit=900)
    if untouched:
        sys.exit(f"error: without any fault, {untouched} fails for {module}")
    print(f"{module}: {len(wanted)} mutants, {seconds:.0f} s without a fault", flush=True)
    limit = int(20 + _PATIENCE * seconds)
    for mutant in wanted:
        _write(file, mutant.source)
        known[mutant.name], seconds = _outcome(module, copy, options, limit)
        print(f"{seconds:5.1f} s  {mutant.name}  {known[mutant.name] or 'SURVIVED'}", flush=True)
        if options.trials:
            continue
        kept = {**facts, "seed": options.seed, "possible": len(possible), "code": _digest(source)}
        kept["outcomes"] = {one.name: known[one.name] for one in possible if one.name in known}
        _file_of(module).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    _write(file, source)
    if options.trials:
        print(f"{module}: {sum(map(bool, known.values()))} of {len(wanted)} were noticed")


def _file_of(module: str) -> Path:
    return RESULTS / f"mutation_{module.replace('/', '_')}.json"


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _known(module: str, source: str) -> dict[str, str]:
    """What became of the mutants of a module as it is now: the test that failed, or nothing."""
    kept = json.loads(_file_of(module).read_text()) if _file_of(module).exists() else {}
    outcomes: dict[str, str] = kept["outcomes"] if kept.get("code") == _digest(source) else {}
    return outcomes


def _write(file: Path, source: str) -> None:
    """Write a module as if a second had passed, by which Python knows that it is another."""
    seconds = int(file.stat().st_mtime) + 1
    file.write_text(source)
    os.utime(file, (seconds, seconds))


def _outcome(module: str, copy: Path, options: argparse.Namespace, limit: int) -> tuple[str, float]:
    """Run a module's tests in a fork, which may take so many seconds of the processor's time.

    Returns:
        What killed it, if anything did, and the seconds that it took.
    """
    log = copy / "log"
    child = os.fork()
    if not child:
        _test(module, copy, options, limit, log)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "", seconds
    failed = re.search(r"^(?:FAILED|ERROR|MISMATCH in) (\S+ ?\d*)", log.read_text(), re.MULTILINE)
    if failed:
        return failed[1], seconds
    return "the clock" if code < 0 or "Timeout" in log.read_text() else "the import", seconds


def _test(module: str, copy: Path, options: argparse.Namespace, limit: int, log: Path) -> NoReturn:
    """In a fork: the tests of a module, until the first that fails; or random forecasts."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        # Processes that tests start would run this program again.
        sys.modules["__main__"] = ModuleType("__main__")
        # Processes that tests start shall find the mutant too.
        os.environ |= {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if options.trials:
            sys.argv[1:] = ["--most", str(options.trials)]
            code = runpy.run_path(str(copy / ".ci/proof/random_forecasts.py"))["main"]()
        else:
            code = _pytest(module, options.cases)
        tested = str(getattr(sys.modules.get(PACKAGE), "__file__", copy))
        assert tested.startswith(str(copy)), f"{tested} was tested in place of the copy"
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _pytest(module: str, cases: int) -> int:
    import pytest

    options = ["-x", "-q", "-m", "not slow", "--tb", "line", "--cases", str(cases)]
    options += ["-p", "no:cacheprovider", "-p", "pytest_timeout", "--timeout-method", "thread"]
    return int(pytest.main([*options, *TESTS[module]]))


def _facts() -> dict[str, str]:
    """When and where, once more in a process of its own."""
    code = (
        "import json; from toto_compile_patch.tools.machine import facts; "
        "print(json.dumps(facts('cpu')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    known: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return known | {"date": date.today().isoformat()}


if __name__ == "__main__":
    sys.exit(main())

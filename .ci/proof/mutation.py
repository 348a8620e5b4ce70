#!/usr/bin/env python3
"""Do the tests notice faults? Put small ones into the code, one at a time, and see.

    python .ci/proof/mutation.py                     a sample of each module's mutants
    python .ci/proof/mutation.py --survivors         only those that survived, with today's tests
    python .ci/proof/mutation.py --draw 1000000      every mutant

A mutant is killed if one of its module's tests fails, or computes far longer than without the
fault. Each has a process of its own, forked from one that has imported torch and upstream but not
this package, in a copy of the repository. What is mutated is in mutants.py; why each survivor
survives, in survivors.json; results/mutation.json keeps what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import traceback
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from mutants import mutants
from quality_tables import mutation_table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "mutation.json"
PACKAGE = "toto_compile_patch"

_EQUALITY = (
    "tests/test_decode_equality.py::test_same_seed_samples_in_float64",
    "tests/test_decode_equality.py::test_means",
)
_SAMPLES = (
    "tests/test_decode_sampling.py::test_draws_follow_the_exact_mixture[3-shared]",
    "tests/test_decode_sampling.py::test_draws_follow_the_exact_mixture[1-one each]",
    "tests/test_decode_sampling.py::test_counting_chooses_what_searching_does",
    "tests/test_decode_sampling.py::test_a_seed_gives_the_same_forecast_again",
    "tests/test_decode_sampling.py::test_samples_differ_from_one_another",
)
_OTHER_WAYS = (
    "tests/test_decode_equality.py::test_16_bit_samples_work_on_a_cpu",
    "tests/test_decode_equality.py::test_autocast_and_inference_mode",
    "tests/test_decode_equality.py::test_deterministic_algorithms",
    "tests/test_decode_equality.py::test_extreme_values_are_replaced_as_upstream_does",
    "tests/test_pretend_gpu.py::test_a_replay_forecasts_what_it_is_given",
    "tests/test_operator_counts.py::test_no_more_than_now[mean]",
)
_WEIGHTS = (
    "tests/test_fast_decode.py::TestChangedWeights",
    "tests/test_runtime.py::TestPrecision",
    "tests/test_graph_key.py",
)
TESTS = {
    "registry": (
        "tests/test_apply_revert.py",
        "tests/test_private_names.py",
        "tests/test_threads.py",
        "tests/test_carriers.py::test_two_carriers_in_one_process",
        "tests/test_carriers.py::test_carriers_are_chosen",
        "tests/test_carriers.py::test_a_carrier_that_comes_later_and_does_not_fit",
        "tests/test_interrupts.py::test_at_every_line",
    ),
    "decode/scaling": (*_EQUALITY, *_OTHER_WAYS, "tests/test_graph_key.py"),
    "decode/sampling": (*_EQUALITY, *_SAMPLES, *_OTHER_WAYS),
    "decode/head": (*_EQUALITY, *_SAMPLES, *_OTHER_WAYS, *_WEIGHTS),
    "decode/attention": (*_EQUALITY, *_OTHER_WAYS),
    "decode/weights": (
        *_EQUALITY,
        *_WEIGHTS,
        *_OTHER_WAYS,
        "tests/test_noticing.py::test_an_edit_of_the_unembedding_is_seen_when_it_is_needed",
    ),
}
"""The tests of each module, those that see most of it first."""

_PATIENCE = 4.0
"""How many times the processor's time that it takes without a fault a mutant is given."""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        killed_by: the test that failed, ``"the clock"``, or empty where it survived.
        seconds: of the processor's time that it took.
    """

    killed_by: str
    seconds: float


def main() -> int:
    """Mutate, test, and keep what was found."""
    options = _parse()
    modules = options.modules.split(",")
    for module in modules:
        if module not in TESTS:
            sys.exit(f"error: no module {module}; choose among {', '.join(TESTS)}")
    _import_what_is_not_mutated()
    with TemporaryDirectory(prefix="mutation") as folder:
        copy = _copy_of_the_repository(Path(folder))
        for module in modules:
            found = _judge_module(module, options, copy)
            # Read again: another process may have judged other modules meanwhile.
            kept = _read() | _facts()
            kept["modules"][module] = found
            RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    print(mutation_table())
    return 0


def _read() -> dict[str, Any]:
    found: dict[str, Any] = {"modules": {}}
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", default=",".join(TESTS), help="names, between commas")
    parser.add_argument("--draw", type=int, default=45, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=1, help="of the drawing")
    parser.add_argument(
        "--cases", type=int, default=24, help="random models of each test that takes some"
    )
    parser.add_argument(
        "--survivors", action="store_true", help="only those that survived the last time"
    )
    return parser.parse_args()


def _import_what_is_not_mutated() -> None:
    """What every fork needs. With one thread: a fork cannot use its parent's."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True
    sys.path.remove(str(HERE))
    import pandas
    import pytest
    import scipy.stats
    import torch._dynamo
    import toto.inference.forecaster

    assert all((pandas, pytest, scipy.stats, torch._dynamo, toto.inference.forecaster))
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


def _judge_module(module: str, options: argparse.Namespace, copy: Path) -> dict[str, Any]:
    """Test a module's mutants; what became of them."""
    file = copy / PACKAGE / f"{module}.py"
    source = file.read_text()
    possible = mutants(source)
    found: dict[str, Any]
    if options.survivors:
        found = _read()["modules"][module]
        alive = [(one["line"], one["change"]) for one in found["survivors"]]
        drawn = [one for one in possible if (one.line, one.change) in alive]
    else:
        drawn = random.Random(options.seed).sample(possible, min(options.draw, len(possible)))
        found = {"mutants": len(possible), "drawn": len(drawn), "seed": options.seed}
        found |= {"seconds": 0.0, "killed_by": {}}
    untouched = _outcome(module, copy, options.cases, limit=900)
    if untouched.killed_by:
        sys.exit(f"error: without any fault, {untouched.killed_by} fails for {module}")
    print(f"{module}: {len(drawn)} mutants, {untouched.seconds:.0f} s without a fault", flush=True)
    limit = int(20 + _PATIENCE * untouched.seconds)
    survivors = []
    for mutant in sorted(drawn, key=lambda one: one.line):
        file.write_text(mutant.source)
        outcome = _outcome(module, copy, options.cases, limit)
        file.write_text(source)
        _write_down(outcome, found)
        if not outcome.killed_by:
            survivors.append(mutant)
        print(
            f"{outcome.seconds:5.1f} s  {module}:{mutant.line}  {mutant.change}  "
            f"{outcome.killed_by or 'SURVIVED'}",
            flush=True,
        )
    found["survivors"] = [
        {"line": one.line, "kind": one.kind, "change": one.change, "text": one.text}
        for one in survivors
    ]
    return found


def _write_down(outcome: Outcome, module: dict[str, Any]) -> None:
    module["seconds"] = round(module["seconds"] + outcome.seconds, 1)
    if outcome.killed_by:
        by = outcome.killed_by.partition("::")[0]
        module["killed_by"][by] = module["killed_by"].get(by, 0) + 1


def _outcome(module: str, copy: Path, cases: int, limit: int) -> Outcome:
    """Run a module's tests in a fork, which may take so many seconds of the processor's time."""
    log = copy / "log"
    child = os.fork()
    if not child:
        _test(module, copy, cases, limit, log)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return Outcome("", seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(), re.MULTILINE)
    if failed:
        return Outcome(failed[1], seconds)
    return Outcome("the clock" if code < 0 or "Timeout" in log.read_text() else "import", seconds)


def _test(module: str, copy: Path, cases: int, limit: int, log: Path) -> NoReturn:
    """In a fork: the tests of a module, until the first that fails."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        # Processes that tests start shall find the mutant too.
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        import pytest

        options = ["-x", "-q", "-m", "not slow", "--tb", "line", "--cases", str(cases)]
        options += ["-p", "no:cacheprovider", "--timeout-method", "thread"]
        code = int(pytest.main([*options, *TESTS[module]]))
        tested = str(getattr(sys.modules.get(PACKAGE), "__file__", copy))
        assert tested.startswith(str(copy)), f"{tested} was tested in place of the copy"
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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

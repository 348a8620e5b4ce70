"""The package on the versions that its users have, each combination in an environment of its own.

    nox -f .ci/proof/noxfile.py                 all combinations, one after the other
    nox -f .ci/proof/noxfile.py -l              what they are called
    nox -f .ci/proof/noxfile.py -s "matrix(toto-ts 0.2.0, torch 2.7.0, wrapt 1.17.3, Python 3.12)"

Needs ``nox[uv]``, Pythons on the PATH and 15 GB of disk; about five minutes for a combination, half
of them for what is downloaded. Each keeps its row in results/matrix.json, and ``python
.ci/tables.py`` then makes the table of docs/proof/matrix.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import nox

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE / "results" / "matrix.json"

# Outside of the repository, of which tests and lint make copies.
PLACE = Path(tempfile.gettempdir()) / "toto_compile_patch_matrix"
nox.options.envdir = str(PLACE)
nox.options.default_venv_backend = "uv"


class Combination(NamedTuple):
    """What is installed together."""

    python: str
    torch: str
    toto: str
    wrapt: str
    xformers: str = ""

    @property
    def name(self) -> str:
        """By which it is asked for, and kept."""
        toto, torch = self.toto.replace("==", " "), f"torch {self.torch}"
        xformers = [f"xformers {self.xformers}"] if self.xformers else []
        return ", ".join([toto, torch, *xformers, f"wrapt {self.wrapt}", f"Python {self.python}"])


TOTO_013, TOTO_014, TOTO_020 = (f"toto-ts=={version}" for version in ("0.1.3", "0.1.4", "0.2.0"))
TIMECOPILOT = "timecopilot-toto==0.1.7"

COMBINATIONS = (
    Combination("3.10", "2.7.0", TOTO_013, "1.16.0"),
    Combination("3.12", "2.7.0", TOTO_020, "1.17.3"),
    Combination("3.11", "2.7.0", TOTO_020, "1.17.3", xformers="0.0.30"),
    Combination("3.13", "2.7.0", TOTO_020, "2.5.2"),
    Combination("3.12", "2.9.1", TIMECOPILOT, "2.5.2"),
    Combination("3.11", "2.11.0", TOTO_014, "1.16.0"),
    Combination("3.10", "2.13.0", TOTO_020, "2.5.2"),
    Combination("3.12", "2.13.0", TIMECOPILOT, "1.17.3"),
    Combination("3.13", "2.15.0", TOTO_013, "1.16.0"),
    Combination("3.11", "2.15.0", TOTO_013, "2.5.2"),
    Combination("3.11", "2.15.0", TOTO_020, "1.16.0"),
)
"""Every version stands in one of them; and of torch, Python, wrapt and toto-ts, the first and the
last version of each meet those of each other, but for Python 3.10 and torch 2.15, which has no
wheel for it: there 3.11 is the first. The others are what the README, timecopilot and xFormers have
installed. In the order of torch, whose wheels are kept for one version at a time. wrapt 2.2.0 is
known to be broken."""

PINNED = "2.7.0"
"""The torch that toto-ts pins: with it, all its pins are installed, but on Python 3.13, for which
the numpy that it pins does not exist."""

UNPINNED = (
    *("numpy", "einops", "jaxtyping", "gluonts[torch]", "rotary-embedding-torch", "beartype"),
    *("huggingface_hub<1", "safetensors", "pandas"),
)
"""What the README installs beside a toto-ts without its pins."""

TEST_TOOLS = ("pytest", "pytest-timeout", "rich", "matplotlib", "pyarrow", "scipy", "jinja2")

TESTS = (
    "tests/test_private_names.py::test_it_is_there",
    "tests/test_fingerprint.py",
    "tests/test_apply_revert.py",
    "tests/test_kv_cache.py",
    "tests/test_settings.py",
    "tests/test_import_hook.py",
    "tests/test_equality.py::test_eager_means_are_equal_bit_for_bit",
    "tests/test_equality.py::test_eager_means_in_other_precisions",
    "tests/test_equality.py::test_same_seed_samples_are_equal",
    "tests/test_equality.py::test_fused_variate_labels",
    "tests/test_decode_equality.py",
    "tests/test_doctor.py::test_what_is_installed_and_applied",
)
"""Those whose outcome depends on the versions: what is patched and put back, upstream's code and
torch's private names as they are known, and that forecasts are upstream's."""

WITH_ANOTHER_TORCH = (
    "tests/test_ahead.py",
    "tests/test_fused.py",
    "tests/test_graphs.py",
    "tests/test_pretend_gpu.py::test_a_replay_forecasts_what_it_is_given",
    "tests/test_pretend_gpu.py::test_a_forecast_of_shapes_alone",
    "tests/test_compiled_effect.py::test_kv_cache_in_compiled_code_is_ours",
    "tests/test_compiled_effect.py::test_positional_embedding_in_compiled_code_is_ours",
    "tests/test_compiled_effect.py::test_a_second_context_length_needs_no_new_code",
    "tests/test_compiled_effect.py::test_toto_compile_compiles_the_backbone",
    "tests/test_runtime.py::test_forecasts_are_upstreams_when_compiled_by_inductor[6-3-True]",
)
"""What is recorded for a GPU, and what is compiled, by torch or by the Triton that comes with it:
it depends on torch, takes minutes, and is tested in the first combination of each torch, which
together have every Python."""

ON_A_STAND_IN = ("tests/test_gpu.py", "-m", "gpu and not slow and not arithmetic")
"""What depends on torch's own code for CUDA: likewise, where the torch of PyPI has it."""

WITH_XFORMERS = (
    "tests/test_xformers.py::test_the_model_has_them",
    "tests/test_xformers.py::test_means_are_upstreams[torch.float64-False-True]",
    "tests/test_xformers.py::test_means_are_upstreams[torch.float32-True-True]",
    "tests/test_xformers.py::test_same_seed_samples_in_float64_are_upstreams",
    "tests/test_xformers.py::test_it_is_the_same_model_as_without",
)

CASES = 30
"""Random models, of the 320 that the whole suite compares."""

VERSIONS = """
import importlib.metadata, json, platform
found = {"Python": platform.python_version()}
for name in ("toto-ts", "timecopilot-toto", "torch", "xformers", "wrapt", "numpy"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
import torch
from toto_compile_patch.tools import machine
print(json.dumps({"versions": found, "machine": machine.name(torch.device("cpu"))}))
"""


def matrix(session: nox.Session, torch: str, toto: str, wrapt: str, xformers: str) -> None:
    """Install one combination of versions, run the tests whose outcome depends on them."""
    combination = Combination(str(session.python), torch, toto, wrapt, xformers)
    began = time.monotonic()
    session.chdir(ROOT)
    # Whatever goes wrong from here on leaves no row of an earlier run.
    keep(combination, None)
    install(session, combination)
    counts = run_tests(session, tests_of(combination))
    if is_first_of_its_torch(combination) and has_cuda(session):
        counts = added(counts, run_tests(session, ON_A_STAND_IN, "bash", ".ci/stand_in_gpu/run"))
    found = session.run("python", "-W", "ignore", "-c", VERSIONS, silent=True)
    row = json.loads(str(found).splitlines()[-1]) | counts
    row |= {"date": date.today().isoformat(), "seconds": round(time.monotonic() - began)}
    keep(combination, row)
    if row["failures"]:
        session.error(f"failed: {', '.join(row['failures'])}")
    # What failed stays, to be looked at.
    shutil.rmtree(session.virtualenv.location)


def install(session: nox.Session, wanted: Combination) -> None:
    """Torch and Toto as the README installs them, then exactly the versions that are wanted."""
    session.env["UV_CACHE_DIR"] = str(cache_of(wanted.torch))
    torch, package = f"torch=={wanted.torch}", str(ROOT)
    if has_pins(wanted):
        session.install(torch, wanted.toto, "setuptools<81", "pyarrow<26", *TEST_TOOLS)
    else:
        session.install(torch, *UNPINNED, *TEST_TOOLS)
    xformers = [f"xformers=={wanted.xformers}"] if wanted.xformers else []
    exactly = [wanted.toto, f"wrapt=={wanted.wrapt}", *xformers]
    session.install("--no-deps", *exactly, "--editable", package)


def has_pins(wanted: Combination) -> bool:
    """Whether all that Toto pins can be installed."""
    return wanted.torch == PINNED and wanted.python != "3.13" and wanted.toto != TIMECOPILOT


def cache_of(torch: str) -> Path:
    """Where the wheels for one torch are kept; those for others are forgotten."""
    caches = PLACE / "wheels"
    for other in caches.glob("*"):
        if other.name != torch:
            shutil.rmtree(other)
    return caches / torch


def tests_of(wanted: Combination) -> tuple[str, ...]:
    """The tests that a combination has to pass."""
    with_another = WITH_ANOTHER_TORCH * is_first_of_its_torch(wanted)
    return TESTS + with_another + WITH_XFORMERS * bool(wanted.xformers)


def is_first_of_its_torch(wanted: Combination) -> bool:
    """Whether none before it in the list has the same torch."""
    return wanted == next(one for one in COMBINATIONS if one.torch == wanted.torch)


def has_cuda(session: nox.Session) -> bool:
    """Whether the torch that was installed has code for CUDA."""
    ask = "import torch; print(torch.version.cuda)"
    found = session.run("python", "-W", "ignore", "-c", ask, silent=True)
    return str(found).splitlines()[-1] != "None"


def run_tests(session: nox.Session, tests: tuple[str, ...], *launcher: str) -> dict[str, Any]:
    """Run tests; how many passed, failed and were skipped, and which failed."""
    report = Path(session.create_tmp()) / "report.xml"
    pytest = ("python", "-m", "pytest")
    session.run(
        *(*launcher, *pytest, *tests, f"--cases={CASES}", "--quiet", f"--junitxml={report}"),
        # Others may use the machine.
        "--timeout=7200",
        success_codes=[0, 1],
        external=bool(launcher),
        env={"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "STAND_IN_GPUS": "2"},
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if {"failure", "error"} & {part.tag for part in case}]
    names = [f"{case.get('classname')}.{case.get('name')}" for case in failed]
    counts = {"failed": len(failed), "skipped": len(skipped)}
    return {"passed": len(cases) - sum(counts.values()), **counts, "failures": names}


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The counts of two runs together."""
    return {name: one[name] + other[name] for name in one}


def keep(combination: Combination, row: dict[str, Any] | None) -> None:
    """Put a combination's row, or none, among those of the others, in the order of the list."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows[combination.name] = row
    ordered = {one.name: rows[one.name] for one in COMBINATIONS if rows.get(one.name)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(ordered, indent=2) + "\n")


every = nox.parametrize(Combination._fields, [nox.param(*one, id=one.name) for one in COMBINATIONS])
nox.session(every(matrix))

"""Private names of torch: all are there in the torch that is tested, and one that is not turns off
what needs it, with a reason, and nothing else.

What is missing is deleted from torch before the package is imported, as a release of torch would;
where an import would make no difference, in this very process.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch import UnsupportedTotoError, private_names
from toto_compile_patch.private_names import PATCHES, TABLE, missing_names
from toto_compile_patch.sites import State
from toto_compile_patch.table import TABLE as PATCH_TABLE

PROGRAM = """
import json, logging, sys, pkgutil, warnings
warnings.simplefilter("ignore")
import torch, torch._dynamo
owner, name = {path!r}.rsplit(".", 1)
sys.path.insert(0, {tests!r})
from toto_cases import PATCH, forecast, series, small_model, values
model = small_model().model
if {compiled!r}:
    model.compile(mode="max-autotune-no-cudagraphs")
owner = pkgutil.resolve_name(owner)
holder = next(one for one in (owner, *type(owner).__mro__) if name in vars(one))
if isinstance(holder, type):
    delattr(holder, name)
else:  # past what a module of settings makes of delattr()
    vars(holder).pop(name)
import toto_compile_patch
upstream = values(forecast(model, series(40), 2 * PATCH)) if not {compiled!r} else None
try:
    toto_compile_patch.apply()
    refused = ""
except toto_compile_patch.UnsupportedTotoError as error:
    refused = str(error)
toto_compile_patch.apply(strict=False, fallback="upstream")
found = values(forecast(model, series(40), 2 * PATCH))
path = toto_compile_patch.last_path()
states = {{row.name: row.state for row in toto_compile_patch.status()}}
toto_compile_patch.revert()
close = upstream is None or torch.allclose(found, upstream, rtol=1e-4, atol=1e-3)
print(json.dumps([refused, states, path and [path.taken, path.runtime, path.reason], close]))
"""


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.path} in {row.used_in}")
def test_it_is_there(row: Any) -> None:
    assert row not in missing_names(), f"{row.used_in} needs it for {', '.join(row.needed_for)}"


def test_the_patches_are_those_of_the_table() -> None:
    assert tuple(patch.name for patch in PATCH_TABLE) == PATCHES


def without(path: str, compiled: bool = False) -> Any:
    """What happens where a name is missing: the refusal, states, path taken, equality."""
    tests = str(Path(__file__).parent)
    program = PROGRAM.format(path=path, tests=tests, compiled=compiled)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ("torch.autograd.forward_ad._current_level", {"fast_decode"}),
        ("torch._dynamo.eval_frame.skip_code", {"positional_embedding", "dynamo_config"}),
        ("torch._dynamo.decorators.skip", {"kv_cache", "positional_embedding", "dynamo_config"}),
    ],
)
@pytest.mark.fault(
    injected="torch lacks a private name",
    where="apply()",
    observed="UnsupportedTotoError; with strict=False, the patch is left out",
    afterwards="the others stand; status() says why one does not",
)
def test_a_patch_that_lacks_one_is_left_out(path: str, gone: set[str]) -> None:
    refused, states, _, close = without(path)
    assert path in refused
    assert {name for name, state in states.items() if state != "applied"} == gone
    assert close


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "torch._dynamo.backends.cudagraphs.CudagraphsBackend",
        "torch._inductor.config.get_config_copy",
    ],
)
def test_a_model_runs_uncompiled_without_what_compiling_needs(path: str) -> None:
    refused, _, (taken, runtime, reason), close = without(path, compiled=True)
    assert not refused
    assert (taken, runtime) == ("fast", "eager")
    assert path in reason
    assert close


def test_looking_for_them_leaves_torchs_checks_of_distributions_on() -> None:
    """To compile anything switches them off: a gap in a series would then be forecast as zeros."""
    program = """
import torch, toto_compile_patch
from toto_cases import PATCH, forecast, series, small_model
toto_compile_patch.apply(fallback="upstream")
inputs = series(40)
forecast(small_model().model, inputs, 2 * PATCH)
inputs.series[0, 18] = torch.nan
try:
    print(forecast(small_model().model, inputs, 2 * PATCH).mean)
except ValueError:
    print("raised", torch.distributions.Distribution._validate_args)
"""
    done = forked.python(program)
    assert done.stdout == "raised True\n", done.stderr


@pytest.fixture
def take_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Takes a name out of torch until the test ends."""

    def forget() -> None:
        private_names.why_without.cache_clear()
        private_names._exists.cache_clear()

    def take_out(path: str) -> None:
        owner, _, name = path.rpartition(".")
        monkeypatch.delattr(pkgutil.resolve_name(owner), name)
        forget()

    yield take_out
    monkeypatch.undo()
    forget()


def test_apply_names_what_a_patch_lacks(take_out: Callable[[str], None]) -> None:
    path = "torch._dynamo.decorators.skip"
    [row] = [row for row in TABLE if row.path == path]
    take_out(path)
    with pytest.raises(UnsupportedTotoError, match=f"not fit the installed torch: .*{path}"):
        toto_compile_patch.apply()
    assert not toto_compile_patch.is_applied()
    toto_compile_patch.apply(strict=False)
    status = {row.name: (row.state, row.detail) for row in toto_compile_patch.status()}
    left_out = (State.UNAVAILABLE.value, f"torch {torch.__version__} has no {path}")
    for name in PATCHES:
        expected = left_out if name in row.needed_for else (State.APPLIED.value, "")
        assert status[name] == expected


@pytest.mark.parametrize("asked", ["compile", "auto"])
def test_a_forecast_that_was_to_be_compiled_says_what_that_lacks(
    asked: str, take_out: Callable[[str], None]
) -> None:
    model = small_model().model
    upstream = values(forecast(model, series(40), 2 * PATCH))
    model.compile(backend="eager")
    take_out("torch._dynamo.mark_dynamic")
    toto_compile_patch.apply("fast_decode", runtime=asked, fallback="error")
    found = values(forecast(model, series(40), 2 * PATCH))
    torch.testing.assert_close(found, upstream, rtol=1e-5, atol=1e-3)
    path = toto_compile_patch.last_path()
    assert path is not None
    assert (path.taken, path.runtime) == ("fast", "eager")
    assert path.reason == f"torch {torch.__version__} has no torch._dynamo.mark_dynamic"


def test_a_name_that_is_not_in_the_table_is_a_mistake() -> None:
    with pytest.raises(KeyError, match=r"torch\.nonsense"):
        private_names.private("torch.nonsense")

"""Toto's modules reloaded under the patches: what is forecast, told and restored then.

Everything runs in interpreters of its own, which no test could put in order again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import toto_compile_patch
import toto.inference.forecaster, toto.model.toto
from toto_cases import series, tiny_model

def outcome(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

MODULES = sorted(name for name in sys.modules if name.split(".")[0] == "toto")
ORIGINAL = {name: dict(vars(sys.modules[name])) for name in MODULES}
old_class = toto.inference.forecaster.TotoForecaster
model = tiny_model().model
applied = sys.argv[1] == "applied"
if applied:
    toto_compile_patch.apply(fallback="upstream")

def ours():
    # Where something of the package's stands, in modules as they are and in classes as they were.
    found = set()
    for name in MODULES:
        for owner in (sys.modules[name], *filter(is_class, ORIGINAL[name].values())):
            for attribute, value in list(vars(owner).items()):
                home = getattr(getattr(value, "__code__", None), "co_filename", "")
                if "toto_compile_patch" in f"{home} {getattr(value, '__module__', '')}":
                    found.add(f"{owner.__name__}.{attribute}")
    return sorted(found)

def is_class(value):
    return isinstance(value, type) and value.__module__.split(".")[0] == "toto"

def own():
    return outcome(lambda: old_class(model).forecast(series(40, 2), 16).mean.sum().item())

def new(model):
    cls = toto.inference.forecaster.TotoForecaster
    return outcome(lambda: cls(model()).forecast(series(40, 2), 16).mean.sum().item())

expected = own()
told = []
for name in sys.argv[2].split(",") if sys.argv[2] else MODULES:
    importlib.reload(sys.modules[name])
    told.append({
        "module": name,
        "own": own(),
        "new class": new(lambda: model),
        "new model": new(lambda: tiny_model().model),
        "states": {row.name: row.state for row in toto_compile_patch.status()},
        "unreached": [one.name for one in toto_compile_patch.status().carriers if not one.reached],
    })
found = {"expected": expected, "told": told}
if applied:
    found["revert"] = outcome(toto_compile_patch.revert)
    toto_compile_patch.revert(force=True)
    found["left"] = ours()
    toto_compile_patch.apply(fallback="upstream")
    found["again"] = own()
    toto_compile_patch.revert()
    found["left again"] = ours()
print(json.dumps(found))
"""


def run(how: str, *modules: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, how, ",".join(modules)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def like(told: Any) -> Any:
    """What is equal to a number up to rounding, or to what was raised."""
    return told if isinstance(told, str) else pytest.approx(told, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules",
    [("toto.inference.forecaster",), ("toto.model.util",), ()],
    ids=["the forecaster's", "the cache's", "each in turn"],
)
@pytest.mark.fault(
    injected="Toto's modules are reloaded",
    where="while patched, one or all in turn",
    observed="forecasters that were made before go on; new ones do what unpatched ones do; "
    "status() tells of what is replaced or out of reach",
    afterwards="revert(), or revert(force=True) where it says so, leaves nothing of ours; "
    "apply() works",
)
def test_forecasts_are_upstreams_and_everything_comes_out_again(modules: tuple[str, ...]) -> None:
    """Upstream's own code does not survive all of it: what it raises then is raised."""
    plain, patched = run("plain", *modules), run("applied", *modules)
    for theirs, ours in zip(plain["told"], patched["told"], strict=True):
        for which in ("new class", "new model"):
            assert ours[which] == like(theirs[which]), ours
        # A forecaster that was made before is forecast with as before.
        assert ours["own"] == pytest.approx(plain["expected"], rel=1e-6), ours
    last = patched["told"][-1]
    if "toto.model.util" in (modules or [last["module"]]):
        assert last["states"]["kv_cache"] == "replaced"
        assert "revert(force=True)" in patched["revert"]
    else:
        assert last["unreached"] == ["toto"]
        assert set(last["states"].values()) == {"applied"}
        assert patched["revert"] is None
    assert patched["left"] == patched["left again"] == []
    assert patched["again"] == pytest.approx(plain["expected"], rel=1e-6)

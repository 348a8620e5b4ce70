"""apply() and revert() in every order with import, build, compile and forecast.

Each order runs in a process of its own, which compares the owners with those of an
unpatched import and the forecasts with unpatched ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from toto_cases import COMPILE_PATCHES as COMPILE

from toto_compile_patch.settings import PATCH_NAMES

STEPS = ("import", "build", "compile", "forecast")
ALL_PATCHES = ((0, 1), (0, 4), (2, 3), (4, 4))
COMPILE_PATCHES = ((1, 3), (1, 4), (2, 4))
"""Steps before apply() and before revert(), of all patches and of those for compiled models."""

SCRIPT = """
import sys
import toto_compile_patch

apply_at, revert_at = int(sys.argv[1]), int(sys.argv[2])
patches = sys.argv[3].split(",")
steps = {steps!r}
state = {{}}

def do(step):
    if step == "import":
        import toto.inference.forecaster
        return
    import torch
    from toto_cases import PATCH, forecast, series, tiny_model, values
    if step == "build":
        from toto.inference.forecaster import TotoForecaster
        state["model"] = tiny_model(spacewise_every_n_layers=-1).model
        state["forecaster"] = TotoForecaster(state["model"])
    elif step == "compile":
        state["model"].compile(backend="eager")
    else:
        torch.manual_seed(0)
        state["result"] = state["forecaster"].forecast(
            series(24), prediction_length=2 * PATCH, num_samples=2, samples_per_batch=2
        ).samples

for position in range(len(steps) + 1):
    if position == apply_at:
        toto_compile_patch.apply(patches, rng="upstream")
        assert toto_compile_patch.is_applied()
        toto_compile_patch.apply(patches, rng="upstream")
    if position == revert_at:
        toto_compile_patch.revert()
        assert not toto_compile_patch.is_applied()
        toto_compile_patch.revert()
    if position < len(steps):
        do(steps[position])

from test_apply_revert import snapshot
from toto_cases import PATCH, forecast, series, tiny_model, values
from toto_compile_patch.tools.compile_health import CompileHealth
import torch

# Upstream's own objects stand: modules agree with each other and with the classes' sources.
import toto.model.util, toto.model.backbone, toto.model.transformer, toto.model.toto
from toto.model.attention import BaseMultiheadAttention
from toto_compile_patch.upstream import load, why_untested
assert toto.model.backbone.KVCache is toto.model.transformer.KVCache is toto.model.util.KVCache
assert toto.model.util.KVCache is load("toto").KVCache
assert "compile" not in vars(toto.model.toto.Toto)
for owner, names in (
    (BaseMultiheadAttention, ("positional_embedding", "forward", "run_attention")),
    (toto.model.transformer.Transformer, ("forward", "_get_mask")),
    (toto.inference.forecaster.TotoForecaster, ("generate_mean", "generate_samples")),
    (toto.model.backbone.TotoBackbone, ("backbone", "forward", "allocate_kv_cache")),
):
    for name in names:
        assert why_untested(owner, name) is None, name
        home = vars(owner)[name].__code__.co_filename
        assert "toto_compile_patch" not in home, name
assert torch._dynamo.config.recompile_limit == 8
assert torch._dynamo.config.assume_static_by_default

# The compiled model gives upstream's forecast and upstream's behaviour.
with CompileHealth() as health:
    torch.manual_seed(0)
    again = state["forecaster"].forecast(
        series(24), prediction_length=2 * PATCH, num_samples=2, samples_per_batch=2
    ).samples
model = tiny_model(spacewise_every_n_layers=-1).model
eager = values(forecast(model, series(24), 2 * PATCH, 2, per_batch=2))
torch.testing.assert_close(state["result"], eager, rtol=1e-5, atol=1e-4)
assert torch.equal(again, eager)
# What was compiled patched is gone: upstream's code is compiled anew, and breaks at the cache.
assert health.graph_breaks > 0 or revert_at < 4
print("fine")
"""


def fresh(code: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter makes of it."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("apply_at", "revert_at", "patches"),
    [pytest.param(*order, PATCH_NAMES, marks=pytest.mark.slow) for order in ALL_PATCHES]
    + [pytest.param(*order, COMPILE, marks=pytest.mark.slow) for order in COMPILE_PATCHES]
    # What was compiled before apply() runs patched code, and upstream's again after revert().
    + [(3, 4, COMPILE)],
)
@pytest.mark.fault(
    injected="every order of import, build, compile, forecast, apply() and revert()",
    where="a process of its own",
    observed="forecasts are upstream's",
    afterwards="upstream's own objects stand, and compiled code is upstream's",
)
def test_order(apply_at: int, revert_at: int, patches: tuple[str, ...]) -> None:
    code = SCRIPT.format(steps=STEPS)
    arguments = (str(apply_at), str(revert_at), ",".join(patches))
    # Where apply() comes first, torch is not imported either.
    run = forked.python(code, arguments=arguments) if apply_at else fresh(code, arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip().endswith("fine")

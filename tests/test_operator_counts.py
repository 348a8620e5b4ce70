"""How many operators a forecast takes: on a GPU each is a kernel, and most are tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_work import Work
from pretend_gpu import NOWHERE, PretendGpu
from toto_cases import PATCH, series, small_model

from toto_compile_patch import upstream
from toto_compile_patch.carriers import TOTO
from toto_compile_patch.decode.forecast import ForecastOptions, forecast
from toto_compile_patch.decode.modules import ModelParts
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.weights import prepared_weights

ROOT = Path(__file__).resolve().parent.parent
LAYERS = 12
HAS_FUSED_NORM = hasattr(torch.ops.aten, "_fused_rms_norm")
"""Without it a norm is five operators."""


def work(horizon: int, samples: int | None, kernels: bool) -> Work:
    """What a GPU, with kernels of our own or without, has to do for a forecast, its checks among
    it."""
    upstream.load(TOTO)
    inputs = series(4 * PATCH, batch=1)
    request = Request(
        inputs=inputs.series,
        padding_mask=inputs.padding_mask,
        id_mask=inputs.id_mask,
        horizon=horizon,
        num_samples=samples,
        samples_per_batch=samples or 1,
        use_kv_cache=True,
        future_exogenous=None,
        num_exogenous=0,
    )
    # Its head is finite, and nothing is wrong.
    with PretendGpu(NOWHERE, [True, [False, False, False]], kernels=kernels) as gpu:
        model = small_model(num_layers=LAYERS, spacewise_every_n_layers=LAYERS).model
        parts = ModelParts.of(gpu.model(model))
        prepared_weights(model, time_steps=min(horizon, PATCH), parts=parts)
        with Work() as work:
            forecast(model, lambda: parts, gpu.request(request), ForecastOptions(runtime="eager"))
    return work


@pytest.mark.parametrize(
    ("horizon", "samples", "own", "fused", "unfused"),
    [
        (1, 64, 166, 327, 427),
        (PATCH, None, 167, 302, 402),
        (3 * PATCH, 64, 655, 1312, 1604),
        (6 * PATCH, None, 819, 1636, 2216),
    ],
    ids=["one patch", "mean", "three patches", "a long mean"],
)
def test_no_more_than_now(
    horizon: int, samples: int | None, own: int, fused: int, unfused: int
) -> None:
    done = work(horizon, samples, kernels=True)
    assert done.kernels <= own, done.by_operator
    done = work(horizon, samples, kernels=False)
    assert done.kernels <= (fused if HAS_FUSED_NORM else unfused), done.by_operator


def test_what_is_counted() -> None:
    with PretendGpu(NOWHERE) as gpu:
        a, b = gpu.tensor(torch.ones(8, 16)), gpu.tensor(torch.ones(16, 32))
        with Work() as work:
            product = a @ b
            product.view(16, 16).t()[:4].unsqueeze(0).expand(3, 4, 16)
            product.add_(1.0)
            a.new_empty(5)
            a.double()
            a.index_select(0, torch.zeros(1, dtype=torch.int64, device=a.device))
    assert work.by_operator == {
        "aten.mm": 1,
        "aten.add_": 1,
        "aten._to_copy": 1,
        "aten.zeros": 1,
        "aten.index_select": 1,
    }
    assert work.flops == 2 * 8 * 16 * 32
    floats = (8 * 16 + 16 * 32 + 8 * 32) + 2 * 8 * 32 + 8 * 16 + 2 * 16
    assert work.bytes == 4 * floats + 8 * (8 * 16) + 8 + 8
    assert work.in_float64 == 1
    assert work.kernels * 1.5e-6 == pytest.approx(work.seconds)


@pytest.mark.slow
def test_the_command_counts_what_a_gpu_was_seen_to_do(tmp_path: Path) -> None:
    figures = tmp_path / "work.json"
    script = ROOT / ".ci" / "evidence" / "count_work.py"
    subprocess.run([sys.executable, script, "--workload", "W4,WM", "--json", figures], check=True)
    profiled = json.loads((ROOT / "examples/results/kernels_h100_80gb_hbm3.json").read_text())
    for name, row in json.loads(figures.read_text())["workloads"].items():
        assert row["patched"]["questions"] == 1 < row["upstream"]["questions"]
        assert row["patched"]["floor_ms"] < row["upstream"]["floor_ms"] / 2
        seen = profiled["workloads"][f"{name} cudagraph"]
        assert row["patched"]["floor_ms"] < seen["busy_ms"]
        if HAS_FUSED_NORM:
            # Some operators are two kernels, and a graph's inputs and outputs are copied.
            assert 0.9 < row["patched"]["operators"] / seen["kernels"] <= 1

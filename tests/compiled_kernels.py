"""Compile each kernel for GPUs that need not be there, by the launches that a forecast makes.

A program of its own: it puts a driver of Triton's in place that has no GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from toto_compile_patch.decode import gpu_kernels

CAPABILITIES = (70, 75, 80, 86, 90, 100)
HEADS, SIZE, EMBED, PATCH = 12, 64, 768, 64


class NoGpu:
    """What Triton asks a driver for before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def launches() -> None:
    """One of each kernel, as the published model wants it."""
    rows, scale = torch.ones(8, EMBED), torch.ones(EMBED)
    gpu_kernels.norm(rows, scale, 1e-5)
    gpu_kernels.sum_and_norm(rows, rows, scale, 1e-5)
    gpu_kernels.gated(rows)
    tables = gpu_kernels.rotary_tables(torch.ones(SIZE // 2), torch.ones(SIZE // 2), 0, 8, 3, 512.0)
    gpu_kernels.by_heads(torch.ones(8, 3 * EMBED), HEADS, False, 3, 0, *tables)
    heads = torch.ones(1, HEADS, 8, SIZE)
    gpu_kernels.attend_to_few(heads, heads, heads)
    context, own = torch.ones(1, 1, HEADS, 8, SIZE), torch.ones(1, 1, HEADS, 8, 5, SIZE)
    gpu_kernels.attend_of_samples(rows, rows, rows, context, context, own, own, 1)
    weight, bias = torch.ones(EMBED, EMBED), torch.ones(EMBED)
    gpu_kernels.linear_of_few_rows(rows, weight, bias, rows)
    gpu_kernels.linear_in_three_passes(torch.ones(32, EMBED), weight, bias, None)
    series = torch.ones(1, 1, 8 * PATCH)
    gpu_kernels.scale_context(series, series > 0, PATCH, 0.1, 10.0, True)
    patch, sums = torch.ones(1, 1, 1, PATCH), torch.ones(1, 1, 1, dtype=torch.float64)
    bounds = (sums.unsqueeze(-1), sums.unsqueeze(-1))
    gpu_kernels.scale_patch(patch, sums, sums, sums, *bounds, 0.1, True)
    gpu_kernels.draw(torch.ones(4, 4, 24), torch.ones(1, 3, 4, 8), 8)


if __name__ == "__main__":
    launch = JITFunction.run

    def compile_alone(self: Any, *args: Any, **options: Any) -> Any:
        return launch(self, *args, **{**options, "warmup": True})

    JITFunction.run = compile_alone
    for capability in CAPABILITIES:
        driver.set_active(NoGpu(capability))
        launches()
        print(capability)

"""What the machine is, what it can do, and whether it was disturbed meanwhile."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from toto_compile_patch.decode.linear import PackedLinear
from toto_compile_patch.upstream import distribution


def facts(device: str) -> dict[str, Any]:
    """What a figure depends on: the machine, and what is installed there."""
    return {
        "device": name(torch.device(device)),
        "torch": torch.__version__,
        "toto": distribution(),
        "date": date.today().isoformat(),
    }


def name(device: torch.device) -> str:
    """Processor or graphics card, in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {torch.get_num_threads()} threads"


def stolen_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Share of the processor's time that other virtual machines took between two readings."""
    total = after[1] - before[1]
    return (after[0] - before[0]) / total if total else 0.0


def read_stolen() -> tuple[int, int]:
    """Stolen and all ticks so far; zeros where the system does not say."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return ticks[7], sum(ticks)


def free_bytes(device: torch.device) -> int:
    """Memory that may be used."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                free = 1024 * int(line.split()[1])
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            free = min(free, int(limit) - used)
    except (OSError, ValueError):
        pass
    return free


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            # Unlike getrusage's, this figure begins anew when a program starts.
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Rates:
    """What the machine reached when asked for nothing else.

    Attributes:
        flops: floating-point operations a second, in a product of large matrices.
        bytes: bytes read a second, in the sum of a large tensor.
    """

    flops: float
    bytes: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure the rates of a large matrix product and of a large sum; the best of several.

    On a CPU, a product with a packed weight counts where it is faster.
    """
    size = 2048 if device.type == "cpu" else 8192
    square = torch.randn(size, size, device=device).to(dtype)
    tall = torch.randn(16 * size, size, device=device).to(dtype)
    compute = _best(lambda: square @ square, device)
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        packed = PackedLinear.of(square, torch.zeros(size, dtype=dtype))
        with torch.no_grad():
            compute = min(compute, _best(lambda: packed.apply(square), device))
    stream = _best(tall.sum, device)
    return Rates(2 * size**3 / compute, tall.numel() * tall.element_size() / stream)


def wait_for(device: torch.device) -> None:
    """Until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def spread(seconds: list[float]) -> float:
    """Greatest over median."""
    return max(seconds) / median(seconds)

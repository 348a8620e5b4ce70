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
from typing import Any

import torch

from toto_compile_patch.decode.linear import PackedLinear
from toto_compile_patch.decode.weights import can_be_packed
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
    model = _read_field("/proc/cpuinfo", "model name") or platform.processor()
    threads = torch.get_num_threads()
    return f"{model or platform.machine()}, {threads} thread{'' if threads == 1 else 's'}"


def _read_field(file: str, field: str) -> str:
    """A field of one of Linux's files about itself; empty where the system does not say."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line[len(field) :].strip(" \t:") for line in lines if line.startswith(field)), "")


def _read_bytes(file: str, field: str) -> int:
    """Bytes of a field that is given in kilobytes; 0 where the system does not say."""
    return 1024 * int((_read_field(file, field) or "0").split()[0])


def read_stolen() -> tuple[int, int]:
    """Ticks of the processor that other virtual machines took so far, and all; zeros where the
    system does not say."""
    ticks = [int(field) for field in _read_field("/proc/stat", "cpu ").split()[:8]]
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else (0, 0)


def stolen_since(before: tuple[int, int]) -> float:
    """Share of the processor's time that other virtual machines took since a reading."""
    stolen, total = (now - then for now, then in zip(read_stolen(), before, strict=True))
    return stolen / total if total else 0.0


def free_bytes(device: torch.device) -> int:
    """Memory that may be used."""
    if device.type == "cuda":
        # What torch holds and nobody uses is given out again.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = _read_bytes("/proc/meminfo", "MemAvailable")
    free = free or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = (_read_field(f"/sys/fs/cgroup/memory.{what}", "") for what in ("max", "current"))
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Unlike getrusage's, this figure begins anew when a program starts.
    if peak := _read_bytes("/proc/self/status", "VmHWM"):
        return peak
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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
    tall = torch.randn(16 * size, size, device=device).to(dtype)
    if device.type == "cpu" and dtype.itemsize < 4 and not can_be_packed(tall):
        # Without the instructions, products in 16 bits are a hundred times slower.
        size = 512
    square = torch.randn(size, size, device=device).to(dtype)
    compute = _best(lambda: square @ square, device)
    if can_be_packed(square):
        packed = PackedLinear.of(square, torch.zeros(size, dtype=dtype))
        with torch.no_grad():
            compute = min(compute, _best(lambda: packed.apply(square), device))
    stream = _best(tall.sum, device)
    return Rates(2 * size**3 / compute, tall.numel() * tall.element_size() / stream)


def wait_for(device: torch.device) -> None:
    """Until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_ENOUGH_SECONDS = 3.0
"""After which a rate is known well enough."""


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the best of seven, the first one apart; of fewer where they take long."""
    seconds: list[float] = []
    while len(seconds) < 7 and (len(seconds) < 2 or sum(seconds) < _ENOUGH_SECONDS):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])

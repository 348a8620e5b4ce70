"""Operators of our own: a CUDA device computes each in one kernel, anything else by torch's.

A short forecast on a GPU is hundreds of kernels that each do next to nothing. What lies between
matrix products is made of a few operators instead; each has a formula in torch's operators, beside
the code that it belongs to, and a kernel in Triton (``gpu_kernels``). Where Triton is missing or
cannot compile, the formula serves everywhere.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.torch_version import TorchVersion

from toto_compile_patch.decode.memory import out_of_memory
from toto_compile_patch.decode.recorder import capturing
from toto_compile_patch.errors import in_a_line, is_of_a_signal

_logger = logging.getLogger("toto_compile_patch")

LEAST_CAPABILITY = (7, 0)
"""Triton compiles for GPUs of this capability and later ones."""

OF_BLOCKS = ("attend_to_few", "attend_of_samples")
"""Kernels that multiply blocks. Triton before 3.3.1 (torch 2.7.0 has 3.3.0) cannot compile them for
capability 12 (GeForce RTX 50): it would fill standard error with its own code, in each process. The
one of three passes is another, and of no use there (see ``precision.has_fast_tf32``)."""

NAMESPACE = "toto_compile_patch"
_libraries: dict[str, torch.library.Library] = {}


def operator(schema: str, formula: Callable[..., Any]) -> Callable[..., Any]:
    """Define an operator, or define it again after an interrupt.

    Args:
        schema: its name, arguments and results; of the kernel's function likewise.
        formula: computes it by torch's operators.

    Returns:
        What calls it.
    """
    name = schema.split("(")[0]
    if (interrupted := _libraries.pop(name, None)) is not None:
        interrupted._destroy()
    library = _libraries[name] = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(schema)
    library.impl(name, formula, "CompositeExplicitAutograd")
    library.impl(name, _by_kernel(name, formula), "CUDA")
    called: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name)
    return called


def _by_kernel(name: str, formula: Callable[..., Any]) -> Callable[..., Any]:
    """Launch a kernel; where that cannot be, compute by the formula from then on."""

    def compute(first: torch.Tensor, *others: Any) -> Any:
        from toto_compile_patch.decode import gpu_kernels

        device = first.device.index
        if (device, name) not in _given_up:
            try:
                with torch.cuda.device_of(first):
                    return getattr(gpu_kernels, name)(first, *others)
            except Exception as error:
                # Nothing has been computed: a smaller GPU lacks the memory of a block, say. What
                # fails in a capture may not fail elsewhere.
                if out_of_memory(error) or capturing() or is_of_a_signal(error):
                    raise
                _given_up.add((device, name))
                why = in_a_line(error)
                _logger.info("torch's operators compute %s on GPU %s: %s", name, device, why)
        return formula(first, *others)

    return compute


_given_up: set[tuple[int | None, str]] = set()
"""Kernels that could not be launched, by their GPU."""


def is_side(size: int) -> bool:
    """Whether a block of a kernel can have a side as long as this: a power of two."""
    return size > 0 and size & (size - 1) == 0


def serves(*tensors: torch.Tensor) -> bool:
    """Whether kernels of our own may compute with some tensors: of float32, on a GPU that has
    them, outside of compiled code, which fuses by itself, and without autocast, which would have it
    otherwise."""
    first = tensors[0]
    return (
        not torch.compiler.is_compiling()
        and first.is_cuda
        and all(tensor.dtype is torch.float32 for tensor in tensors)
        and not torch.is_autocast_enabled("cuda")
        and are_there(first.device.index)
    )


def are_there(device: int) -> bool:
    """Whether a GPU has the kernels; False, too, where that cannot be found out now."""
    if device not in _why_not and not capturing():
        try:
            _why_not[device] = why = _found_out(device)
        except Exception as error:
            if is_of_a_signal(error):
                raise
            # Memory that is short now may not be so later.
            if out_of_memory(error):
                return False
            _why_not[device] = why = f"compiling them failed ({in_a_line(error)})"
        if why:
            _logger.info("forecasts on GPU %d use torch's operators alone: %s", device, why)
    return _why_not.get(device) == ""


_why_not: dict[int, str] = {}


def _found_out(device: int) -> str:
    """Why a GPU has no kernels of our own; empty where it has, seen by launching one."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device) if torch.version.cuda else (0, 0)
    if capability < LEAST_CAPABILITY:
        return "Triton does not compile for it"
    import triton

    from toto_compile_patch.decode import gpu_kernels

    if capability[0] == 12 and TorchVersion(triton.__version__) < "3.3.1":
        _given_up.update((device, name) for name in OF_BLOCKS)
        why = f"triton {triton.__version__} cannot compile theirs, 3.3.1 can"
        _logger.info("torch's operators attend on GPU %d: %s", device, why)
    # This kernel has to be the first: for a GPU that Triton does not know, compiling it raises an
    # error, while compiling some of the others ends the process.
    with torch.cuda.device(device):
        numbers = torch.ones(1, 2, device="cuda")
        found = gpu_kernels.gated(numbers).item()
    expected = torch.nn.functional.silu(torch.ones(())).item()
    return "" if abs(found - expected) < 1e-5 else "they compute wrong numbers"

"""Where 16 bits are too few: computing in 32, within autocast too."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in where 16 bits lose too much."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the types given, whatever autocast asks for."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)

"""Where to compute in float32 despite 16-bit weights or autocast, and where 16 bits will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from toto_compile_patch.locks import Lock

MODEL, TF32, TF32X3, BF16 = "model", "tf32", "tf32x3", "bf16"


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in where 16 bits lose too much."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def in_type(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers in a type: themselves, mostly. To ask torch for that takes as long as an operator."""
    return numbers if numbers.dtype is dtype else numbers.to(dtype)


def exact_products() -> bool:
    """Whether CUDA multiplies float32 in float32, here and now."""
    if torch.is_autocast_enabled("cuda"):
        return False
    matmul = torch.backends.cuda.matmul
    # Torch 2.9 and newer refuse the older name where a user has set the newer one.
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision != "tf32")
    return not matmul.allow_tf32


_FAST_TF32 = {(8, 0), (9, 0), (10, 0), (10, 3)}
"""Capabilities of GPUs whose tensor cores multiply TF32 some eight times as fast as other units do
float32, by NVIDIA's figures: A100, H100, B200, B300. Elsewhere it is twice at most."""


def has_fast_tf32(device: torch.device) -> bool:
    """Whether three products in TF32 take a CUDA device less time than one in float32."""
    return torch.cuda.get_device_capability(device) in _FAST_TF32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the types given, whatever autocast asks for."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def without_autocast_cache(device: torch.device) -> Iterator[None]:
    """Surrounds a capture: what autocast caches would be memory of the graph's that others use.

    Where autocast is off the cache is left as it is: compiled code is made for one state of it.
    """
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@dataclass(frozen=True)
class Precision:
    """The precision of the matrix products in the transformer's layers of a float32 model.

    Attributes:
        name: ``model``: the user's own settings; ``tf32``, on CUDA; ``tf32x3``, likewise: float32
            by three passes in TF32 (see ``linear``); ``bf16``: weights in 16 bits (see
            ``weights``), sums in 32.
    """

    name: str

    def of_products(self, device: torch.device) -> AbstractContextManager[object]:
        """Surrounds the layers of the transformer."""
        if self.name == TF32 and device.type == "cuda":
            return _tf32()
        return nullcontext()


_lock = Lock()
_users = 0
_undo: Callable[[], None] | None = None


@contextmanager
def _tf32() -> Iterator[None]:
    """Let CUDA multiply in TF32. The setting is the process's: the last thread out restores it."""
    global _users, _undo
    with _lock.held:
        if _users == 0:
            _undo = _set_tf32()
        _users += 1
    try:
        yield
    finally:
        with _lock.held:
            _users -= 1
            if _users == 0 and _undo is not None:
                _undo()


def _set_tf32() -> Callable[[], None]:
    """Set it in the way in which the user sets it, since torch refuses both at once."""
    # The older setting writes both of the newer ones, which torch 2.9 has brought.
    newer: list[Any] = [torch.backends.cuda.matmul]
    newer += [getattr(torch.backends.mkldnn, "matmul", None)]
    found = [(place, place.fp32_precision) for place in newer if hasattr(place, "fp32_precision")]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        return lambda: _put_back(*found[0])
    torch.set_float32_matmul_precision("high")

    def restore() -> None:
        torch.set_float32_matmul_precision(before)
        for place, value in found:
            _put_back(place, value)

    return restore


def _put_back(place: Any, value: str) -> None:
    """Give a newer setting its value again; what it had inherited, it inherits again."""
    place.fp32_precision = "none"
    if place.fp32_precision != value:
        place.fp32_precision = value


class TorchSettings(NamedTuple):
    """Settings of torch's that decide by which kernels a forecast is computed.

    Attributes:
        autocast: whether it is on, and its type.
        deterministic: whether deterministic algorithms are asked for.
        products: the user's setting for products of float32 on CUDA.
    """

    autocast: tuple[bool, torch.dtype]
    deterministic: bool
    products: str

    @classmethod
    def now(cls, device: torch.device) -> TorchSettings:
        """Those in force in this thread for a device."""
        products = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
        if products == "none":
            # Nothing was asked for, which is full precision.
            products = "ieee"
        return cls(
            (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)),
            torch.are_deterministic_algorithms_enabled(),
            str(products or torch.get_float32_matmul_precision()),
        )

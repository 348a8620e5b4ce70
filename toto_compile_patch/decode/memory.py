"""How memory that ran out is recognised, and said."""

from __future__ import annotations

import torch

_ALLOCATOR = "can't allocate memory"
_ONEDNN = ("could not create a primitive", "could not create a memory", "could not execute a")
_STANDARD = ("bad_alloc", "bad allocation")
_DEVICES = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "Triton Error [CUDA]: out of memory",
)
"""What torch's own memory does not say: libraries, drivers and modules of code take memory, too."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _says(
        error, (_ALLOCATOR, *_DEVICES, *_ONEDNN, *_STANDARD)
    )


def said_clearly(error: BaseException) -> BaseException:
    """An error that names memory: the one given, but where it is oneDNN's, which does not."""
    if not _says(error, (*_ONEDNN, *_STANDARD)):
        return error
    return torch.OutOfMemoryError(
        f"there is not enough memory for this forecast ({str(error).splitlines()[0]}): forecast "
        "fewer series at once, or a shorter context, or give the process more memory"
    )


def _says(error: BaseException, messages: tuple[str, ...]) -> bool:
    text = str(error)
    return any(message in text for message in messages)

"""Code that dynamo compiled, and how it follows a change of patches.

Dynamo does not guard on the methods that it inlined. After a change of patches, compiled models
would go on running the old code, so what was compiled must be dropped. ``torch._dynamo.reset``
does that, but crashes the interpreter if another thread is inside compiled code at that moment.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch

from toto_compile_patch.errors import CompiledCodeBusyError
from toto_compile_patch.private_names import private

_SWITCH_INTERVAL_S = 1.0
_POLL_S = 0.005


_interval_found: float | None = None
"""The interpreter's switch interval, written down before it is changed; else None."""


def anything_compiled() -> bool:
    """Whether dynamo holds compiled code, or is making some."""
    return any(
        code() is not None for code in private("torch._dynamo.convert_frame.input_codes.seen")
    )


def drop_compiled_code() -> None:
    """Drop all that was compiled; needs ``others_kept_out``. May be interrupted, and repeated."""
    if anything_compiled():
        torch.compiler.reset()


@contextmanager
def others_kept_out(timeout_s: float) -> Iterator[None]:
    """Run the body, which changes patches, while no thread is inside compiled code.

    Other threads are kept from running Python meanwhile as far as the interpreter allows: they
    can still get in if the body blocks. Does nothing where nothing was compiled.

    Raises:
        CompiledCodeBusyError: a thread was still inside compiled code after ``timeout_s``
            seconds. The body has not run.
    """
    if not anything_compiled():
        yield
        return
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            _hold_others_back()
            busy = _threads_in_compiled_code()
            if not busy:
                yield
                return
        finally:
            let_others_run()
        if threading.get_ident() in busy or time.monotonic() > deadline:
            raise CompiledCodeBusyError(
                "patches cannot be changed while compiled code runs (torch would crash), and "
                f"{'a thread' if len(busy) == 1 else f'{len(busy)} threads'} stayed inside it; let "
                "the forecasts end first"
            )
        time.sleep(_POLL_S)


def _hold_others_back() -> None:
    global _interval_found
    let_others_run()
    _interval_found = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def let_others_run() -> None:
    """Put the switch interval back, also where an interrupt once came before that was done."""
    global _interval_found
    if _interval_found is not None:
        sys.setswitchinterval(_interval_found)
        _interval_found = None


def _threads_in_compiled_code() -> list[int]:
    """Identifiers of the threads that have a call of a compiled function on their stack."""
    entries = _entry_codes()
    busy = []
    for thread, frame in sys._current_frames().items():
        caller: Any = frame
        while caller is not None and caller.f_code not in entries:
            caller = caller.f_back
        if caller is not None:
            busy.append(thread)
    return busy


def _entry_codes() -> set[CodeType]:
    """Code of the wrapper through which every compiled function is called."""
    call = private("torch._dynamo.eval_frame._TorchDynamoContext.__call__")
    return {const for const in call.__code__.co_consts if isinstance(const, CodeType)}

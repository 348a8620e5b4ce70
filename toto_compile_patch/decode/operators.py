"""Operators of our own that are opaque to a compiler: attention, and what is packed.

A compiled region knows of a layer only how it acts on each row of a hidden state (see ``layer``).
Attention, which mixes rows, and what has weights in a layout that no compiler can trace are
operators to it: their shapes and their state stay outside, so that one piece of compiled code
serves every layer, context, horizon and number of samples. What an operator is to do is handed over
beside the call, in this thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries, keys and values, ``row embed_dim``, to the same. It may read and write caches."""


class _HandedOver(threading.local):
    attend: Attend | None = None
    parts: Sequence[Any] = ()


_here = _HandedOver()


@contextmanager
def handed_over(parts: Sequence[Any], attend: Attend | None) -> Iterator[None]:
    """Say what compiled code that this thread calls here is to find behind the operators.

    Let go afterwards: it holds a model's weights and a forecast's caches.
    """
    _here.parts, _here.attend = parts, attend
    try:
        yield
    finally:
        _here.parts, _here.attend = (), None


def linear(rows: torch.Tensor, slot: int, out_features: int) -> torch.Tensor:
    """Apply what is in a slot of those that were handed over: a linear layer or a feed-forward."""
    result: torch.Tensor = torch.ops.toto_compile_patch.linear(rows, slot, out_features)
    return result


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attend as was handed over."""
    result: torch.Tensor = torch.ops.toto_compile_patch.attend(queries, keys, values)
    return result


def _linear(rows: torch.Tensor, slot: int, out_features: int) -> torch.Tensor:
    result: torch.Tensor = _here.parts[slot].apply(rows)
    return result


def _linear_shape(rows: torch.Tensor, slot: int, out_features: int) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], out_features)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if _here.attend is None:
        raise RuntimeError(
            "only compiled code of toto_compile_patch may call this operator: call forecast()"
        )
    return _here.attend(queries, keys, values)


def _attend_shape(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


_OPERATORS: tuple[tuple[str, Callable[..., Any], Callable[..., Any]], ...] = (
    ("linear(Tensor rows, int slot, int out_features) -> Tensor", _linear, _linear_shape),
    ("attend(Tensor queries, Tensor keys, Tensor values) -> Tensor", _attend, _attend_shape),
)


def _define_operators() -> torch.library.Library:
    """Define all or none, so that this module can be imported again after an interrupt."""
    library = torch.library.Library("toto_compile_patch", "FRAGMENT")
    try:
        for schema, implementation, shape in _OPERATORS:
            library.define(schema)
            name = schema.split("(")[0]
            library.impl(name, implementation, "CompositeExplicitAutograd")
            torch.library.register_fake(f"toto_compile_patch::{name}", shape, lib=library)
        return library
    except BaseException:
        library._destroy()
        raise


# It keeps the operators defined. Nothing may follow: an interrupt then would leave them behind.
_library = _define_operators()

"""``kv_cache``: upstream's KVCache with its write positions on the host.

Upstream keeps them in a tensor on the model's device and reads them back several times per layer
and step: a wait for the device each time, and in compiled code a graph break or a guard.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from functools import cache
from typing import Any

import torch

from toto_compile_patch.errors import UnsupportedTotoError
from toto_compile_patch.sites import AttributeSite
from toto_compile_patch.tracing import skip_frame
from toto_compile_patch.upstream import TotoCode, kind_of, load


class HostIndexed:
    """What makes a ``KVCache`` one whose positions are Python integers, and which is never traced.

    Keys and values are held as upstream holds them, ``time_layer batch_X_variate seq_len
    head head_dim`` (xFormers) or ``time_layer batch_X_variate head seq_len head_dim`` (SDPA).
    """

    carrier: str
    """The carrier whose ``KVCache`` it is."""

    def __post_init__(self: Any) -> None:
        super().__post_init__()  # type: ignore[misc]
        time_layers = [
            layer_idx
            for layer_idx in range(self.num_layers)
            if kind_of(self.transformer_layers[layer_idx].attention) == "TimeWiseMultiheadAttention"
        ]
        self._current_idx: list[int] = [0] * len(self._current_idx)
        self._layer_cache_map: list[int] = [0] * self.num_layers
        for cache_idx, layer_idx in enumerate(time_layers):
            self._layer_cache_map[layer_idx] = cache_idx

    @property
    def _seq_dim(self: Any) -> int:
        return 1 if self.use_memory_efficient_attention else 2

    @skip_frame
    def __getitem__(self: Any, layer_idx: int) -> tuple[Any, Any]:
        cache_idx = self._layer_cache_map[layer_idx]
        length = self._current_idx[cache_idx]
        keys, values = self._keys[cache_idx], self._values[cache_idx]
        return keys.narrow(self._seq_dim, 0, length), values.narrow(self._seq_dim, 0, length)

    @skip_frame
    def current_len(self: Any, cache_idx: int) -> int:
        return self._current_idx[cache_idx]

    @skip_frame
    def seq_len(self: Any, layer_idx: int) -> int:
        return self._current_idx[self._layer_cache_map[layer_idx]]

    @skip_frame
    def append(self: Any, layer_idx: int, kv: tuple[Any, Any]) -> None:
        cache_idx = self._layer_cache_map[layer_idx]
        keys, values = kv
        self._check(keys, values)
        start = self._current_idx[cache_idx]
        length = keys.shape[self._seq_dim]
        if start + length > self.max_seq_len:
            raise AssertionError(
                f"max_seq_len exceeded {start + length} > {self.max_seq_len}, "
                f"keys.shape: {keys.shape}"
            )
        self._keys[cache_idx].narrow(self._seq_dim, start, length).copy_(keys)
        self._values[cache_idx].narrow(self._seq_dim, start, length).copy_(values)
        self._current_idx[cache_idx] = start + length

    @skip_frame
    def reset(self: Any) -> None:
        """Forget everything; what the buffers hold beyond a position is never read."""
        self._current_idx = [0] * len(self._current_idx)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the layers: they are the model's, hold what cannot be pickled, and are
        not read again once their kinds are known."""
        return {**self.__dict__, "transformer_layers": []}

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        """Take upstream's positions for ours: its caches are pickled by a name that is ours now."""
        self.__dict__.update(state)
        for name in ("_current_idx", "_layer_cache_map"):
            if isinstance(state[name], torch.Tensor):
                setattr(self, name, state[name].tolist())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled by the carrier's name: its class is made in each process, and no module's."""
        if type(self) is not host_indexed(load(self.carrier)):
            return super().__reduce_ex__(protocol)
        return _new, (self.carrier,), self.__getstate__()

    def __copy__(self: Any) -> Any:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        twin = copy(self)
        twin.__dict__.update(deepcopy(self.__getstate__(), memo))
        twin.transformer_layers = self.transformer_layers
        return twin

    @skip_frame
    def _check(self: Any, keys: Any, values: Any) -> None:
        """Raise what upstream's assertions raise, with or without ``python -O``."""
        if keys.shape != values.shape:
            raise AssertionError("keys and values must have the same shape")
        heads_axis, nth = (2, "third") if self.use_memory_efficient_attention else (1, "second")
        for axis, expected, meaning in (
            (0, self.batch_size * self.num_variates, "batch_size * num_variates as their first"),
            (heads_axis, self.num_heads, f"num_heads as their {nth}"),
            (3, self.embed_dim // self.num_heads, "head_dim as their fourth"),
        ):
            if keys.shape[axis] != expected:
                raise AssertionError(f"keys and values must have {meaning} dimension")


@cache
def sites(code: TotoCode) -> tuple[AttributeSite, ...]:
    needs = ((code.TotoBackbone, "allocate_kv_cache"),)
    return tuple(
        AttributeSite(module, "KVCache", _replacement_in(code), needs=needs)
        for module in code.modules_with_kv_cache()
    )


@cache
def host_indexed(code: TotoCode) -> type:
    """The class that takes the place of a carrier's ``KVCache``."""
    namespace = {"carrier": code.carrier, "__module__": __name__}
    return type("HostIndexedKVCache", (HostIndexed, code.KVCache), namespace)


def _new(carrier: str) -> Any:
    """An object of a carrier's class, with nothing in it yet."""
    kind = host_indexed(load(carrier))
    return object.__new__(kind)


def _replacement_in(code: TotoCode) -> Callable[[type], type]:
    """What makes the class that takes the place of a carrier's ``KVCache``.

    It raises ``UnsupportedTotoError`` where another class stands there.
    """

    def replacement(original: type) -> type:
        if original is not code.KVCache:
            raise UnsupportedTotoError(
                f"{original!r} is not the KVCache that {code.carrier} was imported with: take out "
                "what put it there; where it was reloaded, start the process anew"
            )
        return host_indexed(code)

    return replacement

"""Ways to compile Toto, and first recipes for making that work, each as a pipeline has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config
import wrapt
from toto.inference.forecaster import TotoForecaster
from toto.model import attention, backbone
from toto.model.toto import Toto
from toto.model.util import KVCache

import toto_compile_patch
from toto_compile_patch.settings import PATCH_NAMES

Prepare = Callable[[Toto, str], TotoForecaster]
"""Makes a forecaster from a model and the name of a ``torch.compile`` backend."""


def toto_compile(toto: Toto, backend: str) -> TotoForecaster:
    toto.compile(backend=backend)
    return TotoForecaster(toto.model)


def wrap_toto(toto: Toto, backend: str) -> TotoForecaster:
    compiled: Any = torch.compile(toto, backend=backend)
    return TotoForecaster(compiled.model)


def drop_the_result(toto: Toto, backend: str) -> TotoForecaster:
    torch.compile(toto.model, backend=backend)
    return TotoForecaster(toto.model)


def wrap_model_too_late(toto: Toto, backend: str) -> TotoForecaster:
    forecaster = TotoForecaster(toto.model)
    toto.model = torch.compile(toto.model, backend=backend)
    return forecaster


def model_compile(toto: Toto, backend: str) -> TotoForecaster:
    toto.model.compile(backend=backend)
    return TotoForecaster(toto.model)


def wrap_model(toto: Toto, backend: str) -> TotoForecaster:
    toto.model = torch.compile(toto.model, backend=backend)
    return TotoForecaster(toto.model)


class HostIndexKVCache(KVCache):  # type: ignore[misc]
    """The cache with its positions in lists, so that nothing is read back from the device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._current_idx: list[int] = list(map(int, self._current_idx))
        self._layer_cache_map: list[int] = list(map(int, self._layer_cache_map))

    def current_len(self, cache_idx: int) -> int:
        return self._current_idx[cache_idx]

    def seq_len(self, layer_idx: int) -> int:
        return self._current_idx[self._layer_cache_map[layer_idx]]

    def append(self, layer_idx: int, kv: tuple[torch.Tensor, torch.Tensor]) -> None:
        cache_idx = self._layer_cache_map[layer_idx]
        start = self._current_idx[cache_idx]
        end = start + kv[0].shape[2]
        self._keys[cache_idx, :, :, start:end] = kv[0]
        self._values[cache_idx, :, :, start:end] = kv[1]
        self._current_idx[cache_idx] = end

    def reset(self) -> None:
        self._current_idx = [0] * len(self._current_idx)

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        cache_idx = self._layer_cache_map[layer_idx]
        end = self._current_idx[cache_idx]
        return self._keys[cache_idx, :, :, :end], self._values[cache_idx, :, :, :end]


class BreakingKVCache(HostIndexKVCache):
    """The cache on the host, each of its methods behind a graph break of its own."""

    def current_len(self, cache_idx: int) -> int:
        torch._dynamo.graph_break()
        return super().current_len(cache_idx)

    def seq_len(self, layer_idx: int) -> int:
        torch._dynamo.graph_break()
        return super().seq_len(layer_idx)

    def append(self, layer_idx: int, kv: tuple[torch.Tensor, torch.Tensor]) -> None:
        torch._dynamo.graph_break()
        super().append(layer_idx, kv)

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch._dynamo.graph_break()
        return super().__getitem__(layer_idx)


def _wrap_positional_embedding(before: Callable[[], None]) -> None:
    def wrapper(wrapped: Any, _: Any, args: Any, kwargs: Any) -> Any:
        before()
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(
        attention.__name__, "BaseMultiheadAttention.positional_embedding", wrapper
    )


def break_by_wrapt(toto: Toto, backend: str) -> TotoForecaster:
    _wrap_positional_embedding(torch._dynamo.graph_break)
    return wrap_model(toto, backend)


def host_index_and_break_by_wrapt(toto: Toto, backend: str) -> TotoForecaster:
    backbone.KVCache = HostIndexKVCache
    return break_by_wrapt(toto, backend)


def host_index_and_break_by_function(toto: Toto, backend: str) -> TotoForecaster:
    backbone.KVCache = BreakingKVCache
    original = attention.BaseMultiheadAttention.positional_embedding

    def positional_embedding(*args: Any) -> Any:
        torch._dynamo.graph_break()
        return original(*args)

    attention.BaseMultiheadAttention.positional_embedding = positional_embedding
    return wrap_model(toto, backend)


def raise_limit(toto: Toto, backend: str) -> TotoForecaster:
    torch._dynamo.config.recompile_limit = 64
    return wrap_model(toto, backend)


def raise_limit_and_capture_scalars(toto: Toto, backend: str) -> TotoForecaster:
    torch._dynamo.config.capture_scalar_outputs = True
    return raise_limit(toto, backend)


def apply_without_fast_decode(toto: Toto, backend: str) -> TotoForecaster:
    toto_compile_patch.apply([name for name in PATCH_NAMES if name != "fast_decode"])
    return wrap_model(toto, backend)


def apply(toto: Toto, _: str) -> TotoForecaster:
    toto_compile_patch.apply()
    return TotoForecaster(toto.model)


def apply_and_wrap_model(toto: Toto, backend: str) -> TotoForecaster:
    toto_compile_patch.apply()
    return wrap_model(toto, backend)


def wrapper_runs(model: Any, backend: str) -> dict[str, int]:
    """How often a wrapper by wrapt runs when an attention layer is called thrice with a cache."""
    model = getattr(model, "_orig_mod", model)
    layer = model.transformer.layers[0].attention
    runs = 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def count() -> None:
        nonlocal runs
        runs += 1

    _wrap_positional_embedding(count)
    torch._dynamo.reset()
    found = {}
    for way, call in (("eager", layer), ("compiled", torch.compile(layer, backend=backend))):
        runs = 0
        cache = model.allocate_kv_cache(1, 1, 8 * model.patch_embed.patch_size, "cpu", torch.float)
        for _ in range(3):
            with torch.no_grad():
                call(0, torch.randn(1, 1, 2, model.embed_dim), None, cache)
        found[way] = runs
    return found

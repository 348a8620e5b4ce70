"""The patched KVCache against upstream's, operation by operation and bit for bit."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import toto.model.backbone
import toto.model.transformer
import toto.model.util
from toto_cases import small_model

import toto_compile_patch

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BATCH, VARIATES, MAX_LEN, HEADS, HEAD_DIM = 2, 3, 6, 4, 8
UPSTREAM = toto.model.util.KVCache


def make(cls: Any, memory_efficient: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    layers = list(small_model(num_layers=6, spacewise_every_n_layers=3).model.transformer.layers)
    return cls(
        batch_size=BATCH,
        num_variates=VARIATES,
        transformer_layers=layers,
        num_layers=len(layers),
        embed_dim=HEADS * HEAD_DIM,
        num_heads=HEADS,
        max_seq_len=MAX_LEN,
        dtype=dtype,
        use_memory_efficient_attention=memory_efficient,
    )


def keys_and_values(length: int, memory_efficient: bool, dtype: torch.dtype) -> Any:
    order = (length, HEADS) if memory_efficient else (HEADS, length)
    shape = (BATCH * VARIATES, *order, HEAD_DIM)
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


@pytest.fixture
def patched_class() -> Any:
    toto_compile_patch.apply()
    return toto.model.util.KVCache


def test_every_binding_site_has_the_same_subclass(patched_class: Any) -> None:
    for module in (toto.model.util, toto.model.backbone, toto.model.transformer):
        assert module.KVCache is patched_class
    assert issubclass(patched_class, UPSTREAM)
    assert patched_class is not UPSTREAM
    cache = small_model().model.allocate_kv_cache(1, 1, 16, torch.device("cpu"), torch.float32)
    assert type(cache) is patched_class


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_efficient", [False, True], ids=["sdpa", "xformers"])
def test_same_results_as_upstream(
    patched_class: Any, memory_efficient: bool, dtype: torch.dtype, inference: bool
) -> None:
    with torch.inference_mode() if inference else nullcontext():
        ours, theirs = (make(cls, memory_efficient, dtype) for cls in (patched_class, UPSTREAM))
        for length in (3, 1, 1):
            for layer_idx in (0, 1, 3, 4):  # 2 and 5 are space-wise
                kv = keys_and_values(length, memory_efficient, dtype)
                ours.append(layer_idx, kv)
                theirs.append(layer_idx, kv)
            for layer_idx in range(6):
                assert ours.seq_len(layer_idx) == theirs.seq_len(layer_idx)
                for mine, their in zip(ours[layer_idx], theirs[layer_idx], strict=True):
                    assert mine.dtype == their.dtype
                    assert mine.shape == their.shape
                    assert mine.stride() == their.stride()
                    assert torch.equal(mine, their)
            assert [ours.current_len(i) for i in range(4)] == [
                theirs.current_len(i) for i in range(4)
            ]
        ours.reset()
        theirs.reset()
        assert ours.seq_len(4) == theirs.seq_len(4) == 0
        assert ours[4][0].shape == theirs[4][0].shape
        kv = keys_and_values(2, memory_efficient, dtype)
        ours.append(4, kv)
        theirs.append(4, kv)
        assert torch.equal(ours[4][1], theirs[4][1])


def test_mixed_precision_is_cast_to_the_cache_as_upstream_does(patched_class: Any) -> None:
    ours, theirs = make(patched_class), make(UPSTREAM)
    kv = keys_and_values(2, False, torch.bfloat16)
    ours.append(0, kv)
    theirs.append(0, kv)
    assert ours[0][0].dtype == torch.float32
    assert torch.equal(ours[0][0], theirs[0][0])


def test_positions_are_on_the_host(patched_class: Any) -> None:
    cache = make(patched_class)
    cache.append(0, keys_and_values(2, False, torch.float32))
    with torch.device("meta"):  # nothing can be read back from a meta tensor
        assert type(cache.seq_len(0)) is int
        assert type(cache.current_len(0)) is int


@pytest.mark.parametrize("memory_efficient", [False, True], ids=["sdpa", "xformers"])
@pytest.mark.parametrize(
    "bad",
    ["too_long", "values_differ", "batch", "heads", "head_dim", "layer_idx"],
)
def test_same_errors_as_upstream(patched_class: Any, memory_efficient: bool, bad: str) -> None:
    keys, values = keys_and_values(2, memory_efficient, torch.float32)
    layer_idx = 99 if bad == "layer_idx" else 0
    if bad == "too_long":
        keys, values = keys_and_values(MAX_LEN + 1, memory_efficient, torch.float32)
    elif bad == "values_differ":
        values = values[..., :-1]
    elif bad == "batch":
        keys, values = keys[1:], values[1:]
    elif bad == "heads":
        axis = 2 if memory_efficient else 1
        keys, values = keys.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
    elif bad == "head_dim":
        keys, values = keys[..., 1:], values[..., 1:]
    errors = []
    for cls in (patched_class, UPSTREAM):
        cache = make(cls, memory_efficient)
        with pytest.raises((AssertionError, IndexError)) as caught:
            cache.append(layer_idx, (keys, values))
        assert cache.seq_len(0) == 0
        errors.append(caught)
    assert errors[0].type is errors[1].type
    if bad not in ("layer_idx", "too_long"):  # there upstream prints tensors
        assert str(errors[0].value) == str(errors[1].value)


def test_indivisible_heads_are_refused_as_upstream_does(patched_class: Any) -> None:
    for cls in (patched_class, UPSTREAM):
        with pytest.raises(AssertionError, match="divisible"):
            cls(1, 1, [], 0, embed_dim=7, num_heads=2, max_seq_len=1)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_go_on_by_themselves(patched_class: Any, copy_of: Any) -> None:
    cache = make(patched_class)
    cache.append(0, keys_and_values(2, False, torch.float32))
    twin = copy_of(cache)
    twin.append(0, keys_and_values(1, False, torch.float32))
    assert (cache.seq_len(0), twin.seq_len(0)) == (2, 3)
    assert torch.equal(twin[0][0][:, :, :2], cache[0][0])


def test_no_time_wise_layer_at_all(patched_class: Any) -> None:
    for cls in (patched_class, UPSTREAM):
        cache = cls(1, 1, [], 0, embed_dim=8, num_heads=2, max_seq_len=1)
        assert cache.current_len(0) == 0


def test_one_that_upstream_pickled_goes_on_after_apply() -> None:
    theirs = make(UPSTREAM)
    theirs.append(0, keys_and_values(2, False, torch.float32))
    # They hold what cannot be pickled, and are not read again.
    theirs.transformer_layers = []
    pickled = pickle.dumps(theirs)
    toto_compile_patch.apply("kv_cache")
    ours = pickle.loads(pickled)
    assert type(ours) is toto.model.util.KVCache
    kv = keys_and_values(1, False, torch.float32)
    for cache in (ours, theirs):
        cache.append(0, kv)
    assert type(ours.seq_len(0)) is int
    assert [ours.seq_len(idx) for idx in range(6)] == [theirs.seq_len(idx) for idx in range(6)]
    assert torch.equal(ours[0][0], theirs[0][0])


def test_a_users_own_class_is_pickled_by_its_own_name(
    patched_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = type("Own", (patched_class,), {"__module__": __name__})
    monkeypatch.setitem(globals(), "Own", own)
    cache = make(own)
    cache.append(0, keys_and_values(2, False, torch.float32))
    twin = pickle.loads(pickle.dumps(cache))
    assert twin.seq_len(0) == 2
    assert torch.equal(twin[0][0], cache[0][0])
    assert type(twin) is own

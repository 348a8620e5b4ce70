"""The private names of torch that this package uses, where, and what is left out without them.

A release of torch may rename what is private. Whoever needs such a name takes it from here, so that
a missing one turns off what needs it, with a reason, and breaks neither an import nor a forecast.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from typing import Any, NamedTuple

import torch

KV_CACHE, POSITIONAL_EMBEDDING, DYNAMO_CONFIG, COMPILE_METHOD, FAST_DECODE = PATCHES = (
    "kv_cache",
    "positional_embedding",
    "dynamo_config",
    "compile_method",
    "fast_decode",
)
COMPILED, PACKED = "compiled forecasts", "packed weights"
LOG_SUMS = "fused attention over a context that samples share"
SLOW_BF16 = "remark on slow products in 16 bits"

_OF_A_MODULE, _OF_A_COMPILED_MODULE = "a module's ", "a compiled module's "


class PrivateName(NamedTuple):
    """One row of the table.

    Attributes:
        path: the name with its module; or an attribute of any module, or of any compiled one.
        used_in: where.
        needed_for: what is left out where it is missing: names of patches, or COMPILED, PACKED,
            LOG_SUMS, SLOW_BF16.
    """

    path: str
    used_in: str
    needed_for: tuple[str, ...]


TABLE = (
    PrivateName("torch._dynamo.convert_frame.input_codes.seen", "compiled_code", PATCHES),
    PrivateName("torch._dynamo.eval_frame._TorchDynamoContext.__call__", "compiled_code", PATCHES),
    PrivateName("torch._dynamo.config._config", "sites", (DYNAMO_CONFIG,)),
    PrivateName("torch._dynamo.disable", "tracing", PATCHES),
    PrivateName(
        "torch._dynamo.decorators.skip", "tracing", (KV_CACHE, POSITIONAL_EMBEDDING, DYNAMO_CONFIG)
    ),
    PrivateName(
        "torch._dynamo.eval_frame.skip_code", "tracing", (POSITIONAL_EMBEDDING, DYNAMO_CONFIG)
    ),
    PrivateName(
        "torch._C._dynamo.eval_frame.set_eval_frame",
        "tracing",
        (POSITIONAL_EMBEDDING, DYNAMO_CONFIG),
    ),
    PrivateName("torch.Tensor._is_view", "patches.positional_embedding", (POSITIONAL_EMBEDDING,)),
    PrivateName(
        _OF_A_MODULE + "_compiled_call_impl",
        "patches.compile_method, decode.compile_call",
        (COMPILE_METHOD, COMPILED),
    ),
    PrivateName("torch.nn.Module._call_impl", "decode.compile_call", (COMPILE_METHOD,)),
    PrivateName("torch._dynamo.OptimizedModule", "decode.compile_call", (FAST_DECODE,)),
    PrivateName(_OF_A_COMPILED_MODULE + "_orig_mod", "decode.compile_call", (FAST_DECODE,)),
    PrivateName("torch._C._are_functorch_transforms_active", "decode.support", (FAST_DECODE,)),
    PrivateName("torch.autograd.forward_ad._current_level", "decode.support", (FAST_DECODE,)),
    PrivateName("torch._C._is_tracing", "decode.support", (FAST_DECODE,)),
    PrivateName("torch._C._get_dispatch_mode", "decode.support", (FAST_DECODE,)),
    PrivateName("torch._C._TorchDispatchModeKey.FAKE", "decode.support", (FAST_DECODE,)),
    PrivateName("torch._C._TorchDispatchModeKey.PROXY", "decode.support", (FAST_DECODE,)),
    PrivateName("torch.nn.Module._wrapped_call_impl", "decode.support", (FAST_DECODE,)),
    PrivateName("torch.nn.modules.module._global_forward_hooks", "decode.support", (FAST_DECODE,)),
    PrivateName(
        "torch.nn.modules.module._global_forward_pre_hooks", "decode.support", (FAST_DECODE,)
    ),
    PrivateName(_OF_A_MODULE + "_forward_hooks", "decode.support", (FAST_DECODE,)),
    PrivateName(_OF_A_MODULE + "_forward_pre_hooks", "decode.support", (FAST_DECODE,)),
    PrivateName(_OF_A_MODULE + "_modules", "decode.modules", (FAST_DECODE,)),
    PrivateName(_OF_A_MODULE + "_parameters", "decode.modules", (FAST_DECODE,)),
    PrivateName(_OF_A_MODULE + "_buffers", "decode.modules", (FAST_DECODE,)),
    PrivateName("torch.Tensor._version", "decode.weights", (FAST_DECODE,)),
    PrivateName("torch._C._len_torch_dispatch_stack", "decode.weights", (FAST_DECODE,)),
    PrivateName("torch._dynamo.mark_dynamic", "decode.regions", (COMPILED,)),
    PrivateName("torch._dynamo.exc.RecompileError", "decode.regions", (COMPILED,)),
    PrivateName("torch._inductor.config.get_config_copy", "decode.compile_call", (COMPILED,)),
    PrivateName(
        "torch._dynamo.backends.cudagraphs.CudagraphsBackend", "decode.compile_call", (COMPILED,)
    ),
    PrivateName("torch.library.Library._destroy", "decode.operators", (COMPILED,)),
    PrivateName("torch.ops.mkldnn._reorder_linear_weight", "decode.linear", (PACKED,)),
    PrivateName("torch.ops.mkldnn._linear_pointwise", "decode.linear", (PACKED,)),
    PrivateName("torch.ops.mkldnn._linear_pointwise.binary", "decode.linear", (PACKED,)),
    PrivateName("torch.ops.mkldnn._is_mkldnn_bf16_supported", "decode.weights", (PACKED,)),
    PrivateName("torch.ops.mkldnn._is_mkldnn_acl_supported", "decode.weights", (PACKED,)),
    PrivateName("torch.cpu._is_amx_tile_supported", "decode.weights", (SLOW_BF16,)),
    PrivateName("torch.cpu._is_avx512_bf16_supported", "decode.weights", (SLOW_BF16,)),
    PrivateName(
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
        "decode.attention",
        (LOG_SUMS,),
    ),
)


class MissingName(Exception):
    """Stands for a name that is missing: nothing is an instance of it, and to call it raises."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("this torch lacks a private name (see missing_names())")


def private(path: str) -> Any:
    """What a name of the table stands for in this torch, or a MissingName."""
    if path not in {row.path for row in TABLE}:
        raise KeyError(path)
    try:
        return _find(path)
    except (AttributeError, ImportError, RuntimeError):
        return MissingName


def missing_names() -> list[PrivateName]:
    """The rows of the table that this torch lacks."""
    return [row for row in TABLE if not _exists(row.path)]


@cache
def why_without(what: str) -> str:
    """Why a patch, or what else needs private names, is left out in this torch; else empty."""
    missing = [row.path for row in TABLE if what in row.needed_for and not _exists(row.path)]
    return f"torch {torch.__version__} has no {missing[0]}" if missing else ""


@cache
def _exists(path: str) -> bool:
    return private(path) is not MissingName


def _find(path: str) -> Any:
    for kind, example in _EXAMPLES.items():
        if path.startswith(kind):
            return getattr(example(), path.removeprefix(kind))
    return pkgutil.resolve_name(path)


def _compiled_module() -> Any:
    # By torch.compile, torch's distributions would cease to check their parameters, for good.
    return private("torch._dynamo.disable")(torch.nn.Identity())


_EXAMPLES = {_OF_A_MODULE: torch.nn.Module, _OF_A_COMPILED_MODULE: _compiled_module}

"""Everything that this package knows of the published ``toto`` module; the only room to import it.

Importing this module imports ``toto`` (and with it torch).
"""

from __future__ import annotations

import importlib.metadata
from types import FunctionType
from typing import Any

import torch
import toto.data.util.dataset as dataset
import toto.inference.forecaster as forecaster
import toto.model.attention as attention
import toto.model.backbone as backbone
import toto.model.distribution as distribution_module
import toto.model.embedding as embedding
import toto.model.feed_forward as feed_forward
import toto.model.rope as rope
import toto.model.scaler as scaler
import toto.model.toto as toto
import toto.model.transformer as transformer
import toto.model.util as util

from toto_compile_patch.fingerprint import fingerprint

Toto = toto.Toto
TotoBackbone = backbone.TotoBackbone
TotoForecaster = forecaster.TotoForecaster
Transformer = transformer.Transformer
TransformerLayer = transformer.TransformerLayer
BaseMultiheadAttention = attention.BaseMultiheadAttention
TimeWiseMultiheadAttention = attention.TimeWiseMultiheadAttention
SpaceWiseMultiheadAttention = attention.SpaceWiseMultiheadAttention
KVCache = util.KVCache
RMSNorm = util.RMSNorm
SwiGLU = feed_forward.SwiGLU
PatchEmbedding = embedding.PatchEmbedding
TimeAwareRotaryEmbedding = rope.TimeAwareRotaryEmbedding
StdMeanScaler = scaler.StdMeanScaler
CausalStdMeanScaler = scaler.CausalStdMeanScaler
CausalPatchStdMeanScaler = scaler.CausalPatchStdMeanScaler
StudentTOutput = distribution_module.StudentTOutput
MixtureOfStudentTsOutput = distribution_module.MixtureOfStudentTsOutput
is_extreme_value = dataset.is_extreme_value

try:
    from toto.model.fusion import Fusion
except ImportError:
    # Variate labels came with toto-ts 0.2.0.
    ONLY_IN_SOME_VERSIONS: tuple[type, ...] = ()
else:
    ONLY_IN_SOME_VERSIONS = (Fusion,)

BYPASSED = (
    (TotoBackbone, "forward"),
    (TotoBackbone, "backbone"),
    (TotoBackbone, "allocate_kv_cache"),
    (Transformer, "forward"),
    (Transformer, "_get_mask"),
    (TransformerLayer, "forward"),
    (BaseMultiheadAttention, "forward"),
    (BaseMultiheadAttention, "get_qkv"),
    (BaseMultiheadAttention, "positional_embedding"),
    (BaseMultiheadAttention, "run_attention"),
    (BaseMultiheadAttention, "rearrange_inputs"),
    (BaseMultiheadAttention, "rearrange_output"),
    (TimeWiseMultiheadAttention, "forward"),
    (SpaceWiseMultiheadAttention, "forward"),
    (TimeAwareRotaryEmbedding, "rotate_queries_and_keys"),
    (TimeAwareRotaryEmbedding, "get_scale"),
    (PatchEmbedding, "forward"),
    (PatchEmbedding, "_patchify"),
    (MixtureOfStudentTsOutput, "forward"),
    (StudentTOutput, "forward"),
    (StdMeanScaler, "__call__"),
    (CausalStdMeanScaler, "__call__"),
    (CausalPatchStdMeanScaler, "__call__"),
    (scaler, "compute_causal_statistics"),
    (forecaster, "replace_extreme_values"),
    (backbone, "KVCache"),
    (TotoForecaster, "create_affine_transformed"),
)
"""What ``decode`` does in its own way; it stands aside where somebody has replaced any of it."""

BYPASSED_METHODS_OF_FORECASTER = (
    "create_affine_transformed",
    "assert_ev_compatibility",
    "round_ft_ev",
)
"""What a subclass of ``TotoForecaster`` may override. The last two came with toto-ts 0.2.0."""

MISSING: Any = object()
"""Stands for an attribute that its owner inherits or lacks."""

KV_CACHE_MODULES = (util, backbone, transformer)
"""The modules that bind the name ``KVCache``: where it is defined, constructed and annotated."""

_NO_GRAD = torch.no_grad()(lambda: None)
"""Stands for any function so decorated: they share their code."""

CONSTRUCTOR_MODULE = backbone
"""The module whose binding of ``KVCache`` is called."""

TESTED_VERSIONS = "toto-ts 0.1.3, 0.1.4 and 0.2.0"

# Fingerprints of the code that was tested. Where there are two, the first is that of toto-ts
# 0.1.3 and 0.1.4, the second that of 0.2.0 (and of timecopilot-toto 0.1.7).
_FINGERPRINTS = {
    "toto.model.util.KVCache": {"6b3d04645da473df"},
    "toto.model.attention.BaseMultiheadAttention.positional_embedding": {"c7ad39cc0040ca25"},
    "toto.model.attention.BaseMultiheadAttention.run_attention": {"c4cb57bf0d7e594a"},
    "toto.model.attention.BaseMultiheadAttention.forward": {"39f1af3892f39c05"},
    "toto.model.transformer.TransformerLayer.forward": {"2f5e036bac00e99e"},
    "toto.model.transformer.Transformer.forward": {"97b5e06ccf9ad500", "189db066c99218e5"},
    "toto.model.transformer.Transformer._get_mask": {"c48d430cc7d1292a"},
    "toto.model.backbone.TotoBackbone.allocate_kv_cache": {"ea7b67e40ac480d4"},
    "toto.model.backbone.TotoBackbone.backbone": {"4710f39fc4be108a", "813e8c5e6800a261"},
    "toto.model.backbone.TotoBackbone.forward": {"ea73bf8e813b1607", "9ecb333a09919f1f"},
    "toto.model.toto.Toto.__init__": {"724c5bd8cada4483"},
    "toto.inference.forecaster.TotoForecaster.__init__": {"4b027d045a5dccbf", "24378c8af12acd6c"},
    "toto.model.attention.BaseMultiheadAttention.get_qkv": {"c1f082e7b9bf0b21"},
    "toto.model.attention.BaseMultiheadAttention.rearrange_inputs": {"51b59cfed9256d97"},
    "toto.model.attention.BaseMultiheadAttention.rearrange_output": {"b8910f9e3d548a25"},
    "toto.model.rope.TimeAwareRotaryEmbedding.rotate_queries_and_keys": {"496fe92c6b3b27dc"},
    "toto.model.rope.TimeAwareRotaryEmbedding.get_scale": {"adc27a60e56d43e5"},
    "toto.model.embedding.PatchEmbedding.forward": {"d28d75b1b9be91dc"},
    "toto.model.embedding.PatchEmbedding._patchify": {"fcc26e68690c581a"},
    "toto.model.distribution.MixtureOfStudentTsOutput.forward": {"30828cf3e60ff941"},
    "toto.model.distribution.StudentTOutput.forward": {"8b2d01a5b392dcc2"},
    "toto.model.scaler.StdMeanScaler.__call__": {"98e82f61045027cf"},
    "toto.model.scaler.CausalStdMeanScaler.__call__": {"8bbed413d70ba822"},
    "toto.model.scaler.CausalPatchStdMeanScaler.__call__": {"1dad1f8bdbc00317"},
    "toto.model.scaler.compute_causal_statistics": {"171db326463fcd8d"},
    "toto.inference.forecaster.replace_extreme_values": {"ece579a6cb7a8e17"},
    "toto.inference.forecaster.TotoForecaster.generate_mean": {
        "f92b9399a127aad3",
        "a8d740441d8cf4e1",
    },
    "toto.inference.forecaster.TotoForecaster.generate_samples": {
        "c5bd1146f2c22afa",
        "cd1849d8ceaf30f5",
    },
    "toto.inference.forecaster.TotoForecaster.create_affine_transformed": {"f746236dbc0a9674"},
}


def symbol(owner: Any, attribute: str) -> str:
    """Name an attribute of a class or module the way an import statement would reach it."""
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{attribute}"
    return f"{owner.__name__}.{attribute}"


def untested(owner: Any, attribute: str) -> str | None:
    """Say why the code that now stands at an attribute is not code that was tested, else None.

    An attribute that its owner merely inherits has nothing of its own to compare.
    """
    current = vars(owner).get(attribute, MISSING)
    if current is MISSING:
        return None if hasattr(owner, attribute) else "it does not exist"
    name = f"{current.__module__}.{current.__qualname__}" if isinstance(current, type) else None
    known = _FINGERPRINTS.get(name or symbol(owner, attribute), set())
    if fingerprint(_undecorated(current)) in known:
        return None
    return f"it is {describe(current)}, whose source is not that of {TESTED_VERSIONS}"


_own: list[Any] = []


def know_own(replacement: Any) -> None:
    """Remember a replacement as one of this package's."""
    if not any(replacement is known for known in _own):
        _own.append(replacement)


def unknown(owner: Any, attribute: str) -> str | None:
    """Say why the code at an attribute is neither tested code nor this package's, else None.

    Ours is known by identity: a wrapper that somebody put around it is not ours.
    """
    current = vars(owner).get(attribute, MISSING)
    if any(current is known for known in _own):
        return None
    return untested(owner, attribute)


def _undecorated(current: Any) -> Any:
    """The function in a static method, or that ``torch.no_grad()`` decorates."""
    if type(current) is staticmethod:
        return current.__func__
    if type(current) is FunctionType and current.__code__ is _NO_GRAD.__code__:
        return vars(current)["__wrapped__"]
    return current


def describe(occupant: Any) -> str:
    """Name an object that stands at a patched symbol, with the module that it comes from."""
    # functools.wraps and wrapt make a wrapper claim the module of what it wraps.
    author = getattr(occupant, "_self_wrapper", occupant)
    home = getattr(author, "__globals__", {}).get("__name__") or getattr(
        author, "__module__", type(occupant).__module__
    )
    name = getattr(author, "__qualname__", type(occupant).__qualname__)
    return f"{name} of module {home}"


def distribution() -> str:
    """Name and version of the installed distribution that provides ``toto``."""
    names = importlib.metadata.packages_distributions().get("toto", ["toto"])
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} (version unknown)")
    return ", ".join(found)

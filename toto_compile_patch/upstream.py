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
from toto_compile_patch.tested_code import FINGERPRINTS

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
    (RMSNorm, "forward"),
    (SwiGLU, "forward"),
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
"""One function that ``torch.no_grad()`` decorates; the code of its wrapper tells all of them."""

CONSTRUCTOR_MODULE = backbone
"""The module whose binding of ``KVCache`` is called."""

TESTED_VERSIONS = "toto-ts 0.1.3, 0.1.4 and 0.2.0"


def symbol(owner: Any, attribute: str) -> str:
    """Name an attribute of a class or module the way an import statement would reach it."""
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{attribute}"
    return f"{owner.__name__}.{attribute}"


def why_untested(owner: Any, attribute: str) -> str | None:
    """Say why the code that now stands at an attribute is not code that was tested, else None.

    An attribute that its owner merely inherits has nothing of its own to compare.
    """
    current = vars(owner).get(attribute, MISSING)
    if current is MISSING:
        return None if hasattr(owner, attribute) else "it does not exist"
    name = f"{current.__module__}.{current.__qualname__}" if isinstance(current, type) else None
    known = FINGERPRINTS.get(name or symbol(owner, attribute), set())
    if fingerprint(_undecorated(current)) in known:
        return None
    return f"it is {describe(current)}, whose source is not that of {TESTED_VERSIONS}"


_own: list[Any] = []


def remember_as_own(replacement: Any) -> None:
    """Remember a replacement as one of this package's."""
    if not any(replacement is known for known in _own):
        _own.append(replacement)


def why_unknown(owner: Any, attribute: str) -> str | None:
    """Say why the code at an attribute is neither tested code nor this package's, else None.

    Ours is known by identity: a wrapper that somebody put around it is not ours.
    """
    current = vars(owner).get(attribute, MISSING)
    if any(current is known for known in _own):
        return None
    return why_untested(owner, attribute)


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

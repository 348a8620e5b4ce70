"""Everything that this package knows of the published ``toto`` module; the only room to import it.

Importing this module imports ``toto`` (and with it torch).
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import toto.inference.forecaster as forecaster
import toto.model.attention as attention
import toto.model.backbone as backbone
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
KVCache = util.KVCache

MISSING: Any = object()
"""Stands for an attribute that its owner inherits or lacks."""

KV_CACHE_MODULES = (util, backbone, transformer)
"""The modules that bind the name ``KVCache``: where it is defined, constructed and annotated."""

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
    if fingerprint(current) in known:
        return None
    return f"it is {describe(current)}, whose source is not that of {TESTED_VERSIONS}"


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

"""Whether the parts of a model lie where decoding looks for them."""

from __future__ import annotations

from typing import Any

import torch

from toto_compile_patch.upstream import kind_of

ATTENTIONS = ("TimeWiseMultiheadAttention", "SpaceWiseMultiheadAttention")
_TIME_WISE = ATTENTIONS[0]

_PARAMETERS: dict[type, tuple[str, ...]] = {
    torch.nn.Linear: ("weight", "bias"),
    torch.nn.LayerNorm: ("weight", "bias"),
}
"""What a module's parameters are called, by its kind."""

_PARAMETERS_OF_UPSTREAMS: dict[str, tuple[str, ...]] = {"RMSNorm": ("scale",)}
"""Likewise, for upstream's modules."""


def own_tensor(module: torch.nn.Module) -> str:
    """A weight of a module that is no parameter of it, but a buffer or any tensor; else empty.

    Changes to such a tensor would go unnoticed.
    """
    names = _PARAMETERS.get(type(module)) or _PARAMETERS_OF_UPSTREAMS.get(kind_of(module), ())
    parameters = module._parameters
    for name in names:
        if name not in parameters and getattr(module, name) is not None:
            return name
    return ""


def misplaced(backbone: Any) -> str:
    """What is not where upstream's own constructor puts it; empty where all is.

    Raises:
        AttributeError: something is missing.
    """
    transformer = backbone.transformer
    layers = transformer.layers
    if kind_of(transformer) != "Transformer" or type(layers) is not torch.nn.ModuleList:
        return "the transformer is not upstream's"
    if len(layers) != backbone.num_layers:
        return f"the transformer has {len(layers)} layers, not {backbone.num_layers}"
    if getattr(transformer, "fusion", None) is not getattr(backbone, "fusion", None):
        return "the transformer's fusion is not the model's"
    embedding, output = backbone.patch_embed, backbone.output_distribution
    if kind_of(embedding) != "PatchEmbedding" or type(embedding.projection) is not torch.nn.Linear:
        return "the patch embedding is not upstream's"
    projections = [backbone.unembed, output.df, output.loc_proj, output.scale_proj]
    if kind_of(output) == "MixtureOfStudentTsOutput":
        projections.append(output.mixture_weights)
    if not all(map(_is_whole, projections)):
        return "unembedding or output distribution are not linear layers with a bias each"
    rotary = transformer.rotary_emb
    turned = 2 * rotary.freqs.shape[-1]
    for idx, layer in enumerate(layers):
        if why := _misplaced_in(layer, rotary, turned):
            return f"of transformer.layers.{idx}, {why}"
    return ""


def _misplaced_in(layer: Any, rotary: Any, turned: int) -> str:
    # Looked up where modules keep them, which takes a fraction of the time.
    parts = layer._modules
    attention: Any = parts.get("attention")
    kind = kind_of(attention)
    if kind_of(layer) != "TransformerLayer" or kind not in ATTENTIONS:
        return "layer or attention are not upstream's"
    own = attention._modules
    if not (_is_whole(own.get("wQKV")) and _is_whole(own.get("wO"))):
        return "the attention's projections are not linear layers with a bias each"
    axis = type(attention).attention_axis
    if attention.attention_axis is not axis or layer.attention_axis is not axis:
        return "the attention axis has been changed"
    if kind == _TIME_WISE:
        if own.get("rotary_emb") is not rotary:
            return "the rotary embedding is not the transformer's"
        if turned != attention.head_dim:
            return "the rotary embedding does not turn whole heads"
    for norm in (parts.get("norm1"), parts.get("norm2")):
        if kind_of(norm) == "RMSNorm" and not norm.eps >= 0:
            return "a norm has a negative eps"
    return ""


def _is_whole(linear: Any) -> bool:
    """Whether it is a linear layer with a bias."""
    return type(linear) is torch.nn.Linear and linear._parameters.get("bias") is not None

"""What the decode path knows, and why it does not take the rest."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from toto_compile_patch import upstream
from toto_compile_patch.decode.modules import modules_of, name_of, parameters_of
from toto_compile_patch.decode.request import Request

_SCALERS = (
    upstream.StdMeanScaler,
    upstream.CausalStdMeanScaler,
    upstream.CausalPatchStdMeanScaler,
)
_DISTRIBUTIONS = (upstream.StudentTOutput, upstream.MixtureOfStudentTsOutput)
_MODULES = {
    *_DISTRIBUTIONS,
    upstream.TotoBackbone,
    upstream.Transformer,
    upstream.TransformerLayer,
    upstream.TimeWiseMultiheadAttention,
    upstream.SpaceWiseMultiheadAttention,
    upstream.TimeAwareRotaryEmbedding,
    upstream.PatchEmbedding,
    upstream.RMSNorm,
    upstream.SwiGLU,
    *upstream.ONLY_IN_SOME_VERSIONS,
    torch.nn.Dropout,
    torch.nn.LayerNorm,
    torch.nn.Linear,
    torch.nn.ModuleList,
    torch.nn.Sequential,
}
_linear_forward = torch.nn.Linear.forward


def backbone_of(model: Any) -> Any:
    """See through ``torch.compile(model)``."""
    if isinstance(model, torch._dynamo.OptimizedModule):
        return model._orig_mod
    return model


def why_not(forecaster: Any, backbone: Any, request: Request) -> str | None:
    """Why a forecast has to be upstream's, or None where the decode path knows all about it."""
    return (
        _other_code(forecaster)
        or _other_model(backbone)
        or _other_modules(backbone)
        or _other_weights(backbone, request)
    )


def _other_code(forecaster: Any) -> str | None:
    """Code that the decode path stands in for is not the one that it was written after."""
    if torch.nn.Linear.forward is not _linear_forward:
        return "torch.nn.Linear.forward has been replaced"
    for owner, attribute in upstream.BYPASSED:
        if upstream.unknown(owner, attribute):
            return f"{upstream.symbol(owner, attribute)} has been replaced"
    for attribute in upstream.BYPASSED_METHODS_OF_FORECASTER:
        theirs = getattr(upstream.TotoForecaster, attribute, None)
        if (
            attribute in vars(forecaster)
            or getattr(type(forecaster), attribute, None) is not theirs
        ):
            return f"this forecaster has its own {attribute}"
    return None


def _other_model(backbone: Any) -> str | None:
    if type(backbone) is not upstream.TotoBackbone:
        return f"the model is a {type(backbone).__name__}, not a TotoBackbone"
    if type(backbone.scaler) not in _SCALERS:
        return f"the scaler is a {type(backbone.scaler).__name__}"
    if backbone.scaler.dim != -1 or not getattr(backbone.scaler, "keepdim", True):
        return "the scaler does not scale along the last axis"
    if type(backbone.output_distribution) not in _DISTRIBUTIONS:
        return f"the output distribution is a {type(backbone.output_distribution).__name__}"
    embedding = backbone.patch_embed
    if embedding.patch_size != embedding.stride:
        return "patches overlap"
    if getattr(backbone.scaler, "patch_size", embedding.patch_size) != embedding.patch_size:
        return "the scaler's patches are not the model's"
    rotary = backbone.transformer.rotary_emb
    if not rotary.use_xpos or rotary.interpolate_factor != 1 or rotary.learned_freq:
        return "the rotary embedding is not upstream's"
    return None


def _other_modules(backbone: Any) -> str | None:
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "there are global forward hooks"
    for module in modules_of(backbone):
        kind: type = type(module)
        if kind not in _MODULES and not kind.__module__.startswith("xformers."):
            name = name_of(module, backbone.named_modules())
            return f"{name} is a {kind.__module__}.{kind.__qualname__}"
        if module.training:
            return "the model is in training mode"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name_of(module, backbone.named_modules())} has hooks"
        if not _methods(kind).isdisjoint(vars(module)):
            own = min(_methods(kind) & vars(module).keys())
            return f"{name_of(module, backbone.named_modules())} has its own {own}"
    return None


@cache
def _methods(kind: type) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))


def _other_weights(backbone: Any, request: Request) -> str | None:
    first = backbone.unembed.weight
    for weight in parameters_of(backbone):
        if type(weight) is not torch.nn.Parameter or weight.layout != torch.strided:
            name = name_of(weight, backbone.named_parameters())
            return f"{name} is a {type(weight).__name__}"
        if weight.device != first.device or weight.dtype != first.dtype:
            return "the weights are not all on one device and of one type"
    if first.is_meta or not first.is_floating_point():
        return "the weights are not floating-point numbers"
    inputs = request.inputs
    if inputs.device != first.device or inputs.dtype != first.dtype:
        return f"the series is {inputs.dtype} on {inputs.device}, not as the model"
    if inputs.shape[-1] % backbone.patch_embed.patch_size:
        return "the series is not a whole number of patches"
    return None

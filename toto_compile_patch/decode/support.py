"""What the decode path knows, and why it does not take the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from toto_compile_patch.decode.modules import ModelParts, name_of
from toto_compile_patch.decode.places import ATTENTIONS, misplaced, own_tensor
from toto_compile_patch.decode.request import Request
from toto_compile_patch.private_names import private
from toto_compile_patch.upstream import (
    BYPASSED_METHODS_OF_FORECASTER,
    code_of,
    is_replaced,
    kind_of,
    symbol,
    why_unknown,
)

_SCALERS = ("StdMeanScaler", "CausalStdMeanScaler", "CausalPatchStdMeanScaler")
_DISTRIBUTIONS = ("StudentTOutput", "MixtureOfStudentTsOutput")
_MODULES = {
    *ATTENTIONS,
    *_DISTRIBUTIONS,
    "TotoBackbone",
    "Transformer",
    "TransformerLayer",
    "TimeAwareRotaryEmbedding",
    "PatchEmbedding",
    "RMSNorm",
    "SwiGLU",
    "Fusion",
}
_MODULES_OF_TORCH = {
    torch.nn.Dropout,
    torch.nn.LayerNorm,
    torch.nn.Linear,
    torch.nn.ModuleList,
    torch.nn.Sequential,
}
_FORWARDS = {
    kind: kind.forward for kind in (torch.nn.Dropout, torch.nn.Linear, torch.nn.Sequential)
}
"""Torch's own, in whose place ``decode`` multiplies, or does nothing."""
_CALL = private("torch.nn.Module._wrapped_call_impl")
"""What a module's ``__call__`` is."""
_transforms_are_active = private("torch._C._are_functorch_transforms_active")
_is_tracing = private("torch._C._is_tracing")
_dispatch_mode = private("torch._C._get_dispatch_mode")
_TRACING_MODES = (
    private("torch._C._TorchDispatchModeKey.FAKE"),
    private("torch._C._TorchDispatchModeKey.PROXY"),
)


@dataclass(frozen=True)
class Refusal:
    """Why a forecast has to be upstream's.

    Attributes:
        reason: what the decode path does not know.
        cure: what to do to have it know; empty where that is for nobody to do.
        upstream_decides: upstream may refuse this call as well, in its own words: it is asked
            first, and the reason is said only if it makes the forecast.
    """

    reason: str
    cure: str = ""
    upstream_decides: bool = False


class RefusedError(Exception):
    """The decode path does not take a forecast.

    Attributes:
        refusal: why.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def other_mode() -> Refusal | None:
    """Torch is asked to do more than to compute: to differentiate forwards, or to trace."""
    if _transforms_are_active() or forward_ad._current_level >= 0:
        reason = "a transform of torch.func or a forward-mode derivative is under way"
        return Refusal(reason, "forecast outside of it", upstream_decides=True)
    if _is_tracing() or any(_dispatch_mode(mode) for mode in _TRACING_MODES):
        reason = "torch is tracing, or computes with fake tensors"
        return Refusal(reason, "forecast outside of it", upstream_decides=True)
    return None


def unusual(error: Exception) -> Refusal:
    """An argument that could not be read."""
    what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    cure = "give it the type and shape that upstream documents"
    return Refusal(f"unusual argument: {what}", cure, upstream_decides=True)


def not_finite(error: Exception) -> Refusal:
    """Values that are not numbers, which upstream's distributions mostly refuse."""
    cure = "fill what is NaN or infinite in the series"
    return Refusal(str(error), cure, upstream_decides=True)


def broken_head() -> Refusal:
    """Weights from which no distribution can be made, where upstream checks its parameters."""
    reason = "unembedding or output distribution have weights that are not finite"
    return Refusal(reason, "load weights that are finite", upstream_decides=True)


def weights_that_change() -> Refusal:
    """Weights that another thread changes, again and again, while a GPU forecasts with them."""
    cure = "forecast by a copy of a model that is being trained"
    return Refusal("weights changed during each of several tries", cure)


def known_parts(forecaster: Any, backbone: Any, request: Request) -> ModelParts:
    """What a model consists of, where the decode path knows all about it and about the request.

    Raises:
        RefusedError: it does not: the forecast has to be upstream's.
    """
    _refuse_for(_other_code(forecaster, backbone) or _hooks_of_wrapper(forecaster.model, backbone))
    try:
        _refuse_for(_other_model(backbone))
        parts = ModelParts.of(backbone)
        _refuse_for(_other_modules(backbone, parts.modules) or _other_places(backbone))
    except AttributeError as error:
        reason = f"the model is not as upstream makes it: {error}"
        raise RefusedError(Refusal(reason, upstream_decides=True)) from error
    _refuse_for(_other_weights(backbone, parts.parameters) or _other_request(backbone, request))
    return parts


def _refuse_for(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise RefusedError(refusal)


def _other_code(forecaster: Any, backbone: Any) -> Refusal | None:
    """Code that the decode path stands in for is not the one that it was written after."""
    cure = "take out what replaced it"
    own, others = code_of(forecaster), code_of(backbone)
    codes = {code for code in (own, others) if code}
    for kind, known in _FORWARDS.items():
        if kind.forward is not known:
            return Refusal(f"torch.nn.{kind.__name__}.forward has been replaced", cure)
    for owner, attribute in (place for code in codes for place in code.bypassed):
        if why_unknown(owner, attribute):
            return Refusal(f"{symbol(owner, attribute)} has been replaced", cure)
    for code in codes:
        for owner, attribute, home in code.from_elsewhere:
            if is_replaced(code, owner, attribute, home):
                return Refusal(f"{symbol(owner, attribute)} has been replaced", cure)
    for attribute in BYPASSED_METHODS_OF_FORECASTER:
        theirs = getattr(own and own.TotoForecaster, attribute, None)
        if (
            attribute in vars(forecaster)
            or getattr(type(forecaster), attribute, None) is not theirs
        ):
            return Refusal(
                f"this forecaster has its own {attribute}", "forecast with a plain TotoForecaster"
            )
    return None


def _hooks_of_wrapper(model: Any, backbone: Any) -> Refusal | None:
    """What ``torch.compile(model)`` returns is a module, too, whose hooks act at each call."""
    if model is not backbone and (model._forward_hooks or model._forward_pre_hooks):
        return Refusal("the compiled model has hooks", "remove them before forecasting")
    return None


def _other_model(backbone: Any) -> Refusal | None:
    if kind_of(backbone) != "TotoBackbone":
        return Refusal(f"the model is a {type(backbone).__name__}, not a TotoBackbone")
    if kind_of(backbone.scaler) not in _SCALERS:
        return Refusal(f"the scaler is a {type(backbone.scaler).__name__}, none of upstream's")
    if backbone.scaler.dim != -1 or not getattr(backbone.scaler, "keepdim", True):
        return Refusal("the scaler does not scale along the last axis")
    if kind_of(backbone.output_distribution) not in _DISTRIBUTIONS:
        kind = type(backbone.output_distribution).__name__
        return Refusal(f"the output distribution is a {kind}, none of upstream's")
    embedding = backbone.patch_embed
    if embedding.patch_size != embedding.stride:
        return Refusal("the model's patches overlap")
    if getattr(backbone.scaler, "patch_size", embedding.patch_size) != embedding.patch_size:
        return Refusal("the scaler's patches are not the model's")
    rotary = backbone.transformer.rotary_emb
    if not rotary.use_xpos or rotary.interpolate_factor != 1 or rotary.learned_freq:
        return Refusal("the rotary embedding is not upstream's")
    return None


def _other_modules(backbone: Any, modules: list[torch.nn.Module]) -> Refusal | None:
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return Refusal("there are global forward hooks", "remove them before forecasting")
    for module in modules:
        kind: type = type(module)
        # A module's own attributes, past the ways by which torch looks for others.
        own_attributes = module.__dict__
        known = kind in _MODULES_OF_TORCH or kind_of(module) in _MODULES
        if not known and not kind.__module__.startswith("xformers."):
            what = f"a {kind.__module__}.{kind.__qualname__}, not upstream's module"
            return Refusal(f"{_name_of(module, backbone)} is {what}", _cure_of_a_module(kind))
        if kind.__call__ is not _CALL:
            owner = next(base for base in kind.__mro__ if "__call__" in vars(base))
            return Refusal(f"{symbol(owner, '__call__')} has been replaced", "take that out")
        if name := own_tensor(module):
            reason = f"{name} of {_name_of(module, backbone)} is no torch.nn.Parameter"
            return Refusal(reason, "make it one: its changes are not noticed otherwise")
        if own_attributes["training"] and _drops(module):
            reason = "the model is in training mode, in which its dropout acts"
            return Refusal(reason, "call forecaster.model.eval()")
        if own_attributes["_forward_hooks"] or own_attributes["_forward_pre_hooks"]:
            reason = f"{_name_of(module, backbone)} has hooks"
            return Refusal(reason, "remove them before forecasting")
        if not _methods(kind).isdisjoint(own_attributes):
            own = min(_methods(kind) & own_attributes.keys())
            reason = f"{_name_of(module, backbone)} has its own {own}"
            return Refusal(reason, "delete that attribute: its class's is known")
    return None


def _other_places(backbone: Any) -> Refusal | None:
    reason = misplaced(backbone)
    cure = "build the model by its constructor"
    return Refusal(reason, cure, upstream_decides=True) if reason else None


def _drops(module: Any) -> bool:
    """Whether a module leaves values out at random while it is training.

    Nothing else of upstream's depends on that mode, but for a fused kernel in place of three
    operations.
    """
    if isinstance(module, torch.nn.Dropout):
        return module.p != 0
    return kind_of(module) in ATTENTIONS and bool(module.dropout != 0)


def _cure_of_a_module(kind: type) -> str:
    if kind.__module__.startswith("peft."):
        return "merge the adapter into the model: merge_and_unload()"
    if kind.__module__.startswith("torch.nn.utils.parametrize"):
        return "torch.nn.utils.parametrize.remove_parametrizations() before forecasting"
    return ""


def _name_of(module: torch.nn.Module, backbone: torch.nn.Module) -> str:
    return name_of(module, backbone.named_modules())


@cache
def _methods(kind: type) -> frozenset[str]:
    # To ask a class for its annotations, as for any other name, may leave some in it.
    attributes = [item for base in kind.__mro__ for item in vars(base).items()]
    return frozenset(
        name
        for name, value in attributes
        if callable(value) or isinstance(value, (classmethod, staticmethod))
    )


def _other_weights(backbone: Any, weights: list[torch.nn.Parameter]) -> Refusal | None:
    first = backbone.unembed.weight
    device, dtype = first.device, first.dtype
    for weight in weights:
        if type(weight) is not torch.nn.Parameter or weight.layout is not torch.strided:
            name = name_of(weight, backbone.named_parameters())
            return Refusal(f"{name} is a {type(weight).__name__}, not a dense torch.nn.Parameter")
        if weight.is_neg():
            name = name_of(weight, backbone.named_parameters())
            return Refusal(f"{name} is a view that torch negates when it is read", "clone it")
        if weight.dtype is not dtype or weight.device != device:
            reason = "the weights are not all on one device and of one type"
            return Refusal(reason, "convert them: forecaster.model.to(device, dtype)")
    if first.is_meta or not first.is_floating_point():
        reason = "the weights are not floating-point numbers, or have no values (device meta)"
        return Refusal(reason, "load them as floating-point numbers: Toto.load_from_checkpoint()")
    return None


def _other_request(backbone: Any, request: Request) -> Refusal | None:
    """The series, or what is asked for, does not suit the model: upstream mostly raises."""
    inputs, weight = request.inputs, backbone.unembed.weight
    if inputs.device != weight.device or inputs.dtype != weight.dtype:
        reason = f"the series is {inputs.dtype} on {inputs.device}, not as the model"
        return Refusal(reason, "give it the model's dtype and device", upstream_decides=True)
    if inputs.shape[-1] % backbone.patch_embed.patch_size:
        reason, cure = "the series is not a whole number of patches", "pad it on the left"
        return Refusal(reason, cure, upstream_decides=True)
    if request.use_kv_cache and len(backbone.transformer.layers) < 2:
        reason = "upstream's cache asks for a second layer"
        return Refusal(reason, "forecast with use_kv_cache=False", upstream_decides=True)
    return None

"""A model's weights, made ready for decoding: built once, and again when a weight has changed.

Two things are prepared. The head is folded (see ``head``). On a CPU the linear layers are kept in
oneDNN's packed layout as well, in which a product with few rows is three times as fast as with the
plain weight, and one with many rows a quarter faster. With ``precision="bf16"`` they are kept in
16 bits, wherever they are.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch

from toto_compile_patch.decode.head import fold
from toto_compile_patch.decode.layer import (
    FeedForward,
    FeedForwardInBlocks,
    HeadsProjection,
    Layer,
    Norm,
    OtherModule,
    RootMeanSquare,
    Traceable,
)
from toto_compile_patch.decode.linear import Linear, PackedLinear, PlainLinear
from toto_compile_patch.decode.modules import parameters_of
from toto_compile_patch.decode.precision import BF16, MODEL
from toto_compile_patch.upstream import RMSNorm, SwiGLU, TimeWiseMultiheadAttention

_SAMPLED = 256
"""Elements of each weight that are compared to see whether it has changed."""


@dataclass(frozen=True)
class Layout:
    """How weights are kept.

    Attributes:
        packed: in oneDNN's layout.
        bf16: in 16 bits, though the model has 32.
    """

    packed: bool
    bf16: bool

    @classmethod
    def for_model(cls, backbone: Any, precision: str) -> Layout:
        weight = backbone.unembed.weight
        bf16 = precision == BF16 and weight.dtype is torch.float32
        return cls(_can_be_packed(weight), bf16)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        """A linear layer in this layout."""
        if self.bf16:
            weight, bias = weight.to(torch.bfloat16), bias.to(torch.bfloat16)
        return PackedLinear.of(weight, bias) if self.packed else PlainLinear(weight, bias)


@dataclass(frozen=True)
class Weights:
    """What decoding takes of a model.

    Attributes:
        layers: the transformer's.
        head: unembedding and projections.
        packed: whether they are in oneDNN's layout.
        fingerprint: of the weights that were copied, when they were.
        copied: those weights.
    """

    layers: tuple[Traceable, ...]
    head: Traceable
    packed: bool
    fingerprint: _Fingerprint = field(repr=False)
    copied: Sequence[torch.Tensor] = field(repr=False)

    def changed(self) -> torch.Tensor:
        """Whether a value has changed since, on the model's device."""
        return (_Fingerprint.sample(self.copied) != self.fingerprint.sampled).any()


@dataclass(frozen=True)
class _Fingerprint:
    """What a changed weight would show: its place, its version, some of its values."""

    places: tuple[Any, ...]
    sampled: torch.Tensor

    @classmethod
    def places_of(
        cls, copied: Sequence[torch.Tensor], used: Sequence[torch.Tensor]
    ) -> tuple[Any, ...]:
        """Of weights that were copied, and of those that are used as they stand."""
        return (
            *((w.data_ptr(), _version(w), w.dtype, w.device, w.shape) for w in copied),
            *((w.data_ptr(), w.dtype, w.device) for w in used),
        )

    @classmethod
    def sample(cls, copied: Sequence[torch.Tensor]) -> torch.Tensor:
        def some(weight: torch.Tensor) -> torch.Tensor:
            flat = weight.detach().flatten()
            return flat[:: max(1, flat.numel() // _SAMPLED)]

        sampled = torch.cat([some(weight) for weight in copied])
        # The bytes, in which a NaN is equal to itself: else weights would be prepared for ever.
        return sampled.view(torch.uint8)


def _version(weight: torch.Tensor) -> int | None:
    # An inference tensor has no version to read.
    return None if weight.is_inference() else weight._version


_prepared: WeakKeyDictionary[Any, dict[Layout, Weights]] = WeakKeyDictionary()
_lock = threading.Lock()


def prepared_weights(backbone: Any, precision: str = MODEL) -> Weights:
    """A backbone's present weights, ready for decoding; freed with the backbone.

    Elsewhere than on a CPU, to look at their values is to wait for the device: the caller then asks
    ``changed()``.
    """
    layout = Layout.for_model(backbone, precision)
    copied = [*parameters_of(backbone.unembed), *parameters_of(backbone.output_distribution)]
    used = parameters_of(backbone.transformer.layers)
    if layout.packed or layout.bf16:
        copied += [weight for weight in used if weight.ndim == 2 or layout.bf16]
        used = [weight for weight in used if weight.ndim != 2]
    # Made outside inference mode, whose tensors other threads could not use freely.
    with torch.inference_mode(False), torch.no_grad(), _lock:
        places = _Fingerprint.places_of(copied, used)
        of_this_backbone = _prepared.setdefault(backbone, {})
        found = of_this_backbone.get(layout)
        if found is None or found.fingerprint.places != places:
            found = None
        elif not copied[0].is_cpu or not found.changed():
            return found
        fingerprint = _Fingerprint(places, _Fingerprint.sample(copied))
        of_this_backbone[layout] = Weights(
            tuple(Traceable.of(_layer(layer, layout)) for layer in backbone.transformer.layers),
            Traceable.of(fold(backbone, layout.packed)),
            layout.packed,
            fingerprint,
            copied,
        )
        return of_this_backbone[layout]


def forget(backbone: Any = None) -> None:
    """Prepare a backbone's weights anew at its next forecast; without one, those of all."""
    with _lock:
        if backbone is None:
            _prepared.clear()
        else:
            _prepared.pop(backbone, None)


def _can_be_packed(weight: torch.Tensor) -> bool:
    return bool(
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not torch.is_autocast_enabled("cpu")
    )


def _layer(layer: Any, layout: Layout) -> Layer:
    attention = layer.attention
    feed_forward: FeedForward | FeedForwardInBlocks | OtherModule = OtherModule(layer.mlp)
    if (up_and_down := _native_feed_forward(layer.mlp)) is not None:
        up, down = (layout.linear(part.weight, part.bias) for part in up_and_down)
        on_a_cpu = attention.wO.weight.is_cpu
        feed_forward = FeedForwardInBlocks(up, down) if on_a_cpu else FeedForward(up, down)
    return Layer(
        over_time=isinstance(attention, TimeWiseMultiheadAttention),
        norm1=_norm(layer.norm1),
        project=_projection(attention, layout),
        out=layout.linear(attention.wO.weight, attention.wO.bias),
        norm2=_norm(layer.norm2),
        feed_forward=feed_forward,
    )


def _norm(norm: Any) -> Norm:
    return RootMeanSquare(norm.scale, norm.eps) if type(norm) is RMSNorm else OtherModule(norm)


def _projection(attention: Any, layout: Layout) -> HeadsProjection:
    weights, biases = attention.wQKV.weight.chunk(3), attention.wQKV.bias.chunk(3)
    query, key, value = (layout.linear(w, b) for w, b in zip(weights, biases, strict=True))
    fused = None if layout.packed else layout.linear(attention.wQKV.weight, attention.wQKV.bias)
    return HeadsProjection(query, key, value, fused, attention.head_dim, attention.num_heads)


def _native_feed_forward(mlp: Any) -> tuple[Any, Any] | None:
    """The two linear layers of a feed-forward without xFormers."""
    kinds = [type(part) for part in mlp] if type(mlp) is torch.nn.Sequential else []
    if kinds != [torch.nn.Linear, SwiGLU, torch.nn.Linear, torch.nn.Dropout]:
        return None
    return mlp[0], mlp[2]

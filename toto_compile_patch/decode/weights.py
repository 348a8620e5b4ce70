"""A model's weights, made ready for decoding: built once, and again when a weight has changed.

Two things are prepared. The head is folded (see ``head``). On a CPU the linear layers are kept in
oneDNN's packed layout as well, in which a product with few rows is three times as fast as with the
plain weight, and one with many rows a quarter faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import linear, silu

from toto_compile_patch.decode.head import FoldedHead, fold
from toto_compile_patch.upstream import SwiGLU, TimeWiseMultiheadAttention

Linear = Callable[[torch.Tensor], torch.Tensor]
"""From ``... features`` to ``... features``."""

QUERY, KEY, VALUE = range(3)

ROWS_AT_ONCE = 512
"""Rows that go through a feed-forward together on a CPU, so that they stay in its cache."""

_SAMPLED = 512
"""Elements of each weight that are compared to see whether it has changed."""


@dataclass(frozen=True)
class PlainLinear:
    """Upstream's own weight and bias."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs, self.weight, self.bias)


@dataclass(frozen=True)
class PackedLinear:
    """A copy of the weight in oneDNN's layout, and upstream's own bias."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor) -> PackedLinear:
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.weight, self.bias, "none", [], ""
        )
        return result


@dataclass(frozen=True)
class HeadsProjection:
    """Queries, keys and values of an attention, in upstream's layout of heads.

    Upstream's ``wQKV`` gives ``(qkv head_dim n_heads)``: the heads are the innermost axis.

    Attributes:
        parts: a linear layer each for query, key and value.
        fused: one for all three, where that is faster than one after the other.
        head_dim: features of a head.
        num_heads: heads.
    """

    parts: tuple[Linear, Linear, Linear]
    fused: Linear | None
    head_dim: int
    num_heads: int

    @classmethod
    def of(cls, attention: Any, packed: bool) -> HeadsProjection:
        weights = attention.wQKV.weight.chunk(3)
        biases = attention.wQKV.bias.chunk(3)
        make = PackedLinear.of if packed else PlainLinear
        query, key, value = (make(w, b) for w, b in zip(weights, biases, strict=True))
        fused = None if packed else PlainLinear(attention.wQKV.weight, attention.wQKV.bias)
        return cls((query, key, value), fused, attention.head_dim, attention.num_heads)

    def __call__(self, hidden: torch.Tensor, *wanted: int) -> list[torch.Tensor]:
        """The parts wanted, each ``batch variate n head_dim head``."""
        if self.fused is not None and wanted == (QUERY, KEY, VALUE):
            projected: Sequence[torch.Tensor] = self.fused(hidden).chunk(3, dim=-1)
        else:
            projected = [self.parts[part](hidden) for part in wanted]
        return [part.unflatten(-1, (self.head_dim, self.num_heads)) for part in projected]


@dataclass(frozen=True)
class FeedForward:
    """Upstream's feed-forward: up, a gated linear unit, down."""

    up: Linear
    down: Linear

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if not hidden.is_cpu or hidden.numel() <= ROWS_AT_ONCE * hidden.shape[-1]:
            return self._rows(hidden)
        rows = hidden.flatten(0, -2).split(ROWS_AT_ONCE)
        return torch.cat([self._rows(block) for block in rows]).view(hidden.shape)

    def _rows(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, value = self.up(hidden).chunk(2, dim=-1)
        return self.down(silu(gate).mul_(value))


@dataclass(frozen=True)
class Layer:
    """One layer of the transformer."""

    over_time: bool
    norm1: Linear
    norm2: Linear
    project: HeadsProjection
    out: Linear
    feed_forward: Linear

    @classmethod
    def of(cls, layer: Any, packed: bool) -> Layer:
        make = PackedLinear.of if packed else PlainLinear
        attention = layer.attention
        feed_forward = layer.mlp
        if (up_and_down := _native_feed_forward(layer.mlp)) is not None:
            up, down = (make(part.weight, part.bias) for part in up_and_down)
            feed_forward = FeedForward(up, down)
        return cls(
            over_time=isinstance(attention, TimeWiseMultiheadAttention),
            norm1=layer.norm1,
            norm2=layer.norm2,
            project=HeadsProjection.of(attention, packed),
            out=make(attention.wO.weight, attention.wO.bias),
            feed_forward=feed_forward,
        )


@dataclass(frozen=True)
class Weights:
    """What decoding takes of a model."""

    layers: tuple[Layer, ...]
    head: FoldedHead


@dataclass(frozen=True)
class _Fingerprint:
    """What a changed weight would show: its place, its version, some of its values."""

    places: tuple[Any, ...]
    sampled: torch.Tensor

    @classmethod
    def of(cls, copied: list[torch.Tensor], used: list[torch.Tensor]) -> _Fingerprint:
        """Of weights that were copied, and of those that are used as they stand."""

        def some(weight: torch.Tensor) -> torch.Tensor:
            flat = weight.detach().flatten()
            return flat[:: max(1, flat.numel() // _SAMPLED)]

        places = (
            *((w.data_ptr(), _version(w), w.dtype, w.device, w.shape) for w in copied),
            *((w.data_ptr(), w.dtype, w.device) for w in used),
        )
        return cls(places, torch.cat([some(weight) for weight in copied]))

    def matches(self, other: _Fingerprint) -> bool:
        return self.places == other.places and torch.equal(self.sampled, other.sampled)


def _version(weight: torch.Tensor) -> int | None:
    # An inference tensor has no version to read.
    return None if weight.is_inference() else weight._version


_prepared: WeakKeyDictionary[Any, dict[bool, tuple[_Fingerprint, Weights]]] = WeakKeyDictionary()
_lock = threading.Lock()


def prepared_weights(backbone: Any) -> Weights:
    """A backbone's present weights, ready for decoding; freed with the backbone."""
    packed = _can_be_packed(backbone)
    copied = [*backbone.unembed.parameters(), *backbone.output_distribution.parameters()]
    layers = list(backbone.transformer.layers.parameters())
    if packed:
        copied += [weight for weight in layers if weight.ndim == 2]
        layers = [weight for weight in layers if weight.ndim != 2]
    # Made outside inference mode, whose tensors other threads could not use freely.
    with torch.inference_mode(False), torch.no_grad(), _lock:
        now = _Fingerprint.of(copied, layers)
        of_this_backbone = _prepared.setdefault(backbone, {})
        found = of_this_backbone.get(packed)
        if found is None or not found[0].matches(now):
            transformer = backbone.transformer
            ready = Weights(
                tuple(Layer.of(layer, packed) for layer in transformer.layers), fold(backbone)
            )
            found = of_this_backbone[packed] = now, ready
        return found[1]


def forget(backbone: Any = None) -> None:
    """Prepare a backbone's weights anew at its next forecast; without one, those of all."""
    with _lock:
        if backbone is None:
            _prepared.clear()
        else:
            _prepared.pop(backbone, None)


def _can_be_packed(backbone: Any) -> bool:
    weight = backbone.unembed.weight
    return bool(
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not torch.is_autocast_enabled("cpu")
    )


def _native_feed_forward(mlp: Any) -> tuple[Any, Any] | None:
    """The two linear layers of a feed-forward without xFormers."""
    kinds = [type(part) for part in mlp] if type(mlp) is torch.nn.Sequential else []
    if kinds != [torch.nn.Linear, SwiGLU, torch.nn.Linear, torch.nn.Dropout]:
        return None
    return mlp[0], mlp[2]

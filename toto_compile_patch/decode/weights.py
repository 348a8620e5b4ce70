"""A model's weights, made ready for decoding: built once, and again when a weight has changed.

Two things are prepared. The head is folded (see ``head``). On a CPU the linear layers are kept in
oneDNN's packed layout as well, in which a product with few rows is three times as fast as with the
plain weight, and one with many rows a quarter faster. With ``precision="bf16"`` they are kept in
16 bits, wherever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch

from toto_compile_patch.decode.head import fold
from toto_compile_patch.decode.layer import (
    FeedForward,
    FeedForwardInBlocks,
    HeadsProjection,
    KeysAndValuesAlone,
    Layer,
    Norm,
    OtherModule,
    RootMeanSquare,
    Traceable,
)
from toto_compile_patch.decode.linear import Linear, PackedLinear, PlainLinear
from toto_compile_patch.decode.modules import parameters_of
from toto_compile_patch.decode.noticing import Noted
from toto_compile_patch.decode.precision import BF16, MODEL
from toto_compile_patch.locks import Lock
from toto_compile_patch.upstream import RMSNorm, SwiGLU, TimeWiseMultiheadAttention


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
        identities: of the weights that were copied and of those that are used as they stand.
        noted: the bits of those that were copied.
    """

    layers: tuple[Traceable, ...]
    head: Traceable
    packed: bool
    identities: tuple[Any, ...] = field(repr=False)
    noted: Noted = field(repr=False)


def _identities(copied: Sequence[torch.Tensor], used: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """What tells of another weight, or of one that torch changed, without reading its values."""
    return (
        *((w.data_ptr(), _version(w), w.dtype, w.device, w.shape, w.stride()) for w in copied),
        *((w.data_ptr(), w.dtype, w.device) for w in used),
    )


def _version(weight: torch.Tensor) -> int | None:
    # An inference tensor has no version to read.
    return None if weight.is_inference() else weight._version


class _OfAModel:
    """The prepared weights of one model, by layout, and the lock under which they are prepared."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.by_layout: dict[Layout, Weights] = {}


_prepared: WeakKeyDictionary[Any, _OfAModel] = WeakKeyDictionary()


def prepared_weights(
    backbone: Any, precision: str = MODEL, time_steps: int | None = None
) -> Weights:
    """A backbone's present weights, ready for decoding; freed with the backbone.

    Elsewhere than on a CPU, to look at their values is to wait for the device: the caller then asks
    ``noted.changed()``.

    Args:
        backbone: the model.
        precision: of its products, the name of a Precision.
        time_steps: how many of a patch are wanted, if not all.
    """
    layout = Layout.for_model(backbone, precision)
    used = parameters_of(backbone.transformer.layers)
    copied: list[torch.nn.Parameter] = []
    if layout.packed or layout.bf16:
        copied += [weight for weight in used if weight.ndim == 2 or layout.bf16]
        used = [weight for weight in used if weight.ndim != 2]
    copied += [*parameters_of(backbone.output_distribution), backbone.unembed.bias]
    # The last one, whose rows are the time steps of a patch.
    copied.append(backbone.unembed.weight)
    of_this_model = _prepared.get(backbone) or _prepared.setdefault(backbone, _OfAModel())
    # Made outside inference mode, whose tensors other threads could not use freely.
    with torch.inference_mode(False), torch.no_grad(), of_this_model.lock.held:
        identities = _identities(copied, used)
        found = of_this_model.by_layout.get(layout)
        if (
            found is not None
            and found.identities == identities
            and not (copied[0].is_cpu and found.noted.changed(time_steps))
        ):
            return found
        # Noted before they are read: a change that comes in between is seen later.
        noted = Noted.of(copied)
        made = of_this_model.by_layout[layout] = Weights(
            _layers(backbone.transformer.layers, layout),
            Traceable.of(fold(backbone, layout.packed)),
            layout.packed,
            identities,
            noted,
        )
        return made


def forget(backbone: Any = None) -> None:
    """Prepare a backbone's weights anew at its next forecast; without one, those of all."""
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


def _layers(layers: Sequence[Any], layout: Layout) -> tuple[Traceable, ...]:
    """Prepare a transformer's layers.

    Of the last layer over time most positions need keys and values alone, and of a layer over
    variates a single variate needs values alone (see ``transformer``).
    """
    over_time = [isinstance(layer.attention, TimeWiseMultiheadAttention) for layer in layers]
    last = max((idx for idx, is_over_time in enumerate(over_time) if is_over_time), default=-1)
    return tuple(
        Traceable.of(_layer(layer, layout, alone=idx == last or not over_time[idx]))
        for idx, layer in enumerate(layers)
    )


def _layer(layer: Any, layout: Layout, *, alone: bool) -> Layer:
    attention = layer.attention
    project = HeadsProjection(
        layout.linear(attention.wQKV.weight, attention.wQKV.bias),
        attention.head_dim,
        attention.num_heads,
    )
    feed_forward: FeedForward | FeedForwardInBlocks | OtherModule = OtherModule(layer.mlp)
    if (up_and_down := _native_feed_forward(layer.mlp)) is not None:
        up, down = (layout.linear(part.weight, part.bias) for part in up_and_down)
        on_a_cpu = attention.wO.weight.is_cpu
        feed_forward = FeedForwardInBlocks(up, down) if on_a_cpu else FeedForward(up, down)
    return Layer(
        over_time=isinstance(attention, TimeWiseMultiheadAttention),
        norm1=_norm(layer.norm1, attention.wO.weight),
        project=project,
        out=layout.linear(attention.wO.weight, attention.wO.bias),
        norm2=_norm(layer.norm2, attention.wO.weight),
        feed_forward=feed_forward,
        alone=_alone(attention, project, layout) if alone else None,
    )


def _norm(norm: Any, like: torch.Tensor) -> Norm:
    if type(norm) is not RMSNorm:
        return OtherModule(norm)
    return RootMeanSquare.of(norm.scale, norm.eps, like)


def _alone(attention: Any, project: HeadsProjection, layout: Layout) -> KeysAndValuesAlone:
    """The last two thirds of a projection: of its memory, but where oneDNN's layout is a copy."""
    if isinstance(project.linear, PlainLinear):
        weight, bias = project.linear
        make: Callable[..., Linear] = PlainLinear
    else:
        weight, bias = attention.wQKV.weight, attention.wQKV.bias
        make = layout.linear
    thirds = zip(weight.chunk(3)[1:], bias.chunk(3)[1:], strict=True)
    return KeysAndValuesAlone(*(make(*third) for third in thirds))


def _native_feed_forward(mlp: Any) -> tuple[Any, Any] | None:
    """The two linear layers of a feed-forward without xFormers."""
    kinds = [type(part) for part in mlp] if type(mlp) is torch.nn.Sequential else []
    if kinds != [torch.nn.Linear, SwiGLU, torch.nn.Linear, torch.nn.Dropout]:
        return None
    return mlp[0], mlp[2]

"""A model's weights, made ready for decoding: built once, and again when a weight has changed.

Two things are prepared. The head is folded (see ``head``). On a CPU the linear layers are kept in
oneDNN's packed format as well, in which a product with few rows is three times as fast as with the
plain weight, and one with many rows a quarter faster. With ``precision="bf16"`` they are kept in
16 bits, wherever they are.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch

from toto_compile_patch.decode.head import fold
from toto_compile_patch.decode.layer import (
    AnyFeedForward,
    ChunkedFeedForward,
    FeedForward,
    FusedFeedForward,
    FusedHeadProjection,
    FusedRMSNorm,
    HeadProjection,
    KeysAndValuesAlone,
    Layer,
    Norm,
    Projection,
    RMSNorm,
    Traceable,
    UnchangedModule,
)
from toto_compile_patch.decode.linear import (
    Gated,
    GatedLinear,
    GpuLinear,
    Linear,
    PackedGatedLinear,
    PackedLinear,
    PlainLinear,
    ThreePassLinear,
)
from toto_compile_patch.decode.modules import ModelParts
from toto_compile_patch.decode.noticing import Noted
from toto_compile_patch.decode.precision import BF16, MODEL, TF32X3, has_fast_tf32
from toto_compile_patch.decode.recorder import capturing
from toto_compile_patch.locks import Lock
from toto_compile_patch.notices import log_once
from toto_compile_patch.private_names import PACKED, SLOW_BF16, private, why_without
from toto_compile_patch.upstream import kind_of


@dataclass(frozen=True)
class WeightFormat:
    """How weights are kept.

    Attributes:
        packed: in oneDNN's format.
        bf16: in 16 bits, though the model has 32.
        three_passes: as they are, and multiplied in three passes.
    """

    packed: bool
    bf16: bool
    three_passes: bool = False

    @classmethod
    def of(cls, weight: torch.Tensor, precision: str) -> WeightFormat:
        """The format for a model with weights like one of them."""
        bf16 = precision == BF16 and weight.dtype is torch.float32
        three_passes = precision == TF32X3 and weight.is_cuda and has_fast_tf32(weight.device)
        return cls(can_be_packed(weight, bf16), bf16, three_passes)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        """A linear layer in this format."""
        return self._linear(self._plain(weight, bias))

    def gated(self, weight: torch.Tensor, bias: torch.Tensor) -> Gated:
        """A linear layer and the gated unit of what it gives, in this format."""
        plain = self._plain(weight, bias)
        if self.packed and has_units_within_products(plain.weight.dtype):
            return PackedGatedLinear.of(*plain)
        return GatedLinear(self._linear(plain))

    def heads(
        self, weight: torch.Tensor, bias: torch.Tensor, head_dim: int, num_heads: int
    ) -> Projection:
        """Queries, keys and values, or some of them, in this format."""
        projection = self._heads(self._plain(weight, bias), head_dim, num_heads)
        return FusedHeadProjection(projection) if weight.is_cuda else projection

    def _heads(self, plain: PlainLinear, head_dim: int, num_heads: int) -> HeadProjection:
        if not (self.packed or self.bf16):
            return HeadProjection(self._where_it_is(plain), head_dim, num_heads, heads_first=False)
        kinds = plain.bias.shape[0] // (head_dim * num_heads)
        ordered = PlainLinear(
            *(
                part.unflatten(0, (kinds, head_dim, num_heads)).transpose(1, 2).flatten(0, 2)
                for part in plain
            )
        )
        linear = PackedLinear.of(*ordered, original=plain) if self.packed else ordered
        return HeadProjection(linear, head_dim, num_heads, heads_first=True)

    def _plain(self, weight: torch.Tensor, bias: torch.Tensor) -> PlainLinear:
        if self.bf16:
            weight, bias = weight.to(torch.bfloat16), bias.to(torch.bfloat16)
        return PlainLinear(weight, bias)

    def _linear(self, plain: PlainLinear) -> Linear:
        return PackedLinear.of(*plain) if self.packed else self._where_it_is(plain)

    def _where_it_is(self, plain: PlainLinear) -> PlainLinear | GpuLinear | ThreePassLinear:
        if self.three_passes:
            return ThreePassLinear(*plain)
        return GpuLinear(*plain) if plain.weight.is_cuda else plain


class ModelSettings(NamedTuple):
    """Sizes and constants of a model that decoding reads beside its weights.

    Attributes:
        patch_size: time steps of a patch.
        embed_dim: features of a hidden state.
        mlp_hidden_dim: features within a feed-forward.
        components: of the mixture; 1 without one.
        heads: of each layer, the features of a head and the number of heads.
        norms: of each layer, the ``eps`` of its two norms; None where one has none.
    """

    patch_size: int
    embed_dim: int
    mlp_hidden_dim: int
    components: int
    heads: tuple[tuple[int, int], ...]
    norms: tuple[tuple[float | None, float | None], ...]

    @classmethod
    def of(cls, backbone: Any) -> ModelSettings:
        """Those of upstream's model, as they are now."""
        layers = list(backbone.transformer.layers)
        attentions = [layer.attention for layer in layers]
        return cls(
            backbone.patch_embed.patch_size,
            backbone.embed_dim,
            layers[0].mlp_hidden_dim,
            getattr(backbone.output_distribution, "k_components", 1),
            tuple((attention.head_dim, attention.num_heads) for attention in attentions),
            tuple(
                (getattr(layer.norm1, "eps", None), getattr(layer.norm2, "eps", None))
                for layer in layers
            ),
        )


class Identity(NamedTuple):
    """What tells of other tensors, or of a weight that torch changed, by no value.

    Attributes:
        dtype: of a model's parameters.
        device: theirs.
        pointers: to the memory of its parameters and buffers.
        copied: version, shape and strides of each weight that is not read where it is.
        children: of each of its modules, by their names: what a layer is made of. References that
            keep nothing alive, since a module may lead back to its model.
    """

    dtype: torch.dtype
    device: torch.device
    pointers: list[int]
    copied: list[tuple[int | None, torch.Size, tuple[int, ...]]]
    children: list[list[tuple[str, ReferenceType[torch.nn.Module] | None]]]

    @classmethod
    def of(cls, parts: ModelParts, copied: Sequence[torch.Tensor]) -> Identity:
        """That of a model of which some weights are copied."""
        first = parts.parameters[0]
        return cls(
            first.dtype,
            first.device,
            _pointers((*parts.parameters, *parts.buffers)),
            [(_version(w), w.shape, w.stride()) for w in copied],
            [_children(module) for module in parts.modules if module._modules],
        )


def _pointers(tensors: Iterable[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors if tensor.layout is torch.strided]


def _children(
    module: torch.nn.Module,
) -> list[tuple[str, ReferenceType[torch.nn.Module] | None]]:
    children = module._modules.items()
    return [(name, None if child is None else ref(child)) for name, child in children]


def _version(weight: torch.Tensor) -> int | None:
    # An inference tensor has no version to read.
    return None if weight.is_inference() else weight._version


@dataclass(frozen=True)
class Weights:
    """What decoding takes of a model.

    Attributes:
        layers: the transformer's.
        head: unembedding and projections.
        packed: whether they are in oneDNN's format.
        settings: the model's sizes and constants.
        identity: of its parameters and buffers: if it differs, or the settings do, the weights are
            prepared anew.
        noted: the bits of those that were copied.
        held: the model's parameters and buffers, so that none is freed which a CUDA graph reads.
        head_is_finite: whether the head holds no NaN and no infinite number; True where it cannot
            be asked. Upstream looks at all parameters of its distribution.
        number: tells them from any that were prepared before or after.
    """

    layers: tuple[Traceable, ...]
    head: Traceable
    packed: bool
    settings: ModelSettings
    identity: Identity = field(repr=False)
    noted: Noted = field(repr=False)
    held: tuple[torch.Tensor, ...] = field(repr=False)
    head_is_finite: bool
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def attend_over_time(self) -> bool:
        """Whether any layer carries what is at one position to later ones."""
        return any(layer.real.over_time for layer in self.layers)

    def have_moved(self) -> bool:
        """Whether a tensor that was the model's has given up the memory that it had.

        As long as it has not, its memory is not freed, even if the model has another one now.
        """
        return _pointers(self.held) != self.identity.pointers


_supports_bf16 = private("torch.ops.mkldnn._is_mkldnn_bf16_supported")
"""Asks whether this CPU has the instructions that oneDNN multiplies bfloat16 with."""

_is_made_by_acl = private("torch.ops.mkldnn._is_mkldnn_acl_supported")
"""Asks whether oneDNN has products made by Arm's Compute Library."""

_has_amx = private("torch.cpu._is_amx_tile_supported")
_has_avx512_bf16 = private("torch.cpu._is_avx512_bf16_supported")
"""Ask whether this CPU has instructions that multiply bfloat16."""

_modes_on_the_stack = private("torch._C._len_torch_dispatch_stack")
"""How many modes of ``torch.utils._python_dispatch`` are in force in this thread."""

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


class _OfAModel:
    """The prepared weights of one model, by format, and the lock under which they are prepared."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.by_format: dict[WeightFormat, Weights] = {}


_prepared: WeakKeyDictionary[Any, _OfAModel] = WeakKeyDictionary()


def prepared_weights(
    backbone: Any,
    precision: str = MODEL,
    time_steps: int | None = None,
    parts: ModelParts | None = None,
) -> Weights:
    """A backbone's present weights, ready for decoding; freed with the backbone.

    Elsewhere than on a CPU, to look at their values is to wait for the device: there the forecast
    itself asks ``noted.changed()``.

    Args:
        backbone: the model.
        precision: of its products, the name of a Precision.
        time_steps: how many of a patch are wanted, if not all.
        parts: of the backbone, where they are known.
    """
    parts = parts or ModelParts.of(backbone)
    weight_format = WeightFormat.of(backbone.unembed.weight, precision)
    copied: list[torch.nn.Parameter] = []
    if weight_format.packed or weight_format.bf16:
        # Their elements are put in another order; other biases are used as they are in 32 bits.
        ordered = {layer.attention.wQKV.bias for layer in backbone.transformer.layers}
        of_layers = ModelParts.of(backbone.transformer.layers).parameters
        copied += [w for w in of_layers if w.ndim == 2 or w in ordered or weight_format.bf16]
    of_output = ModelParts.of(backbone.output_distribution).parameters
    copied += [*of_output, backbone.unembed.bias]
    # The last one, whose rows are the time steps of a patch.
    copied.append(backbone.unembed.weight)
    of_this_model = _prepared.get(backbone) or _prepared.setdefault(backbone, _OfAModel())
    # Made outside inference mode, whose tensors other threads could not use freely.
    with torch.inference_mode(False), torch.no_grad(), of_this_model.lock.held:
        settings, identity = ModelSettings.of(backbone), Identity.of(parts, copied)
        # A graph of the user's outlives what was prepared before, and is to follow the weights: in
        # a capture they are prepared anew, as a part of what is captured. What is made under a mode
        # of the user's, which may change all numbers, ends with it.
        in_a_capture = capturing()
        kept = not in_a_capture and not _modes_on_the_stack()
        found = None if in_a_capture else of_this_model.by_format.get(weight_format)
        if (
            found is not None
            and found.settings == settings
            and found.identity == identity
            and not (copied[0].is_cpu and found.noted.changed(time_steps))
        ):
            return found
        if remark := _gains_nothing(weight_format, precision, copied[0].device):
            log_once(f"precision={precision!r} {remark}")
        # What was prepared of a model before it was moved or converted holds its earlier weights.
        for other, older in list(of_this_model.by_format.items()):
            if kept and older.identity.pointers != identity.pointers:
                del of_this_model.by_format[other]
        # Noted before they are read: a change that comes in between is seen later.
        noted = Noted.nothing(copied[0].device) if in_a_capture else Noted.of(copied)
        head = fold(backbone, weight_format.packed)
        made = Weights(
            _layers(backbone.transformer.layers, weight_format),
            Traceable.of(head),
            weight_format.packed,
            settings,
            identity,
            noted,
            (*parts.parameters, *parts.buffers),
            in_a_capture or head.is_finite(),
        )
        if kept:
            if copied[0].is_cuda:
                # Whoever finds them may be on another stream than this thread.
                torch.cuda.current_stream(copied[0].device).synchronize()
            of_this_model.by_format[weight_format] = made
        return made


def forget(backbone: Any = None) -> None:
    """Prepare a backbone's weights anew at its next forecast; without one, those of all."""
    if backbone is None:
        _prepared.clear()
    else:
        _prepared.pop(backbone, None)


def can_be_packed(weight: torch.Tensor, bf16: bool = False) -> bool:
    """Whether oneDNN packs a model's weights, or its copies of them in 16 bits, on this CPU."""
    in_16_bits = bf16 or weight.dtype == torch.bfloat16
    return bool(
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not why_without(PACKED)
        # Elsewhere oneDNN's own code may be the reference, and torch's BLAS many times faster.
        and (_IS_X86 or _is_made_by_acl())
        and (not in_16_bits or _supports_bf16())
        and not torch.is_autocast_enabled("cpu")
    )


def _gains_nothing(weight_format: WeightFormat, precision: str, device: torch.device) -> str:
    """What to say of a precision that is of no use on a device; else empty."""
    measured = "`toto-compile-patch doctor` measures both"
    if weight_format.bf16 and device.type == "cpu" and is_slow_in_16_bits():
        missing = "which has neither AMX nor AVX512-BF16"
        return f"is slower than float32 on this processor, {missing}: {measured}"
    if device.type != "cuda":
        return ""
    if weight_format.bf16 and torch.cuda.get_device_capability(device) < (8, 0):
        missing = "whose tensor cores do not know bfloat16"
        return f"may be slower than float32 on this GPU, {missing}: {measured}"
    if precision == TF32X3 and not weight_format.three_passes:
        why = "three products in TF32 would take longer on this GPU than one in float32"
        return f"multiplies as precision={MODEL!r} does: {why}"
    return ""


def is_slow_in_16_bits() -> bool:
    """Whether this CPU is known to multiply bfloat16 more slowly than float32."""
    if not _IS_X86 or why_without(SLOW_BF16):
        return False
    return not (_has_amx() or _has_avx512_bf16())


def has_units_within_products(dtype: torch.dtype) -> bool:
    """Whether gated units are made within oneDNN's packed products, and not after them.

    In 16 bits, of sums that were not rounded yet, and in fewer passes over memory. In 32 bits that
    gains nothing with AVX512, and costs 2 to 4 percent with AVX2, 16 with a single row.

    On ARM, oneDNN has products made by Arm's Compute Library, which knows no SiLU and no factor:
    where one is wanted, it makes the product, too, by its reference code, a hundred times slower.
    """
    return dtype is torch.bfloat16 and not _is_made_by_acl()


def _layers(layers: Sequence[Any], weight_format: WeightFormat) -> tuple[Traceable, ...]:
    """Prepare a transformer's layers.

    Of the last layer over time most positions need keys and values alone, and of a layer over
    variates a single variate needs values alone (see ``transformer``).
    """
    over_time = [_is_over_time(layer) for layer in layers]
    last = max((idx for idx, is_over_time in enumerate(over_time) if is_over_time), default=-1)
    return tuple(
        Traceable.of(_layer(layer, weight_format, alone=idx == last or not over_time[idx]))
        for idx, layer in enumerate(layers)
    )


def _layer(layer: Any, weight_format: WeightFormat, *, alone: bool) -> Layer:
    attention = layer.attention
    heads = attention.head_dim, attention.num_heads
    project = weight_format.heads(attention.wQKV.weight, attention.wQKV.bias, *heads)
    feed_forward: AnyFeedForward = UnchangedModule(layer.mlp)
    if (up_and_down := _up_and_down(layer.mlp)) is not None:
        feed_forward = _feed_forward(*up_and_down, weight_format)
    return Layer(
        over_time=_is_over_time(layer),
        norm1=_norm(layer.norm1, attention.wO.weight),
        project=project,
        out=weight_format.linear(attention.wO.weight, attention.wO.bias),
        norm2=_norm(layer.norm2, attention.wO.weight),
        feed_forward=feed_forward,
        alone=_alone(attention, project, weight_format) if alone else None,
    )


def _feed_forward(up: Any, down: Any, weight_format: WeightFormat) -> AnyFeedForward:
    gated = weight_format.gated(up.weight, up.bias)
    linear = weight_format.linear(down.weight, down.bias)
    if isinstance(linear, (GpuLinear, ThreePassLinear)) and isinstance(gated, GatedLinear):
        return FusedFeedForward(gated, linear)
    if isinstance(linear, (PlainLinear, PackedLinear)) and down.weight.is_cpu:
        return ChunkedFeedForward(gated, linear)
    return FeedForward(gated, linear)


def _is_over_time(layer: Any) -> bool:
    return kind_of(layer.attention) == "TimeWiseMultiheadAttention"


def _norm(norm: Any, like: torch.Tensor) -> Norm:
    if kind_of(norm) != "RMSNorm":
        return UnchangedModule(norm)
    formula = RMSNorm.of(norm.scale, norm.eps, like)
    return FusedRMSNorm(formula, norm.eps) if like.is_cuda else formula


def _alone(attention: Any, project: Projection, weight_format: WeightFormat) -> KeysAndValuesAlone:
    """The last two thirds of a projection: of its memory, but where oneDNN's format is a copy."""
    if isinstance(project.linear, (PlainLinear, GpuLinear, ThreePassLinear)):
        plain = PlainLinear(project.linear.weight, project.linear.bias)
        thirds = (type(project.linear)(*third) for third in _thirds(plain))
        return KeysAndValuesAlone(*(project.of_linear(third) for third in thirds))
    plain = PlainLinear(attention.wQKV.weight, attention.wQKV.bias)
    heads = project.head_dim, project.num_heads
    return KeysAndValuesAlone(*(weight_format.heads(*third, *heads) for third in _thirds(plain)))


def _thirds(queries_keys_values: PlainLinear) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of the keys, and of the values."""
    # Torch swaps no parameter with another tensor that is known to have views.
    weight, bias = (part.detach() for part in queries_keys_values)
    return zip(weight.chunk(3)[1:], bias.chunk(3)[1:], strict=True)


def _up_and_down(mlp: Any) -> tuple[Any, Any] | None:
    """The two linear layers of a feed-forward of upstream's, by torch's modules or xFormers'."""
    if type(mlp) is not torch.nn.Sequential or not mlp or type(mlp[-1]) is not torch.nn.Dropout:
        return None
    parts = list(mlp)[:-1]
    if len(parts) == 1 and _is_xformers_swiglu(parts[0]):
        up, down = parts[0].w12, parts[0].w3
    elif len(parts) == 3 and kind_of(parts[1]) == "SwiGLU":
        up, _, down = parts
    else:
        return None
    linear = all(type(part) is torch.nn.Linear and part.bias is not None for part in (up, down))
    return (up, down) if linear else None


def _is_xformers_swiglu(module: Any) -> bool:
    """Whether it is xFormers', which keeps the gate and the value in one weight, gate first."""
    kind = type(module)
    theirs = kind.__name__ == "SwiGLU" and kind.__module__.startswith("xformers.")
    return theirs and getattr(module, "w12", None) is not None

"""What one forecast is asked for: the arguments of ``TotoForecaster``, checked and typed.

What upstream does not accept, or only by chance, is refused here, so that upstream's code can say
of it what it always said. Only types, shapes and devices are looked at: no number on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from numbers import Integral
from typing import Any, NamedTuple

import torch

_NUMBERS = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}
"""What adds up, multiplies and compares with one another; torch's other types do not."""


class TensorShape(NamedTuple):
    """What is known of a tensor without its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorShape:
        """That of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


class RequestShape(NamedTuple):
    """A Request, field by field, without the values of its tensors."""

    inputs: TensorShape
    padding_mask: TensorShape
    id_mask: TensorShape | None
    horizon: int
    num_samples: int | None
    samples_per_batch: int
    use_kv_cache: bool
    future_exogenous: TensorShape | None
    num_exogenous: int


@dataclass(frozen=True)
class Request:
    """One call of ``generate_mean`` or ``generate_samples``.

    Attributes:
        inputs: the context, ``batch variate time_steps``, a whole number of patches.
        padding_mask: 1 or True where a value counts, ``batch #variate time_steps``.
        id_mask: groups of variates, ``batch #variate time_steps``; None: all are one group.
        horizon: time steps to forecast.
        num_samples: None for a mean forecast.
        samples_per_batch: the samples that upstream would decode at once.
        use_kv_cache: whether upstream would decode with a cache: its positions are centred
            differently then (see ``rotary.rotation``).
        future_exogenous: known future values of the last variates, ``batch exogenous horizon``.
        num_exogenous: how many of the last variates are exogenous; 0 where that is of no
            consequence.
    """

    inputs: torch.Tensor
    padding_mask: torch.Tensor
    id_mask: torch.Tensor | None
    horizon: int
    num_samples: int | None
    samples_per_batch: int
    use_kv_cache: bool
    future_exogenous: torch.Tensor | None
    num_exogenous: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any], *, labelled: bool = False) -> Request:
        """Read upstream's arguments, by upstream's names.

        Args:
            arguments: of ``generate_samples``, if the number of samples is among them, else of
                ``generate_mean``.
            labelled: whether the model tells exogenous variates from others by a label.

        Raises:
            ValueError: a type or a value that upstream would not, or only by chance, accept.
        """
        inputs = arguments["inputs"]
        _expect(_is_tensor(inputs) and inputs.ndim == 3, "inputs")
        batch, variates, length = inputs.shape
        _expect(min(batch, variates, length) > 0, "inputs")
        padding_mask = arguments.get("input_padding_mask")
        if padding_mask is None:
            padding_mask = torch.ones(1, dtype=torch.bool, device=inputs.device).expand_as(inputs)
        id_mask = arguments.get("id_mask")
        for name, mask in (("input_padding_mask", padding_mask), ("id_mask", id_mask)):
            _expect(mask is None or _masks(mask, inputs), name)
        future = arguments.get("future_exogenous_variables")
        num_exogenous = 0
        if labelled or future is not None:
            num_exogenous = _whole(arguments, "num_exogenous_variables", 0)
        use_kv_cache = arguments.get("use_kv_cache", False)
        _expect(not isinstance(use_kv_cache, torch.Tensor), "use_kv_cache")
        request = cls(
            inputs=inputs,
            padding_mask=padding_mask,
            id_mask=id_mask,
            horizon=_whole(arguments, "prediction_length"),
            num_samples=_whole(arguments, "num_samples") if "num_samples" in arguments else None,
            samples_per_batch=_whole(arguments, "sampling_batch_size", 1),
            use_kv_cache=bool(use_kv_cache),
            future_exogenous=future,
            num_exogenous=num_exogenous,
        )
        request._check_numbers()
        return request

    def _check_numbers(self) -> None:
        _expect(self.horizon > 0, "prediction_length")
        _expect(self.samples_per_batch > 0, "sampling_batch_size")
        _expect(0 <= self.num_exogenous <= self.inputs.shape[1], "num_exogenous_variables")
        if self.num_samples is not None:
            _expect(self.num_samples > 0, "num_samples")
            _expect(self.num_samples % self.samples_per_batch == 0, "num_samples")
        if (future := self.future_exogenous) is not None:
            shape = (self.inputs.shape[0], self.num_exogenous, self.horizon)
            fits = _is_tensor(future) and future.device == self.inputs.device
            _expect(
                fits and future.shape == shape and self.num_exogenous > 0,
                "future_exogenous_variables",
            )

    def shape(self) -> RequestShape:
        """What it asks for, but the values of its tensors."""
        described: dict[str, Any] = {
            name: TensorShape.of(part) if isinstance(part, torch.Tensor) else part
            for name, part in vars(self).items()
        }
        return RequestShape(**described)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors, by name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, torch.Tensor)}

    def steps(self, patch_size: int) -> int:
        """Patches to forecast."""
        return ceil(self.horizon / patch_size)


def check_time_stamps(arguments: Mapping[str, Any]) -> None:
    """Check what upstream carries on from patch to patch, though no model reads it.

    At each time step it appends to the stamps, ``batch variate time_steps``, the last of them
    plus the interval, ``batch variate``; when it draws, after repeating both for each sample
    that it draws at once.

    Raises:
        ValueError: upstream could not do that.
    """
    stamps, intervals = arguments["timestamp_seconds"], arguments["time_interval_seconds"]
    _expect(_is_tensor(stamps) and stamps.ndim == 3 and stamps.shape[2] > 0, "timestamp_seconds")
    _expect(_is_tensor(intervals) and intervals.device == stamps.device, "time_interval_seconds")
    wanted, given = stamps.shape[:2], intervals.shape
    if given == wanted:
        return
    if "num_samples" in arguments:
        # Batches are multiplied by the samples: one series does not stand for several then.
        _expect(len(given) == 2 and given[0] == wanted[0], "time_interval_seconds")
    backwards = zip(reversed(given), reversed(wanted), strict=False)
    fits = len(given) <= 2 and all(size in (1, of) for size, of in backwards)
    _expect(fits, "time_interval_seconds")


def _expect(condition: bool, name: str) -> None:
    if not condition:
        raise ValueError(name)


def _is_tensor(value: Any) -> bool:
    """An ordinary tensor of ordinary numbers; what subclasses do is theirs to know."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and value.dtype in _NUMBERS
    )


def _masks(mask: Any, inputs: torch.Tensor) -> bool:
    batch, variates, length = inputs.shape
    return (
        _is_tensor(mask)
        and mask.ndim == 3
        and mask.shape[0] == batch
        and mask.shape[1] in (1, variates)
        and mask.shape[2] == length
        and mask.device == inputs.device
    )


def _whole(arguments: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """An integer, or the one integer in a tensor (collating makes one of upstream's field).

    Neither a truth value, which upstream hands on to what counts by integers, nor one of so few
    bits that upstream's sums with it overflow.
    """
    value = arguments[name] if default is None else arguments.get(name, default)
    if type(value) is int:
        return value
    if isinstance(value, torch.Tensor):
        _expect(value.is_cpu and value.numel() == 1, name)
        _expect(value.dtype in (torch.int32, torch.int64), name)
        return int(value.item())
    _expect(isinstance(value, Integral) and not isinstance(value, bool), name)
    _expect(getattr(value, "itemsize", 8) >= 4, name)
    return int(value)

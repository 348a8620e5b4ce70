"""What one forecast is asked for: the arguments of ``TotoForecaster``, checked and typed."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch


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
            differently then (see ``attention.rotation``).
        future_exogenous: known future values of the last variates, ``batch exogenous horizon``.
        num_exogenous: how many of the last variates are exogenous.
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
    def of(cls, arguments: dict[str, Any]) -> Request:
        """Read upstream's arguments, by upstream's names.

        Raises:
            TypeError: an argument is not of the type that upstream documents.
            ValueError: a value that upstream would not, or only by chance, accept.
        """
        inputs = arguments["inputs"]
        _expect(isinstance(inputs, torch.Tensor) and inputs.ndim == 3, "inputs")
        batch, variates, length = inputs.shape
        _expect(min(batch, variates, length) > 0, "inputs")
        padding_mask = arguments.get("input_padding_mask")
        if padding_mask is None:
            padding_mask = torch.ones(1, dtype=torch.bool, device=inputs.device).expand_as(inputs)
        id_mask = arguments.get("id_mask")
        for name, mask in (("input_padding_mask", padding_mask), ("id_mask", id_mask)):
            _expect(mask is None or _masks(mask, inputs), name)
        future = arguments.get("future_exogenous_variables")
        request = cls(
            inputs=inputs,
            padding_mask=padding_mask,
            id_mask=id_mask,
            horizon=arguments["prediction_length"].__index__(),
            num_samples=_integer(arguments.get("num_samples")),
            samples_per_batch=arguments.get("sampling_batch_size", 1).__index__(),
            use_kv_cache=bool(arguments.get("use_kv_cache", False)),
            future_exogenous=future,
            num_exogenous=_scalar(arguments.get("num_exogenous_variables", 0)),
        )
        _expect(request.horizon > 0, "prediction_length")
        _expect(request.samples_per_batch > 0, "sampling_batch_size")
        _expect(0 <= request.num_exogenous <= variates, "num_exogenous_variables")
        if request.num_samples is not None:
            _expect(request.num_samples > 0, "num_samples")
            _expect(request.num_samples % request.samples_per_batch == 0, "num_samples")
        if future is not None:
            shape = (batch, request.num_exogenous, request.horizon)
            _expect(request.num_exogenous > 0 and future.shape == shape, "future_exogenous")
        return request

    def steps(self, patch_size: int) -> int:
        """Patches to forecast."""
        return ceil(self.horizon / patch_size)


def _expect(condition: bool, name: str) -> None:
    if not condition:
        raise ValueError(name)


def _masks(mask: torch.Tensor, inputs: torch.Tensor) -> bool:
    batch, variates, length = inputs.shape
    return (
        mask.ndim == 3
        and mask.shape[0] == batch
        and mask.shape[1] in (1, variates)
        and mask.shape[2] == length
        and mask.device == inputs.device
    )


def _integer(value: Any) -> int | None:
    return None if value is None else int(value.__index__())


def _scalar(value: Any) -> int:
    """An integer, or the one integer in a tensor (collating makes one of upstream's field)."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return int(value.item())
    return int(value.__index__())

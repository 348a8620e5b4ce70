"""Scaling: causal statistics of the context, carried on over what is generated.

The causal scalers need, at each time step, the mean and variance of all steps up to and including
it; the one for patches, up to the end of its patch.
Both follow from three sums over the past: of the weights, of the weighted values, and of
``(x_t - mean_{t-1}) (x_t - mean_t)``, which is the sum of squared deviations (B. P. Welford,
"Note on a method for calculating corrected sums of squares and products", Technometrics 4, 1962).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from toto_compile_patch.decode import fused
from toto_compile_patch.upstream import kind_of

_BLOCK = 128

_BY_PATCHES = "CausalPatchStdMeanScaler"


class Scaled(NamedTuple):
    """A patch or a context, scaled, and the last patch's location and scale.

    ``values`` is ``... time_steps``; ``loc`` and ``scale`` are ``... patch_size``, or ``... 1``
    where they are the same for the whole patch.
    """

    values: torch.Tensor
    loc: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class Statistics:
    """Sums over everything seen so far, ``batch variate samples``, and bounds of the scale.

    Attributes:
        weight: sum of the weights.
        total: sum of the weighted values.
        squares: Welford's sum of squared deviations.
        bounds: smallest and greatest scale allowed, ``batch variate 1 1``.
    """

    weight: torch.Tensor
    total: torch.Tensor
    squares: torch.Tensor
    bounds: tuple[torch.Tensor, torch.Tensor] | None


class FixedScale(NamedTuple):
    """Location and scale of the context, for everything that follows, ``batch variate 1 1``."""

    loc: torch.Tensor
    scale: torch.Tensor


ScaleState = Statistics | FixedScale


class ScalerSettings(NamedTuple):
    """What is read of a scaler.

    Attributes:
        kind: the name of its class.
        minimum_scale: added to variances.
        use_bessel_correction: divide by one less than the number of values.
        stabilize_with_global: keep a causal scale near the context's own.
        scale_factor_exponent: how near, as a power of ten.
    """

    kind: str
    minimum_scale: float
    use_bessel_correction: bool = False
    stabilize_with_global: bool = False
    scale_factor_exponent: float = 0.0

    @property
    def factor(self) -> float:
        """By how much a causal scale may differ from the context's own; 0: by anything."""
        return 10.0**self.scale_factor_exponent if self.stabilize_with_global else 0.0

    @property
    def by_patches(self) -> bool:
        """Whether all of a patch is scaled by the statistics at its end."""
        return self.kind == _BY_PATCHES

    @classmethod
    def of(cls, scaler: Any) -> ScalerSettings:
        """Those of upstream's module, of which StdMeanScaler has only the first two."""
        kind = kind_of(scaler)
        if kind == "StdMeanScaler":
            return cls(kind, scaler.minimum_scale)
        return cls(
            kind,
            scaler.minimum_scale,
            scaler.use_bessel_correction,
            scaler.stabilize_with_global,
            scaler.scale_factor_exponent,
        )


def scale_context(
    scaler: Any, series: torch.Tensor, padding_mask: torch.Tensor, patch_size: int
) -> tuple[Scaled, ScaleState]:
    """Scale the context, ``batch variate time_steps``."""
    settings = ScalerSettings.of(scaler)
    if settings.kind == "StdMeanScaler":
        values, loc, scale = scaler(
            series, padding_mask=padding_mask, weights=torch.ones_like(series)
        )
        loc, scale = loc.unsqueeze(2), scale.unsqueeze(2)
        return Scaled(values, loc, scale), FixedScale(loc, scale)
    if _has_kernel(settings, series, patch_size):
        mask = padding_mask.expand_as(series)
        return _scaled_by_kernel(settings, series, mask, patch_size)
    return _scale_context(settings, series, padding_mask, patch_size)


def _scale_context(
    settings: ScalerSettings, series: torch.Tensor, padding_mask: torch.Tensor, patch_size: int
) -> tuple[Scaled, Statistics]:
    """The same by torch's operators."""
    dtype = accumulation_dtype(series.device)
    values = series.to(dtype)
    weights = torch.ones_like(values) * padding_mask
    zero = values.new_zeros(values.shape[:-1])
    cumulated, totals = prefix_sums(weights), prefix_sums(weights * values)
    means, increments = _welford(values, cumulated, totals, zero, zero)
    squares = prefix_sums(increments * weights)
    bounds = _bounds(settings, values, weights) if settings.stabilize_with_global else None
    state = Statistics(cumulated[..., -1:], totals[..., -1:], squares[..., -1:], bounds)
    patches, means, cumulated, squares = (
        part.unflatten(-1, (-1, patch_size)) for part in (series, means, cumulated, squares)
    )
    if settings.by_patches:
        means, cumulated, squares = (part[..., -1:] for part in (means, cumulated, squares))
    loc = means.to(series.dtype)
    scale = _scale(settings, cumulated, squares, bounds).to(series.dtype)
    scaled = ((patches - loc) / scale).flatten(-2)
    return Scaled(scaled, loc[:, :, -1:], scale[:, :, -1:]), state


def scale_patch(scaler: Any, state: ScaleState, patch: torch.Tensor) -> tuple[Scaled, ScaleState]:
    """Scale a generated patch, ``batch variate samples patch_size``, and take it into account."""
    if isinstance(state, FixedScale):
        return Scaled((patch - state.loc) / state.scale, state.loc, state.scale), state
    settings = ScalerSettings.of(scaler)
    if _has_kernel(settings, patch, patch.shape[-1]):
        return _patch_scaled_by_kernel(settings, state, patch)
    return _scale_patch(settings, state, patch)


def _scale_patch(
    settings: ScalerSettings, state: Statistics, patch: torch.Tensor
) -> tuple[Scaled, Statistics]:
    """The same by torch's operators."""
    values = patch.to(state.total.dtype)
    count = torch.arange(1, patch.shape[-1] + 1, device=patch.device, dtype=values.dtype)
    weights = state.weight.unsqueeze(-1) + count
    totals = state.total.unsqueeze(-1) + prefix_sums(values)
    means, increments = _welford(values, weights, totals, state.weight, state.total)
    squares = state.squares.unsqueeze(-1) + prefix_sums(increments)
    after = Statistics(
        weights[..., -1].expand_as(totals[..., -1]), totals[..., -1], squares[..., -1], state.bounds
    )
    if settings.by_patches:
        means, weights, squares = means[..., -1:], weights[..., -1:], squares[..., -1:]
    loc = means.to(patch.dtype)
    scale = _scale(settings, weights, squares, state.bounds).to(patch.dtype)
    return Scaled((patch - loc) / scale, loc, scale), after


def prefix_sums(values: torch.Tensor) -> torch.Tensor:
    """``torch.cumsum`` along the last axis, also where CUDA must be deterministic.

    CUDA has no deterministic ``cumsum`` of floats; products with triangles of ones make one, in
    float64, which no setting lets CUDA multiply in fewer bits.
    """
    if not deterministic(values):
        return values.cumsum(-1)
    return sums_by_products(values.double()).to(values.dtype)


def deterministic(values: torch.Tensor) -> bool:
    """Whether CUDA must compute with these values in an order that is always the same."""
    return values.is_cuda and torch.are_deterministic_algorithms_enabled()


def sums_by_products(values: torch.Tensor) -> torch.Tensor:
    """Prefix sums along the last axis: within blocks, then of the blocks before."""
    length = values.shape[-1]
    size = min(length, _BLOCK)
    blocks = torch.nn.functional.pad(values, (0, -length % size)).unflatten(-1, (-1, size))
    within = blocks @ _triangle(values, size).triu()
    before = within[..., -1] @ _triangle(values, blocks.shape[-2]).triu(1)
    return (within + before.unsqueeze(-1)).flatten(-2)[..., :length]


def _triangle(like: torch.Tensor, size: int) -> torch.Tensor:
    return torch.ones(size, size, device=like.device, dtype=like.dtype)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Float64, or what upstream takes where a device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _welford(
    values: torch.Tensor,
    weights: torch.Tensor,
    totals: torch.Tensor,
    weight_before: torch.Tensor,
    total_before: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal means, and by how much each value adds to the sum of squared deviations."""
    means = totals / weights.clamp_min(1.0)
    first = (total_before / weight_before.clamp_min(1.0)).unsqueeze(-1)
    before = torch.cat([first.expand_as(means[..., :1]), means[..., :-1]], dim=-1)
    return means, (values - before) * (values - means)


def _scale(
    settings: ScalerSettings,
    weights: torch.Tensor,
    squares: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    denominator = weights.clamp_min(1.0)
    if settings.use_bessel_correction:
        denominator = (denominator - 1.0).clamp_min(1.0)
    scale = torch.sqrt(squares / denominator + settings.minimum_scale)
    return scale if bounds is None else torch.clamp(scale, *bounds)


def _bounds(
    settings: ScalerSettings, values: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The context's own scale, and how far from it a causal scale may go."""
    count = (weights * weights).sum(-1, keepdim=True).clamp_min(1.0)
    mean = torch.nan_to_num((weights * values).sum(-1, keepdim=True) / count)
    deviations = (values - mean) * weights * weights
    variance = (deviations**2).sum(-1, keepdim=True) / count
    scale = torch.sqrt(variance + settings.minimum_scale).unsqueeze(-1)
    return (scale / settings.factor).clamp_min(settings.minimum_scale), scale * settings.factor


def _has_kernel(settings: ScalerSettings, values: torch.Tensor, patch_size: int) -> bool:
    return settings.by_patches and fused.is_side(patch_size) and fused.serves(values)


def _settings(minimum: float, factor: float, bessel: bool) -> ScalerSettings:
    """Settings of a scaler by patches, from what a kernel is given of them."""
    bounded, exponent = factor > 0, math.log10(factor) if factor > 0 else 0.0
    return ScalerSettings(_BY_PATCHES, minimum, bessel, bounded, exponent)


def _context_of_kernel(
    series: torch.Tensor,
    mask: torch.Tensor,
    patch_size: int,
    minimum: float,
    factor: float,
    bessel: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    settings = _settings(minimum, factor, bessel)
    scaled, state = _scale_context(settings, series, mask, patch_size)
    zeros = torch.zeros_like(state.total).unsqueeze(-1)
    sums = [state.weight, state.total, state.squares]
    bounds = [bound.flatten(-2) for bound in state.bounds or (zeros, zeros)]
    last = torch.stack([scaled.loc, scaled.scale]).flatten(-3)
    return scaled.values, last, torch.stack([*sums, *bounds]).squeeze(-1)


_scale_context_operator = fused.operator(
    "scale_context(Tensor series, Tensor mask, int patch_size, float minimum, float factor, "
    "bool bessel) -> (Tensor, Tensor, Tensor)",
    _context_of_kernel,
)


def _scaled_by_kernel(
    settings: ScalerSettings, series: torch.Tensor, mask: torch.Tensor, patch_size: int
) -> tuple[Scaled, Statistics]:
    scaled, last, state = _scale_context_operator(
        series,
        mask,
        patch_size,
        settings.minimum_scale,
        settings.factor,
        settings.use_bessel_correction,
    )
    loc, scale = last[..., None, None]
    weight, total, squares, lower, upper = state.unsqueeze(-1)
    bounds = (lower.unsqueeze(-1), upper.unsqueeze(-1)) if settings.factor else None
    return Scaled(scaled, loc, scale), Statistics(weight, total, squares, bounds)


def _patch_of_kernel(
    patch: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    squares: torch.Tensor,
    lower: torch.Tensor | None,
    upper: torch.Tensor | None,
    minimum: float,
    bessel: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    bounds = None if lower is None or upper is None else (lower, upper)
    settings = _settings(minimum, float(bounds is not None), bessel)
    state = Statistics(weight, total, squares, bounds)
    scaled, after = _scale_patch(settings, state, patch)
    last = torch.stack([scaled.loc, scaled.scale]).squeeze(-1)
    sums = (part.expand_as(after.total) for part in (after.weight, after.total, after.squares))
    return scaled.values, last, torch.stack([*sums])


_scale_patch_operator = fused.operator(
    "scale_patch(Tensor patch, Tensor weight, Tensor total, Tensor squares, Tensor? lower, "
    "Tensor? upper, float minimum, bool bessel) -> (Tensor, Tensor, Tensor)",
    _patch_of_kernel,
)


def _patch_scaled_by_kernel(
    settings: ScalerSettings, state: Statistics, patch: torch.Tensor
) -> tuple[Scaled, Statistics]:
    samples = patch.shape[:-1]
    scaled, last, after = _scale_patch_operator(
        patch,
        *(part.expand(samples) for part in (state.weight, state.total, state.squares)),
        *(state.bounds or (None, None)),
        settings.minimum_scale,
        settings.use_bessel_correction,
    )
    loc, scale = last.unsqueeze(-1)
    return Scaled(scaled, loc, scale), Statistics(after[0], after[1], after[2], state.bounds)

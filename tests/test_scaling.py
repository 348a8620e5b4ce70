"""Scaling of a context and of what follows, against upstream's scalers over the whole series."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toto.model.scaler import CausalPatchStdMeanScaler, CausalStdMeanScaler, StdMeanScaler

from toto_compile_patch.carriers import TOTO
from toto_compile_patch.decode.scaling import (
    FixedScale,
    scale_context,
    scale_patch,
    sums_by_products,
)
from toto_compile_patch.upstream import load

PATCH = 4
CONTEXT = 3 * PATCH
SAMPLES = 2


@pytest.fixture(autouse=True)
def classes_are_known() -> None:
    load(TOTO)


def scaler_of(kind: type, **options: Any) -> Any:
    if kind is CausalPatchStdMeanScaler:
        options["patch_size"] = PATCH
    return kind(minimum_scale=0.05, **options)


def walk(*shape: int, seed: int = 0) -> torch.Tensor:
    """A random walk in which one step is far greater than all others."""
    steps = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steps[..., shape[-1] // 2] *= 30
    return 7 + steps.cumsum(-1)


def masks() -> dict[str, torch.Tensor]:
    full = torch.ones(2, 3, CONTEXT, dtype=torch.float64)
    left, scattered, parts = full.clone(), full.clone(), full.clone()
    left[:, 1, : PATCH + 1] = 0
    scattered[0, :, ::3] = 0
    parts[1] *= torch.linspace(0.1, 1, CONTEXT, dtype=torch.float64)
    return {"full": full, "left": left, "scattered": scattered, "parts": parts, "none": 0 * full}


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("exponent", [None, 0.1, 1.0])
@pytest.mark.parametrize("bessel", [False, True])
@pytest.mark.parametrize("kind", [CausalStdMeanScaler, CausalPatchStdMeanScaler])
def test_patches_after_a_context_are_scaled_as_in_the_whole_series(
    kind: type, bessel: bool, exponent: float | None, mask: str
) -> None:
    scaler = scaler_of(
        kind,
        use_bessel_correction=bessel,
        stabilize_with_global=exponent is not None,
        scale_factor_exponent=exponent or 0.0,
    )
    context, padding = walk(2, 3, CONTEXT), masks()[mask]
    patches = walk(2, 3, SAMPLES, 3 * PATCH, seed=1)
    seen, state = scale_context(scaler, context, padding, PATCH)
    scaled = [seen]
    for patch in patches.split(PATCH, dim=-1):
        found, state = scale_patch(scaler, state, patch)
        scaled.append(found)
    for sample in range(SAMPLES):
        series = torch.cat([context, patches[:, :, sample]], dim=-1)
        weights = torch.cat([padding, torch.ones_like(patches[:, :, 0])], dim=-1)
        values, loc, scale = scaler(series, weights, torch.ones_like(series), CONTEXT)
        same(scaled[0].values, values[..., :CONTEXT])
        for number, part in enumerate(scaled):
            at = slice(CONTEXT + PATCH * (number - 1), CONTEXT + PATCH * number)
            one = part if number == 0 else type(part)(*(field[:, :, sample] for field in part))
            if number:
                same(one.values, values[..., at])
            same(one.loc.reshape(2, 3, -1).expand(2, 3, PATCH), loc[..., at])
            same(one.scale.reshape(2, 3, -1).expand(2, 3, PATCH), scale[..., at])


def test_a_fixed_scale_stays() -> None:
    scaler = scaler_of(StdMeanScaler, dim=-1, keepdim=True)
    context, padding = walk(2, 3, CONTEXT), masks()["left"]
    patch = walk(2, 3, SAMPLES, PATCH, seed=1)
    seen, state = scale_context(scaler, context, padding, PATCH)
    values, loc, scale = scaler(context, padding, torch.ones_like(context))
    same(seen.values, values)
    found, after = scale_patch(scaler, state, patch)
    assert after is state
    assert isinstance(state, FixedScale)
    same(found.values, (patch - loc.unsqueeze(2)) / scale.unsqueeze(2))
    same(found.loc, loc.unsqueeze(2))
    same(found.scale, scale.unsqueeze(2))


@pytest.mark.parametrize("kind", [CausalStdMeanScaler, CausalPatchStdMeanScaler, StdMeanScaler])
def test_types_stay(kind: type) -> None:
    options = {"dim": -1, "keepdim": True} if kind is StdMeanScaler else {}
    scaler = scaler_of(kind, **options)
    seen, state = scale_context(scaler, walk(1, 1, CONTEXT).float(), torch.ones(1, 1, CONTEXT), 4)
    found, _ = scale_patch(scaler, state, walk(1, 1, 1, PATCH).float())
    assert {part.dtype for part in (*seen, *found)} == {torch.float32}


@pytest.mark.parametrize("kind", [CausalStdMeanScaler, CausalPatchStdMeanScaler])
def test_sums_are_made_in_float64(kind: type) -> None:
    """A small spread about a great level is lost in 32 bits."""
    series = (1e5 + 0.1 * walk(1, 1, 50 * PATCH)).float()
    scaler, ones = scaler_of(kind), torch.ones_like(series)
    context, patch = series.split([49 * PATCH, PATCH], dim=-1)
    seen, state = scale_context(scaler, context, ones[..., : 49 * PATCH], PATCH)
    found, _ = scale_patch(scaler, state, patch.unsqueeze(2))
    values, _, scale = scaler(series, ones, ones)
    torch.testing.assert_close(seen.values, values[..., : 49 * PATCH])
    torch.testing.assert_close(found.values.squeeze(2), values[..., 49 * PATCH :])
    last = scale[..., -PATCH:] if found.scale.shape[-1] == PATCH else scale[..., -1:]
    torch.testing.assert_close(found.scale.squeeze(2), last)


@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 300])
def test_sums_by_products_are_prefix_sums(length: int) -> None:
    values = walk(2, 3, length)
    same(sums_by_products(values), values.cumsum(-1))


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

"""Each kernel of our own against the formula that it stands for: on a GPU, or as a program, in
Triton's interpreter.

A program, since Triton reads TRITON_INTERPRET once, when it is imported.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch

from toto_compile_patch.decode import attention, layer, linear, rotary, sampling, scaling

ROWS, EMBED, HEADS = 21, 48, 6


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def norms() -> None:
    rows, delta, scale = numbers(ROWS, EMBED), numbers(ROWS, EMBED, seed=1), numbers(EMBED, seed=2)
    for own in (scale, None):
        same(layer.norm, rows, own, 1e-5)
        same(layer.sum_and_norm, rows, delta, own, 1e-5)
        same(layer.sum_and_norm, rows, delta.bfloat16(), own, 1e-5)


def heads() -> None:
    size = EMBED // HEADS
    frequencies, scales = numbers(size // 2).abs(), 0.5 + numbers(size // 2, seed=1).sigmoid() / 2
    for first, count, centre in ((0, 7, 3), (900, 1, 450)):
        place = first, count, centre, 512.0
        same(rotary.rotary_tables, frequencies, scales, *place)
        tables = rotary.rotary_tables(frequencies, scales, *place)
        for heads_first in (False, True):
            for kinds, first_kind in ((3, 0), (1, 1), (1, 2)):
                features = numbers(ROWS, kinds * EMBED)
                shape = HEADS, heads_first, kinds, first_kind
                same(layer.by_heads, features, *shape, *tables)
                same(layer.by_heads, features, *shape, None, None)


def gated() -> None:
    same(layer.gated, 4 * numbers(ROWS, 2 * 72))
    same(layer.gated, 4 * numbers(50, 2 * 72).bfloat16(), tolerance=2e-2)


def context() -> None:
    for patch_size, patches, factors in ((8, 3, (10.0, 0.0)), (64, 20, (10.0,)), (2048, 1, (0.0,))):
        series = 5 + 3 * numbers(2, 3, patch_size * patches)
        series[0, 1] = 7.0
        mask = numbers(2, 1, patch_size * patches, seed=1) > -1
        mask[1, :, : patch_size // 2] = False
        for factor in factors:
            for bessel in (False, True):
                given = (mask if bessel else mask.float()).expand_as(series)
                settings = patch_size, 0.1, factor, bessel
                same(scaling._scale_context_operator, series, given, *settings)
        aside = series.transpose(0, 1).contiguous().transpose(0, 1)
        same(scaling._scale_context_operator, aside, given, *settings)
        series[0, 0, 7], series[1, 2, 3], series[1, 0, 9] = torch.nan, torch.inf, -torch.inf
        same(scaling._scale_context_operator, series, given, *settings)


def patches() -> None:
    for samples, state in ((5, 1), (5, 5), (1, 1)):
        patch = 2 + numbers(2, 3, samples, 16)
        patch[0, 0, 0, 3] = float("nan")
        weight = numbers(2, 3, state, dtype=torch.float64).abs() * 9 - 1
        total, squares = 4 * weight, 3 * weight.abs()
        weight[0, 1] = 0.0
        parts = [part.expand(2, 3, samples) for part in (weight, total, squares)]
        lower, upper = numbers(2, 3, 1, 1, dtype=torch.float64).abs(), torch.ones(2, 3, 1, 1) * 1.2
        for bounds in ((None, None), (lower, upper.double())):
            for bessel in (False, True):
                same(scaling._scale_patch_operator, patch, *parts, *bounds, 0.1, bessel)


def draws() -> None:
    generator = torch.Generator().manual_seed(0)
    for kinds, components, of_each in ((4, 24, 1), (4, 5, 7), (3, 1, 3)):
        raw = 3 * numbers(2 * 3 * 11, kinds, components)
        raw[0, 0, 0], raw[0, 2, 0], raw[1, 2, 0] = 30.0, -40.0, 50.0
        raw[2, 0], raw[3, 2] = torch.nan, torch.nan
        uniform = torch.rand(2, 3, 3, 11, of_each, generator=generator)
        uniform[0, :, 0, 0] = 0.0
        uniform[1, :, 0, 0] = 1 - 2**-24
        same(sampling.draws, raw, uniform, of_each)


def products() -> None:
    for rows in (1, 2, 7):
        for out_features, in_features in ((20, 40), (9, 24)):
            parts = numbers(out_features, in_features, seed=1), numbers(out_features, seed=2)
            for residual in (None, numbers(rows, out_features, seed=3)):
                given = numbers(rows, in_features)
                same(linear.linear_of_few_rows, given, *parts, residual)
    for rows, out_features, in_features in ((33, 70, 100), (1030, 8, 32)):
        parts = numbers(out_features, in_features, seed=1), numbers(out_features, seed=2)
        for residual in (None, numbers(rows, out_features, seed=3)):
            given = numbers(rows, in_features)
            same(linear.linear_in_three_passes, given, *parts, residual)


def attentions() -> None:
    size = 16
    for series, asked, seen in ((2, 5, 5), (1, 21, 21), (3, 1, 1), (1, 1, 70)):
        queries = numbers(series, asked, HEADS, size).transpose(1, 2)
        keys, values = (numbers(series, HEADS, seen, size, seed=seed) for seed in (1, 2))
        same(attention.attend_to_few, queries, keys, values)
    batch, variates, room = 2, 3, 4
    for length, samples in ((3, 20), (40, 1)):
        for step in (0, 3):
            # As a layer's rotation in tables leaves them: not side by side.
            rows = numbers(batch * variates * samples, 3, HEADS * size).unbind(1)
            context = (numbers(batch, variates, HEADS, length, size, seed=s) for s in (3, 4))
            shape = batch, variates, HEADS, samples, room, size
            same(attention.attend_of_samples, *rows, *context, numbers(*shape, seed=5),
                 numbers(*shape, seed=6), step)  # fmt: skip


CHECKS = (norms, heads, gated, context, patches, draws, products, attentions)


def same(operator: Any, *args: Any, tolerance: float = 2e-6) -> None:
    """Compare an operator's kernel with its formula, relative to its largest result; also what
    they write where they read."""
    name = operator.__name__
    own, others = ([copy.deepcopy(arg) for arg in args] for _ in range(2))
    if torch.cuda.is_available():
        own = [arg.cuda() if isinstance(arg, torch.Tensor) else arg for arg in own]
        found = operator(*own)
    else:
        from toto_compile_patch.decode import gpu_kernels

        found = getattr(gpu_kernels, name)(*own)
    results = _tensors(found, own), _tensors(operator(*others), others)
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape, (name, one.shape, other.shape)
        assert one.dtype == other.dtype, (name, one.dtype, other.dtype)
        finite = other[other.isfinite()].double().abs()
        largest = float(finite.max()) if finite.numel() else 1.0
        torch.testing.assert_close(
            one.cpu().double(),
            other.double(),
            rtol=tolerance,
            atol=tolerance * largest,
            equal_nan=True,
            msg=lambda text: f"{name}: {text}",
        )


def _tensors(result: Any, args: list[Any]) -> list[torch.Tensor]:
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    return results + [arg for arg in args if isinstance(arg, torch.Tensor)]


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    for check in CHECKS:
        check()
        print(check.__name__)

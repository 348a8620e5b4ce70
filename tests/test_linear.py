"""Products that are made in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from toto_compile_patch.decode.linear import GpuLinear, PlainLinear, parts_of_a_product

SHAPES = [(768, 3072), (768, 768), (2304, 768), (16, 80)]
ROWS = [1, 2, 16, 24, 64, 65, 448, 1025, 2048, 2049, 4096, 4097]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_parts_add_up_to_the_product(shape: tuple[int, int], rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(shape, generator=generator)
    bias = torch.randn(shape[0], generator=generator)
    inputs = torch.randn(rows, shape[1], generator=generator)
    exact = PlainLinear(weight.double(), bias.double()).apply(inputs.double())
    found = GpuLinear(weight, bias).apply(inputs)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=3e-4)


def test_some_are_made_in_parts_and_others_whole() -> None:
    long, square = (3072, 768), (768, 768)
    assert [parts_of_a_product(rows, *long) for rows in ROWS] == [
        *(1, 6, 6, 6, 6, 6, 6, 3, 3, 6, 6, 1)
    ]
    assert [parts_of_a_product(rows, *square) for rows in ROWS] == [
        *(1, 1, 1, 4, 4, 1, 1, 1, 1, 1, 1, 1)
    ]
    assert parts_of_a_product(24, 81, 16) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_are_multiplied_whole(dtype: torch.dtype) -> None:
    weight, bias, inputs = torch.randn(768, 3072), torch.randn(768), torch.randn(64, 3072)
    parts = (weight.to(dtype), bias.to(dtype))
    expected = PlainLinear(*parts).apply(inputs.to(dtype))
    assert torch.equal(GpuLinear(*parts).apply(inputs.to(dtype)), expected)


def in_tf32(values: torch.Tensor) -> torch.Tensor:
    """Float32 rounded to the ten bits of a fraction that TF32 has."""
    dropped = 13
    bits = values.view(torch.int32) + (1 << (dropped - 1))
    return (bits >> dropped << dropped).view(torch.float32)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_three_products_in_tf32_are_as_exact_as_one_in_float32(scale: float) -> None:
    """What ThreePassLinear's kernel multiplies, emulated."""
    generator = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(64, 3072, generator=generator)
    weight = torch.randn(128, 3072, generator=generator)
    exact = inputs.double() @ weight.double().T
    parts = [(high := in_tf32(part), in_tf32(part - high)) for part in (inputs, weight.T)]
    (high, low), (other_high, other_low) = parts
    assert not torch.equal(high, inputs)
    three = high @ other_high + (high @ other_low + low @ other_high)

    def error(product: torch.Tensor) -> float:
        return float((product - exact).abs().max() / exact.abs().max())

    assert error(three) < 1.5 * error(inputs @ weight.T)
    assert error(high @ other_high) > 50 * error(three)


@pytest.fixture
def products() -> Iterator[Callable[[str], None]]:
    """Lets CUDA multiply float32 by fewer bits, in one way or the other, until the test ends."""
    before = torch.get_float32_matmul_precision()

    def by(bits: str) -> None:
        torch.set_float32_matmul_precision("high" if bits == "tf32" else "highest")
        torch.set_autocast_enabled("cuda", bits == "autocast")

    yield by
    torch.set_autocast_enabled("cuda", False)
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("bits", "whole"), [("float32", False), ("tf32", True), ("autocast", True)]
)
def test_only_products_in_float32_are_made_in_parts(
    bits: str, whole: bool, products: Callable[[str], None]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(768, 3072, generator=generator)
    bias, inputs = torch.randn(768), torch.randn(64, 3072, generator=generator)
    assert parts_of_a_product(64, 3072, 768) > 1
    expected = PlainLinear(weight, bias).apply(inputs)
    products(bits)
    assert torch.equal(GpuLinear(weight, bias).apply(inputs), expected) is whole

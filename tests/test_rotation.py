"""Rotary tables in complex numbers, for a CPU, and in real ones, for all else, are the same."""

from __future__ import annotations

import pytest
import torch
from toto_cases import small_model

from toto_compile_patch.decode.rotary import (
    KEYS,
    QUERIES_KEYS,
    ComplexRotation,
    RealRotation,
    RotationByPosition,
    rotation,
)
from toto_compile_patch.decode.row_layout import Padding, RowLayout

HEADS, HEAD_DIM = 4, 8


@pytest.mark.parametrize("which", [KEYS, QUERIES_KEYS], ids=["keys", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", [range(5), range(7, 8)], ids=str)
def test_both_forms_rotate_alike(positions: range, dtype: torch.dtype, which: slice) -> None:
    model = small_model().model.to(dtype)
    rotary = model.transformer.rotary_emb
    layout = RowLayout(batch=2, variates=3, count=len(positions), padding=Padding(0))
    in_complex, in_real = (
        rotation(rotary, layout, positions, 2, in_real_numbers=real, like=rotary.freqs)
        for real in (False, True)
    )
    assert isinstance(in_complex, ComplexRotation)
    assert isinstance(in_real, RealRotation)
    rows = 2 * 3 * len(positions)
    kinds = which.stop - which.start
    heads = torch.randn(rows, kinds, HEADS, HEAD_DIM, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(
        in_real.rotate(heads.clone(), which),
        in_complex.rotate(heads.clone(), which),
    )


def test_queries_are_scaled_by_the_inverse_of_what_keys_are() -> None:
    """So that, rotated by the same position, their product is what it was."""
    model = small_model().model.double()
    rotary = model.transformer.rotary_emb
    layout = RowLayout(batch=1, variates=1, count=3, padding=Padding(0))
    heads = torch.randn(3, 1, HEADS, HEAD_DIM, dtype=torch.float64).expand(-1, 2, -1, -1)
    for real in (False, True):
        turned = rotation(
            rotary, layout, range(600, 603), 4, in_real_numbers=real, like=rotary.freqs
        )
        assert not isinstance(turned, RotationByPosition)
        queries, keys = turned.rotate(heads.clone(), QUERIES_KEYS).unbind(1)
        assert not torch.allclose(queries, keys)
        torch.testing.assert_close((queries * keys).sum(-1), (heads[:, 0] ** 2).sum((-1, -2)))

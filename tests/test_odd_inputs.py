"""Odd inputs, row by row: upstream's numbers where it gives numbers, its errors where it raises.

Never do we wait for ever, or take more memory than upstream.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from closeness import beside_float64, beside_perturbed, judge
from odd_inputs import GROUPS, Call, OddInput
from toto_cases import PATCH, series, small_model

import toto_compile_patch

pytestmark = pytest.mark.usefixtures("checked_distributions")

ROWS = [row for rows in GROUPS.values() for row in rows]
HORIZON = PATCH + 3
LENGTH = 4 * PATCH + 5


@functools.cache
def model(dtype: torch.dtype) -> Any:
    return small_model().to(dtype).model


def ordinary(dtype: torch.dtype, samples: bool, variates: int, batch: int | None) -> Call:
    """A call in which nothing is odd."""
    options = {"num_samples": 4, "samples_per_batch": 2} if samples else {}
    return Call(series(LENGTH, variates, batch, dtype), HORIZON, options)


CALLS = {
    "mean": (torch.float32, False, 1, None),
    "means of a batch": (torch.float64, False, 3, 2),
    "samples": (torch.float64, True, 2, None),
}


def outcome(call: Call, dtype: torch.dtype) -> Any:
    """What a call returns, or what it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call.make(model(dtype))
        except Exception as error:
            return error


def assert_alike(call: Call, dtype: torch.dtype) -> str:
    """Both sides do the same; gives which code made the patched forecast."""
    theirs = outcome(call, dtype)
    with toto_compile_patch.patched("fast_decode", rng="upstream", fallback="upstream"):
        ours = outcome(call, dtype)
    path = toto_compile_patch.last_path()
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert type(ours) is type(theirs), (theirs, ours)
        assert str(ours) == str(theirs)
        return "raised"
    own = beside_float64 if theirs.dtype is not torch.float64 else beside_perturbed
    judgement = judge(theirs, ours, call, own(model(dtype), call))
    assert not judgement.complaint, judgement
    assert path is not None
    return path.taken


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_an_odd_input(row: OddInput, how: str) -> None:
    dtype, samples, *shape = CALLS[how]
    if row.draws and not samples:
        pytest.skip("it asks for samples")
    taken = assert_alike(row.change(ordinary(dtype, samples, *shape)), dtype)
    assert taken in ("raised", row.made_by)

"""The ways that ``ab`` compares, and the models that it compares them by."""

from __future__ import annotations

from typing import Any

import pytest

import toto_compile_patch
from toto_compile_patch.tools import models, turns
from toto_compile_patch.tools.turns import COMPILED, EAGER, PATCHED, PATCHED_COMPILED, Job, Way

JOB = Job("demo", "cpu", "default", horizon=8, samples=4, samples_per_batch=4)


@pytest.mark.parametrize(
    ("way", "patches", "is_compiled"),
    [
        (EAGER, "", False),
        (COMPILED, "", True),
        (PATCHED, "", False),
        (PATCHED, "kv_cache", True),
        (PATCHED_COMPILED, "", True),
    ],
)
def test_a_way_is_compiled_by_its_name_or_for_patches_that_are_for_compiled_code(
    way: Way, patches: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH", patches)
    forecaster: Any = turns._forecaster(way, JOB)
    assert (forecaster.model._compiled_call_impl is not None) == is_compiled
    assert toto_compile_patch.is_applied("kv_cache") == way.patched


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("demo", "the demo model"),
        ("small", "RANDOM weights (seed 0), a small model"),
        ("base", "RANDOM weights (seed 0), the architecture of Toto-Open-Base-1.0"),
        ("owner/name", "owner/name"),
    ],
)
def test_a_reader_is_told_of_the_model(model: str, says: str) -> None:
    assert models.describe(model).startswith(says)

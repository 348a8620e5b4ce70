"""How many operators a forecast takes: on a GPU each is a kernel, and most are tiny."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toto_cases import PATCH, forecast, series, small_model

import toto_compile_patch
from toto_compile_patch.decode import forecast as forecasts
from toto_compile_patch.decode import generation
from toto_compile_patch.decode.regions import Regions

LAYERS = 12


class Counted(TorchDispatchMode):
    """Counts the operators that write: neither views nor questions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        is_view = operator.is_view or operator is torch.ops.aten._unsafe_view.default
        if isinstance(made, torch.Tensor) and not is_view:
            self.counts[str(operator)] += 1
        return made


@pytest.fixture
def plain_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU: weights that oneDNN has not packed, and rotation in real numbers."""
    monkeypatch.setattr(Regions, "in_real_numbers", True)
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.parametrize(
    ("horizon", "samples", "most"),
    [(1, 64, 388), (PATCH, None, 360), (3 * PATCH, 64, 1391)],
    ids=["one patch", "mean", "three patches"],
)
def test_no_more_than_now(
    horizon: int,
    samples: int | None,
    most: int,
    plain_weights: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Operators of the arithmetic alone. On a GPU a norm is one kernel, and here five operators; a
    product may be two there, and choosing a component is other ones."""
    model = small_model(num_layers=LAYERS, spacewise_every_n_layers=LAYERS).model
    generate = generation.generate
    counted = Counted()

    def counting(*args: Any) -> Any:
        with counted:
            return generate(*args)

    monkeypatch.setattr(forecasts, "generate", counting)
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        forecast(model, series(4 * PATCH), horizon, samples, samples or 1)
    assert sum(counted.counts.values()) <= most, counted.counts.most_common()

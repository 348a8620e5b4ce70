"""The soak test, cut short: it passes, and notices what is wrong."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toto.inference.forecaster import TotoForecaster

sys.path.append(str(Path(__file__).parent.parent / ".ci" / "proof"))

import soak

FORECASTS = 240
FEWER = 120
"""Enough for what is wrong to show."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "ROUNDS", 3)
    monkeypatch.setattr(soak, "KINDS", soak.KINDS[:2])
    monkeypatch.setattr(soak, "REFERENCE_DRAWS", 200)


def test_a_short_one_passes() -> None:
    found = soak.soak(FORECASTS, threads=2, seed=1)
    assert found["complaints"] == []
    ways = {"means", "samples", "means by forecast_many", "samples by forecast_many"}
    assert sum(found["counts"][way] for way in ways) == FORECASTS
    assert found["counts"]["edits of weights"] > 0
    assert found["counts"]["models dropped and made anew"] > 0


def test_what_is_forecast_depends_on_the_seed_alone() -> None:
    first, again, other = (soak.soak(48, threads=2, seed=seed)["counts"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_wrong_mean_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that the truth knows nothing of."""

    def other_edit(model: Any, edited: bool, how: int) -> None:
        with torch.no_grad():
            model.unembed.bias.add_(1e-3)

    truth = soak.Truth.of_upstream([soak.built(kind, kind) for kind in range(len(soak.KINDS))])
    monkeypatch.setattr(soak.Truth, "of_upstream", lambda _: truth)
    monkeypatch.setattr(soak, "edit", other_edit)
    found = soak.soak(FEWER, threads=2, seed=1)
    assert found["wrong"] > 0
    assert "mean of" in found["complaints"][0]


def test_wrong_samples_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = TotoForecaster.forecast

    def shifted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = upstream(self, *args, **kwargs)
        if found.samples is not None and found.samples.shape[-1] == 16:
            found = dataclasses.replace(found, samples=found.samples + 1)
        return found

    monkeypatch.setattr(TotoForecaster, "forecast", shifted)
    found = soak.soak(FEWER, threads=2, seed=1)
    assert any("quantile" in line for line in found["complaints"])


@pytest.mark.parametrize("grows", ["memory_mb", "objects", "tensors", "descriptors", "threads"])
def test_growth_is_noticed(grows: str) -> None:
    flat = [soak.Reading(500 * i, 800.0, 100_000, 6000, 6, 1) for i in range(1, 21)]
    assert soak.complaints_about(flat) == []
    step = {"memory_mb": 10.0, "objects": 1000}.get(grows, 1)
    growing = [
        dataclasses.replace(one, **{grows: getattr(one, grows) + step * i})
        for i, one in enumerate(flat)
    ]
    (line,) = soak.complaints_about(growing)
    assert line.startswith(grows.replace("_", " "))


def test_what_settles_does_not_grow() -> None:
    """What is prepared at the first forecasts is there from then on."""
    settling = [soak.Reading(500 * i, 800.0, 1000, 100 * min(i, 4), 6, 1) for i in range(1, 21)]
    assert soak.complaints_about(settling) == []

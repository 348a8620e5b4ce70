"""Threads that apply and revert while others forecast eagerly."""

from __future__ import annotations

import threading

import pytest
import torch
from toto_cases import PATCH, series, tiny_model

import toto_compile_patch
from toto_compile_patch.settings import PATCH_NAMES


@pytest.mark.fault(
    injected="eight threads apply and revert",
    where="while two forecast",
    observed="every forecast is bit for bit the same",
    afterwards="the last apply() holds",
)
@pytest.mark.parametrize(
    "rounds", [50, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_eight_threads_apply_and_revert_while_others_forecast(rounds: int) -> None:
    import toto.inference.forecaster as upstream

    forecaster = upstream.TotoForecaster(tiny_model().model)
    inputs = series(24)
    expected = forecaster.forecast(inputs, prediction_length=2 * PATCH).mean
    failures: list[BaseException] = []
    done = threading.Event()

    def change(seed: int) -> None:
        try:
            for i in range(rounds):
                wanted = PATCH_NAMES[(seed + i) % 4 :]
                toto_compile_patch.apply(wanted) if (seed + i) % 2 else toto_compile_patch.revert()
        except BaseException as error:
            failures.append(error)

    def predict() -> None:
        try:
            while not done.is_set():
                found = forecaster.forecast(inputs, prediction_length=2 * PATCH).mean
                assert torch.equal(found, expected)
        except BaseException as error:
            failures.append(error)

    changers = [threading.Thread(target=change, args=(seed,)) for seed in range(8)]
    forecasters = [threading.Thread(target=predict) for _ in range(2)]
    for thread in changers + forecasters:
        thread.start()
    for thread in changers:
        thread.join()
    toto_compile_patch.apply(["kv_cache", "compile_method"])
    done.set()
    for thread in forecasters:
        thread.join()
    assert failures == []
    states = {row.name: row.state for row in toto_compile_patch.status()}
    assert [name for name in PATCH_NAMES if states[name] == "applied"] == [
        "kv_cache",
        "compile_method",
    ]

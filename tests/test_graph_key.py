"""The key of a captured forecast holds all that a forecast reads of a model beside its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from toto_cases import PATCH, series, small_model

from toto_compile_patch.decode.device_checks import DeviceChecks
from toto_compile_patch.decode.generation import generate
from toto_compile_patch.decode.graph_key import graph_key
from toto_compile_patch.decode.precision import Precision
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.random_numbers import OwnRandomNumbers
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.runtime import EAGER, UNCOMPILED, Runtime
from toto_compile_patch.decode.weights import forget, prepared_weights

Read = tuple[Any, str]
"""A part of a model, and the name of an attribute."""

KNOWN_BY_OTHER_WAYS = {
    # From the shapes of weights, which stand in the key as what they are and where they lie.
    "out_features",
    # Asked about at each forecast, before a graph is looked for (see ``decode.support``).
    "training",
    "dim",
    "keepdim",
}


def request(samples: int | None) -> Request:
    inputs = series(5 * PATCH, variates=2).series.unsqueeze(0)
    return Request(
        inputs=inputs,
        padding_mask=torch.ones_like(inputs, dtype=torch.bool),
        id_mask=torch.zeros_like(inputs),
        horizon=2 * PATCH,
        num_samples=samples,
        samples_per_batch=2,
        use_kv_cache=True,
        future_exogenous=None,
        num_exogenous=0,
    )


def prepared(backbone: Any) -> PreparedModel:
    return PreparedModel(backbone, prepared_weights(backbone), UNCOMPILED, Precision("model"))


@contextmanager
def plain_values_read(classes: set[type]) -> Iterator[list[Read]]:
    """Which numbers, texts and truth values are read of objects of some classes."""
    read: list[Read] = []

    def get(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in object.__getattribute__(self, "__dict__") and isinstance(
            value, (int, float, str)
        ):
            read.append((self, name))
        return value

    for kind in classes:
        kind.__getattribute__ = get  # type: ignore[method-assign, assignment]
    try:
        yield read
    finally:
        for kind in classes:
            del kind.__getattribute__


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else value + "x"


@pytest.mark.parametrize(
    "scaler", ["StdMeanScaler", "CausalStdMeanScaler", "CausalPatchStdMeanScaler"]
)
def test_a_forecast_reads_nothing_that_the_key_does_not_hold(scaler: str) -> None:
    backbone = small_model(scaler_cls=f"<class 'model.scaler.{scaler}'>").model
    forget(backbone)
    parts = [*backbone.modules(), backbone.scaler]
    with torch.no_grad(), plain_values_read({type(part) for part in parts}) as read:
        for samples in (None, 4):
            checks = DeviceChecks(torch.device("cpu"))
            numbers = OwnRandomNumbers(torch.device("cpu"))
            generate(prepared(backbone), request(samples), numbers, checks)

    def key() -> object:
        try:
            return graph_key(prepared(backbone), request(4), (), Runtime(EAGER, UNCOMPILED))
        except RuntimeError:
            # The constant is at odds with the weights: no forecast comes so far.
            return None

    before = key()
    names = {name for _, name in read} - KNOWN_BY_OTHER_WAYS
    assert {"minimum_scale", "scale_base", "eps", "num_heads", "patch_size"} <= names
    forgotten = set()
    for part, name in {(id(part), name): (part, name) for part, name in read}.values():
        if name in KNOWN_BY_OTHER_WAYS:
            continue
        value = getattr(part, name)
        setattr(part, name, other(value))
        if key() == before:
            forgotten.add(f"{type(part).__name__}.{name}")
        setattr(part, name, value)
        before = key()
    assert not forgotten


def test_weights_are_prepared_anew_where_a_constant_of_the_model_is_another() -> None:
    backbone = small_model().model
    before = prepared_weights(backbone)
    assert prepared_weights(backbone) is before
    backbone.transformer.layers[1].norm2.eps *= 2
    assert prepared_weights(backbone) is not before

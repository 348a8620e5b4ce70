"""Odd calls: what upstream raises is raised, and what it returns is returned, in its own words.

Each call is made twice on the same model, unpatched and patched. Means agree to within rounding;
samples, whose random numbers are others, in shape.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import einops.einops
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, small_model, tiny_model

import toto_compile_patch

pytestmark = pytest.mark.usefixtures("checked_distributions")

HORIZON = PATCH + 3
LENGTH = 4 * PATCH
SHAPES = ((1, 1), (1, 2), (3, 1), (3, 2))
"""Batch and variates."""

MISSING = object()
"""Stands for an argument that is left out."""

Arguments = dict[str, Any]
Change = Callable[[Any], Any]

EXOGENOUS = "future_exogenous_variables"
HAS_EXOGENOUS = EXOGENOUS in inspect.signature(TotoForecaster.generate_mean).parameters


@functools.cache
def forecaster() -> TotoForecaster:
    return TotoForecaster(tiny_model().model)


def arguments(name: str, batch: int, variates: int) -> Arguments:
    """An ordinary call of ``generate_mean`` or ``generate_samples``."""
    inputs = series(LENGTH, variates, batch)
    found: Arguments = {
        "inputs": inputs.series,
        "prediction_length": HORIZON,
        "timestamp_seconds": inputs.timestamp_seconds,
        "time_interval_seconds": inputs.time_interval_seconds,
        "input_padding_mask": inputs.padding_mask,
        "id_mask": inputs.id_mask,
        "use_kv_cache": True,
    }
    if name == "generate_samples":
        found |= {"num_samples": 4, "sampling_batch_size": 2}
    return found


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """What a call returned, or the errors that it raised, the last one first."""
    torch.manual_seed(0)
    forget_einops_recipes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "returned", call()
        except Exception as error:
            return "raised", list(chain(error))
        finally:
            forget_einops_recipes()


def forget_einops_recipes() -> None:
    """Let einops keep nothing that it has worked out for a ``True``.

    Its caches take ``True`` for 1, so that one call with ``True`` samples would make every later
    call with one sample, in whatever test, expand a tensor to ``True`` rows, and fail.
    """
    for function in vars(einops.einops).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def chain(error: BaseException | None) -> Iterator[tuple[type[BaseException], str]]:
    """An error and those during whose handling it was raised, as a traceback tells of them."""
    while error is not None:
        yield type(error), str(error)
        error = error.__context__


def assert_alike(*calls: Callable[[], Any], exact: bool = True) -> list[Any]:
    """Upstream's code and ours do the same; gives what was raised, or how it was returned."""
    upstream = [outcome(call) for call in calls]
    with toto_compile_patch.patched("fast_decode"):
        patched = [outcome(call) for call in calls]
    for (how, theirs), (how_patched, ours) in zip(upstream, patched, strict=True):
        assert how_patched == how, (theirs, ours)
        if how == "raised":
            assert ours == theirs
            continue
        assert type(ours) is type(theirs)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert ours.requires_grad == theirs.requires_grad
        assert ours.is_inference() == theirs.is_inference()
        if exact:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4, equal_nan=True)
    return [found if how == "raised" else how for how, found in patched]


def shifted(stamps: torch.Tensor) -> torch.Tensor:
    return torch.cat([stamps] * 3) if stamps.shape[0] == 1 else stamps[:1]


class Doubling(torch.Tensor):
    """Somebody's own class, which makes of an operation what it likes."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return 2 * found if func is torch.Tensor.unfold else found


# What is changed, and how. Each is tried on means and samples, and on every shape.
ODD: dict[str, dict[str, Any]] = {
    "nothing": {},
    # Time stamps, which upstream carries on and nobody reads.
    "stamps of one variate": {"timestamp_seconds": lambda stamps: stamps[:, :1]},
    "stamps of another batch": {"timestamp_seconds": shifted},
    "stamps without batch": {"timestamp_seconds": lambda stamps: stamps[0]},
    "stamps of no time step": {"timestamp_seconds": lambda stamps: stamps[..., :0]},
    "stamps of one time step": {"timestamp_seconds": lambda stamps: stamps[..., -1:]},
    "stamps of another length": {"timestamp_seconds": lambda stamps: stamps[..., 3:]},
    "stamps too many": {"timestamp_seconds": lambda stamps: torch.cat([stamps] * 2, dim=1)},
    "stamps of four axes": {"timestamp_seconds": lambda stamps: stamps[None]},
    "stamps on another device": {"timestamp_seconds": lambda stamps: stamps.to("meta")},
    "stamps and intervals on another device": {
        "timestamp_seconds": lambda stamps: stamps.to("meta"),
        "time_interval_seconds": lambda intervals: intervals.to("meta"),
    },
    "stamps None": {"timestamp_seconds": None},
    "stamps by numpy": {"timestamp_seconds": lambda stamps: stamps.numpy()},
    "stamps a list": {"timestamp_seconds": lambda stamps: stamps.tolist()},
    "stamps a number": {"timestamp_seconds": 0},
    "stamps of floats": {"timestamp_seconds": lambda stamps: stamps.double()},
    "stamps of 64 bits": {"timestamp_seconds": lambda stamps: stamps.long()},
    "stamps of no sign": {"timestamp_seconds": lambda stamps: stamps.to(torch.uint32)},
    "stamps of complex numbers": {"timestamp_seconds": lambda stamps: stamps + 0j},
    "stamps left out": {"timestamp_seconds": MISSING},
    "stamps sparse": {"timestamp_seconds": lambda stamps: stamps.to_sparse()},
    "intervals of five variates": {"time_interval_seconds": lambda _: torch.ones(1, 5).int()},
    "intervals of one variate": {"time_interval_seconds": lambda intervals: intervals[:, :1]},
    "intervals without batch": {"time_interval_seconds": lambda intervals: intervals[0]},
    "intervals of another batch": {"time_interval_seconds": shifted},
    "intervals of three axes": {"time_interval_seconds": lambda intervals: intervals[..., None]},
    "intervals of no axis": {"time_interval_seconds": lambda _: torch.tensor(60)},
    "intervals a number": {"time_interval_seconds": 3600},
    "intervals None": {"time_interval_seconds": None},
    "intervals a list": {"time_interval_seconds": lambda intervals: intervals.tolist()},
    "intervals by numpy": {"time_interval_seconds": lambda intervals: intervals.numpy()},
    "intervals of floats": {"time_interval_seconds": lambda intervals: intervals.double()},
    "intervals of no sign": {"time_interval_seconds": lambda i: i.to(torch.uint32)},
    "intervals on another device": {"time_interval_seconds": lambda i: i.to("meta")},
    "intervals left out": {"time_interval_seconds": MISSING},
    # The series.
    "series without batch": {"inputs": lambda inputs: inputs[0]},
    "series of four axes": {"inputs": lambda inputs: inputs[None]},
    "series of no variate": {"inputs": lambda inputs: inputs[:, :0]},
    "series of no batch": {"inputs": lambda inputs: inputs[:0]},
    "series of no time step": {"inputs": lambda inputs: inputs[..., :0]},
    "series of part of a patch": {"inputs": lambda inputs: inputs[..., 3:]},
    "series by numpy": {"inputs": lambda inputs: inputs.numpy()},
    "series a list": {"inputs": lambda inputs: inputs.tolist()},
    "series None": {"inputs": None},
    "series left out": {"inputs": MISSING},
    "series of 64 bits": {"inputs": lambda inputs: inputs.double()},
    "series of integers": {"inputs": lambda inputs: inputs.long()},
    "series of 16 bits": {"inputs": lambda inputs: inputs.bfloat16()},
    "series of complex numbers": {"inputs": lambda inputs: inputs + 0j},
    "series with a gap": {"inputs": lambda inputs: inputs.clone().fill_(float("nan"))},
    "series with one gap": {"inputs": lambda inputs: inputs.index_fill(2, torch.tensor(9), np.nan)},
    "series with an infinity": {
        "inputs": lambda inputs: inputs.index_fill(2, torch.tensor(9), np.inf)
    },
    "series of large values": {"inputs": lambda inputs: inputs * 1e37},
    "series that wants gradients": {"inputs": lambda inputs: inputs.clone().requires_grad_()},
    "series a parameter": {"inputs": lambda inputs: torch.nn.Parameter(inputs)},
    "series of their own class": {"inputs": lambda inputs: inputs.as_subclass(Doubling)},
    "series sparse": {"inputs": lambda inputs: inputs.to_sparse()},
    "series on another device": {"inputs": lambda inputs: inputs.to("meta")},
    "series strided": {"inputs": lambda inputs: inputs.mT.contiguous().mT},
    "series constant": {"inputs": lambda inputs: torch.ones(1).expand_as(inputs)},
    # How far, and how many.
    "horizon 0": {"prediction_length": 0},
    "horizon negative": {"prediction_length": -5},
    "horizon a float": {"prediction_length": 8.0},
    "horizon not a number": {"prediction_length": float("nan")},
    "horizon True": {"prediction_length": True},
    "horizon a string": {"prediction_length": "8"},
    "horizon None": {"prediction_length": None},
    "horizon left out": {"prediction_length": MISSING},
    "horizon by numpy": {"prediction_length": np.int64(HORIZON)},
    "horizon by numpy, narrow": {"prediction_length": np.int8(100)},
    "horizon a float by numpy": {"prediction_length": np.float64(HORIZON)},
    "horizon a tensor": {"prediction_length": torch.tensor(HORIZON)},
    "horizon a tensor of one": {"prediction_length": torch.tensor([HORIZON])},
    "horizon a narrow tensor": {"prediction_length": torch.tensor(100, dtype=torch.int8)},
    "horizon a tensor of floats": {"prediction_length": torch.tensor(8.0)},
    "cache None": {"use_kv_cache": None},
    "cache 0": {"use_kv_cache": 0},
    "cache a string": {"use_kv_cache": "no"},
    "cache by numpy": {"use_kv_cache": np.bool_(False)},
    "cache a tensor": {"use_kv_cache": torch.tensor(False)},
    "cache two tensors": {"use_kv_cache": torch.tensor([True, False])},
    "cache an array": {"use_kv_cache": np.array([True, False])},
    "cache left out": {"use_kv_cache": MISSING},
    # Masks.
    "padding None": {"input_padding_mask": None},
    "padding of numbers": {"input_padding_mask": lambda mask: mask.long()},
    "padding of floats": {"input_padding_mask": lambda mask: mask.double()},
    "padding of no sign": {"input_padding_mask": lambda mask: mask.to(torch.uint32)},
    "padding of complex numbers": {"input_padding_mask": lambda mask: mask + 0j},
    "padding of one variate": {"input_padding_mask": lambda mask: mask[:, :1]},
    "padding of one series": {"input_padding_mask": lambda mask: mask[:1]},
    "padding without batch": {"input_padding_mask": lambda mask: mask[0]},
    "padding of one time step": {"input_padding_mask": lambda mask: mask[..., :1]},
    "padding too short": {"input_padding_mask": lambda mask: mask[..., 1:]},
    "padding on another device": {"input_padding_mask": lambda mask: mask.to("meta")},
    "padding by numpy": {"input_padding_mask": lambda mask: mask.numpy()},
    "padding True": {"input_padding_mask": True},
    "padding everywhere": {"input_padding_mask": lambda mask: ~mask},
    "padding not a number": {"input_padding_mask": lambda mask: mask / 0 - mask / 0},
    "groups None": {"id_mask": None},
    "groups of complex numbers": {"id_mask": lambda mask: mask + 0j},
    "groups of booleans": {"id_mask": lambda mask: mask.bool()},
    "groups of no sign": {"id_mask": lambda mask: mask.to(torch.uint32)},
    "groups of 16 bits": {"id_mask": lambda mask: mask.half()},
    "groups of one variate": {"id_mask": lambda mask: mask[:, :1]},
    "groups of one series": {"id_mask": lambda mask: mask[:1]},
    "groups of one time step": {"id_mask": lambda mask: mask[..., :1]},
    "groups of one patch": {"id_mask": lambda mask: mask[..., :PATCH]},
    "groups without batch": {"id_mask": lambda mask: mask[0]},
    "groups too short": {"id_mask": lambda mask: mask[..., 1:]},
    "groups not a number": {"id_mask": lambda mask: mask / 0},
    "groups infinite": {"id_mask": lambda mask: mask + np.inf},
    "groups within a patch": {"id_mask": lambda mask: torch.arange(LENGTH).expand_as(mask)},
    "groups on another device": {"id_mask": lambda mask: mask.to("meta")},
    "groups by numpy": {"id_mask": lambda mask: mask.numpy()},
    "groups 0": {"id_mask": 0},
    # Names.
    "a name too many": {"temperature": 1.0},
    "upstream's other name": {"samples_per_batch": 2},
}

ODD_SAMPLES: dict[str, dict[str, Any]] = {
    "True samples": {"num_samples": True},
    "True samples, one by one": {"num_samples": True, "sampling_batch_size": 1},
    "samples True by True": {"num_samples": True, "sampling_batch_size": True},
    "samples None": {"num_samples": None},
    "samples left out": {"num_samples": MISSING},
    "samples 0": {"num_samples": 0},
    "samples negative": {"num_samples": -4},
    "samples a float": {"num_samples": 4.0},
    "samples a string": {"num_samples": "4"},
    "samples by numpy": {"num_samples": np.int64(4)},
    "samples by numpy, narrow": {"num_samples": np.int8(4)},
    "samples a tensor": {"num_samples": torch.tensor(4)},
    "samples a tensor of one": {"num_samples": torch.tensor([4])},
    "samples that do not divide": {"num_samples": 5},
    "per batch left out": {"sampling_batch_size": MISSING},
    "per batch left out, and fitting": {"num_samples": 10, "sampling_batch_size": MISSING},
    "per batch None": {"sampling_batch_size": None},
    "per batch 0": {"sampling_batch_size": 0},
    "per batch negative": {"sampling_batch_size": -2},
    "per batch True": {"sampling_batch_size": True},
    "per batch a float": {"sampling_batch_size": 2.0},
    "per batch by numpy": {"sampling_batch_size": np.int64(2)},
    "per batch a tensor": {"sampling_batch_size": torch.tensor(2)},
    "per batch more than samples": {"sampling_batch_size": 8},
    "per batch 1, stamps of another batch": {
        "sampling_batch_size": 1,
        "timestamp_seconds": shifted,
    },
    "per batch 1, intervals of another batch": {
        "sampling_batch_size": 1,
        "time_interval_seconds": shifted,
    },
}


def known_future(of: torch.Tensor, variates: int = 1, horizon: int = HORIZON) -> torch.Tensor:
    return torch.zeros(of.shape[0], variates, horizon)


ODD_EXOGENOUS: dict[str, dict[str, Any]] = {
    "a known future": {EXOGENOUS: known_future, "num_exogenous_variables": 1},
    "future by numpy": {
        EXOGENOUS: lambda inputs: known_future(inputs).numpy(),
        "num_exogenous_variables": 1,
    },
    "future a list": {
        EXOGENOUS: lambda inputs: known_future(inputs).tolist(),
        "num_exogenous_variables": 1,
    },
    "future of whole patches by numpy": {
        EXOGENOUS: lambda inputs: known_future(inputs, horizon=PATCH).numpy(),
        "num_exogenous_variables": 1,
        "prediction_length": PATCH,
    },
    "future of 64 bits": {
        EXOGENOUS: lambda inputs: known_future(inputs).double(),
        "num_exogenous_variables": 1,
    },
    "future of integers": {
        EXOGENOUS: lambda inputs: known_future(inputs).long(),
        "num_exogenous_variables": 1,
    },
    "future of complex numbers": {
        EXOGENOUS: lambda inputs: known_future(inputs) + 0j,
        "num_exogenous_variables": 1,
    },
    "future not a number": {
        EXOGENOUS: lambda inputs: known_future(inputs) / 0,
        "num_exogenous_variables": 1,
    },
    "future that wants gradients": {
        EXOGENOUS: lambda inputs: known_future(inputs).requires_grad_(),
        "num_exogenous_variables": 1,
    },
    "future on another device": {
        EXOGENOUS: lambda inputs: known_future(inputs).to("meta"),
        "num_exogenous_variables": 1,
    },
    "future too short": {
        EXOGENOUS: lambda inputs: known_future(inputs, horizon=HORIZON - 1),
        "num_exogenous_variables": 1,
    },
    "future without batch": {
        EXOGENOUS: lambda inputs: known_future(inputs)[0],
        "num_exogenous_variables": 1,
    },
    "future of another batch": {
        EXOGENOUS: lambda inputs: shifted(known_future(inputs)),
        "num_exogenous_variables": 1,
    },
    "future without number": {EXOGENOUS: known_future},
    "future, number 0": {EXOGENOUS: known_future, "num_exogenous_variables": 0},
    "future, number True": {EXOGENOUS: known_future, "num_exogenous_variables": True},
    "future, number a float": {EXOGENOUS: known_future, "num_exogenous_variables": 1.0},
    "future, number a tensor": {
        EXOGENOUS: known_future,
        "num_exogenous_variables": torch.tensor([1]),
    },
    "future, number collated": {
        EXOGENOUS: known_future,
        "num_exogenous_variables": torch.tensor([1, 1, 1]),
    },
    "future of too many": {
        EXOGENOUS: lambda inputs: known_future(inputs, variates=7),
        "num_exogenous_variables": 7,
    },
    "future of none": {
        EXOGENOUS: lambda inputs: known_future(inputs, variates=0),
        "num_exogenous_variables": 0,
    },
    "number negative": {"num_exogenous_variables": -1},
    "number too large": {"num_exogenous_variables": 7},
    "number None": {"num_exogenous_variables": None},
    "number a string": {"num_exogenous_variables": "one"},
    "number True": {"num_exogenous_variables": True},
    "number collated": {"num_exogenous_variables": torch.tensor([1, 1, 1])},
    "number by numpy": {"num_exogenous_variables": np.int64(1)},
    "number on another device": {"num_exogenous_variables": torch.tensor(1, device="meta")},
}


def changed(name: str, changes: dict[str, Any], batch: int, variates: int) -> Arguments:
    """An ordinary call's arguments with the changes made; tensors are made anew each time."""
    found = arguments(name, batch, variates)
    inputs = found["inputs"]
    for argument, change in changes.items():
        if change is MISSING:
            found.pop(argument, None)
        elif callable(change):
            found[argument] = change(found.get(argument, inputs))
        else:
            found[argument] = change
    return found


def tables(name: str) -> dict[str, dict[str, Any]]:
    exogenous = ODD_EXOGENOUS if HAS_EXOGENOUS else {}
    return ODD | exogenous | (ODD_SAMPLES if name == "generate_samples" else {})


CALLS = [(name, odd) for name in ("generate_mean", "generate_samples") for odd in tables(name)]


@pytest.mark.parametrize(("name", "odd"), CALLS, ids=[f"{odd}-{name}" for name, odd in CALLS])
@pytest.mark.fault(
    injected="odd arguments",
    where="generate_mean and generate_samples",
    observed="what upstream returns or raises, in its words",
    afterwards="the next forecast is as ever",
)
def test_an_odd_call_does_what_upstream_does(name: str, odd: str) -> None:
    def call(batch: int, variates: int) -> torch.Tensor:
        return getattr(forecaster(), name)(**changed(name, tables(name)[odd], batch, variates))

    calls = [functools.partial(call, *shape) for shape in SHAPES]
    assert_alike(*calls, exact=name == "generate_mean")


def positional(name: str, count: int, *more: Any) -> Any:
    given = list(arguments(name, 1, 2).values())
    return getattr(forecaster(), name)(*given[:count], *more)


@pytest.mark.parametrize("name", ["generate_mean", "generate_samples"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 7])
def test_arguments_by_position(name: str, count: int) -> None:
    assert_alike(
        lambda: positional(name, count),
        lambda: positional(name, count, *[None] * 9),
        exact=name == "generate_mean",
    )


@pytest.mark.parametrize("name", ["generate_mean", "generate_samples"])
def test_an_argument_given_twice(name: str) -> None:
    inputs = series(LENGTH, 2, 1).series

    def call() -> Any:
        return getattr(forecaster(), name)(inputs, **arguments(name, 1, 2))

    assert "multiple values for argument 'inputs'" in str(assert_alike(call))


def test_what_is_odd_but_understood_is_fast() -> None:
    """What upstream accepts by its documentation, or what collating makes, is no odd call."""
    understood = [
        ("generate_mean", "nothing"),
        ("generate_mean", "intervals without batch"),
        ("generate_mean", "stamps of another length"),
        ("generate_mean", "horizon by numpy"),
        ("generate_mean", "groups of one variate"),
        ("generate_mean", "padding of floats"),
        ("generate_mean", "series that wants gradients"),
        ("generate_samples", "samples by numpy"),
        ("generate_samples", "per batch left out, and fitting"),
    ]
    if HAS_EXOGENOUS:
        understood += [
            ("generate_mean", "a known future"),
            ("generate_mean", "future, number a tensor"),
            ("generate_samples", "number collated"),
        ]
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        for name, odd in understood:
            getattr(forecaster(), name)(**changed(name, tables(name)[odd], 3, 2))
            path = toto_compile_patch.last_path()
            assert path is not None
            assert (path.taken, path.reason) == ("fast", ""), odd


# As users call: the fields of a series, and how it is forecast.
ODD_SERIES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "series by numpy": {"series": lambda part: part.numpy()},
    "series of 64 bits": {"series": lambda part: part.double()},
    "series of integers": {"series": lambda part: part.long()},
    "series with a gap": {"series": lambda part: part.index_fill(-1, torch.tensor([2]), np.nan)},
    "series of one axis": {"series": lambda part: part.flatten()},
    "series short": {
        "series": lambda part: part[..., :3],
        "padding_mask": lambda part: part[..., :3],
        "id_mask": lambda part: part[..., :3],
        "timestamp_seconds": lambda part: part[..., :3],
    },
    "series longer than its masks": {"series": lambda part: torch.cat([part, part], dim=-1)},
    "series None": {"series": None},
    "padding by numpy": {"padding_mask": lambda part: part.numpy()},
    "padding of one time step": {"padding_mask": lambda part: part[..., :1]},
    "padding of numbers": {"padding_mask": lambda part: part.long()},
    "padding None": {"padding_mask": None},
    "groups by numpy": {"id_mask": lambda part: part.numpy()},
    "groups of one time step": {"id_mask": lambda part: part[..., :1]},
    "groups of one axis": {"id_mask": lambda part: part[..., 0]},
    "groups that differ": {"id_mask": lambda part: part.cumsum(-2)},
    "groups None": {"id_mask": None},
    "stamps by numpy": {"timestamp_seconds": lambda part: part.numpy()},
    "stamps of one variate": {"timestamp_seconds": lambda part: part[..., :1, :]},
    "stamps of floats": {"timestamp_seconds": lambda part: part.double()},
    "stamps of one axis": {"timestamp_seconds": lambda part: part[..., 0]},
    "stamps None": {"timestamp_seconds": None},
    "stamps on another device": {"timestamp_seconds": lambda part: part.to("meta")},
    "intervals a number": {"time_interval_seconds": 3600},
    "intervals by numpy": {"time_interval_seconds": lambda part: part.numpy()},
    "intervals a list": {"time_interval_seconds": lambda part: part.tolist()},
    "intervals of floats": {"time_interval_seconds": lambda part: part * 0.5},
    "intervals of one variate": {"time_interval_seconds": lambda part: part[..., :1]},
    "intervals of a variate too many": {
        "time_interval_seconds": lambda part: torch.cat([part, part], dim=-1)
    },
    "intervals for each time step": {"time_interval_seconds": lambda part: part[..., None]},
    "intervals None": {"time_interval_seconds": None},
    "horizon 0": {"prediction_length": 0},
    "horizon a float": {"prediction_length": 8.0},
    "horizon True": {"prediction_length": True},
    "horizon left out": {"prediction_length": MISSING},
    "samples True": {"num_samples": True},
    "samples True by one": {"num_samples": True, "samples_per_batch": 1},
    "samples 0": {"num_samples": 0},
    "samples that do not divide": {"num_samples": 12},
    "samples fewer than a batch": {"num_samples": 4},
    "samples a float": {"num_samples": 10.0},
    "samples by numpy": {"num_samples": np.int64(10)},
    "per batch None": {"num_samples": 10, "samples_per_batch": None},
    "per batch for a mean": {"samples_per_batch": None},
    "cache a string": {"use_kv_cache": "no"},
    "cache None": {"use_kv_cache": None},
    "a name too many": {"temperature": 0.7},
}


def known_ahead(variates: int) -> dict[str, Any]:
    return {"num_exogenous_variables": variates, EXOGENOUS: lambda s: s[..., :variates, :HORIZON]}


if HAS_EXOGENOUS:
    ODD_SERIES |= {
        "a known future": known_ahead(1),
        "future of too few": {**known_ahead(1), "num_exogenous_variables": 2},
        "future by numpy": {
            **known_ahead(1),
            EXOGENOUS: lambda s: s[..., :1, :HORIZON].numpy(),
        },
        "future too short": {**known_ahead(1), EXOGENOUS: lambda s: s[..., :1, :3]},
        "future without number": {EXOGENOUS: lambda s: s[..., :1, :HORIZON]},
        "number a string": {"num_exogenous_variables": "one"},
        "number None": {"num_exogenous_variables": None},
        "number collated": {"num_exogenous_variables": torch.tensor([0, 0, 0])},
    }


def forecast_oddly(odd: str, variates: int, batch: int | None) -> torch.Tensor:
    """``TotoForecaster.forecast`` of a series, unbatched by default, of which something is odd."""
    inputs = series(LENGTH, variates, batch)
    found: Arguments = {"prediction_length": HORIZON}
    fields: Arguments = {}
    for name, change in ODD_SERIES[odd].items():
        if change is MISSING:
            found.pop(name)
            continue
        given = change(getattr(inputs, name, inputs.series)) if callable(change) else change
        (fields if name in inputs._fields else found)[name] = given
    result = forecaster().forecast(inputs._replace(**fields), **found)
    return result.mean if result.samples is None else result.samples


@pytest.mark.parametrize("odd", ODD_SERIES)
def test_an_odd_series_is_forecast_as_upstream_does(odd: str) -> None:
    calls = [
        functools.partial(forecast_oddly, odd, variates, batch)
        for variates in (1, 2)
        for batch in (None, 1, 3)
    ]
    assert_alike(*calls, exact="num_samples" not in ODD_SERIES[odd])


def test_a_batch_that_a_loader_collated_is_fast() -> None:
    """Collating makes a tensor of the number of exogenous variables: one for each series."""
    windows = [series(LENGTH, 2) for _ in range(3)]
    loader: Any = torch.utils.data.DataLoader(windows, batch_size=3)  # type: ignore[arg-type]
    batch = next(iter(loader))
    upstream = forecaster().forecast(batch, HORIZON).mean
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        torch.testing.assert_close(forecaster().forecast(batch, HORIZON).mean, upstream)


Call = Callable[..., torch.Tensor]


def along(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    return torch.func.jvp(call, (inputs,), (torch.ones_like(inputs),))[0]


def by_dual_numbers(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return call(forward_ad.make_dual(inputs, torch.ones_like(inputs)))


def beside_dual_numbers(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return call(inputs)


def mapped(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(call)(torch.stack([inputs, inputs]))


def mapped_over_horizons(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(lambda _: call(inputs))(torch.zeros(2))


def backwards(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(lambda each: call(each).sum())(inputs)


def with_gradients(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    inputs = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(inputs).sum(), inputs)
    return gradient


def traced(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    return torch.jit.trace(call, inputs, check_trace=False)(inputs)


def made_fx(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    return make_fx(call)(inputs)(inputs)


def faked(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return call(inputs)


def of_fake_tensors(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    return call(FakeTensorMode(allow_non_fake_inputs=True).from_tensor(inputs))


def in_inference_mode(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return call(inputs)


def on_another_default_device(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    with torch.device("meta"):
        return call(inputs)


def of_another_default_type(call: Call, inputs: torch.Tensor) -> torch.Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return call(inputs)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", ["generate_mean", "generate_samples"])
@pytest.mark.parametrize(
    "mode",
    [
        along,
        by_dual_numbers,
        beside_dual_numbers,
        mapped,
        mapped_over_horizons,
        backwards,
        with_gradients,
        traced,
        made_fx,
        faked,
        of_fake_tensors,
        in_inference_mode,
        on_another_default_device,
        of_another_default_type,
    ],
)
@pytest.mark.fault(
    injected="derivatives, vmap, traces, fake tensors, other defaults",
    where="around a forecast",
    observed="what upstream makes of it",
    afterwards="the next forecast is as ever",
)
def test_what_torch_does_beside_computing(mode: Any, name: str, cache: bool) -> None:
    """Derivatives, maps, traces and defaults: what upstream makes of them is what we do."""
    given = arguments(name, 1, 2) | {"use_kv_cache": cache}
    inputs = given.pop("inputs")

    # Made here, and not within the mode.
    made = forecaster()

    def call(inputs: torch.Tensor) -> torch.Tensor:
        return getattr(made, name)(inputs=inputs, **given)

    # The second call finds nothing of the first in what that had prepared.
    exact = name == "generate_mean"
    assert_alike(lambda: mode(call, inputs), lambda: call(inputs), exact=exact)


@pytest.mark.parametrize("cache", [True, False])
def test_a_model_of_a_single_layer(cache: bool) -> None:
    """Upstream's cache looks up the second layer."""
    single = TotoForecaster(small_model(num_layers=1, spacewise_every_n_layers=-1).model)
    given = arguments("generate_mean", 1, 2) | {"use_kv_cache": cache}
    assert_alike(lambda: single.generate_mean(**given))


@pytest.mark.parametrize(
    "number", [0, 1, 2, -1, 3, True, 1.0, None, torch.tensor([1]), torch.tensor([1, 1, 1])]
)
def test_labels_of_variates(number: Any) -> None:
    """A model with labels reads the number of exogenous variables, future or not."""
    labelled = tiny_model(seed=1).model
    if not hasattr(labelled, "enable_variate_labels"):
        pytest.skip("labels came with toto-ts 0.2.0")
    labelled.enable_variate_labels()
    given = arguments("generate_mean", 3, 2) | {"num_exogenous_variables": number}
    assert_alike(lambda: TotoForecaster(labelled).generate_mean(**given))


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("distribution", ["StudentTOutput", "MixtureOfStudentTsOutput"])
@pytest.mark.parametrize("name", ["generate_mean", "generate_samples"])
def test_gaps(distribution: str, name: str, checks: bool) -> None:
    """Upstream's distributions refuse them, unless somebody has told torch not to check."""
    model = tiny_model(
        output_distribution_classes=[f"<class 'model.distribution.{distribution}'>"],
        output_distribution_kwargs={"k_components": 3} if "Mixture" in distribution else None,
    ).model
    given = arguments(name, 3, 2)
    given["inputs"] = given["inputs"].clone()
    given["inputs"][0, 0, 5] = np.nan
    torch.distributions.Distribution.set_default_validate_args(checks)
    try:
        assert_alike(
            lambda: getattr(TotoForecaster(model), name)(**given), exact=name == "generate_mean"
        )
    finally:
        torch.distributions.Distribution.set_default_validate_args(__debug__)

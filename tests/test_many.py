"""``forecast_many``: each window's forecast as if it were alone, whatever stands beside it."""

from __future__ import annotations

import gc
import pickle
import random
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from functools import partial, wraps
from pathlib import Path
from traceback import walk_tb
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, small_model, tiny_model, values

import toto_compile_patch
from toto_compile_patch import FailedForecast, FallbackError, forecast_many
from toto_compile_patch.decode import random_numbers
from toto_compile_patch.decode.generation import batch_within
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.weights import ModelSettings
from toto_compile_patch.patches import fast_decode

HORIZON = 2 * PATCH + 3
HAS_EXOGENOUS = "num_exogenous_variables" in MaskedTimeseries._fields


def forecaster(**changes: Any) -> TotoForecaster:
    return TotoForecaster(small_model(**changes).model.double())


def windows(count: int, longest: int = 200, variates: int = 4) -> list[MaskedTimeseries]:
    """Seeded series of many lengths and numbers of variates, some with gaps or a batch."""
    choose = random.Random(count)
    made = []
    for index in range(count):
        batch = choose.choice([None, None, None, 1, 2])
        length, width = choose.randint(1, longest), choose.randint(1, variates)
        window = series(length, width, batch, dtype=torch.float64)
        if index % 5 == 0:
            window.padding_mask[..., ::7] = False
        if index % 6 == 0:
            window.id_mask[..., :1, :] = 1
        made.append(window)
    return made


def alone(one: TotoForecaster, every: list[MaskedTimeseries]) -> list[torch.Tensor]:
    """What upstream's code forecasts for each."""
    return [values(one.forecast(window, HORIZON)) for window in every]


def assert_equal(found: list[Any], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(values(one), other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", [2**30, 2**18], ids=["much", "little"])
def test_means_are_upstreams_of_each_window_alone(memory: int) -> None:
    every, one = windows(60), forecaster()
    expected = alone(one, every)
    toto_compile_patch.apply(fallback="error")
    assert_equal(list(forecast_many(one, every, HORIZON, memory=memory)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_300_windows_of_many_shapes(use_kv_cache: bool) -> None:
    every, one = windows(300, longest=500, variates=8), forecaster()
    expected = [values(one.forecast(w, HORIZON, use_kv_cache=use_kv_cache)) for w in every]
    toto_compile_patch.apply(fallback="error")
    found = list(forecast_many(one, every, HORIZON, use_kv_cache=use_kv_cache))
    assert_equal(found, expected)


@pytest.mark.parametrize("scaler", ["StdMeanScaler", "CausalStdMeanScaler"])
def test_other_scalers(scaler: str) -> None:
    one = forecaster(scaler_cls=f"<class 'model.scaler.{scaler}'>")
    every = windows(20)
    expected = alone(one, every)
    toto_compile_patch.apply(fallback="error")
    assert_equal(list(forecast_many(one, every, HORIZON)), expected)


def test_samples_are_the_same_whatever_the_grouping() -> None:
    toto_compile_patch.apply(fallback="error")
    every, one = windows(40), forecaster()

    def samples(**arguments: Any) -> list[torch.Tensor]:
        return [values(f) for f in forecast_many(one, every, HORIZON, 24, 8, **arguments)]

    expected = samples(seed=7)
    seeds = [int(seed) for seed in np.random.default_rng(0).integers(2**62, size=len(every))]
    for other in (samples(seed=7), samples(seed=7, memory=2**18), samples(seed=7, memory=1)):
        for found, wanted in zip(other, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    own = samples(seed=seeds)
    every, seeds = every[::-1], seeds[::-1]
    for found, wanted in zip(samples(seed=seeds)[::-1], own, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert not any(torch.equal(*pair) for pair in zip(own[::-1], expected, strict=True))


def test_a_seed_of_the_process_gives_the_same_samples_again() -> None:
    toto_compile_patch.apply(fallback="error")
    every, one = windows(6), forecaster()

    def samples() -> list[torch.Tensor]:
        return [values(f) for f in forecast_many(one, every, HORIZON, 4, 4)]

    torch.manual_seed(1)
    first, second = samples(), samples()
    torch.manual_seed(1)
    for again, before, other in zip(samples(), first, second, strict=True):
        assert torch.equal(again, before)
        assert not torch.equal(other, before)
    state = torch.get_rng_state()
    list(forecast_many(one, every, HORIZON))
    list(forecast_many(one, every, HORIZON, 4, 4, seed=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_windows_have_samples_of_upstreams_distribution_and_of_their_own() -> None:
    one, window, count = forecaster(), series(24, 2, dtype=torch.float64), 3000
    torch.manual_seed(0)
    upstream = values(one.forecast(window, HORIZON, count, 500))[0].numpy()
    toto_compile_patch.apply(fallback="error")
    found = [values(f)[0].numpy() for f in forecast_many(one, [window] * 3, HORIZON, count, 500)]
    assert not np.array_equal(found[0], found[1])
    worst = min(
        stats.ks_2samp(samples[variate, step], upstream[variate, step]).pvalue
        for samples in found
        for variate in range(2)
        for step in range(HORIZON)
    )
    assert worst > 1e-5
    # Neither do two windows go up and down together.
    correlation = np.corrcoef(found[0][0, -1], found[1][0, -1])[0, 1]
    assert abs(correlation) < 0.1


@pytest.mark.fault(
    injected="broken windows",
    where="among forty of forecast_many",
    observed="a FailedForecast in their place, with upstream's error",
    afterwards="all other forecasts are what they are without them",
)
def test_a_broken_window_costs_itself_alone() -> None:
    every, one = windows(40), forecaster()
    toto_compile_patch.apply(fallback="upstream")
    expected = list(forecast_many(one, every, HORIZON, 8, 8, seed=0))
    every[7] = every[7]._replace(series=every[7].series * torch.nan)
    ids = torch.arange(every[9].series.shape[-1]).expand_as(every[9].series)
    every[9] = every[9]._replace(id_mask=ids.float())
    every[11] = "no series"  # type: ignore[call-overload]
    every[13] = every[13]._replace(timestamp_seconds=torch.zeros(1, 1, 1, 1))
    nowhere = torch.ones(every[15].series.shape, device="meta")
    every[15] = every[15]._replace(padding_mask=nowhere)
    found = list(forecast_many(one, every, HORIZON, 8, 8, seed=0))
    failed = {f.index: f for f in found if isinstance(f, FailedForecast)}
    assert failed.keys() == {7, 9, 11, 13, 15}
    for index, failure in failed.items():
        with pytest.raises(type(failure.error)) as raised:
            one.forecast(every[index], HORIZON, num_samples=8, samples_per_batch=8)
        assert str(raised.value) == str(failure.error)
        with pytest.raises(type(failure.error)):
            _ = failure.mean
        with pytest.raises(type(failure.error)):
            failure.quantile(0.5)
    for index, (one_found, wanted) in enumerate(zip(found, expected, strict=True)):
        if index not in failed:
            torch.testing.assert_close(values(one_found), values(wanted), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_window_of_nothing_but_padding_is_reported(value: float, patched: bool) -> None:
    every, one = windows(40), forecaster()
    expected = alone(one, every)
    empty = (2, 3, 20, 39)
    for index in empty:
        every[index] = every[index]._replace(
            series=torch.full_like(every[index].series, value),
            padding_mask=torch.zeros_like(every[index].padding_mask),
        )
    if patched:
        toto_compile_patch.apply(fallback="error")
    found = list(forecast_many(one, every, HORIZON))
    for index in empty:
        assert isinstance(found[index], FailedForecast)
        assert found[index].index == index
        with pytest.raises(ValueError, match="nothing but padding"):
            _ = found[index].mean
    others = [index for index in range(40) if index not in empty]
    assert_equal([found[index] for index in others], [expected[index] for index in others])


def test_windows_of_unusual_shapes_cost_themselves_alone() -> None:
    """One without variates, as a pandas series would give, and one without time steps."""
    every, one = windows(8), forecaster()
    expected = alone(one, every)
    flat, short = series(20, dtype=torch.float64), every[5]
    every[2] = MaskedTimeseries(*(part.squeeze(0) for part in flat[:5]))
    every[5] = short._replace(
        **{name: part[..., :0] for name, part in short._asdict().items() if name in UNTIL_NOW}
    )
    toto_compile_patch.apply(fallback="upstream")
    found = list(forecast_many(one, every, HORIZON))
    failed = {index: found[index] for index in (2, 5)}
    assert all(isinstance(failure, FailedForecast) for failure in failed.values())
    with pytest.raises(type(failed[2].error)):
        one.forecast(every[2], HORIZON)
    assert "nothing but padding" in str(failed[5].error)
    others = [index for index in range(8) if index not in failed]
    assert_equal([found[index] for index in others], [expected[index] for index in others])


UNTIL_NOW = ("series", "padding_mask", "id_mask", "timestamp_seconds")
"""What a window holds of each time step."""


@pytest.mark.skipif(not HAS_EXOGENOUS, reason="this toto knows no exogenous variables")
@pytest.mark.parametrize("future", ["tomorrow", torch.ones(HORIZON, dtype=torch.float64)], ids=str)
def test_a_future_of_another_kind_costs_its_window_alone(future: Any) -> None:
    window, one = series(30, 3, dtype=torch.float64), forecaster()
    every = [window._replace(num_exogenous_variables=1) for _ in range(4)]
    good = torch.ones(1, HORIZON, dtype=torch.float64)
    wanted = values(one.forecast(every[0], HORIZON, future_exogenous_variables=good))
    toto_compile_patch.apply(fallback="upstream")
    futures = [good, future, good, good]
    found = list(forecast_many(one, every, HORIZON, future_exogenous_variables=futures))
    assert isinstance(found[1], FailedForecast)
    with pytest.raises(type(found[1].error)):
        one.forecast(every[1], HORIZON, future_exogenous_variables=future)
    assert_equal([found[0], *found[2:]], [wanted] * 3)


def test_elsewhere_than_on_a_cpu_memory_alone_bounds_a_group() -> None:
    settings = ModelSettings.of(small_model().model)
    inputs = series(40).series.unsqueeze(0)
    there = inputs.to("meta")
    here, elsewhere = (
        Request(
            inputs=part,
            padding_mask=torch.ones_like(part, dtype=torch.bool),
            id_mask=None,
            horizon=HORIZON,
            num_samples=None,
            samples_per_batch=1,
            use_kv_cache=True,
            future_exogenous=None,
            num_exogenous=0,
        )
        for part in (inputs, there)
    )
    bounds = [batch_within(settings, elsewhere, 2**power) for power in (10, 32, 33)]
    assert bounds[0] == 1
    assert 2 * bounds[1] <= bounds[2] <= 2 * bounds[1] + 1
    assert batch_within(settings, here, 2**32) == batch_within(settings, here, 2**33) < bounds[1]


@pytest.mark.skipif(not HAS_EXOGENOUS, reason="this toto knows no exogenous variables")
def test_each_window_has_its_own_known_future() -> None:
    one, generator = forecaster(), torch.Generator().manual_seed(0)
    window = series(30, 3, dtype=torch.float64)
    every = [window._replace(num_exogenous_variables=n % 3) for n in range(9)]
    futures = [
        torch.rand(n % 3, HORIZON, generator=generator, dtype=torch.float64) if n % 3 else None
        for n in range(9)
    ]
    pairs = zip(every, futures, strict=True)
    expected = [values(one.forecast(w, HORIZON, future_exogenous_variables=f)) for w, f in pairs]
    toto_compile_patch.apply(fallback="error")
    found = list(forecast_many(one, every, HORIZON, future_exogenous_variables=futures))
    assert_equal(found, expected)


def test_windows_are_read_as_they_are_needed_and_forecasts_come_as_they_are_made() -> None:
    toto_compile_patch.apply(fallback="error")
    read: list[int] = []

    def endless() -> Iterator[MaskedTimeseries]:
        while True:
            read.append(len(read))
            yield series(40, dtype=torch.float64)

    given = forecast_many(forecaster(), endless(), HORIZON)
    assert not read
    for _ in range(3):
        next(given)
    assert len(read) <= 1024


def test_what_waits_is_bounded_by_memory_too() -> None:
    """One window of a rare shape comes first, and all others wait for it."""
    toto_compile_patch.apply(fallback="error")
    common, samples, memory = series(40, dtype=torch.float64), 64, 2**23
    size = (samples + 1) * HORIZON * common.series.element_size()
    read: list[int] = []

    def many() -> Iterator[MaskedTimeseries]:
        yield series(400, 3, dtype=torch.float64)
        for index in range(5_000):
            read.append(index)
            yield common

    next(forecast_many(forecaster(), many(), HORIZON, samples, samples, memory=memory))
    # As many forecasts as there is room for, and not the rare one at once.
    assert memory / size / 2 < len(read) < 2 * memory / size


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.fault(
    injected="an error or an interrupt of the user's",
    where="between forecasts of forecast_many",
    observed="it is raised",
    afterwards="no window is kept; the thread's seeds and choices are as before",
)
def test_whoever_stops_leaves_nothing_behind(error: type[BaseException]) -> None:
    toto_compile_patch.apply(fallback="error")
    one, every = forecaster(), windows(30)
    kept = weakref.ref(every[3].series)

    def consume() -> None:
        for _ in forecast_many(one, every, HORIZON, 4, 4):
            raise error

    with pytest.raises(error):
        consume()
    every.clear()
    gc.collect()
    assert kept() is None
    assert random_numbers._here.seeds is None
    assert not fast_decode._here.fast_alone


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
@pytest.mark.fault(
    injected="SIGVTALRM as an interrupt",
    where="any moment of forecast_many",
    observed="it is raised",
    afterwards="the thread's seeds and choices are as before",
)
def test_an_interrupt_at_any_time_leaves_nothing_behind() -> None:
    toto_compile_patch.apply(fallback="error")
    one, every = forecaster(), windows(12)
    list(forecast_many(one, every, HORIZON, 4, 4))
    interrupted = 0
    for milliseconds in range(1, 120, 3):
        signal.setitimer(signal.ITIMER_VIRTUAL, milliseconds / 1000)
        try:
            list(forecast_many(one, every, HORIZON, 4, 4))
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        assert random_numbers._here.seeds is None
        assert not fast_decode._here.fast_alone
    assert interrupted > 5


@pytest.fixture(autouse=True)
def alarms_interrupt() -> Iterator[None]:
    """A timer that runs out is an interrupt: one of computing time, since pytest has the other."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, interrupt) if hasattr(signal, "SIGVTALRM") else None
    yield
    if before is not None:
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.fault(
    injected="an error in the generator of windows",
    where="forecast_many",
    observed="it is raised after the forecasts before it",
    afterwards="those are whole",
)
def test_where_the_windows_end_in_an_error_those_before_it_are_not_lost() -> None:
    toto_compile_patch.apply(fallback="error")

    def broken() -> Iterator[MaskedTimeseries]:
        yield from windows(5)
        raise OSError("the disk is gone")

    given = forecast_many(forecaster(), broken(), HORIZON)
    assert [next(given).mean.shape[-1] for _ in range(5)] == [HORIZON] * 5
    with pytest.raises(OSError, match="the disk is gone"):
        next(given)


def test_unpatched_it_is_a_loop() -> None:
    every, one = windows(8), forecaster()
    assert_equal(list(forecast_many(one, every, HORIZON)), alone(one, every))
    torch.manual_seed(5)
    expected = [values(one.forecast(window, HORIZON, 4, 2)) for window in every]
    torch.manual_seed(5)
    assert_equal(list(forecast_many(one, every, HORIZON, 4, 2)), expected)
    seeds = list(range(8))
    found = [values(f) for f in forecast_many(one, every, HORIZON, 4, 2, seed=seeds)]
    torch.manual_seed(3)
    torch.testing.assert_close(found[3], values(one.forecast(every[3], HORIZON, 4, 2)))
    again = [values(f) for f in forecast_many(one, every, HORIZON, 4, 2, seed=seeds)]
    assert all(map(torch.equal, found, again))


def test_with_upstreams_random_numbers_it_is_a_loop() -> None:
    every, one = windows(8), forecaster()
    expected = [values(f) for f in forecast_many(one, every, HORIZON, 4, 2, seed=1)]
    toto_compile_patch.apply(rng="upstream", fallback="error")
    assert_equal(list(forecast_many(one, every, HORIZON, 4, 2, seed=1)), expected)


def test_what_the_fast_path_does_not_know_is_forecast_one_by_one() -> None:
    class Own(TotoForecaster):  # type: ignore[misc]
        def forecast(self, *args: Any, **kwargs: Any) -> Any:
            made = super().forecast(*args, **kwargs)
            return type(made)(mean=made.mean + 1, samples=made.samples)

    one, every = forecaster(), windows(6)
    expected = alone(one, every)
    toto_compile_patch.apply(fallback="error")
    found = list(forecast_many(Own(one.model), every, HORIZON))
    assert_equal(found, [mean + 1 for mean in expected])
    hook = one.model.register_forward_hook(lambda *_: None)
    given = list(forecast_many(one, every, HORIZON))
    assert all(isinstance(f, FailedForecast) for f in given)
    assert all(isinstance(f.error, FallbackError) for f in given)
    toto_compile_patch.apply(fallback="upstream")
    assert_equal(list(forecast_many(one, every, HORIZON)), expected)
    hook.remove()


def normalised(inputs: torch.Tensor, generate: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Somebody's own scaling, which was written for one window."""
    level, spread = inputs.mean(), inputs.std() + 1
    made: torch.Tensor = generate((inputs - level) / spread, *args, **kwargs) * spread + level
    return made


@pytest.mark.parametrize("where", ["subclass", "instance", "class"])
def test_methods_that_were_written_for_one_window_get_one(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Normalised(TotoForecaster):  # type: ignore[misc]
        def generate_mean(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return normalised(inputs, super().generate_mean, *args, **kwargs)

    every, model = windows(12, 40, 2), forecaster().model
    one = Normalised(model) if where == "subclass" else TotoForecaster(model)
    if where == "instance":
        generate = partial(TotoForecaster.generate_mean, one)
        monkeypatch.setattr(one, "generate_mean", partial(normalised, generate=generate))
    if where == "class":
        original = TotoForecaster.forecast

        @wraps(original)
        def forecast(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            level = inputs.series.mean()
            made = original(self, inputs._replace(series=inputs.series - level), *args, **kwargs)
            return type(made)(mean=made.mean + level, samples=made.samples)

        monkeypatch.setattr(TotoForecaster, "forecast", forecast)
    expected = alone(one, every)
    toto_compile_patch.apply(fallback="error")
    assert_equal(list(forecast_many(one, every, HORIZON)), expected)


def test_a_model_that_only_upstreams_forecaster_knows() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner, self.patch_embed = model, model.patch_embed

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    every, one = windows(6), TotoForecaster(Wrapped(forecaster().model))
    expected = [values(one.forecast(window, HORIZON, use_kv_cache=False)) for window in every]
    toto_compile_patch.apply(fallback="upstream")
    assert_equal(list(forecast_many(one, every, HORIZON, use_kv_cache=False)), expected)
    one.model = None
    found = list(forecast_many(one, every, HORIZON))
    assert [type(failed) for failed in found] == [FailedForecast] * len(every)


@pytest.mark.parametrize("lent", [True, False], ids=["generator", "list"])
@pytest.mark.parametrize("place", [0, 2])
def test_a_window_that_is_no_named_tuple(place: int, lent: bool) -> None:
    every, one = [series(40, 2, 1, dtype=torch.float64) for _ in range(4)], forecaster()
    expected = alone(one, every)
    every[place] = SimpleNamespace(**every[place]._asdict())  # type: ignore[call-overload]
    toto_compile_patch.apply(fallback="error")
    given = iter(every) if lent else every
    assert_equal(list(forecast_many(one, given, HORIZON)), expected)


def test_a_generator_may_write_to_its_windows_again() -> None:
    every, one = [series(40, 2, dtype=torch.float64) for _ in range(5)], forecaster()
    every = [w._replace(series=w.series * (1 + index)) for index, w in enumerate(every)]
    expected = alone(one, every)

    def feed() -> Iterator[MaskedTimeseries]:
        buffer = every[0]._replace(series=every[0].series.clone())
        for window in every:
            # Past what torch knows of.
            buffer.series.numpy()[:] = window.series.numpy()
            yield buffer
            buffer.series.numpy()[:] = 7

    toto_compile_patch.apply(fallback="error")
    assert_equal(list(forecast_many(one, feed(), HORIZON)), expected)


@pytest.mark.skipif(not HAS_EXOGENOUS, reason="this Toto has no exogenous variables")
def test_a_generator_may_write_to_its_futures_again() -> None:
    one = forecaster()
    every = [series(40, 2, dtype=torch.float64)._replace(num_exogenous_variables=1)] * 4
    futures = [torch.full((1, HORIZON), float(number)).double() for number in range(4)]
    toto_compile_patch.apply(fallback="error")

    def found(given: Any) -> list[torch.Tensor]:
        made = forecast_many(one, every, HORIZON, future_exogenous_variables=given)
        return [values(forecast) for forecast in made]

    def feed() -> Iterator[torch.Tensor]:
        buffer = torch.empty(1, HORIZON).double()
        for future in futures:
            yield buffer.copy_(future)
            buffer.zero_()

    expected = found(futures)
    assert not torch.equal(expected[1], expected[2])
    assert all(map(torch.equal, found(feed()), expected))


@pytest.mark.parametrize(
    "kind", [np.array, lambda seeds: [np.int64(one) for one in seeds], torch.tensor, pd.Series]
)
def test_seeds_of_other_types(kind: Any) -> None:
    every, one = windows(4), forecaster()
    toto_compile_patch.apply(fallback="error")

    def drawn(seeds: Any) -> list[torch.Tensor]:
        return [values(f) for f in forecast_many(one, every, HORIZON, 4, 2, seed=seeds)]

    assert all(map(torch.equal, drawn(kind([3, 1, 4, 1])), drawn([3, 1, 4, 1])))
    for seed in (np.int64(5), np.array(5), torch.tensor(5)):
        assert all(map(torch.equal, drawn(seed), drawn(5)))


@pytest.mark.parametrize(
    "seed", [[1, None], "12", 2.7, [1, float("inf")], [1, float("nan")], [1, 2**70]]
)
def test_what_is_no_seed_is_named(seed: Any) -> None:
    given = forecast_many(forecaster(), windows(2), HORIZON, 4, 4, seed=seed)
    with pytest.raises(TypeError, match=r"seed must be a whole number .*, not"):
        list(given)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int64])
def test_numbers_of_other_types(kind: Any) -> None:
    every, one = windows(4), forecaster()
    toto_compile_patch.apply(fallback="error")
    numbers = (HORIZON, 100, 50)
    memory = 2**30 if kind is np.int64 else 100
    expected = list(forecast_many(one, every, *numbers, seed=1, memory=memory))
    found = list(forecast_many(one, every, *map(kind, numbers), seed=1, memory=kind(memory)))
    assert all(map(torch.equal, map(values, found), map(values, expected)))


@pytest.mark.parametrize("patched", [True, False])
def test_a_failed_forecast_holds_no_tensors(patched: bool) -> None:
    one, broken = forecaster(), series(40, 2, dtype=torch.float64)
    broken.series[0, 5] = torch.nan
    if patched:
        toto_compile_patch.apply(fallback="upstream")
    (failed,) = forecast_many(one, [broken], HORIZON, 4, 4)
    assert isinstance(failed, FailedForecast)
    error: BaseException | None = failed.error
    while error is not None:
        for frame, _ in walk_tb(error.__traceback__):
            assert not any(isinstance(v, torch.Tensor) for v in frame.f_locals.values())
        error = error.__context__


def test_each_look_at_a_failed_forecast_tells_of_itself_alone() -> None:
    (failed,) = forecast_many(forecaster(), ["no series"], HORIZON)  # type: ignore[list-item]
    lengths = set()
    for _ in range(3):
        with pytest.raises(AttributeError) as raised:
            _ = failed.mean
        lengths.add(len(raised.traceback))
    assert len(lengths) == 1
    again = pickle.loads(pickle.dumps(failed))
    with pytest.raises(AttributeError, match="series"):
        _ = again.mean
    assert again.index == failed.index


class OutOfTime(Exception):
    """What a limit of time raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
@pytest.mark.parametrize("way", ["many", "one", "unpatched", "upstream's numbers"])
@pytest.mark.fault(
    injected="a limit of time, an ordinary error that a signal's handler raises",
    where="any moment of forecast_many, and of a forecast",
    observed="it is raised",
    afterwards="forecasts are as before",
)
def test_a_limit_of_time_reaches_whoever_set_it(way: str) -> None:
    rang = []

    def handler(*_: Any) -> None:
        rang.append(True)
        raise OutOfTime

    signal.signal(signal.SIGVTALRM, handler)
    if way != "unpatched":
        rng = "upstream" if way == "upstream's numbers" else "fast"
        toto_compile_patch.apply(fallback="error", rng=rng)
    one, every = forecaster(), windows(12)

    def make() -> list[Any]:
        if way != "one":
            return list(forecast_many(one, every, HORIZON, 4, 4, seed=1))
        return [one.forecast(every[1], HORIZON) for _ in range(12)]

    expected, reached = make(), 0
    for moment in range(60):
        signal.setitimer(signal.ITIMER_VIRTUAL, (1 + moment) / 1000)
        try:
            make()
        except OutOfTime:
            reached += 1
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    assert reached == len(rang) > 5
    assert all(map(torch.equal, map(values, make()), map(values, expected)))


@pytest.mark.slow
def test_compiled_it_forecasts_the_same() -> None:
    one = TotoForecaster(tiny_model().model)
    every = [window._replace(series=window.series.float()) for window in windows(12, 60, 2)]
    expected = [values(one.forecast(window, HORIZON)) for window in every]
    toto_compile_patch.apply(runtime="compile", fallback="error")
    found = [values(f) for f in forecast_many(one, every, HORIZON)]
    assert toto_compile_patch.last_path().runtime == "compile"  # type: ignore[union-attr]
    for one_found, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one_found, wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prediction_length": 0}, ValueError, "prediction_length must be at least 1"),
        ({"prediction_length": 2.5}, TypeError, "whole number"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": 5, "samples_per_batch": 2}, ValueError, "multiple of samples_per_batch"),
        ({"memory": 0}, ValueError, "memory must be at least 1"),
        ({"windows": series(40)}, TypeError, r"\[window\]"),
        ({"windows": 3}, TypeError, "iterable"),
        ({"forecaster": torch.nn.Linear(1, 1)}, TypeError, "TotoForecaster"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"forecaster": forecaster(), "windows": [series(40)], "prediction_length": 4}
    with pytest.raises(error, match=words):
        forecast_many(**{**given, **changes})


@pytest.mark.parametrize(("count", "words"), [(1, "fewer"), (3, "more")])
def test_as_many_seeds_as_windows(count: int, words: str) -> None:
    given = forecast_many(forecaster(), windows(2), HORIZON, 4, 4, seed=range(count))
    with pytest.raises(ValueError, match=f"seed has {words} items"):
        list(given)


PEAK = """
import sys
import torch
torch.set_num_threads(1)
import toto_compile_patch
from toto.inference.forecaster import TotoForecaster
from toto_cases import series, small_model
from toto_compile_patch.tools.machine import peak_bytes

toto_compile_patch.apply(fallback="error")
one = TotoForecaster(small_model().model)
for memory in (2**20, int(sys.argv[1])):
    every = (series(40) for _ in range(300))
    for forecast in toto_compile_patch.forecast_many(one, every, 8, 2048, 2048, memory=memory):
        pass
    print(peak_bytes(torch.device("cpu")) >> 20)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_setting() -> None:
    """How much more a larger setting takes than a small one, in MiB."""
    grown = []
    for memory in (2**25, 2**28):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PEAK, str(memory)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
        assert done.returncode == 0, done.stderr
        least, most = map(int, done.stdout.split())
        grown.append(most - least)
    assert grown[0] < 2 * 32
    assert grown[0] + 32 < grown[1] < 2 * 256

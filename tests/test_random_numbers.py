"""What a forecast draws, and that it takes nothing back that others may have drawn meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, forecast, series, small_model, tiny_model, values

import toto_compile_patch
from toto_compile_patch.decode.random_numbers import OwnRandomNumbers, RandomNumbersOfWindows

pytestmark = pytest.mark.usefixtures("checked_distributions")

HORIZON = 2 * PATCH


def with_nan(length: int = 40) -> Any:
    found = series(length)
    found.series[0, 5] = torch.nan
    return found


def broken_head() -> Any:
    """A model whose distribution is never a number, though its hidden states are."""
    model = small_model().model
    with torch.no_grad():
        model.output_distribution.loc_proj.bias[0] = torch.nan
    return model


def test_a_mean_draws_nothing() -> None:
    forecaster = TotoForecaster(small_model().model)
    toto_compile_patch.apply("fast_decode", fallback="error")
    before = torch.get_rng_state()
    forecaster.forecast(series(40), HORIZON)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_series_that_upstream_refuses_draws_nothing() -> None:
    forecaster = TotoForecaster(small_model().model)
    toto_compile_patch.apply("fast_decode")
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="Expected parameter"):
        forecaster.forecast(with_nan(), HORIZON, num_samples=4, samples_per_batch=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_draw_begins_a_forecast() -> None:
    """So that what comes after it does not depend on how much it draws."""
    forecaster = TotoForecaster(small_model().model)
    toto_compile_patch.apply("fast_decode", fallback="error")
    after = []
    for samples in (2, 64):
        torch.manual_seed(7)
        forecaster.forecast(series(40), HORIZON, num_samples=samples, samples_per_batch=2)
        after.append(torch.rand(4))
    assert torch.equal(*after)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        pytest.param(tiny_model, with_nan, id="a series with NaN"),
        pytest.param(broken_head, lambda: series(40), id="a head with NaN", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("samples", [None, 4], ids=["mean", "samples"])
@pytest.mark.fault(
    injected="a forecast fails",
    where="beside others in threads",
    observed="its error is raised",
    afterwards="no other repeats random numbers",
)
def test_forecasts_beside_one_that_fails_do_not_repeat(
    model: Callable[[], Any], inputs: Callable[[], Any], samples: int | None
) -> None:
    """Five hundred forecasts in two threads, and the user's own numbers, none seen before."""
    failing = model()
    failing = getattr(failing, "model", failing)
    good = TotoForecaster(tiny_model().model)
    toto_compile_patch.apply("fast_decode", fallback="upstream")
    good.forecast(series(24), PATCH, num_samples=4, samples_per_batch=4)
    done = threading.Event()
    failed: list[int] = []

    def fail() -> None:
        forecaster, broken = TotoForecaster(failing), inputs()
        while not done.is_set():
            try:
                forecaster.forecast(broken, HORIZON, num_samples=samples, samples_per_batch=2)
            except ValueError:
                failed.append(1)

    thread = threading.Thread(target=fail)
    thread.start()
    drawn: list[tuple[float, ...]] = []
    own: list[tuple[float, ...]] = []
    try:
        while len(drawn) < 250 or len(failed) < 250:
            found = good.forecast(series(24), PATCH, num_samples=4, samples_per_batch=4).samples
            drawn.append(tuple(found.flatten().tolist()))
            own.append(tuple(torch.rand(4).tolist()))
    finally:
        done.set()
        thread.join()
    assert len(set(drawn)) == len(drawn)
    assert len(set(own)) == len(own)


@pytest.mark.fault(
    injected="the compiler fails late",
    where="a forecast with upstream's random numbers",
    observed="it is made without compiling",
    afterwards="the samples are upstream's of that seed",
)
def test_a_compiler_that_fails_late_changes_no_draw_of_upstreams() -> None:
    """Upstream's draws cannot be begun again: what was compiled goes on as it stands."""
    model = small_model().model.double()
    inputs = series(40, dtype=torch.float64)
    expected = values(forecast(model, inputs, HORIZON, 4, 2))
    made: list[int] = []

    def fails_in_the_decode_step(graph: Any, sample_inputs: Any) -> Any:
        made.append(1)
        if len(made) > 2:
            raise OSError("the disk is full")
        return graph.forward

    model.compile(backend=fails_in_the_decode_step)
    toto_compile_patch.apply("fast_decode", fallback="error", rng="upstream")
    found = values(forecast(model, inputs, HORIZON, 4, 2))
    assert len(made) > 1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_upstreams_draws_are_drawn_once_though_they_are_no_numbers() -> None:
    """Where nobody checks, upstream puts zeros in their place: so does what repeats its draws."""
    torch.distributions.Distribution.set_default_validate_args(False)
    model = broken_head()
    expected = values(forecast(model, series(40), HORIZON, 4, 2))
    after = torch.get_rng_state()
    toto_compile_patch.apply("fast_decode", fallback="error", rng="upstream")
    found = values(forecast(model, series(40), HORIZON, 4, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert (found == 0).any()
    assert torch.equal(torch.get_rng_state(), after)


def test_a_forecast_that_begins_again_draws_the_same_numbers() -> None:
    numbers = OwnRandomNumbers(torch.device("cpu"))
    first, again = (four(numbers) for _ in range(2))
    assert torch.equal(first, again)
    others = OwnRandomNumbers(torch.device("cpu"))
    assert not torch.equal(four(others), first)


def test_a_window_has_the_same_numbers_whatever_stands_beside_it() -> None:
    device = torch.device("cpu")
    together = RandomNumbersOfWindows(device, (3, 1, 2)).from_the_start()
    alone = [RandomNumbersOfWindows(device, (seed,)).from_the_start() for seed in (3, 1, 2)]
    for shape in ((2, 3, 5), (2, 7)):
        batch = (3 * shape[0], *shape[1:])
        every = [one.uniform(shape, torch.float32, device) for one in alone]
        assert torch.equal(together.uniform(batch, torch.float32, device), torch.cat(every))
        assert len({float(part.flatten()[0]) for part in every}) == 3


def four(numbers: OwnRandomNumbers) -> torch.Tensor:
    """The first four numbers."""
    return numbers.from_the_start().uniform((4,), torch.float32, torch.device("cpu"))


def test_a_seed_gives_the_same_forecast_though_weights_had_to_be_prepared_again() -> None:
    model = small_model().model
    toto_compile_patch.apply("fast_decode", fallback="error")
    first = values(forecast(model, series(40), HORIZON, 4, 2))
    toto_compile_patch.refresh(model)
    assert torch.equal(values(forecast(model, series(40), HORIZON, 4, 2)), first)


def test_a_warm_up_draws_nothing() -> None:
    forecaster = TotoForecaster(small_model().model)
    toto_compile_patch.apply("fast_decode", fallback="error")
    before = torch.get_rng_state()
    toto_compile_patch.warmup(forecaster, series(40), HORIZON, 4, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_warm_up_takes_nothing_back() -> None:
    """What another thread draws meanwhile is not drawn again."""
    forecaster = TotoForecaster(small_model().model)
    toto_compile_patch.apply("kv_cache")
    done = threading.Event()
    drawn: list[float] = []

    def draw() -> None:
        while not done.is_set():
            drawn.append(float(torch.rand((), dtype=torch.float64)))

    thread = threading.Thread(target=draw)
    thread.start()
    for _ in range(10):
        toto_compile_patch.warmup(forecaster, series(40), HORIZON, 4, 2)
    done.set()
    thread.join()
    assert len(set(drawn)) == len(drawn)

"""Forecasts of many windows of any shapes: those of one shape are made together.

A forecast of one window reads all of a model's weights for a few rows. Windows of one shape are
rows of one batch, whatever they hold, and a batch reads the weights once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import ceil
from numbers import Integral
from traceback import clear_frames
from types import NoneType
from typing import Any, NamedTuple

import torch

from toto_compile_patch import registry
from toto_compile_patch.decode.compile_call import without_compiling
from toto_compile_patch.decode.generation import batch_within
from toto_compile_patch.decode.random_numbers import OwnRandomNumbers, drawn_for_each, seed_from
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.weights import ModelSettings
from toto_compile_patch.errors import in_a_line, is_of_a_signal, that_led_to
from toto_compile_patch.failed_forecast import FailedForecast
from toto_compile_patch.patches.fast_decode import fast_or_error
from toto_compile_patch.settings import in_force
from toto_compile_patch.sites import State
from toto_compile_patch.table import TABLE
from toto_compile_patch.upstream import code_of

_FAST_DECODE = next(patch for patch in TABLE if patch.name == "fast_decode")

_logger = logging.getLogger("toto_compile_patch")


@dataclass(frozen=True)
class Asked:
    """What is asked for of every window.

    Attributes:
        forecaster: a ``TotoForecaster``.
        horizon: time steps to forecast.
        num_samples: None for mean forecasts.
        samples_per_batch: the samples that upstream's code decodes at once.
        use_kv_cache: whether upstream forecasts with a cache.
        memory: bytes that may be in use at once for arithmetic, and as many again for what waits.
        reseeds: whether the process's generator is begun anew for a window that upstream's code
            draws for.
    """

    forecaster: Any
    horizon: int
    num_samples: int | None
    samples_per_batch: int
    use_kv_cache: bool
    memory: int
    reseeds: bool

    def checked(self, windows: Any) -> Asked:
        """Check what is the same for all windows: else each of them would complain.

        Args:
            windows: all of them.

        Returns:
            The same in Python's own numbers: sizes that are computed from them can overflow
            numpy's.

        Raises:
            TypeError: something is of another type than is needed.
            ValueError: a number is too small, or samples do not divide.
        """
        if not callable(getattr(self.forecaster, "forecast", None)):
            raise TypeError(f"give a TotoForecaster, not {type(self.forecaster).__name__}")
        if hasattr(windows, "series") or not isinstance(windows, Iterable):
            raise TypeError(
                "give an iterable of MaskedTimeseries, such as [window], not one "
                f"{type(windows).__name__}"
            )
        numbers = {
            "prediction_length": self.horizon,
            "num_samples": 1 if self.num_samples is None else self.num_samples,
            "samples_per_batch": self.samples_per_batch,
            "memory": self.memory,
        }
        for name, value in numbers.items():
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.num_samples is not None and self.num_samples % self.samples_per_batch:
            raise ValueError(
                f"num_samples must be a multiple of samples_per_batch: {self.num_samples} is no "
                f"multiple of {self.samples_per_batch}"
            )
        return replace(
            self,
            horizon=int(self.horizon),
            num_samples=None if self.num_samples is None else int(self.num_samples),
            samples_per_batch=int(self.samples_per_batch),
            memory=int(self.memory),
        )

    def forecast(self, inputs: Any, future: torch.Tensor | None) -> Any:
        """Ask the forecaster, for a window or a batch of them."""
        # AutoGluon's forecaster takes no exogenous variables.
        known = {} if future is None else {"future_exogenous_variables": future}
        return self.forecaster.forecast(
            inputs,
            prediction_length=self.horizon,
            num_samples=self.num_samples,
            samples_per_batch=self.samples_per_batch,
            use_kv_cache=self.use_kv_cache,
            **known,
        )

    def drawing(self, seeds: tuple[int, ...]) -> AbstractContextManager[None]:
        """Let the fast path draw for each window by its own seed."""
        return nullcontext() if self.num_samples is None else drawn_for_each(seeds)


@dataclass(frozen=True)
class Window:
    """One of the windows.

    Attributes:
        index: its place in the order.
        inputs: the ``MaskedTimeseries``.
        future: known future values of its exogenous variates, ``[batch] exogenous horizon``.
        seed: its own.
        lent: whether its tensors may be written to when the next window is asked for, as a
            generator does that cuts all windows out of one buffer.
    """

    index: int
    inputs: Any
    future: torch.Tensor | None
    seed: int
    lent: bool

    def kept(self) -> Window:
        """The same, with tensors that are nobody else's."""
        if not self.lent:
            return self
        own = {name: getattr(self.inputs, name).clone() for name in _TENSORS}
        future = None if self.future is None else self.future.clone()
        return replace(self, inputs=self.inputs._replace(**own), future=future, lent=False)


class _Shape(NamedTuple):
    """What windows that are forecast together have in common.

    Attributes:
        series: of a window: ``batch variate``, 1 where it has no batch.
        patches: of the context, the first of which may be filled up.
        exogenous: variates whose future may be known.
        known: whether it is.
        types: dtypes of the window's tensors, and their device.
    """

    series: tuple[int, int]
    patches: int
    exogenous: int
    known: bool
    types: tuple[Any, ...]


def seed_of(seed: int, index: int) -> int:
    """A window's own seed, of 63 bits, by its place in the order."""
    return seed_from(f"{seed} {index}".encode())


def in_order(
    inputs: Iterable[Any],
    futures: Iterable[torch.Tensor | None] | None,
    seeds: int | Iterable[int] | None,
    asked: Asked,
) -> Iterator[Window]:
    """The windows with what belongs to each.

    Args:
        inputs: the series.
        futures: known future values, for each; None: nothing is known of any.
        seeds: one for all, or one for each; None: one is drawn from the process's generator.
        asked: what is asked for.

    Raises:
        ValueError: there are fewer futures or seeds than windows, or more.
    """
    every_seed, seed_of_all = None, 0
    # A number of numpy's or torch's may be an array without dimensions.
    if isinstance(seeds, Iterable) and getattr(seeds, "ndim", None) != 0:
        every_seed = iter(seeds)
    elif seeds is not None:
        seed_of_all = _as_seed(seeds)
    elif asked.num_samples is not None and _grouped(asked.forecaster):
        seed_of_all = _drawn_seed()
    every_future = None if futures is None else iter(futures)
    lent = not all(isinstance(given, (list, tuple, NoneType)) for given in (inputs, futures))
    for index, one in enumerate(inputs):
        if every_seed is None:
            seed = seed_of(seed_of_all, index)
        else:
            seed = _as_seed(_of("seed", every_seed))
        future = None if every_future is None else _of("future_exogenous_variables", every_future)
        yield Window(index, one, future, seed, lent)
    for name, rest in (("seed", every_seed), ("future_exogenous_variables", every_future)):
        if rest is not None and next(rest, _NONE) is not _NONE:
            raise ValueError(f"{name} has more items than there are windows: give one for each")


_NONE = object()


def _of(name: str, every: Iterator[Any]) -> Any:
    """What belongs to the next window."""
    if (one := next(every, _NONE)) is _NONE:
        raise ValueError(f"{name} has fewer items than there are windows: give one for each")
    return one


def _as_seed(value: Any) -> int:
    """A seed of whatever type, numpy's and torch's among them.

    Raises:
        TypeError: it is no whole number, or none that torch takes.
    """
    try:
        seed = int(value)
        fits = seed == value and -(2**63) <= seed < 2**64
    except Exception as error:
        if is_of_a_signal(error):
            raise
        fits = False
    if not fits:
        raise TypeError(
            f"seed must be a whole number of up to 64 bits, or one for each window, not {value!r}"
        )
    return seed


def _drawn_seed() -> int:
    """A seed for all windows, drawn from the process's generator."""
    return OwnRandomNumbers(torch.device("cpu")).seed


def forecasts(asked: Asked, windows: Iterator[Window]) -> Iterator[Any]:
    """A forecast of each window, in their order, as soon as those before it are there.

    Args:
        asked: what is asked for.
        windows: in their order, read as they are needed.
    """
    line = _Line(asked)
    failure: Exception | None = None
    while True:
        try:
            window = next(windows)
        except StopIteration:
            break
        except Exception as error:
            if is_of_a_signal(error):
                raise
            # What was read before it is not lost.
            failure = error
            break
        yield from line.take(window)
    yield from line.rest()
    if failure is not None:
        raise failure


class _Line:
    """Windows that wait for others of their shape, and forecasts for those before them."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._waiting: dict[_Shape, list[Window]] = {}
        self._ready: dict[int, Any] = {}
        self._sizes: dict[_Shape, int] = {}
        self._bytes = 0
        self._next = 0

    def take(self, window: Window) -> Iterator[Any]:
        """Take a window in, and give all forecasts that are due by now."""
        shape = self._queue(window)
        if shape is None:
            self._keep(window.index, _alone(self._asked, window))
        else:
            self._bytes += _bytes_of(window.inputs)
            if len(self._waiting[shape]) >= self._sizes[shape]:
                self._forecast(shape)
        yield from self._due()
        while self._bytes > self._asked.memory and self._waiting:
            # Its group holds the oldest window, which all others wait for.
            self._forecast(next(iter(self._waiting)))
            yield from self._due()

    def rest(self) -> Iterator[Any]:
        """All other forecasts: no window comes any more."""
        while self._waiting:
            self._forecast(next(iter(self._waiting)))
            yield from self._due()

    def _queue(self, window: Window) -> _Shape | None:
        """Have a window wait for others of its shape, of which it is then known how many are
        forecast together; None where it, or the model, is unusual: it is forecast alone."""
        if not _grouped(self._asked.forecaster):
            return None
        try:
            shape = _shape(window, without_compiling(self._asked.forecaster.model))
            if shape is not None and shape not in self._sizes:
                self._sizes[shape] = _group_size(self._asked, window)
            kept = window.kept()
        except Exception as error:
            if is_of_a_signal(error):
                raise
            return None
        if shape is not None:
            self._waiting.setdefault(shape, []).append(kept)
        return shape

    def _forecast(self, shape: _Shape) -> None:
        windows = self._waiting.pop(shape)
        self._bytes -= sum(_bytes_of(window.inputs) for window in windows)
        held = [window for window, empty in zip(windows, _empty(windows), strict=True) if not empty]
        made = dict(zip((window.index for window in held), _group(self._asked, held), strict=True))
        for window in windows:
            forecast = made.get(window.index)
            self._keep(window.index, _failed(window, _no_value()) if forecast is None else forecast)

    def _keep(self, index: int, forecast: Any) -> None:
        self._ready[index] = forecast
        self._bytes += _bytes_of_forecast(forecast)

    def _due(self) -> Iterator[Any]:
        while self._next in self._ready:
            forecast = self._ready.pop(self._next)
            self._next += 1
            self._bytes -= _bytes_of_forecast(forecast)
            yield forecast


def _group(asked: Asked, windows: list[Window]) -> list[Any]:
    """A forecast of each window of one shape.

    What is raised for all of them is some window's: halves are tried, and their halves.
    """
    if not windows:
        return []
    try:
        return _together(asked, windows)
    except Exception as error:
        if is_of_a_signal(error):
            raise
        if len(windows) > 1:
            half = len(windows) // 2
            return [*_group(asked, windows[:half]), *_group(asked, windows[half:])]
    # Outside of the ``except``: what is raised now is the window's own error.
    return [_alone(asked, windows[0])]


def _together(asked: Asked, windows: list[Window]) -> list[Any]:
    """Forecast windows of one shape in one batch, on the fast path or not at all."""
    with torch.no_grad():
        inputs, future = _batch(windows, without_compiling(asked.forecaster.model))
    seeds = tuple(window.seed for window in windows)
    with asked.drawing(seeds), fast_or_error():
        made = asked.forecast(inputs, future)
    if len(windows) == 1:
        return [made]
    # Copies: what is kept of one window shall not keep the others'.
    means = [part.clone() for part in made.mean.chunk(len(windows))]
    samples: Any = [None] * len(windows)
    if made.samples is not None:
        samples = [part.clone() for part in made.samples.chunk(len(windows))]
    pairs = zip(means, samples, strict=True)
    return [replace(made, mean=mean, samples=drawn) for mean, drawn in pairs]


def _alone(asked: Asked, window: Window) -> Any:
    """A forecast of one window as the forecaster makes it by itself, or what it raises."""
    try:
        if _empty([window])[0]:
            raise _no_value()
        if asked.reseeds:
            torch.manual_seed(window.seed)
        with asked.drawing((window.seed,)):
            return asked.forecast(window.inputs, window.future)
    except Exception as error:
        if is_of_a_signal(error):
            raise
        return _failed(window, error)


def _failed(window: Window, error: Exception) -> FailedForecast:
    # As many tensors as a forecast takes, for each window that failed.
    for one in that_led_to(error):
        clear_frames(one.__traceback__)
    _logger.info("window %d cannot be forecast: %s", window.index, in_a_line(error))
    return FailedForecast(window.index, error)


def _empty(windows: list[Window]) -> list[bool]:
    """Which windows hold nothing but padding: a forecast of nothing would look like any other.

    A device is asked once for all of them.
    """
    found = [getattr(window.inputs, "padding_mask", None) for window in windows]
    masks = [mask for mask in found if isinstance(mask, torch.Tensor)]
    if len(masks) < len(found):
        return [False] * len(windows)
    try:
        held: list[bool] = torch.stack([mask.any() for mask in masks]).tolist()
    except Exception as error:
        if is_of_a_signal(error):
            raise
        # Whatever cannot be read is some window's own fault, which its forecast will tell.
        return [False] * len(windows)
    return [not any_value for any_value in held]


def _no_value() -> ValueError:
    return ValueError(
        "the window holds nothing but padding: give it a value, or leave the window out"
    )


def _grouped(forecaster: Any) -> bool:
    """Whether the fast path makes this forecaster's forecasts, by its own random numbers, and
    nothing but upstream's code and the fast path's sees the inputs: others may take a batch for
    one window."""
    code = code_of(forecaster)
    if code is None or in_force().rng != "fast":
        return False
    kind, theirs = type(forecaster), code.TotoForecaster
    for name in ("forecast", "generate_mean", "generate_samples"):
        if name in vars(forecaster) or getattr(kind, name) is not getattr(theirs, name):
            return False
    if not code.is_from("", "forecast", theirs.forecast):
        return False
    return registry.state_of(_FAST_DECODE, code)[0] is State.APPLIED


def _shape(window: Window, backbone: Any) -> _Shape | None:
    """The shape of a window; None where it is unusual, and is forecast alone."""
    inputs = window.inputs
    found = [getattr(inputs, name, None) for name in _TENSORS]
    parts = [part for part in found if isinstance(part, torch.Tensor)]
    if len(parts) < len(found):
        return None
    series, *masks, intervals = parts
    if series.ndim not in (2, 3) or 0 in series.shape:
        return None
    if any(mask.shape != series.shape for mask in masks) or intervals.shape != series.shape[:-1]:
        return None
    exogenous = int(getattr(inputs, "num_exogenous_variables", 0))
    future = window.future
    if future is not None and (not isinstance(future, torch.Tensor) or future.ndim != series.ndim):
        return None
    batch = series.shape[0] if series.ndim == 3 else 1
    return _Shape(
        (batch, series.shape[-2]),
        ceil(series.shape[-1] / backbone.patch_embed.patch_size),
        exogenous,
        future is not None,
        tuple((part.dtype, part.device) for part in parts),
    )


_TENSORS = (
    "series",
    "padding_mask",
    "id_mask",
    "timestamp_seconds",
    "time_interval_seconds",
)
"""Of a ``MaskedTimeseries``: of ``[batch] variate time_steps``, the last without time steps."""


def _batch(windows: list[Window], backbone: Any) -> tuple[Any, torch.Tensor | None]:
    """Windows of one shape as one ``MaskedTimeseries``, and what is known of their futures.

    Each is filled up to whole patches on the left, as upstream would fill it up.
    """
    patch = backbone.patch_embed.patch_size
    length = ceil(windows[0].inputs.series.shape[-1] / patch) * patch
    every = [window.inputs for window in windows]

    def stacked(name: str, fill: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        return torch.cat(
            [_filled_up(_batched(getattr(one, name), 3), length, fill) for one in every]
        )

    exogenous = getattr(every[0], "num_exogenous_variables", 0)
    numbers = {"num_exogenous_variables": int(exogenous)} if exogenous else {}
    inputs = every[0]._replace(
        series=stacked("series", lambda part: 0),
        padding_mask=stacked("padding_mask", lambda part: 0),
        # A patch belongs to one group.
        id_mask=stacked("id_mask", lambda part: part[..., :1]),
        timestamp_seconds=stacked("timestamp_seconds", lambda part: 0),
        time_interval_seconds=torch.cat([_batched(one.time_interval_seconds, 2) for one in every]),
        **numbers,
    )
    if windows[0].future is None:
        return inputs, None
    return inputs, torch.cat([_batched(window.future, 3) for window in windows])


def _batched(part: Any, dimensions: int) -> torch.Tensor:
    """A tensor with a batch as its first axis."""
    made: torch.Tensor = part if part.ndim == dimensions else part.unsqueeze(0)
    return made


def _filled_up(
    part: torch.Tensor, length: int, fill: Callable[[torch.Tensor], Any]
) -> torch.Tensor:
    """``batch variate time_steps`` with so many time steps, more of them on the left."""
    missing = length - part.shape[-1]
    if not missing:
        return part
    whole = part.new_empty(*part.shape[:-1], length)
    whole[..., missing:] = part
    whole[..., :missing] = fill(part)
    return whole


def _group_size(asked: Asked, window: Window) -> int:
    """How many windows of one window's shape are forecast together."""
    backbone = without_compiling(asked.forecaster.model)
    with torch.no_grad():
        inputs, future = _batch([window], backbone)
    request = Request(
        inputs=inputs.series,
        padding_mask=inputs.padding_mask,
        id_mask=inputs.id_mask,
        horizon=asked.horizon,
        num_samples=asked.num_samples,
        samples_per_batch=asked.samples_per_batch,
        use_kv_cache=asked.use_kv_cache,
        future_exogenous=future,
        num_exogenous=0,
    )
    return batch_within(ModelSettings.of(backbone), request, asked.memory)


def _bytes_of(inputs: Any) -> int:
    parts = (getattr(inputs, name) for name in _TENSORS)
    return sum(part.nbytes for part in parts)


def _bytes_of_forecast(forecast: Any) -> int:
    if isinstance(forecast, FailedForecast):
        return 0
    parts = (forecast.mean, forecast.samples)
    return sum(part.nbytes for part in parts if part is not None)

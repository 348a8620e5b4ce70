"""A small forecast with what is installed, and the path that it took."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import toto_compile_patch
from toto_compile_patch.carriers import TOTO, Carrier
from toto_compile_patch.errors import in_a_line
from toto_compile_patch.path_taken import PathTaken
from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools.doctor.findings import Finding, finding, meaning_of
from toto_compile_patch.tools.models import SMALL

_HORIZON, _SAMPLES = 96, 8
"""A decode step, and what is drawn: every part of a forecast takes part in it."""

_MODEL = {**SMALL, "num_layers": 4, "spacewise_every_n_layers": 4}
"""A few megabytes, with a layer of each kind."""

T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """A forecast that was tried.

    Attributes:
        device: on which.
        path: the one that it took; None where no ``fast_decode`` stood.
        seconds: that it took, with all that is prepared for a first forecast.
        error: what was raised; else empty.
    """

    device: str
    path: PathTaken | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def is_fast(self) -> bool:
        """Whether the fast path made it."""
        return not self.error and self.path is not None and self.path.taken == "fast"


def carrier_to_try(places: Sequence[Carrier]) -> str:
    """The carrier to forecast with: toto, if ``apply()`` reaches it; empty where there is none."""
    reached = [place.name for place in places if place.reached]
    return TOTO if TOTO in reached else next(iter(reached), "")


def try_forecasts(carrier: str) -> list[Trial]:
    """Forecast with random weights, on the CPU and on a GPU if there is one, as things stand now.

    It raises nothing: where nothing can be forecast, the trials say why. What threads have of
    their own (their last path, above all) and torch's random generators stay as they were.

    Args:
        carrier: whose code makes the forecasts.
    """
    return _in_a_thread(lambda: [_tried(carrier, device) for device in _devices()])


def findings_of(trials: Sequence[Trial], carrier: str) -> Iterator[Finding]:
    """What is to be said of trials, once the patches that they were made with are gone."""
    for trial in trials:
        if trial.error:
            yield _failed(trial, carrier)
        elif trial.path is None:
            text = os.environ.get(ENV_TOGGLE, "")
            yield finding("fast_decode left out", variable=ENV_TOGGLE, text=text)
        elif not trial.is_fast:
            cure = trial.path.cure or "see 'When it is not faster' in the README"
            seen = {"device": trial.device, "reason": trial.path.reason, "cure": cure}
            yield finding("forecast not fast", **seen)
        elif trial.path.reason:
            made = f"A small forecast on {trial.device} was made"
            seen = {"runtime": trial.path.runtime, "reason": trial.path.reason}
            yield finding("other runtime", made=made, **seen)


def _failed(trial: Trial, carrier: str) -> Finding:
    """What a failure means; where nobody knows, upstream's own code is asked for the same."""
    seen = {"device": trial.device, "error": trial.error.rstrip(".")}
    meaning, cure = meaning_of(trial.error)
    if meaning:
        return finding("forecast fails, as known", meaning=meaning, cure=cure, **seen)
    if _in_a_thread(lambda: _tried(carrier, trial.device)).error:
        return finding("forecast fails, upstream's too", **seen)
    return finding("forecast fails", **seen)


def _in_a_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _devices() -> list[str]:
    try:
        import torch
    except Exception:
        return ["cpu"]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _tried(carrier: str, device: str) -> Trial:
    try:
        with _nothing_drawn():
            seconds = _forecast(carrier, device)
    except (Exception, SystemExit) as error:
        # Whatever is imported for it may think that it is the program.
        return Trial(device, error=in_a_line(error))
    return Trial(device, toto_compile_patch.last_path(), seconds)


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Leave torch's random generators as they were: in a doctor's process nobody else draws."""
    import torch

    of_gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=of_gpus):
        yield


def _forecast(carrier: str, device: str) -> float:
    import torch

    from toto_compile_patch import upstream

    code = upstream.load(carrier)
    forecaster = code.TotoForecaster(code.TotoBackbone(**_MODEL).eval().to(device))
    # A CUDA graph is recorded in the second run.
    runs = 2 if device == "cuda" else 1
    arguments: dict[str, Any] = {"num_samples": _SAMPLES, "samples_per_batch": _SAMPLES}
    series = torch.sin(torch.arange(256.0, device=device) / 4).repeat(2, 1)
    inputs = code.MaskedTimeseries(
        series=series,
        padding_mask=torch.ones_like(series, dtype=torch.bool),
        id_mask=torch.zeros_like(series, dtype=torch.int),
        timestamp_seconds=torch.zeros_like(series, dtype=torch.int),
        time_interval_seconds=torch.full((2,), 3600, dtype=torch.int, device=device),
    )
    return toto_compile_patch.warmup(forecaster, inputs, _HORIZON, runs=runs, **arguments)

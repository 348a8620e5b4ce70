"""What upstream's code and the patched one make of an odd input, in words."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from closeness import beside_float64, beside_perturbed, judge
from odd_inputs import Call, OddInput
from toto_cases import PATCH, series, small_model

import toto_compile_patch

HORIZON = PATCH + 3
LENGTH = 4 * PATCH + 5


@dataclass(frozen=True)
class Asked:
    """An ordinary call: nothing in it is odd."""

    dtype: torch.dtype
    samples: bool
    variates: int
    batch: int | None

    def call(self) -> Call:
        """It."""
        options = {"num_samples": 4, "samples_per_batch": 2} if self.samples else {}
        return Call(series(LENGTH, self.variates, self.batch, self.dtype), HORIZON, options)


ORDINARY = {
    "a mean": Asked(torch.float32, samples=False, variates=1, batch=None),
    "means of a batch": Asked(torch.float64, samples=False, variates=3, batch=2),
    "samples": Asked(torch.float64, samples=True, variates=2, batch=None),
}
"""What becomes odd. Samples of one seed are equal in float64: drawn as upstream draws them."""


@dataclass(frozen=True)
class Outcome:
    """What the two sides make of an input.

    Attributes:
        upstream: what upstream's code returns or raises.
        complaint: how the patched forecast differs; empty where it does not.
        made_by: ``fast`` or ``upstream``; empty where both sides raise.
    """

    upstream: str
    complaint: str
    made_by: str


@functools.cache
def model(dtype: torch.dtype) -> Any:
    """The same small model for all calls."""
    return small_model().to(dtype).model


def outcome(row: OddInput, asked: Asked) -> Outcome:
    """Make an odd call by both sides."""
    return outcome_of(row.change(asked.call()), model(asked.dtype))


def outcome_of(call: Call, model: Any) -> Outcome:
    """Make a call by both sides."""
    theirs = returned_or_raised(call, model)
    with toto_compile_patch.patched("fast_decode", rng="upstream", fallback="upstream"):
        ours = returned_or_raised(call, model)
        path = toto_compile_patch.last_path()
    said = in_words(theirs)
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        alike = type(ours) is type(theirs) and str(ours) == str(theirs)
        return Outcome(said, "" if alike else in_words(ours), "")
    beside = beside_perturbed if theirs.dtype is torch.float64 else beside_float64
    judgement = judge(theirs, ours, call, beside(model, call))
    return Outcome(said, judgement.complaint, path.taken if path else "nobody")


def returned_or_raised(call: Call, model: Any) -> Any:
    """A forecast, or the exception in its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call.make(model)
        except Exception as error:
            return error


def in_words(found: Any) -> str:
    """What was returned or raised."""
    if isinstance(found, Exception):
        line = (str(found).strip() or "without a word").splitlines()[0]
        return f"{type(found).__name__}: {line[:70]}{'…' if len(line) > 70 else ''}"
    if not found.numel():
        return "nothing, of shape " + " x ".join(map(str, found.shape))
    if found.isfinite().all():
        return "numbers"
    return "NaN" if found.isnan().all() else "NaN or inf in places"

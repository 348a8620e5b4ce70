"""Odd inputs, one to a row: what a user may hand to ``TotoForecaster.forecast`` by mistake or need.

Each row changes an ordinary call. ``tests/test_odd_inputs.py`` makes each of them unpatched and
patched, ``.ci/proof/inputs.py`` makes the table of ``docs/proof/inputs.md`` of them, and
``.ci/proof/random_forecasts.py`` makes them of random series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster


@dataclass(frozen=True)
class Call:
    """A call of ``TotoForecaster.forecast``.

    Attributes:
        inputs: the series, ``[batch] variate time_steps``.
        horizon: time steps to forecast.
        options: other arguments, by name.
    """

    inputs: MaskedTimeseries
    horizon: Any
    options: dict[str, Any]

    def make(self, model: Any, seed: int = 0) -> torch.Tensor:
        """Samples, drawn from a seed, or the mean where none are asked for."""
        torch.manual_seed(seed)
        result = TotoForecaster(model).forecast(self.inputs, self.horizon, **self.options)
        found: torch.Tensor = result.mean if result.samples is None else result.samples
        return found

    def having(self, **fields: Any) -> Call:
        """The same call with other fields of its series."""
        return replace(self, inputs=self.inputs._replace(**fields))

    def asking(self, **options: Any) -> Call:
        """The same call with other arguments."""
        return replace(self, options=self.options | options)


Change = Callable[[Call], Call]
Tensors = Callable[[torch.Tensor], Any]


@dataclass(frozen=True)
class OddInput:
    """A row of the table.

    Attributes:
        what: is odd, in words.
        change: makes an ordinary call odd.
        draws: only calls that ask for samples can be odd like this.
        made_by: ``fast``, or ``upstream`` where the fast path leaves the forecast to upstream's
            code, as far as there is one.
    """

    what: str
    change: Change
    draws: bool = False
    made_by: str = "fast"


def field(name: str, change: Tensors) -> Change:
    """Change a field of the series."""
    return lambda call: call.having(**{name: change(getattr(call.inputs, name))})


def every_field(change: Tensors) -> Change:
    """Change all fields that are given for each time step."""
    names = ("series", "padding_mask", "id_mask", "timestamp_seconds")

    def changed(call: Call) -> Call:
        return call.having(**{name: change(getattr(call.inputs, name)) for name in names})

    return changed


def somewhere(value: float) -> Change:
    """One value in the middle of the first variate."""

    def change(series: torch.Tensor) -> torch.Tensor:
        changed = series.clone()
        changed[..., :1, series.shape[-1] // 2] = value
        return changed

    return field("series", change)


def first_variate(value: float) -> Change:
    """Nothing but one value in the first variate."""

    def change(series: torch.Tensor) -> torch.Tensor:
        changed = series.clone()
        changed[..., :1, :] = value
        return changed

    return field("series", change)


def values(change: Tensors) -> Change:
    """Other values for a series, without its level and to its type."""

    def changed(series: torch.Tensor) -> torch.Tensor:
        plain = (series - series.mean(-1, keepdim=True)).double()
        found: torch.Tensor = change(plain).to(series.dtype)
        return found

    return field("series", changed)


def hidden(value: float) -> Change:
    """A value where the mask says that there is none."""

    def change(call: Call) -> Call:
        mask, series = call.inputs.padding_mask.clone(), call.inputs.series.clone()
        count = max(1, series.shape[-1] // 3)
        mask[..., :count], series[..., :count] = 0, value
        return call.having(padding_mask=mask, series=series)

    return change


def masked(variates: slice) -> Change:
    """No value at all in some variates."""

    def change(mask: torch.Tensor) -> torch.Tensor:
        changed = mask.clone()
        changed[..., variates, :] = 0
        return changed

    return field("padding_mask", change)


def alternately(series: torch.Tensor) -> torch.Tensor:
    """1 and -1 in turns, of a series' shape."""
    return 1.0 - 2.0 * (torch.arange(series.shape[-1]) % 2).expand_as(series)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, the time steps of which lie far apart in memory."""
    return tensor.mT.contiguous().mT


def with_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, each second one of a longer series."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def wanting_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in a tensor that autograd follows."""
    return tensor.clone().requires_grad_()


def of_one_step(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape without memory of its own."""
    return tensor[..., :1].expand_as(tensor)


def asked(**options: Any) -> Change:
    """Other arguments."""
    return lambda call: call.asking(**options)


def ahead(horizon: Any) -> Change:
    """Another horizon."""
    return lambda call: replace(call, horizon=horizon)


def left(what: str, change: Change) -> OddInput:
    """A row that the fast path leaves to upstream's code."""
    return OddInput(what, change, made_by="upstream")


VALUES: tuple[OddInput, ...] = (
    left("one NaN", somewhere(np.nan)),
    left("a variate of NaN", first_variate(np.nan)),
    left("nothing but NaN", field("series", lambda s: torch.full_like(s, np.nan))),
    left("NaN where the mask is False", hidden(np.nan)),
    left("one inf", somewhere(np.inf)),
    left("one -inf", somewhere(-np.inf)),
    left("a variate of inf", first_variate(np.inf)),
    left("inf where the mask is False", hidden(np.inf)),
    OddInput("one value of 1e30", somewhere(1e30)),
    OddInput("one value of -1e30", somewhere(-1e30)),
    OddInput("a variate of 1e30", first_variate(1e30)),
    OddInput("1e30 where the mask is False", hidden(1e30)),
    OddInput("values of the order of 1e30", values(lambda s: 1e30 * s)),
    OddInput("1e30 and -1e30 in turns", values(lambda s: 1e30 * alternately(s))),
    left(
        "the largest number of the type",
        field("series", lambda s: s * 0 + torch.finfo(s.dtype).max),
    ),
    OddInput("values of the order of 1e-30", values(lambda s: 1e-30 * s)),
    OddInput("denormal numbers", field("series", lambda s: denormal(s))),
    OddInput("a constant", field("series", lambda s: torch.full_like(s, 7.5))),
    OddInput("a constant of 1e8", field("series", lambda s: torch.full_like(s, 1e8))),
    OddInput("a constant variate", first_variate(-3.25)),
    OddInput("zeros", field("series", torch.zeros_like)),
    OddInput("negative zeros", field("series", lambda s: -torch.zeros_like(s))),
    OddInput("1e8, with a spread of 1e-3", values(lambda s: 1e8 + 1e-3 * s)),
    OddInput("-1e8, with a spread of 1", values(lambda s: s - 1e8)),
    OddInput("a step from 0 to 1e8", field("series", lambda s: step(s))),
)


def denormal(series: torch.Tensor) -> torch.Tensor:
    """Values below the smallest normal number of their type."""
    signs = torch.where(series > series.mean(-1, keepdim=True), 1.0, -0.5).to(series.dtype)
    return torch.finfo(series.dtype).tiny / 8 * signs


def step(series: torch.Tensor) -> torch.Tensor:
    """0 in the first half, 1e8 in the second."""
    late = torch.arange(series.shape[-1]) >= series.shape[-1] // 2
    return (1e8 * late).expand_as(series).to(series.dtype)


LAYOUTS: tuple[OddInput, ...] = (
    OddInput("time steps that lie apart", every_field(strided)),
    OddInput("each second step of a longer tensor", every_field(with_gaps)),
    OddInput("one value expanded over all steps", every_field(of_one_step)),
    OddInput("a mask expanded over all steps", field("padding_mask", of_one_step)),
    OddInput(
        "a series that wants gradients", field("series", lambda s: s.clone().requires_grad_())
    ),
    OddInput("a parameter", field("series", torch.nn.Parameter)),
    OddInput("a tensor of inference mode", field("series", lambda s: of_inference(s))),
    OddInput("a series by numpy", field("series", lambda s: s.numpy())),
    OddInput("a mask by numpy", field("padding_mask", lambda m: m.numpy())),
    OddInput("time stamps by numpy", field("timestamp_seconds", lambda t: t.numpy())),
    OddInput("groups by numpy", field("id_mask", lambda m: m.numpy())),
)


def of_inference(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in a tensor that autograd may not see."""
    with torch.inference_mode():
        return tensor.clone()


SHAPES: tuple[OddInput, ...] = (
    OddInput("a context of one step", every_field(lambda t: t[..., -1:])),
    OddInput("a context of two steps", every_field(lambda t: t[..., -2:])),
    OddInput("a context of no step", every_field(lambda t: t[..., :0])),
    OddInput("a series shorter than its masks", field("series", lambda s: s[..., 1:])),
    OddInput("a series of one axis", field("series", lambda s: s.flatten())),
    OddInput("a series of four axes", field("series", lambda s: s[None, None])),
    left("a series of a variate less than its mask", field("series", lambda s: s[..., 1:, :])),
    OddInput("a mask of one variate", field("padding_mask", lambda m: m[..., :1, :])),
    OddInput("a mask of one step", field("padding_mask", lambda m: m[..., :1])),
    OddInput("groups of one step", field("id_mask", lambda m: m[..., :1])),
    OddInput("groups without time steps", field("id_mask", lambda m: m[..., 0])),
    OddInput("time stamps of one step", field("timestamp_seconds", lambda t: t[..., :1])),
    OddInput("intervals for each step", field("time_interval_seconds", lambda t: t[..., None])),
)

MASKS: tuple[OddInput, ...] = (
    OddInput("a mask that is False throughout a variate", masked(slice(1))),
    OddInput("a mask that is False throughout", masked(slice(None))),
    OddInput("no mask", field("padding_mask", lambda _: None)),
    OddInput("a mask of whole numbers", field("padding_mask", lambda m: m.long())),
    OddInput("a mask of weights of a half", field("padding_mask", lambda m: m / 2)),
    left("a mask of negative weights", field("padding_mask", lambda m: -m.double())),
    left("a mask of NaN", field("padding_mask", lambda m: m * np.nan)),
    OddInput("a mask of complex numbers", field("padding_mask", lambda m: m + 0j)),
    OddInput("each variate its own group", field("id_mask", lambda m: own_groups(m))),
    OddInput("groups of floats", field("id_mask", lambda m: own_groups(m) / 3)),
    OddInput("groups that change within a patch", field("id_mask", lambda m: steps_of(m))),
    OddInput("groups of NaN", field("id_mask", lambda m: m * np.nan)),
    OddInput("groups of booleans", field("id_mask", lambda m: m.bool())),
    OddInput("no groups", field("id_mask", lambda _: None)),
)


def own_groups(mask: torch.Tensor) -> torch.Tensor:
    """Another number for each variate."""
    return torch.arange(mask.shape[-2]).unsqueeze(-1).expand_as(mask)


def steps_of(mask: torch.Tensor) -> torch.Tensor:
    """Another number for each time step."""
    return torch.arange(mask.shape[-1]).expand_as(mask)


TYPES: tuple[OddInput, ...] = (
    OddInput("a series of float64 for a model of float32", field("series", lambda s: other(s))),
    OddInput("a series of bfloat16", field("series", lambda s: s.bfloat16())),
    left("a series of whole numbers", field("series", lambda s: s.long())),
    OddInput("a series of booleans", field("series", lambda s: s > 0)),
    OddInput("a series of complex numbers", field("series", lambda s: s + 0j)),
    OddInput("a list for a series", field("series", lambda s: s.tolist())),
    OddInput("None for a series", field("series", lambda _: None)),
    OddInput("text for a series", field("series", lambda _: "1, 2, 3")),
    OddInput("a series on another device", field("series", lambda s: s.to("meta"))),
    OddInput("a sparse series", field("series", lambda s: s.to_sparse())),
    OddInput("text for a mask", field("padding_mask", lambda _: "no")),
    OddInput("a number for groups", field("id_mask", lambda _: 0)),
    OddInput("time stamps of floats", field("timestamp_seconds", lambda t: t.double())),
    OddInput("None for time stamps", field("timestamp_seconds", lambda _: None)),
    OddInput("a number for intervals", field("time_interval_seconds", lambda _: 60)),
    OddInput("text for intervals", field("time_interval_seconds", lambda _: "an hour")),
    OddInput("None for intervals", field("time_interval_seconds", lambda _: None)),
)


def other(series: torch.Tensor) -> torch.Tensor:
    """The same values in the other of the two usual types."""
    return series.double() if series.dtype is not torch.float64 else series.float()


ARGUMENTS: tuple[OddInput, ...] = (
    left("horizon 0", ahead(0)),
    left("a negative horizon", ahead(-3)),
    OddInput("a horizon of one step", ahead(1)),
    OddInput("a horizon of 2.5 steps", ahead(2.5)),
    OddInput("text for a horizon", ahead("8")),
    OddInput("None for a horizon", ahead(None)),
    OddInput("a horizon by numpy", ahead(np.int64(5))),
    OddInput("text for use_kv_cache", asked(use_kv_cache="no")),
    OddInput("0 samples", asked(num_samples=0, samples_per_batch=1), draws=True),
    OddInput("-4 samples", asked(num_samples=-4, samples_per_batch=2), draws=True),
    OddInput("1.5 samples", asked(num_samples=1.5, samples_per_batch=1), draws=True),
    OddInput("text for samples", asked(num_samples="4", samples_per_batch=2), draws=True),
    OddInput("samples_per_batch=0", asked(num_samples=4, samples_per_batch=0), draws=True),
    OddInput("samples_per_batch=-2", asked(num_samples=4, samples_per_batch=-2), draws=True),
    OddInput("samples_per_batch=8 of 4", asked(num_samples=4, samples_per_batch=8), draws=True),
    OddInput("samples_per_batch=3 of 4", asked(num_samples=4, samples_per_batch=3), draws=True),
    OddInput("samples_per_batch=None", asked(num_samples=4, samples_per_batch=None), draws=True),
    OddInput("an argument that there is not", asked(temperature=0.7)),
)

GROUPS: dict[str, tuple[OddInput, ...]] = {
    "values": VALUES,
    "layouts": LAYOUTS,
    "shapes": SHAPES,
    "masks and groups": MASKS,
    "types": TYPES,
    "arguments": ARGUMENTS,
}
"""All of them, by what is odd."""

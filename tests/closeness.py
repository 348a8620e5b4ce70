"""Whether two forecasts of one series are the same up to rounding, and by how much they differ.

A difference is judged in the unit in which a model reckons: the standard deviation of the variate,
as far as its mask lets it count, and never less than the scalers' own least. In float64 hardly
more than rounding is allowed. In fewer bits, and where a model is so chaotic that rounding grows,
the patched forecast may be no farther from the truth than a small multiple of upstream's distance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from odd_inputs import Call

RELATIVE = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
"""Differences that are rounding, in units of the variate."""

ROUNDINGS = 4
"""Likewise, in roundings of the level on which a series lies."""

MULTIPLE = 4.0
"""How many times as far from the truth as upstream the patched forecast may be."""

LEAST_VARIANCE = 0.1
"""What upstream's scalers add to each variance."""

PERTURBATIONS = 4
"""Forecasts of upstream's that show how rounding grows."""


OwnError = Callable[[torch.Tensor, torch.Tensor], tuple[float, float]]
"""From both forecasts, upstream's and the patched one, to how far each is from the truth."""


@dataclass(frozen=True)
class Judgement:
    """How two forecasts compare.

    Attributes:
        difference: the greatest, in units of the variate.
        excused: it is more than rounding, but no more than upstream's own error allows.
        complaint: what is wrong; empty where nothing is.
    """

    difference: float = 0.0
    excused: bool = False
    complaint: str = ""


def judge(
    theirs: torch.Tensor,
    ours: torch.Tensor,
    call: Call,
    own_error: OwnError,
) -> Judgement:
    """Compare upstream's forecast and the patched one.

    Args:
        theirs: upstream's, ``batch variate horizon [samples]``.
        ours: likewise.
        call: what was asked for.
        own_error: is asked for those that are more than rounding apart.
    """
    for name in ("shape", "dtype", "device", "requires_grad"):
        if getattr(theirs, name) != getattr(ours, name):
            return Judgement(complaint=f"{name} {getattr(ours, name)}, not {getattr(theirs, name)}")
    if theirs.is_inference() != ours.is_inference():
        return Judgement(complaint=f"is_inference() is {ours.is_inference()}")
    if not theirs.is_floating_point():
        return Judgement(complaint="" if torch.equal(theirs, ours) else "other numbers")
    numbers = theirs.isfinite()
    if not torch.equal(numbers, ours.isfinite()):
        return Judgement(complaint="numbers in other places")
    # Infinities become the greatest numbers, of either sign.
    if not torch.equal(theirs[~numbers].nan_to_num(0.0), ours[~numbers].nan_to_num(0.0)):
        return Judgement(complaint="NaN in place of infinity, or infinity of another sign")
    if not theirs.numel():
        return Judgement()
    worst = float(_apart(theirs, ours, call).max())
    if worst <= RELATIVE[theirs.dtype]:
        return Judgement(worst)
    error_of_theirs, error_of_ours = own_error(theirs, ours)
    if error_of_ours <= max(RELATIVE[theirs.dtype], MULTIPLE * error_of_theirs):
        return Judgement(worst, excused=True)
    return Judgement(
        worst,
        complaint=f"{worst:.2g} apart; {error_of_ours:.2g} from the truth, where upstream is "
        f"{error_of_theirs:.2g}",
    )


def _apart(theirs: torch.Tensor, ours: torch.Tensor, call: Call) -> torch.Tensor:
    """How far apart numbers are, in units of their variate, beyond roundings of its level."""
    level, unit = level_and_unit(call, theirs.ndim)
    eps = torch.finfo(theirs.dtype).eps
    theirs, ours = (part.double().nan_to_num(0.0, 0.0, 0.0) for part in (theirs, ours))
    # Sums of the largest numbers would be infinite.
    largest = max(float(part.abs().max()) for part in (theirs, ours, level, unit)) + 1.0
    theirs, ours, level, unit = (part / largest for part in (theirs, ours, level, unit))
    roundings = ROUNDINGS * eps * torch.maximum(theirs.abs(), level.abs())
    beyond = ((ours - theirs).abs() - roundings).clamp_min(0.0)
    return beyond / (unit + (theirs - level).abs())


def level_and_unit(call: Call, axes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of each variate and its standard deviation, ``batch variate 1 [1]``, of what counts."""
    series = torch.as_tensor(call.inputs.series).detach().double()
    mask = call.inputs.padding_mask
    weights = series.isfinite().double()
    if mask is not None and torch.as_tensor(mask).shape == series.shape:
        weights = weights * torch.as_tensor(mask).double().abs().nan_to_num(0.0)
    series = series.nan_to_num(0.0, 0.0, 0.0)
    # Squares of the largest numbers would be infinite.
    largest = series.abs().amax(-1, keepdim=True).clamp_min(1.0)
    series = series / largest
    count = weights.sum(-1, keepdim=True).clamp_min(1e-9)
    level = (weights * series).sum(-1, keepdim=True) / count
    variance = (weights * (series - level) ** 2).sum(-1, keepdim=True) / count
    least = torch.tensor(LEAST_VARIANCE**0.5, dtype=series.dtype)
    unit = (largest * variance.sqrt()).hypot(least).nan_to_num()
    level = (largest * level).nan_to_num()
    if series.ndim == 2:
        level, unit = level.unsqueeze(0), unit.unsqueeze(0)
    return (level, unit) if axes == 3 else (level.unsqueeze(-1), unit.unsqueeze(-1))


def beside_float64(model: Any, call: Call, seed: int = 0) -> OwnError:
    """Distances from upstream's forecast in float64."""

    def distances(theirs: torch.Tensor, ours: torch.Tensor) -> tuple[float, float]:
        exact = in_float64(call).make(twin(model).double(), seed)
        of_theirs, of_ours = (_distance(exact, part, call) for part in (theirs, ours))
        if of_ours > MULTIPLE * of_theirs:
            # Roundings may have cancelled on upstream's side.
            of_theirs = max(of_theirs, moves(model, call, theirs, seed))
        return of_theirs, of_ours

    return distances


def in_float64(call: Call) -> Call:
    """The same call in float64."""
    options = {
        name: value.double()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in call.options.items()
    }
    series = torch.as_tensor(call.inputs.series).double()
    return Call(call.inputs._replace(series=series), call.horizon, options)


def twin(model: Any) -> Any:
    """A copy of a model."""
    # Rotary embeddings hold functions that cannot be copied, and need not be.
    held = (part for module in model.modules() for part in vars(module).values())
    return copy.deepcopy(model, {id(part): part for part in held if callable(part)})


def beside_perturbed(model: Any, call: Call, seed: int = 0) -> OwnError:
    """How far upstream's forecast moves by roundings, and how far from it the patched one is."""

    def distances(theirs: torch.Tensor, ours: torch.Tensor) -> tuple[float, float]:
        return moves(model, call, theirs, seed), _distance(theirs, ours, call)

    return distances


def moves(model: Any, call: Call, theirs: torch.Tensor, seed: int) -> float:
    """How far upstream's forecast moves when weights and series are changed by a rounding."""
    moved = 0.0
    for found in perturbed(model, call, seed):
        if isinstance(found, Exception):
            # Upstream makes a forecast by chance.
            return float("inf")
        moved = max(moved, _distance(theirs, found, call))
    return moved


def perturbed(model: Any, call: Call, seed: int = 0) -> Iterator[torch.Tensor | Exception]:
    """Upstream's forecasts when weights and series are changed by a rounding."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PERTURBATIONS):
        other = twin(model)
        with torch.no_grad():
            for weight in other.parameters():
                weight.copy_(rounded_otherwise(weight, generator))
        series = rounded_otherwise(torch.as_tensor(call.inputs.series), generator)
        try:
            yield call.having(series=series).make(other, seed)
        except Exception as error:
            yield error


def rounded_otherwise(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each number as it is, or the next greater or smaller one."""
    steps = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor.dtype)
    eps = torch.finfo(tensor.dtype).eps
    return tensor.detach() * (1 + eps * steps)


def _distance(exact: torch.Tensor, found: torch.Tensor, call: Call) -> float:
    """The greatest distance of a forecast from another, in units of the variate."""
    return float(_apart(exact, found, call).max())

"""Error conditions that depend on computed values.

On a CPU they are checked at once. On a GPU they are collected and read once, with the forecast,
because each read waits for all that the GPU has been given to do.
"""

from __future__ import annotations

import torch


class NotFiniteError(ArithmeticError):
    """A distribution's parameters are not numbers: upstream's code shall say what that means."""


class WeightsChangedError(Exception):
    """A weight has changed since it was prepared: prepare it again, and forecast again."""


_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    # First: of a stale forecast the others tell nothing.
    (WeightsChangedError, "a weight has changed"),
    # As upstream raises.
    (AssertionError, "Patches cannot span multiple datasets"),
    (NotFiniteError, "the distribution's parameters are not numbers"),
)


class DeviceChecks:
    """Conditions of a forecast that must not hold, on its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._conditions: dict[type[Exception], torch.Tensor] = {}

    def forbid(self, meaning: type[Exception], condition: torch.Tensor) -> None:
        """Note that an exception is due if a condition, one boolean, holds.

        On a CPU it is raised here and now.
        """
        if self._device.type == "cpu":
            if condition:
                raise meaning(dict(_MEANINGS)[meaning])
            return
        if meaning in self._conditions:
            condition = condition | self._conditions[meaning]
        self._conditions[meaning] = condition

    def outcomes(self) -> torch.Tensor:
        """Whether each condition holds, in one tensor, ``condition``."""
        never = torch.zeros((), dtype=torch.bool, device=self._device)
        return torch.stack([self._conditions.get(meaning, never) for meaning, _ in _MEANINGS])


def raise_for(outcomes: torch.Tensor) -> None:
    """Raise what the outcomes of the checks mean, if one of their conditions holds.

    Args:
        outcomes: of ``DeviceChecks``, ``condition``.
    """
    for holds, (meaning, message) in zip(outcomes.tolist(), _MEANINGS, strict=True):
        if holds:
            raise meaning(message)

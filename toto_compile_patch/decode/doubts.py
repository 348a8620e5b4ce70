"""What is known only when a device has computed it, asked once, at the end.

Each question to a device is a wait for all that it has been given to do. So they are noted on the
way, answered together with the forecast, and the forecast given up if one is affirmed.
"""

from __future__ import annotations

import torch


class NotFiniteError(ArithmeticError):
    """A distribution's parameters are not numbers: upstream's code shall say what that means."""


class WeightsChangedError(Exception):
    """A weight has changed since it was prepared: prepare it again, and forecast again."""


_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (WeightsChangedError, "a weight has changed"),
    # As upstream raises.
    (AssertionError, "Patches cannot span multiple datasets"),
    (NotFiniteError, "the distribution's parameters are not numbers"),
)


class Doubts:
    """Conditions of a forecast that must not hold, on its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._conditions: dict[type[Exception], torch.Tensor] = {}

    def note(self, meaning: type[Exception], condition: torch.Tensor) -> None:
        """Note that an exception is due if a condition, one boolean, holds."""
        if meaning in self._conditions:
            condition = condition | self._conditions[meaning]
        self._conditions[meaning] = condition
        if self._device.type == "cpu":
            settle(self.answers())

    def answers(self) -> torch.Tensor:
        """All conditions in one tensor."""
        never = torch.zeros((), dtype=torch.bool, device=self._device)
        return torch.stack([self._conditions.get(meaning, never) for meaning, _ in _MEANINGS])


def settle(answers: torch.Tensor) -> None:
    """Raise what the answers mean, if one is affirmative."""
    for affirmed, (meaning, message) in zip(answers.tolist(), _MEANINGS, strict=True):
        if affirmed:
            raise meaning(message)

"""What is known only when a device has computed it: asked at once of a CPU, else once, at the end.

Each question to a GPU is a wait for all that it has been given to do. So they are noted on the way,
answered together with the forecast, and the forecast given up if one is affirmed.
"""

from __future__ import annotations

import torch


class NotFiniteError(ArithmeticError):
    """A distribution's parameters are not numbers: upstream's code shall say what that means."""


class WeightsChangedError(Exception):
    """A weight has changed since it was prepared: prepare it again, and forecast again."""


_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
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

    def answers(self) -> torch.Tensor:
        """All conditions in one tensor."""
        never = torch.zeros((), dtype=torch.bool, device=self._device)
        return torch.stack([self._conditions.get(meaning, never) for meaning, _ in _MEANINGS])


def settle(answers: torch.Tensor, weights_changed: torch.Tensor | None = None) -> None:
    """Raise what the answers mean, if one is affirmative.

    Args:
        answers: of a ``Doubts``.
        weights_changed: one boolean; None: that was settled before.
    """
    if weights_changed is None:
        affirmed = answers.tolist()
    else:
        stale, *affirmed = torch.cat([weights_changed.view(1), answers]).tolist()
        if stale:
            raise WeightsChangedError("a weight has changed")
    for is_so, (meaning, message) in zip(affirmed, _MEANINGS, strict=True):
        if is_so:
            raise meaning(message)


def capturing() -> bool:
    """Whether what is computed now is being captured in a CUDA graph: nothing may be asked then."""
    # ``is_available()`` asks the driver anew each time.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()

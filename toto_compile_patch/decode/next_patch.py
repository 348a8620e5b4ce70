"""From a hidden state to the next patch: its mean, or draws from its distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from toto_compile_patch.decode import fused, sampling
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.random_numbers import RandomStream
from toto_compile_patch.decode.row_layout import RowLayout
from toto_compile_patch.decode.upstream_draws import UpstreamDraws


class NextPatch(Protocol):
    """From hidden states, ``row embed_dim``, to unscaled values of the next patch.

    Attributes:
        can_be_left: whether the forecast may still be handed over to upstream's code.
    """

    @property
    def can_be_left(self) -> bool:
        """Whether upstream's code may still make the forecast."""

    def after_context(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """From the context's last position, which all samples share, ``row embed_dim`` to ``batch
        variate samples time_steps``."""

    def after_decode_step(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """From each sample's own last position, ``row embed_dim`` to ``batch variate samples
        time_steps``."""


@dataclass(frozen=True)
class Mean:
    """The mean of each patch's distribution."""

    model: PreparedModel
    can_be_left = True

    def after_context(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """The mean after the context or a decode step, ``row embed_dim`` to ``batch variate 1
        time_steps``."""
        head = self.model.weights.head
        if (part := head.real.for_time_steps(time_steps)) is not head.real:
            return layout.unflatten(sampling.mean(part, hidden))
        return layout.unflatten(self.model.regions.mean(head, hidden))

    after_decode_step = after_context


@dataclass(frozen=True)
class Drawn:
    """Draws from each patch's distribution.

    Attributes:
        model: the model.
        samples: how many.
        numbers: the random numbers.
    """

    model: PreparedModel
    samples: int
    numbers: RandomStream
    can_be_left = True

    def after_context(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """Draw all samples from the one distribution after the context, ``row embed_dim`` to
        ``batch variate samples time_steps``."""
        raw = self.model.weights.head.real.for_time_steps(time_steps).apply(hidden)
        raw = layout.unflatten(raw).squeeze(2)
        uniform = self._uniform((layout.batch, layout.variates, time_steps, self.samples), raw)
        if fused.serves(raw, uniform):
            samples: torch.Tensor = sampling.draws(raw, uniform, self.samples)
            return samples.transpose(2, 3)
        component, radius, angle = uniform.unbind(1)
        drawn = sampling.draw(sampling.chosen_components(raw, component), radius, angle)
        return drawn.transpose(2, 3)

    def after_decode_step(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """Draw each sample from its own distribution, ``row embed_dim`` to ``batch variate samples
        time_steps``."""
        head = self.model.weights.head
        shape = (layout.batch, layout.variates, layout.count, time_steps)
        uniform = self._uniform(shape, hidden)
        if fused.serves(hidden, uniform):
            raw = head.real.for_time_steps(time_steps).apply(hidden)
            samples: torch.Tensor = sampling.draws(raw, uniform, 1)
            return samples
        component, radius, angle = uniform.unbind(1)
        choosing = layout.flatten(component).unsqueeze(-1)
        if (part := head.real.for_time_steps(time_steps)) is not head.real:
            chosen = sampling.choose(part, hidden, choosing)
        else:
            chosen = self.model.regions.choose(head, hidden, choosing)
        half_df, loc, scale = (layout.unflatten(part.squeeze(-1)) for part in chosen)
        return sampling.draw((half_df, loc, scale), radius, angle)

    def _uniform(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Three uniform random numbers for each draw, in [0, 1), of the head's type: what chooses
        its component, its radius and its angle, ``batch 3 ...``."""
        batch, *rest = shape
        dtype = self.model.weights.head.real.weight.dtype
        return self.numbers.uniform((batch, 3, *rest), dtype, like.device)


@dataclass(frozen=True)
class DrawnAsUpstream:
    """Upstream's draws in upstream's order.

    It cannot be handed over any more once upstream's random numbers have been drawn: upstream would
    go on to draw others.
    """

    draws: UpstreamDraws
    samples: int
    can_be_left = False

    def after_context(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """Draw as upstream does, ``row embed_dim`` to ``batch variate samples time_steps``."""
        return self.draws(layout.unflatten(hidden), self.samples)[..., :time_steps]

    after_decode_step = after_context

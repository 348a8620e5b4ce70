"""From a hidden state to the next patch: its mean, or draws from its distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from toto_compile_patch.decode import sampling
from toto_compile_patch.decode.prepared_model import PreparedModel
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
        generator: of the random numbers; None: the process's.
    """

    model: PreparedModel
    samples: int
    generator: torch.Generator | None
    can_be_left = True

    def after_context(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """Draw all samples from the one distribution after the context, ``row embed_dim`` to
        ``batch variate samples time_steps``."""
        raw = self.model.weights.head.real.for_time_steps(time_steps).apply(hidden)
        raw = layout.unflatten(raw).squeeze(2)
        uniform = self._uniform((*raw.shape[:-2], self.samples), raw)
        drawn = sampling.draw(sampling.chosen_components(raw, uniform), self.generator)
        return drawn.transpose(2, 3)

    def after_decode_step(
        self, hidden: torch.Tensor, layout: RowLayout, time_steps: int
    ) -> torch.Tensor:
        """Draw each sample from its own distribution, ``row embed_dim`` to ``batch variate samples
        time_steps``."""
        head = self.model.weights.head
        uniform = self._uniform((layout.batch, layout.variates, layout.count, time_steps), hidden)
        uniform = layout.flatten(uniform).unsqueeze(-1)
        if (part := head.real.for_time_steps(time_steps)) is not head.real:
            chosen = sampling.choose(part, hidden, uniform)
        else:
            chosen = self.model.regions.choose(head, hidden, uniform)
        half_df, loc, scale = (layout.unflatten(part.squeeze(-1)) for part in chosen)
        return sampling.draw((half_df, loc, scale), self.generator)

    def _uniform(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Uniform random numbers that choose components, in [0, 1), of the head's type."""
        dtype = self.model.weights.head.real.weight.dtype
        return torch.rand(shape, dtype=dtype, device=like.device, generator=self.generator)


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

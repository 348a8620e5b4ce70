"""``rng="upstream"``: upstream's draws in upstream's order, to prove equality.

Upstream draws for every position, all components and all samples of a batch, and keeps the last
patch. A generator in the same state gives the same samples only if all of that is drawn again.
It is slow and takes much memory: for proving equality, not for work.
"""

from __future__ import annotations

from typing import Any

import torch


class UpstreamDraws:
    """Draws the patches of one batch of samples.

    Args:
        backbone: whose unembedding and output distribution are used as they are.
        prepended: leading positions that upstream crops before the head.
        sees_all: draw for all positions at every step, as upstream does without a cache.
    """

    def __init__(self, backbone: Any, prepended: int, sees_all: bool) -> None:
        self._backbone = backbone
        self._prepended = prepended
        self._sees_all = sees_all
        self._seen: list[torch.Tensor] = []

    def __call__(self, hidden: torch.Tensor, samples: int) -> torch.Tensor:
        """Draw unscaled values of the next patch.

        Args:
            hidden: ``batch variate seq_len embed_dim`` of the context, then
                ``batch variate samples embed_dim`` of each generated patch.
            samples: how many.

        Returns:
            ``batch variate samples patch_size``.
        """
        if not self._seen:
            hidden = hidden[:, :, self._prepended :].unsqueeze(0).expand(samples, *[-1] * 4)
        else:
            hidden = hidden.permute(2, 0, 1, 3).unsqueeze(3)
        if self._sees_all or not self._seen:
            self._seen.append(hidden)
        positions = torch.cat(self._seen, dim=3) if self._sees_all else hidden
        distribution = self._backbone.output_distribution(self._unembed(positions.flatten(0, 1)))
        drawn: torch.Tensor = distribution.sample()
        drawn = drawn[..., -self._backbone.patch_embed.patch_size :]
        return drawn.unflatten(0, (samples, -1)).permute(1, 2, 0, 3)

    def _unembed(self, positions: torch.Tensor) -> torch.Tensor:
        """``rows variate seq_len embed_dim`` to ``rows variate time_steps embed_dim``."""
        unembedded: torch.Tensor = self._backbone.unembed(positions)
        return unembedded.unflatten(-1, (-1, self._backbone.embed_dim)).flatten(2, 3)

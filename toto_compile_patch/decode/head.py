"""The head: from a hidden state to the parameters of the distribution of its patch.

Upstream unembeds a hidden state to ``patch_size`` vectors of ``embed_dim``, then projects each to
the parameters: two linear maps, one after the other, which are one. For the published model that is
4.7 million weights in place of 37.8.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from toto_compile_patch.decode.linear import (
    Linear,
    PackedLinear,
    PlainLinear,
    product_of_few_rows,
)
from toto_compile_patch.decode.precision import at_least_float32, without_autocast
from toto_compile_patch.upstream import kind_of

LOGITS = 3
"""The kind of parameter that the logits are, after degrees of freedom, location and scale."""


class FoldedHead(NamedTuple):
    """Unembedding and projections in one matrix.

    Attributes:
        weight: ``patch_size·kinds·components embed_dim``.
        bias: ``patch_size·kinds·components``.
        packed: the same in a CPU's layout, where it has one.
        kinds: parameters of a component: degrees of freedom, location, scale, and in a mixture
            the logit of its weight.
        components: components of the mixture; 1 without one.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    packed: Linear | None
    kinds: int
    components: int

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raw parameters of a whole patch.

        Args:
            hidden: ``row embed_dim``.

        Returns:
            ``row time_steps kinds components``, at least float32.
        """
        with without_autocast(hidden.device):
            hidden = hidden.to(self.weight.dtype)
            raw = product_of_few_rows(hidden, self.weight, self.bias)
            if raw is None:
                whole = self.packed or PlainLinear(self.weight, self.bias)
                raw = whole.apply(hidden)
        return raw.unflatten(-1, (-1, self.kinds, self.components))

    def is_finite(self) -> bool:
        """Whether all of its numbers are finite, which is asked of their device.

        The logits of a mixture may switch off a component.
        """
        bias = self.bias.unflatten(0, (-1, self.kinds, self.components))
        others, logits = bias[:, :LOGITS], bias[:, LOGITS:]
        finite = self.weight.isfinite().all() & others.isfinite().all()
        return bool(finite & (logits < torch.inf).all())

    def for_time_steps(self, time_steps: int) -> FoldedHead:
        """The head of the patch's first time steps alone."""
        rows = time_steps * self.kinds * self.components
        if rows == self.weight.shape[0]:
            return self
        return self._replace(weight=self.weight[:rows], bias=self.bias[:rows], packed=None)


def fold(backbone: Any, packed: bool) -> FoldedHead:
    """Fold the present weights of a backbone's unembedding and output distribution."""
    output = backbone.output_distribution
    projections = [output.df, output.loc_proj, output.scale_proj]
    if kind_of(output) == "MixtureOfStudentTsOutput":
        projections.append(output.mixture_weights)
    unembed = backbone.unembed
    dtype = torch.float32 if unembed.weight.device.type == "mps" else torch.float64
    projection = torch.cat([p.weight for p in projections]).to(dtype)
    offset = torch.cat([p.bias for p in projections]).to(dtype)
    # One time step of the patch after the other, since all of it in double precision is large.
    shape = (backbone.patch_embed.patch_size, backbone.embed_dim)
    kept = at_least_float32(unembed.weight.dtype)
    weight = torch.cat(
        [(projection @ step.to(dtype)).to(kept) for step in unembed.weight.unflatten(0, shape)]
    )
    bias = unembed.bias.to(dtype).unflatten(0, shape) @ projection.T + offset
    bias = bias.flatten().to(kept)
    packed_layer = PackedLinear.of(weight, bias) if packed and kept is torch.float32 else None
    return FoldedHead(weight, bias, packed_layer, len(projections), output.df.out_features)

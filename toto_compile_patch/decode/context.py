"""The context of a forecast, computed once for all its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode.doubts import Doubts
from toto_compile_patch.decode.precision import at_least_float32
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.rows import Rows
from toto_compile_patch.decode.scaling import Scaled, ScaleState, scale_context
from toto_compile_patch.decode.transformer import ContextCache, prefill


@dataclass(frozen=True)
class Context:
    """What the next patches depend on.

    Attributes:
        hidden: the transformer's output at the last patch, or at every position where all were
            wanted, ``row embed_dim``.
        rows: their layout.
        scaled: location and scale of the last patch.
        state: what scaling further patches needs.
        cache: keys and values of the context.
        groups: which variates see one another from now on, ``batch 1 variate variate``.
        prepended: positions before the series' own (a fused label).
    """

    hidden: torch.Tensor
    rows: Rows
    scaled: Scaled
    state: ScaleState
    cache: ContextCache
    groups: torch.Tensor | None
    prepended: int


def encode(
    model: PreparedModel, request: Request, doubts: Doubts, *, every_position: bool = False
) -> Context:
    """Scale, embed and run the transformer over the context of a request."""
    backbone, patch_size = model.backbone, model.patch_size
    series = request.inputs.to(at_least_float32(request.inputs.dtype))
    scaled, state = scale_context(backbone.scaler, series, request.padding_mask, patch_size)
    hidden = embed(backbone, scaled.values.unflatten(-1, (-1, patch_size)))
    groups = variate_groups(request, patch_size, doubts)
    prepended = 0
    if getattr(backbone, "fusion", None) is not None:
        # toto-ts 0.2.0 can prepend a label to each variate, which belongs to the first group.
        labels = backbone.build_variate_label_embeds(request.num_exogenous, hidden)
        prepended = -hidden.shape[2]
        hidden = backbone.fusion(hidden, variate_label_embeds=labels)
        prepended += hidden.shape[2]
        if groups is not None:
            groups = torch.cat([groups[:, :1].expand(-1, prepended, -1, -1), groups], dim=1)
    batch, variates, positions, _ = hidden.shape
    rows = Rows(batch, variates, positions, model.regions.padding(model.weights.packed))
    last, rows, cache = prefill(
        model, rows.flatten(hidden), rows, groups, every_position=every_position
    )
    last_groups = None if groups is None else groups[:, -1:]
    return Context(last, rows, scaled, state, cache, last_groups, prepended)


def embed(backbone: Any, patches: torch.Tensor) -> torch.Tensor:
    """``... patch_size`` to ``... embed_dim``."""
    projection = backbone.patch_embed.projection
    if not torch.is_autocast_enabled(patches.device.type):
        patches = patches.to(projection.weight.dtype)
    embedded: torch.Tensor = projection(patches)
    return embedded


def variate_groups(request: Request, patch_size: int, doubts: Doubts) -> torch.Tensor | None:
    """True where one variate may see another, ``batch seq_len variate variate``.

    None where all may see all, as far as that can be told without asking a device: the mask need
    not be applied. A patch that spans two groups is noted as a doubt.
    """
    if request.id_mask is None:
        return None
    ids = request.id_mask.unflatten(-1, (-1, patch_size))
    doubts.note(AssertionError, (ids != ids[..., :1]).any())
    variates = request.inputs.shape[1]
    if variates == 1 or ids.shape[1] < variates:
        return None
    ids = ids[..., 0].transpose(1, 2)
    groups = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    return None if groups.is_cpu and groups.all() else groups

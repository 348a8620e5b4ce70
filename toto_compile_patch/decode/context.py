"""The context of a forecast, computed once for all its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode.caches import ContextCache
from toto_compile_patch.decode.device_checks import DeviceChecks, NotFiniteError
from toto_compile_patch.decode.precision import at_least_float32
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.row_layout import RowLayout
from toto_compile_patch.decode.scaling import Scaled, ScaleState, scale_context
from toto_compile_patch.decode.transformer import prefill


@dataclass(frozen=True)
class Context:
    """What the next patches depend on.

    Attributes:
        hidden: the transformer's output at the last patch, or at every position where all were
            wanted, ``row embed_dim``.
        layout: of its rows, with the groups of the variates from now on.
        scaled: location and scale of the last patch.
        state: what scaling further patches needs.
        cache: keys and values of the context.
        prepended: positions before the series' own (a fused label).
    """

    hidden: torch.Tensor
    layout: RowLayout
    scaled: Scaled
    state: ScaleState
    cache: ContextCache
    prepended: int


def encode(
    model: PreparedModel, request: Request, checks: DeviceChecks, *, every_position: bool = False
) -> Context:
    """Scale, embed and run the transformer over the context of a request."""
    backbone, patch_size = model.backbone, model.patch_size
    series = request.inputs.to(at_least_float32(request.inputs.dtype))
    scaled, state = scale_context(backbone.scaler, series, request.padding_mask, patch_size)
    hidden = embed(backbone, scaled.values.unflatten(-1, (-1, patch_size)))
    if not model.weights.attend_over_time:
        # Nothing carries it on to the last position, and upstream's distributions look at all.
        checks.forbid(NotFiniteError, ~hidden.isfinite().all())
    groups = variate_groups(request, patch_size, checks)
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
    padding = model.regions.padding(model.weights.packed)
    layout = RowLayout(batch, variates, positions, padding, groups)
    kept = request.steps(patch_size) > 1
    last, layout, cache = prefill(
        model, layout.flatten(hidden), layout, every_position=every_position, kept=kept
    )
    return Context(last, layout, scaled, state, cache, prepended)


def embed(backbone: Any, patches: torch.Tensor) -> torch.Tensor:
    """``... patch_size`` to ``... embed_dim``."""
    projection = backbone.patch_embed.projection
    if not torch.is_autocast_enabled(patches.device.type):
        patches = patches.to(projection.weight.dtype)
    embedded: torch.Tensor = projection(patches)
    return embedded


def variate_groups(request: Request, patch_size: int, checks: DeviceChecks) -> torch.Tensor | None:
    """True where one variate may see another, ``batch seq_len variate variate``.

    None where all may see all, as far as that can be told without asking a device: the mask need
    not be applied. A patch that spans two groups is noted as a doubt.
    """
    if request.id_mask is None:
        return None
    ids = request.id_mask.unflatten(-1, (-1, patch_size))
    checks.forbid(AssertionError, (ids != ids[..., :1]).any())
    variates = request.inputs.shape[1]
    if variates == 1 or ids.shape[1] < variates:
        return None
    ids = ids[..., 0].transpose(1, 2)
    groups = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    return None if groups.is_cpu and groups.all() else groups

"""A forecast: the context once, then one patch after the other for all samples at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode.context import Context, embed, encode
from toto_compile_patch.decode.head import FoldedHead
from toto_compile_patch.decode.precision import at_least_float32
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.sampling import draw, mixture_mean
from toto_compile_patch.decode.scaling import scale_patch
from toto_compile_patch.decode.transformer import SuffixCache, decode_step
from toto_compile_patch.decode.upstream_draws import UpstreamDraws
from toto_compile_patch.decode.weights import Layer, prepared_weights
from toto_compile_patch.upstream import is_extreme_value

NextPatch = Callable[[torch.Tensor, int], torch.Tensor]
"""From ``batch variate n embed_dim`` and the time steps wanted, unscaled values
``batch variate samples time_steps``; ``n`` is 1 for the context, shared by all samples."""

ROWS_ON_A_CPU = 1024
"""Series times variates times samples that a CPU decodes at once: more are no faster."""

FREE_BYTES = 64 * 2**20
"""Samples are decoded at once up to this size, however few the user lets upstream decode."""


class NotFiniteError(ArithmeticError):
    """A distribution's parameters are not numbers: upstream's code shall say what that means."""


@dataclass(frozen=True)
class Options:
    """How to decode.

    Attributes:
        rng: ``fast`` draws once from the component chosen; ``upstream`` repeats upstream's
            draws in upstream's order.
    """

    rng: str = "fast"


@torch.no_grad()
def forecast_mean(backbone: Any, request: Request) -> torch.Tensor:
    """Feed the mean of each patch's distribution back, ``batch variate horizon``.

    Raises:
        NotFiniteError: the distribution's parameters are not numbers.
    """
    weights = prepared_weights(backbone)

    def mean(hidden: torch.Tensor, time_steps: int) -> torch.Tensor:
        return mixture_mean(weights.head(hidden, time_steps))

    context = encode(backbone, weights.layers, request)
    forecast = _decode(backbone, weights.layers, request, context, 1, mean)
    return forecast.squeeze(2).to(request.inputs.dtype)


@torch.no_grad()
def forecast_samples(backbone: Any, request: Request, options: Options) -> torch.Tensor:
    """Draw sample paths, ``batch variate horizon samples``.

    Raises:
        NotFiniteError: the distribution's parameters are not numbers.
    """
    as_upstream = options.rng == "upstream"
    weights = prepared_weights(backbone)
    context = encode(backbone, weights.layers, request, every_position=as_upstream)
    total = request.num_samples or 0
    at_once = request.samples_per_batch if as_upstream else samples_at_once(backbone, request)
    paths: list[torch.Tensor] = []
    while total:
        count = min(at_once, total)
        next_patch = (
            _drawn_as_upstream(backbone, context, request, count)
            if as_upstream
            else _drawn_at_once(weights.head, count)
        )
        try:
            paths.append(_decode(backbone, weights.layers, request, context, count, next_patch))
        except RuntimeError as error:
            if count == 1 or as_upstream or not _out_of_memory(error):
                raise
            at_once = count // 2
            continue
        total -= count
    samples = torch.cat(paths, dim=2).to(request.inputs.dtype)
    return samples.transpose(2, 3).contiguous()


def samples_at_once(backbone: Any, request: Request) -> int:
    """How many samples to decode at once, in chunks of equal size; from shapes alone.

    As many as fit in the memory that upstream's largest tensor, the unembedded context, takes
    at the user's ``samples_per_batch``, and no fewer than those; on a CPU no more than it takes to
    keep it busy.
    """
    batch, variates, length = request.inputs.shape
    layer = backbone.transformer.layers[0]
    itemsize = request.inputs.element_size()
    computed = at_least_float32(request.inputs.dtype).itemsize
    embed_dim, patch_size = backbone.embed_dim, backbone.patch_embed.patch_size
    steps = request.steps(patch_size)
    generated = 2 * len(backbone.transformer.layers) * (steps - 1) * embed_dim
    parameters = 4 * getattr(backbone.output_distribution, "k_components", 1) * patch_size
    working = 8 * embed_dim + 4 * layer.mlp_hidden_dim + parameters if steps > 1 else 0
    sample = batch * variates * (generated + working + 8 * request.horizon) * computed
    upstreams = request.samples_per_batch * batch * variates * length * embed_dim * itemsize
    wanted = request.num_samples or 1
    most = max(request.samples_per_batch, max(upstreams, FREE_BYTES) // sample)
    if request.inputs.is_cpu and steps > 1:
        most = min(most, max(1, ROWS_ON_A_CPU // (batch * variates)))
    chunks = -(-wanted // most)
    return -(-wanted // chunks)


def _drawn_at_once(head: FoldedHead, samples: int) -> NextPatch:
    def next_patch(hidden: torch.Tensor, time_steps: int) -> torch.Tensor:
        shared = hidden.shape[2] < samples
        drawn = draw(head(hidden, time_steps), samples if shared else 1)
        # batch variate n time_steps draws: either n or draws are the samples.
        return drawn.squeeze(2).transpose(2, 3) if shared else drawn.squeeze(-1)

    return next_patch


def _drawn_as_upstream(
    backbone: Any, context: Context, request: Request, samples: int
) -> NextPatch:
    # Without time-wise layers nothing is ever cached.
    cached = request.use_kv_cache and bool(context.cache.layers)
    draws = UpstreamDraws(backbone, context.prepended, sees_all=not cached)
    return lambda hidden, time_steps: draws(hidden, samples)


def _decode(
    backbone: Any,
    layers: tuple[Layer, ...],
    request: Request,
    context: Context,
    samples: int,
    next_patch: NextPatch,
) -> torch.Tensor:
    """Generate patch after patch, ``batch variate samples horizon``."""
    patch_size = backbone.patch_embed.patch_size
    steps = request.steps(patch_size)
    scaled, state, hidden = context.scaled, context.state, context.hidden
    suffix = SuffixCache.empty(context.cache, samples, steps - 1)
    broken = torch.zeros((), dtype=torch.bool, device=hidden.device)
    patches: list[torch.Tensor] = []
    for step in range(steps):
        wanted = min(patch_size, request.horizon - step * patch_size)
        unscaled = next_patch(hidden, wanted)[..., :wanted]
        loc, scale = scaled.loc[..., :wanted], scaled.scale[..., :wanted]
        patch = loc + scale * unscaled.to(scaled.values.dtype)
        broken |= patch.isnan().any()
        # What is too large counts in the type that the user sees.
        patch = patch.masked_fill(is_extreme_value(patch.to(request.inputs.dtype)), 0.0)
        if request.future_exogenous is not None:
            patch = _with_known_future(patch, request, step * patch_size)
        patches.append(patch)
        if step + 1 < steps:
            scaled, state = scale_patch(backbone.scaler, state, patch)
            hidden = decode_step(
                layers,
                backbone.transformer.rotary_emb,
                embed(backbone, scaled.values),
                context.groups,
                context.cache,
                suffix,
                step,
                centred_alone=request.use_kv_cache,
            )
    if broken:
        raise NotFiniteError("the distribution's parameters are not numbers")
    return torch.cat(patches, dim=-1)


def _with_known_future(patch: torch.Tensor, request: Request, start: int) -> torch.Tensor:
    """Put the known values of the exogenous variates in place of the predicted ones."""
    future = request.future_exogenous
    if future is None:
        return patch
    known = future[:, :, None, start : start + patch.shape[-1]].to(patch.dtype)
    known = known.expand(-1, -1, patch.shape[2], -1)
    return torch.cat([patch[:, : -request.num_exogenous], known], dim=1)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

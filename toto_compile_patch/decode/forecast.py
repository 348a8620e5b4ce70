"""A forecast: the context once, then one patch after the other for all samples at once."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._dynamo.exc import TorchDynamoException

from toto_compile_patch.decode import graphs, runtime, sampling
from toto_compile_patch.decode import weights as weights_of
from toto_compile_patch.decode.context import Context, embed, encode
from toto_compile_patch.decode.doubts import (
    Doubts,
    NotFiniteError,
    WeightsChangedError,
    settle,
)
from toto_compile_patch.decode.precision import MODEL, Precision, at_least_float32
from toto_compile_patch.decode.regions import Regions
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.rows import Rows
from toto_compile_patch.decode.runtime import Ran, Runtime
from toto_compile_patch.decode.scaling import scale_patch
from toto_compile_patch.decode.transformer import decode_step, suffix_cache
from toto_compile_patch.decode.upstream_draws import UpstreamDraws
from toto_compile_patch.decode.weights import Weights, prepared_weights
from toto_compile_patch.upstream import is_extreme_value

ROWS_ON_A_CPU = 1024
"""Series times variates times samples that a CPU decodes at once: more are no faster."""

FREE_BYTES = 64 * 2**20
"""Samples are decoded at once up to this size, however few the user lets upstream decode."""


@dataclass(frozen=True)
class Options:
    """How to decode.

    Attributes:
        rng: ``fast`` draws once from the component chosen; ``upstream`` repeats upstream's
            draws in upstream's order.
        runtime: ``auto``, or the name of a Runtime.
        precision: the name of a Precision.
    """

    rng: str = "fast"
    runtime: str = runtime.AUTO
    precision: str = MODEL


def forecast(
    model: Any, backbone: Any, request: Request, options: Options
) -> tuple[torch.Tensor, Ran]:
    """Forecast what is asked for.

    Args:
        model: the backbone, or what ``torch.compile`` made of it: tells which runtime is wanted.
        backbone: the backbone itself.
        request: series and horizon.
        options: how.

    Returns:
        Means ``batch variate horizon``, or samples ``batch variate horizon samples``; and how they
        were made.

    Raises:
        NotFiniteError: the distribution's parameters are not numbers.
        AssertionError: a patch spans two groups of variates.
    """
    device = request.inputs.device
    way = runtime.choose(options.runtime, model, device)
    random_state = None if graphs.capturing() else _random_state(device)
    while True:
        try:
            with torch.inference_mode(False), torch.no_grad():
                result, ran = _run(backbone, request, options, way)
            # Within inference mode, upstream's results are inference tensors.
            return result.clone() if torch.is_inference_mode_enabled() else result, ran
        except WeightsChangedError:
            forget_prepared(backbone)
        except NotFiniteError:
            _restore_random_state(device, random_state)
            raise
        except TorchDynamoException as error:
            if not way.compiles:
                raise
            way = runtime.failed(way, model, error)
        _restore_random_state(device, random_state)


def forget_prepared(backbone: Any = None) -> None:
    """Prepare a backbone's weights and graphs anew; without one, all, and what was compiled."""
    graphs.forget(backbone)
    weights_of.forget(backbone)
    if backbone is None:
        runtime.forget()


def _run(
    backbone: Any, request: Request, options: Options, way: Runtime
) -> tuple[torch.Tensor, Ran]:
    device = request.inputs.device
    weights = prepared_weights(backbone, options.precision)

    def compute(request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        doubts = Doubts(device)
        if device.type != "cpu":
            doubts.note(WeightsChangedError, weights.changed())
        result = _compute(backbone, weights, request, options, way.regions, doubts)
        return result, doubts.answers()

    alone = way.captures or device.type == "cuda"
    with graphs.one_at_a_time(device) if alone else nullcontext():
        if way.captures and options.rng == "fast":
            result, answers, ran = graphs.run(backbone, weights, request, options, way, compute)
        else:
            way = way.without_graphs()
            result, answers = compute(request)
            ran = Ran(way.name, way.reason, unexpected=bool(way.reason))
    if not graphs.capturing():
        settle(answers)
    return result, ran


def _random_state(device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def _restore_random_state(device: torch.device, state: torch.Tensor | None) -> None:
    if state is None:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


class NextPatch(Protocol):
    """From hidden states, ``row embed_dim``, to unscaled values of the next patch."""

    def first(self, hidden: torch.Tensor, rows: Rows, time_steps: int) -> torch.Tensor:
        """After the context, which the samples share, ``batch variate samples time_steps``."""

    def later(self, hidden: torch.Tensor, rows: Rows, time_steps: int) -> torch.Tensor:
        """After a decode step, ``batch variate samples time_steps``."""


@dataclass(frozen=True)
class Mean:
    """The mean of each patch's distribution."""

    weights: Weights
    regions: Regions

    def first(self, hidden: torch.Tensor, rows: Rows, time_steps: int) -> torch.Tensor:
        head = self.weights.head
        if (part := head.real.first(time_steps)) is not head.real:
            return rows.unflatten(sampling.mean(part, hidden))
        return rows.unflatten(self.regions.mean(head, hidden))

    later = first


@dataclass(frozen=True)
class Drawn:
    """Draws from each patch's distribution."""

    weights: Weights
    regions: Regions
    samples: int

    def first(self, hidden: torch.Tensor, rows: Rows, time_steps: int) -> torch.Tensor:
        raw = rows.unflatten(self.weights.head.real.first(time_steps).apply(hidden)).squeeze(2)
        uniform = torch.rand(*raw.shape[:-2], self.samples, dtype=raw.dtype, device=hidden.device)
        return sampling.draw(sampling.chosen_components(raw, uniform)).transpose(2, 3)

    def later(self, hidden: torch.Tensor, rows: Rows, time_steps: int) -> torch.Tensor:
        head = self.weights.head
        shape = (rows.batch, rows.variates, rows.count, time_steps)
        uniform = torch.rand(shape, dtype=head.real.weight.dtype, device=hidden.device)
        uniform = rows.flatten(uniform).unsqueeze(-1)
        if (part := head.real.first(time_steps)) is not head.real:
            chosen = sampling.choose(part, hidden, uniform)
        else:
            chosen = self.regions.choose(head, hidden, uniform)
        half_df, loc, scale = (rows.unflatten(part.squeeze(-1)) for part in chosen)
        return sampling.draw((half_df, loc, scale))


@dataclass(frozen=True)
class DrawnAsUpstream:
    """Upstream's draws in upstream's order."""

    draws: UpstreamDraws
    samples: int

    def first(self, hidden: torch.Tensor, rows: Rows, time_steps: int) -> torch.Tensor:
        return self.draws(rows.unflatten(hidden), self.samples)[..., :time_steps]

    later = first


def _compute(
    backbone: Any,
    weights: Weights,
    request: Request,
    options: Options,
    regions: Regions,
    doubts: Doubts,
) -> torch.Tensor:
    """The forecast, without a question to the device where that is not a CPU."""
    as_upstream = options.rng == "upstream" and request.num_samples is not None
    precision = Precision(options.precision)
    context = encode(
        backbone, weights, regions, precision, request, doubts, every_position=as_upstream
    )

    def decode(samples: int, next_patch: NextPatch) -> torch.Tensor:
        return _decode(
            backbone, weights, regions, precision, request, context, samples, next_patch, doubts
        )

    if request.num_samples is None:
        return decode(1, Mean(weights, regions)).squeeze(2).to(request.inputs.dtype)
    at_once = request.samples_per_batch if as_upstream else samples_at_once(backbone, request)
    paths: list[torch.Tensor] = []
    total = request.num_samples
    while total:
        count = min(at_once, total)
        next_patch: NextPatch = Drawn(weights, regions, count)
        if as_upstream:
            # Without time-wise layers nothing is ever cached.
            cached = request.use_kv_cache and bool(context.cache.layers)
            draws = UpstreamDraws(backbone, context.prepended, sees_all=not cached)
            next_patch = DrawnAsUpstream(draws, count)
        try:
            paths.append(decode(count, next_patch))
        except RuntimeError as error:
            if count == 1 or as_upstream or not graphs.out_of_memory(error) or graphs.capturing():
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


def _decode(
    backbone: Any,
    weights: Weights,
    regions: Regions,
    precision: Precision,
    request: Request,
    context: Context,
    samples: int,
    next_patch: NextPatch,
    doubts: Doubts,
) -> torch.Tensor:
    """Generate patch after patch, ``batch variate samples horizon``."""
    patch_size = backbone.patch_embed.patch_size
    steps = request.steps(patch_size)
    scaled, state = context.scaled, context.state
    rows = context.rows.with_count(samples)
    one_row = regions.single_rows_apart and samples * rows.series == 1
    suffix = suffix_cache(context.cache, samples, steps - 1, one_row=one_row)
    hidden: torch.Tensor = context.hidden
    broken: torch.Tensor | None = None
    patches: list[torch.Tensor] = []
    for step in range(steps):
        wanted = min(patch_size, request.horizon - step * patch_size)
        if step == 0:
            unscaled = next_patch.first(hidden, context.rows, wanted)
        else:
            unscaled = next_patch.later(hidden, rows, wanted)
        loc, scale = scaled.loc[..., :wanted], scaled.scale[..., :wanted]
        patch = loc + scale * unscaled.to(scaled.values.dtype)
        not_a_number = patch.isnan().any()
        broken = not_a_number if broken is None else broken | not_a_number
        # What is too large counts in the type that the user sees.
        patch = patch.masked_fill(is_extreme_value(patch.to(request.inputs.dtype)), 0.0)
        if request.future_exogenous is not None:
            patch = _with_known_future(patch, request, step * patch_size)
        patches.append(patch)
        if step + 1 < steps:
            scaled, state = scale_patch(backbone.scaler, state, patch)
            embedded = embed(backbone, scaled.values)
            with precision.of_products(hidden.device):
                hidden = decode_step(
                    weights.layers,
                    regions,
                    backbone.transformer.rotary_emb,
                    rows.flatten(embedded),
                    rows,
                    context.groups,
                    suffix,
                    step,
                    centred_alone=request.use_kv_cache,
                )
    if broken is not None:
        doubts.note(NotFiniteError, broken)
    return torch.cat(patches, dim=-1)


def _with_known_future(patch: torch.Tensor, request: Request, start: int) -> torch.Tensor:
    """Put the known values of the exogenous variates in place of the predicted ones."""
    future = request.future_exogenous
    if future is None:
        return patch
    known = future[:, :, None, start : start + patch.shape[-1]].to(patch.dtype)
    known = known.expand(-1, -1, patch.shape[2], -1)
    return torch.cat([patch[:, : -request.num_exogenous], known], dim=1)

"""The arithmetic of a forecast: the context once, then patch after patch for all samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

from toto_compile_patch.decode import graphs
from toto_compile_patch.decode.caches import SuffixCache, suffix_cache
from toto_compile_patch.decode.context import Context, embed, encode
from toto_compile_patch.decode.device_checks import DeviceChecks, NotFiniteError
from toto_compile_patch.decode.memory import out_of_memory
from toto_compile_patch.decode.next_patch import Drawn, DrawnAsUpstream, Mean, NextPatch
from toto_compile_patch.decode.precision import at_least_float32
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.random_numbers import RandomNumbers, RandomStream
from toto_compile_patch.decode.recorder import capturing
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.scaling import scale_patch
from toto_compile_patch.decode.transformer import decode_step
from toto_compile_patch.decode.upstream_draws import UpstreamDraws
from toto_compile_patch.decode.weights import ModelSettings
from toto_compile_patch.errors import is_of_a_signal

_logger = logging.getLogger("toto_compile_patch")

ROWS_ON_A_CPU = 1024
"""Series times variates times samples that a CPU decodes at once: more are no faster."""

CONTEXT_ROWS_ON_A_CPU = 2048
"""Series times variates times patches of the contexts that a CPU computes at once, likewise."""

KEYS_AND_VALUES = 2
"""Numbers cached for each feature of each layer and generated patch."""

HIDDEN_STATES_AT_ONCE = 8
"""Of a layer: input, residual, normed; queries, keys, values; attended, projected."""

FEED_FORWARDS_AT_ONCE = 4
"""Of a feed-forward's inner features: gate and value, the activated gate, their product."""

PARAMETERS_OF_A_COMPONENT = 4
"""Degrees of freedom, location, scale and logit, of each time step."""

COPIES_OF_A_CONTEXT = 24
"""Of each time step: the series and its statistics, twelve of them, in double precision."""

COPIES_OF_A_FORECAST = 8
"""Of each time step: patches, their joint and transposed copies, and what draws them."""

FREE_BYTES = 64 * 2**20
"""Samples are decoded at once up to this size, however few the user lets upstream decode."""


def generate(
    model: PreparedModel, request: Request, numbers: RandomNumbers | None, checks: DeviceChecks
) -> torch.Tensor:
    """Forecast, without a question to the device where that is not a CPU.

    Args:
        model: the model.
        request: series and horizon.
        numbers: the random numbers to draw with; None: upstream's draws in upstream's order.
        checks: takes what must not hold.

    Returns:
        Means ``batch variate horizon``, or samples ``batch variate horizon samples``.
    """
    drawn = request.num_samples is not None
    # Where there is no room for the samples, that is said before hours of making them.
    samples = _room_for_samples(request) if drawn else None
    context = encode(model, request, checks, every_position=drawn and numbers is None)
    # Before anything is drawn.
    checks.forbid(NotFiniteError, context.layout.unflatten(context.hidden).isnan().any())
    if samples is None:
        mean = _decode(model, request, context, 1, Mean(model), checks)
        return mean.squeeze(2).to(request.inputs.dtype)
    if numbers is None:
        chunks = _drawn_as_upstream(model, request, context, checks)
    else:
        chunks = _drawn(model, request, context, numbers.from_the_start(), checks)
    made = 0
    for chunk in chunks:
        samples[..., made : made + chunk.shape[2]] = chunk.transpose(2, 3)
        made += chunk.shape[2]
    return samples


def _room_for_samples(request: Request) -> torch.Tensor:
    """Memory for ``batch variate horizon samples``."""
    batch, variates, _ = request.inputs.shape
    return request.inputs.new_empty(batch, variates, request.horizon, request.num_samples or 0)


def _drawn(
    model: PreparedModel,
    request: Request,
    context: Context,
    numbers: RandomStream,
    checks: DeviceChecks,
) -> Iterator[torch.Tensor]:
    """All samples, ``batch variate samples horizon``, in chunks of as many as there is room for.

    Where windows are forecast together, there is to be as much room for each as if it were alone:
    the chunks decide in which order numbers are drawn.
    """
    at_once = samples_at_once(model.weights.settings, request, parts=numbers.windows)
    left = request.num_samples or 0
    suffix: SuffixCache | None = None
    room = 0
    while left:
        count = min(at_once, left)
        try:
            if count != room:
                # The memory of one goes before that of another is taken; one of a size serves all.
                suffix, room = None, 0
                suffix, room = _suffix(model, request, context, count), count
            next_patch = Drawn(model, count, numbers)
            chunk = _decode(model, request, context, count, next_patch, checks, suffix)
        except (RuntimeError, MemoryError) as error:
            final = count == 1 or numbers.windows > 1 or not out_of_memory(error) or capturing()
            final = final or is_of_a_signal(error)
            # Where graphs can be given up, the forecast starts over without them.
            if final or graphs.are_kept_on(request.inputs.device):
                raise
            at_once = count // 2
            _logger.info("memory ran out: samples are decoded %d at a time", at_once)
        else:
            left -= count
            yield chunk


def _drawn_as_upstream(
    model: PreparedModel, request: Request, context: Context, checks: DeviceChecks
) -> Iterator[torch.Tensor]:
    """All samples, ``batch variate samples horizon``, in upstream's batches of them."""
    # Without layers over time nothing is ever cached.
    cached = request.use_kv_cache and model.weights.attend_over_time
    count = request.samples_per_batch
    for _ in range((request.num_samples or 0) // count):
        draws = UpstreamDraws(model.backbone, context.prepended, sees_all=not cached)
        next_patch = DrawnAsUpstream(draws, count)
        yield _decode(model, request, context, count, next_patch, checks)


def samples_at_once(settings: ModelSettings, request: Request, *, parts: int = 1) -> int:
    """How many samples to decode at once, in chunks of equal size; from shapes alone.

    As many as fit in the memory that upstream's largest tensor, the unembedded context, takes
    at the user's ``samples_per_batch``, and no fewer than those; on a CPU no more than it takes to
    keep it busy.

    Args:
        settings: the model's.
        request: series and horizon.
        parts: of the batch, each of which is looked at as if it were alone.
    """
    batch, variates, length = request.inputs.shape
    batch //= parts
    steps = request.steps(settings.patch_size)
    itemsize = request.inputs.element_size()
    upstreams = (
        request.samples_per_batch * batch * variates * length * settings.embed_dim * itemsize
    )
    numbers = batch * variates * _numbers_of_a_sample(settings, steps, request.horizon)
    sample = numbers * at_least_float32(request.inputs.dtype).itemsize
    wanted = request.num_samples or 1
    most = max(request.samples_per_batch, max(upstreams, FREE_BYTES) // sample)
    if request.inputs.is_cpu and steps > 1:
        most = min(most, max(1, ROWS_ON_A_CPU // (batch * variates)))
    chunks = -(-wanted // most)
    return -(-wanted // chunks)


def batch_within(settings: ModelSettings, request: Request, memory: int) -> int:
    """How many series like a request's to forecast at once, at least one.

    As many as a bound of memory allows; on a CPU no more than it takes to keep it busy.

    Args:
        settings: the model's.
        request: one of them.
        memory: bytes in use at once.
    """
    batch, variates, length = request.inputs.shape
    series, steps = batch * variates, request.steps(settings.patch_size)
    samples = 1 if request.num_samples is None else samples_at_once(settings, request)
    kept = series * (request.num_samples or 1) * request.horizon
    numbers = series * _numbers_of_a_context(settings, length) + COPIES_OF_A_FORECAST * kept
    numbers += series * samples * _numbers_of_a_sample(settings, steps, request.horizon)
    most = memory // (numbers * at_least_float32(request.inputs.dtype).itemsize)
    if request.inputs.is_cpu:
        most = min(most, CONTEXT_ROWS_ON_A_CPU // (series * (length // settings.patch_size)))
        if steps > 1:
            most = min(most, ROWS_ON_A_CPU // (series * samples))
    return max(1, most)


def _numbers_of_a_context(settings: ModelSettings, length: int) -> int:
    """How many numbers are kept at once, at most, for the context of one variate."""
    cached = KEYS_AND_VALUES * len(settings.heads) * settings.embed_dim
    states = HIDDEN_STATES_AT_ONCE * settings.embed_dim
    within = FEED_FORWARDS_AT_ONCE * settings.mlp_hidden_dim
    parameters = PARAMETERS_OF_A_COMPONENT * settings.components * settings.patch_size
    of_patches = length // settings.patch_size * (cached + states + within)
    return of_patches + parameters + COPIES_OF_A_CONTEXT * length


def _numbers_of_a_sample(settings: ModelSettings, steps: int, horizon: int) -> int:
    """How many numbers are kept at once, at most, for one sample of one variate."""
    forecast = COPIES_OF_A_FORECAST * horizon
    if steps == 1:
        return forecast
    cached = KEYS_AND_VALUES * len(settings.heads) * (steps - 1) * settings.embed_dim
    states = HIDDEN_STATES_AT_ONCE * settings.embed_dim
    within = FEED_FORWARDS_AT_ONCE * settings.mlp_hidden_dim
    parameters = PARAMETERS_OF_A_COMPONENT * settings.components * settings.patch_size
    return cached + states + within + parameters + forecast


def _suffix(model: PreparedModel, request: Request, context: Context, samples: int) -> SuffixCache:
    """Memory for the keys and values of the patches that samples generate but the last one."""
    one_path = model.regions.single_rows_apart and samples * context.layout.series == 1
    patches = request.steps(model.patch_size) - 1
    return suffix_cache(context.cache, samples, patches, one_path=one_path)


def _decode(
    model: PreparedModel,
    request: Request,
    context: Context,
    samples: int,
    next_patch: NextPatch,
    checks: DeviceChecks,
    suffix: SuffixCache | None = None,
) -> torch.Tensor:
    """Generate patch after patch, ``batch variate samples horizon``.

    ``suffix``: what other samples have left, whose memory serves again.
    """
    patch_size = model.patch_size
    steps = request.steps(patch_size)
    scaled, state = context.scaled, context.state
    layout = context.layout.of_last_position().of_samples(samples)
    suffix = suffix or _suffix(model, request, context, samples)
    hidden = context.hidden
    patches: list[torch.Tensor] = []
    for step in range(steps):
        wanted = min(patch_size, request.horizon - step * patch_size)
        if step == 0:
            unscaled = next_patch.after_context(hidden, context.layout, wanted)
        else:
            unscaled = next_patch.after_decode_step(hidden, layout, wanted)
        loc, scale = scaled.loc[..., :wanted], scaled.scale[..., :wanted]
        patch = loc + scale * unscaled.to(scaled.values.dtype)
        if next_patch.can_be_left:
            checks.forbid(NotFiniteError, patch.isnan().any())
        # What is too large counts in the type that the user sees.
        patch = patch.masked_fill(model.is_extreme_value(patch.to(request.inputs.dtype)), 0.0)
        if (future := request.future_exogenous) is not None:
            known = future[..., step * patch_size :][..., :wanted]
            patch = _with_known_values(patch, known)
        patches.append(patch)
        if step + 1 < steps:
            scaled, state = scale_patch(model.backbone.scaler, state, patch)
            embedded = embed(model.backbone, scaled.values)
            hidden = decode_step(
                model,
                layout.flatten(embedded),
                layout,
                suffix,
                step,
                centred_alone=request.use_kv_cache,
            )
    return torch.cat(patches, dim=-1)


def _with_known_values(patch: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Put known values in place of the predicted ones of the last variates.

    Args:
        patch: ``batch variate samples time_steps``.
        known: ``batch exogenous time_steps``.
    """
    samples, exogenous = patch.shape[2], known.shape[1]
    known = known.to(patch.dtype).unsqueeze(2).expand(-1, -1, samples, -1)
    return torch.cat([patch[:, :-exogenous], known], dim=1)

"""Random models and series, forecast by upstream's code and patched: one trial for each seed."""

from __future__ import annotations

import dataclasses
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from unittest import mock

import odd_inputs
import torch
from closeness import (
    Judgement,
    beside_float64,
    beside_perturbed,
    judge,
    level_and_unit,
    perturbed,
    twin,
)
from odd_inputs import Call
from pretend_gpu import PretendGpu
from random_cases import Case
from scipy import stats
from tape import TapeRecorder
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch
from toto_compile_patch import FailedForecast, FallbackError, forecast_many, upstream
from toto_compile_patch.carriers import TOTO
from toto_compile_patch.decode import forecast as forecasts
from toto_compile_patch.decode import graphs
from toto_compile_patch.decode.forecast import ForecastOptions
from toto_compile_patch.decode.modules import ModelParts
from toto_compile_patch.decode.request import Request
from toto_compile_patch.patches import fast_decode

DRAWS = 2000
"""Samples of each side where distributions are compared."""

SIGNIFICANCE = 1e-9
"""Chance that the distributions of one trial are taken for different though they are not."""


@dataclass
class Trial:
    """What a seed showed.

    Attributes:
        seed: of the trial.
        kind: which of ``KINDS``.
        described: the case in words.
        compared: forecasts that were compared, by what made the patched one: ``fast`` or
            ``upstream``; ``raised`` where both sides raise.
        differences: the greatest for each type, in units of the variate, of the others.
        excused: forecasts that were judged beside upstream's own error.
        complaints: what is wrong.
    """

    seed: int
    kind: str = ""
    described: str = ""
    compared: dict[str, int] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    excused: int = 0
    complaints: list[str] = field(default_factory=list)

    def count(self, path: str) -> None:
        """Count a forecast."""
        self.compared[path] = self.compared.get(path, 0) + 1

    def note(self, judgement: Judgement, dtype: torch.dtype, what: str) -> None:
        """Take a comparison's result."""
        self.excused += judgement.excused
        if not judgement.excused:
            name = str(dtype).removeprefix("torch.")
            self.differences[name] = max(self.differences.get(name, 0.0), judgement.difference)
        if judgement.complaint:
            self.complaints.append(f"{what}: {judgement.complaint}")


def outcome(make: Callable[[], Any]) -> Any:
    """What a call returns, or the exception that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return make()
        except Exception as error:
            return error


def compare(trial: Trial, model: Any, call: Call, what: str, r: Random) -> None:
    """Make a call by both sides, in any order, and judge the two forecasts."""
    before = contents(call)
    state: dict[str, torch.Tensor] = {}

    def theirs() -> Any:
        found = outcome(partial(call.make, model, trial.seed))
        state["theirs"] = torch.get_rng_state()
        return found

    def ours() -> Any:
        with toto_compile_patch.patched("fast_decode", rng="upstream", fallback="upstream"):
            found = outcome(partial(call.make, model, trial.seed))
        state["ours"] = torch.get_rng_state()
        return found, toto_compile_patch.last_path()

    if r.random() < 0.5:
        patched, path = ours()
        unpatched = theirs()
    else:
        unpatched = theirs()
        patched, path = ours()
    if refused_for_a_rounding(unpatched) and not isinstance(patched, Exception):
        trial.count("refused by upstream for a rounding")
        with unchecked():
            unpatched = theirs()
    trial.count("raised" if isinstance(unpatched, Exception) else path.taken if path else "none")
    if contents(call) != before:
        trial.complaints.append(f"{what}: the input was changed")
    if isinstance(unpatched, Exception) or isinstance(patched, Exception):
        if type(unpatched) is not type(patched):
            trial.complaints.append(f"{what}: {patched!r:.300}, where upstream: {unpatched!r:.300}")
        return
    if not torch.equal(state["theirs"], state["ours"]) and not draws_by_chance(
        model, call, trial.seed, state["theirs"]
    ):
        trial.complaints.append(f"{what}: other random numbers are left")
    double = unpatched.dtype is torch.float64
    own = beside_perturbed(model, call, trial.seed) if double else beside_float64(model, call)
    trial.note(judge(unpatched, patched, call, own), unpatched.dtype, what)


def refused_for_a_rounding(found: Any) -> bool:
    """Whether upstream's probabilities of 16 bits do not add up to 1 closely enough for torch.

    Whether they do is an accident of each context, and the fast path, which computes them in 32
    bits, cannot have the same.
    """
    text = str(found)
    return isinstance(found, ValueError) and "Simplex()" in text and "nan" not in text


@contextmanager
def unchecked() -> Iterator[None]:
    """Let distributions take any parameters."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def draws_by_chance(model: Any, call: Call, seed: int, left: torch.Tensor) -> bool:
    """Whether a rounding changes how many random numbers upstream draws."""
    return any(not torch.equal(torch.get_rng_state(), left) for _ in perturbed(model, call, seed))


def contents(call: Call) -> list[Any]:
    """What tells whether a call's tensors have changed."""
    parts = [*call.inputs, *call.options.values()]
    return [
        (part._version if not part.is_inference() else 0, part.untyped_storage().data_ptr())
        if isinstance(part, torch.Tensor) and part.layout is torch.strided
        else None
        for part in parts
    ]


def random_case(r: Random, seed: int, **changes: Any) -> Case:
    """A case of the tests' kind, of which some have more variates, patches or steps."""
    case = Case.random(seed)
    wide = r.random()
    if wide < 0.08:
        case = dataclasses.replace(
            case,
            variates=r.choice([16, 17, 31, 32, 33, 48, 63, 64]),
            batch=r.choice([None, 1, 2]),
            length=r.randint(1, 3 * case.model["patch_size"]),
        )
    elif wide < 0.2:
        case = dataclasses.replace(
            case, length=r.randint(12, 48) * case.model["patch_size"] + r.randrange(3)
        )
    elif wide < 0.25:
        case = dataclasses.replace(case, horizon=r.randint(5, 12) * case.model["patch_size"])
    return dataclasses.replace(case, **changes)


def random_call(r: Random, case: Case, samples: bool) -> Call:
    """What a case asks for; of some, the values or the layout are odd."""
    call = Call(case.series(), case.horizon, case.options(samples))
    if r.random() < 0.1:
        call = call.having(id_mask=joined_at_the_end(call.inputs, case.model["patch_size"]))
    rows = []
    if r.random() < 0.25:
        rows.append(r.choice(odd_inputs.VALUES))
    if r.random() < 0.15:
        rows.append(r.choice(odd_inputs.LAYOUTS))
    return oddly(call, rows)


def joined_at_the_end(inputs: MaskedTimeseries, patch: int) -> torch.Tensor:
    """Each variate its own group, but for the last patch, in which they are one."""
    groups: torch.Tensor = odd_inputs.own_groups(inputs.series).clone()
    groups[..., -patch:] = -1
    return groups


def oddly(call: Call, rows: list[odd_inputs.OddInput]) -> Call:
    """A call with all that is odd in some rows, as far as they go together."""
    for row in rows:
        changed = outcome(partial(row.change, call))
        call = call if isinstance(changed, Exception) else changed
    return call


def means(trial: Trial, r: Random) -> None:
    """Means of both usual types."""
    one_case(trial, r, random_case(r, trial.seed), samples=False)


def drawn(trial: Trial, r: Random) -> None:
    """Samples from one seed, by upstream's draws, in float64."""
    one_case(trial, r, random_case(r, trial.seed, dtype=torch.float64), samples=True)


def of_16_bits(trial: Trial, r: Random) -> None:
    """Means in 16 bits. Upstream draws no samples in 16 bits on a CPU."""
    dtype = r.choice([torch.bfloat16, torch.float16])
    one_case(trial, r, random_case(r, trial.seed, dtype=dtype), samples=False)


def one_case(trial: Trial, r: Random, case: Case, samples: bool) -> None:
    trial.described = str(case)
    call = random_call(r, case, samples)
    with torch.inference_mode() if r.random() < 0.1 else nullcontext():
        compare(trial, case.build(), call, "samples" if samples else "mean", r)


def odd(trial: Trial, r: Random) -> None:
    """One or two things that are odd, of any kind, beside random series."""
    samples = r.random() < 0.4
    dtype = torch.float64 if samples else r.choice([torch.float32, torch.float64])
    case = random_case(r, trial.seed, dtype=dtype)
    groups = list(odd_inputs.GROUPS.values())
    rows = [r.choice(r.choice(groups)) for _ in range(r.choice([1, 1, 2]))]
    rows = [row for row in rows if samples or not row.draws]
    trial.described = f"{[row.what for row in rows]}, {case}"
    call = oddly(Call(case.series(), case.horizon, case.options(samples)), rows)
    compare(trial, case.build(), call, ", ".join(row.what for row in rows), r)


def in_a_row(trial: Trial, r: Random) -> None:
    """Several forecasts by one model, whose weights or parts change in between."""
    case = random_case(r, trial.seed, dtype=r.choice([torch.float32, torch.float64]))
    trial.described = str(case)
    model = case.build()
    samples = case.dtype is torch.float64 and r.random() < 0.5
    other = dataclasses.replace(case, seed=trial.seed + 1).build()
    for turn in range(r.randint(2, 4)):
        if turn and r.random() < 0.8:
            change = r.choice(CHANGES)
            with torch.no_grad():
                change(r, model, other)
            what = change.__doc__ or ""
        else:
            what = "unchanged"
        again = dataclasses.replace(case, seed=trial.seed + r.randrange(3))
        compare(trial, model, random_call(r, again, samples), f"forecast {turn + 1}, {what}", r)


def a_weight(r: Random, model: Any) -> tuple[str, torch.nn.Parameter]:
    """One of a model's weights, often of those of which the fast path makes others."""
    every = list(model.named_parameters())
    folded = [one for one in every if one[0].startswith(("unembed", "output_distribution"))]
    named: tuple[str, torch.nn.Parameter] = r.choice(folded if r.random() < 0.5 else every)
    return named


def multiply(r: Random, model: Any, other: Any) -> None:
    """a weight multiplied in place"""
    a_weight(r, model)[1].mul_(1.25)


def edit_a_row(r: Random, model: Any, other: Any) -> None:
    """a row of a weight changed past torch"""
    weight = a_weight(r, model)[1].data
    weight[r.randrange(weight.shape[0])] += 0.1


def put_another(r: Random, model: Any, other: Any) -> None:
    """a new parameter in a weight's place"""
    name, weight = a_weight(r, model)
    module, _, attribute = name.rpartition(".")
    new = torch.nn.Parameter(weight.detach() * 0.75)
    setattr(model.get_submodule(module), attribute, new)


def load(r: Random, model: Any, other: Any) -> None:
    """another model's weights loaded"""
    model.load_state_dict(other.state_dict())


def edit_and_tell(r: Random, model: Any, other: Any) -> None:
    """one number changed by numpy, and refresh() called"""
    weight = a_weight(r, model)[1].detach().numpy()
    weight.reshape(-1)[r.randrange(weight.size)] += 0.5
    toto_compile_patch.refresh(model)


def exchange_a_layer(r: Random, model: Any, other: Any) -> None:
    """a layer exchanged"""
    index = r.randrange(len(model.transformer.layers))
    model.transformer.layers[index] = twin(other).transformer.layers[index]


def change_the_scaler(r: Random, model: Any, other: Any) -> None:
    """the scaler's settings changed"""
    model.scaler.minimum_scale = r.choice([0.01, 0.5])
    if hasattr(model.scaler, "stabilize_with_global"):
        model.scaler.stabilize_with_global = not model.scaler.stabilize_with_global


CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (
    multiply,
    edit_a_row,
    put_another,
    load,
    edit_and_tell,
    exchange_a_layer,
    change_the_scaler,
)


def fast_draws(trial: Trial, r: Random) -> None:
    """Samples by the fast path's own draws have upstream's distribution."""
    case = dataclasses.replace(
        Case.random(trial.seed),
        variates=r.choice([1, 2]),
        exogenous=0,
        known_future=False,
        batch=None,
        samples=DRAWS,
        per_batch=DRAWS // 4,
        dtype=r.choice([torch.float32, torch.float64]),
    )
    patch = case.model["patch_size"]
    case = dataclasses.replace(
        case, length=r.randint(1, 4 * patch), horizon=r.choice([1, patch, 2 * patch])
    )
    trial.described = str(case)
    model, call = case.build(), Call(case.series(), case.horizon, case.options(samples=True))
    theirs = call.make(model, trial.seed)
    with toto_compile_patch.patched("fast_decode", fallback="upstream"):
        ours = call.make(model, trial.seed)
    path = toto_compile_patch.last_path()
    trial.count(path.taken if path else "none")
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        trial.complaints.append(f"{ours.shape} {ours.dtype}, not {theirs.shape} {theirs.dtype}")
        return
    level, unit = level_and_unit(call, axes=4)
    unit = unit + (theirs - level).abs().amax(-1, keepdim=True)
    # Where all samples are one number, a rounding must not decide which side's is the greater.
    noise = torch.Generator().manual_seed(trial.seed)
    drawn = (
        (part / unit + 1e-3 * torch.randn(part.shape, generator=noise)).flatten(0, -2).numpy()
        for part in (ours, theirs)
    )
    chances = [float(stats.ks_2samp(*pair).pvalue) for pair in zip(*drawn, strict=True)]
    if min(chances) < SIGNIFICANCE / len(chances):
        trial.complaints.append(f"another distribution: p = {min(chances):.1g}")


def replayed(trial: Trial, r: Random) -> None:
    """A recorded forecast, replayed with other series on the same memory, as CUDA graphs are."""
    samples = r.random() < 0.4
    dtype = torch.float64 if samples else r.choice([torch.float32, torch.float64])
    case = random_case(r, trial.seed, dtype=dtype)
    trial.described = str(case)
    model, call = case.build(), Call(case.series(), case.horizon, case.options(samples))
    first = request_of(model, call)
    if first is None:
        # What the fast path leaves to upstream's code is never recorded.
        trial.count("upstream")
        return
    second = of_other_contents(first)
    expected = [on_host(model, request, trial.seed) for request in (first, second)]
    with PretendGpu() as gpu:
        moved = gpu.model(twin(model))
        recorder = TapeRecorder(gpu)
        with mock.patch.object(graphs, "_recorder", recorder):
            for index in (0, 0, 1, 0):
                request = gpu.request((first, second)[index])
                found, runtime = forecast_of(moved, request, ForecastOptions(), trial.seed)
                found = found.as_subclass(torch.Tensor)
                trial.count("fast")
                if index and runtime != "cudagraph":
                    trial.complaints.append(f"it ran in runtime {runtime}")
                asked = call_of((first, second)[index])
                own = (
                    beside_perturbed(model, asked, trial.seed)
                    if dtype is torch.float64
                    else beside_float64(model, asked)
                )
                with gpu_left(gpu):
                    judgement = judge(expected[index], found, asked, own)
                trial.note(judgement, dtype, f"replay of series {index + 1}")
        forecasts.forget_prepared(moved)


@contextmanager
def gpu_left(gpu: PretendGpu) -> Iterator[None]:
    """Compute as where there is no GPU."""
    gpu.__exit__(None, None, None)
    try:
        yield
    finally:
        gpu.__enter__()


def request_of(model: Any, call: Call) -> Request | None:
    """What the fast path reads of a call; None where upstream's code makes the forecast."""
    seen: list[Request] = []

    def spied(model: Any, look: Any, request: Request, options: Any) -> Any:
        seen.append(request)
        return forecasts.forecast(model, look, request, options)

    with (
        mock.patch.object(fast_decode, "forecast", spied),
        toto_compile_patch.patched("fast_decode", fallback="upstream"),
    ):
        call.make(model)
    return seen[0] if seen else None


def on_host(model: Any, request: Request, seed: int) -> torch.Tensor:
    """Upstream's mean; or the samples that the fast path draws on the host."""
    if request.num_samples is None:
        return call_of(request).make(model, seed)
    return forecast_of(model, request, ForecastOptions(runtime="eager"), seed)[0]


def forecast_of(
    model: Any, request: Request, options: ForecastOptions, seed: int
) -> tuple[torch.Tensor, str]:
    """A forecast by the fast path, and its runtime."""
    torch.manual_seed(seed)
    result, ran = forecasts.forecast(model, lambda: ModelParts.of(model), request, options)
    return result, ran.runtime


def call_of(request: Request) -> Call:
    """A request as a user's call."""
    shape = request.inputs.shape
    ids = torch.zeros(shape) if request.id_mask is None else request.id_mask
    inputs = MaskedTimeseries(
        series=request.inputs,
        padding_mask=request.padding_mask,
        id_mask=ids,
        timestamp_seconds=torch.zeros(shape, dtype=torch.int),
        time_interval_seconds=torch.full(shape[:-1], 60, dtype=torch.int),
    )
    options: dict[str, Any] = {"use_kv_cache": request.use_kv_cache}
    if "num_exogenous_variables" in MaskedTimeseries._fields:
        inputs = inputs._replace(num_exogenous_variables=request.num_exogenous)
        options["future_exogenous_variables"] = request.future_exogenous
    if request.num_samples is not None:
        options["num_samples"] = request.num_samples
        options["samples_per_batch"] = request.samples_per_batch
    return Call(inputs, request.horizon, options)


def of_other_contents(request: Request) -> Request:
    """A request of the same shape: other values, padding, groups and known future."""
    changed: dict[str, Any] = {
        "inputs": 3.0 - 1.5 * request.inputs.flip(-1),
        "padding_mask": request.padding_mask.flip(-1).clone(),
    }
    if (ids := request.id_mask) is not None:
        alternately = torch.arange(ids.shape[1]).view(1, -1, 1) % 2
        changed["id_mask"] = (ids.flip(1) + alternately).to(ids.dtype)
    if (future := request.future_exogenous) is not None:
        changed["future_exogenous"] = future.flip(-1) + 1.0
    return dataclasses.replace(request, **changed)


def many(trial: Trial, r: Random) -> None:
    """``forecast_many`` of windows of several shapes, beside each window's own forecast."""
    dtype = r.choice([torch.float32, torch.float64])
    case = Case.random(trial.seed)
    case = dataclasses.replace(case, dtype=dtype, known_future=False, exogenous=0)
    trial.described = str(case)
    model = case.build()
    shapes = [
        (r.choice([1, 1, 2, 3, 7]), r.randint(1, 8 * case.model["patch_size"]), r.choice([None, 2]))
        for _ in range(r.randint(1, 3))
    ]
    calls = []
    for index in range(r.randint(3, 12)):
        variates, length, batch = r.choice(shapes)
        kinds = Case.random(trial.seed + index)
        padding = "none" if kinds.padding == "everything" else kinds.padding
        one = dataclasses.replace(
            case,
            seed=trial.seed + index,
            variates=variates,
            length=length,
            batch=batch,
            id_mask=kinds.id_mask,
            padding=padding,
        )
        calls.append(random_call(r, one, samples=False))
    if r.random() < 0.3:
        many_samples(trial, r, model, calls, case)
    else:
        many_means(trial, r, model, calls, case)


def many_means(trial: Trial, r: Random, model: Any, calls: list[Call], case: Case) -> None:
    """Means of each window as upstream makes them."""

    def made(chosen: list[Call], fallback: str) -> list[Any]:
        windows = [call.inputs for call in chosen]
        memory = r.choice([1, 2**18, 2**30])
        options: dict[str, Any] = {"use_kv_cache": case.use_kv_cache, "memory": memory}
        with toto_compile_patch.patched("fast_decode", fallback=fallback):
            return list(forecast_many(TotoForecaster(model), windows, case.horizon, **options))

    for index, (call, one) in enumerate(zip(calls, made(calls, "error"), strict=True)):
        what, path = f"window {index}", "fast"
        theirs = outcome(partial(call.make, model))
        if isinstance(one, FailedForecast) and isinstance(one.error, FallbackError):
            path = "upstream"
            (one,) = made([call], "upstream")
        failed = isinstance(one, FailedForecast)
        trial.count("raised" if isinstance(theirs, Exception) else path)
        if failed or isinstance(theirs, Exception):
            error = one.error if failed else None
            of_padding = failed and "nothing but padding" in str(error)
            if type(error) is not type(theirs) and not (of_padding and not call_counts(call)):
                trial.complaints.append(f"{what}: {error!r:.300}, where upstream: {theirs!r:.300}")
            continue
        double = theirs.dtype is torch.float64
        own = beside_perturbed(model, call, 0) if double else beside_float64(model, call)
        trial.note(judge(theirs, one.mean, call, own), theirs.dtype, what)


def call_counts(call: Call) -> bool:
    """Whether any value of a call's series counts."""
    return call.inputs.padding_mask is None or bool(
        torch.as_tensor(call.inputs.padding_mask != 0).any()
    )


def many_samples(trial: Trial, r: Random, model: Any, calls: list[Call], case: Case) -> None:
    """Samples of each window are the same whatever stands beside it."""
    seeds = [r.randrange(2**40) for _ in calls]
    forecaster = TotoForecaster(model)

    def made(chosen: range, memory: int) -> list[Any]:
        return list(
            forecast_many(
                forecaster,
                [calls[index].inputs for index in chosen],
                case.horizon,
                case.samples,
                case.per_batch,
                case.use_kv_cache,
                seed=[seeds[index] for index in chosen],
                memory=memory,
            )
        )

    every = range(len(calls))
    with toto_compile_patch.patched("fast_decode", fallback="upstream"):
        together = made(every, r.choice([2**18, 2**30]))
        alone = [made(range(index, index + 1), 2**30)[0] for index in every]
    for index, (one, other) in enumerate(zip(together, alone, strict=True)):
        failed = isinstance(other, FailedForecast)
        trial.count("raised" if failed else "fast")
        if failed or isinstance(one, FailedForecast):
            errors = [getattr(each, "error", None) for each in (one, other)]
            if type(errors[0]) is not type(errors[1]):
                trial.complaints.append(f"window {index}: {errors}")
            continue
        judgement = judge(other.samples, one.samples, calls[index], lambda *_: (0.0, float("inf")))
        if other.samples.dtype is torch.float64:
            trial.note(judgement, torch.float64, f"samples of window {index}")


KINDS: dict[str, tuple[Callable[[Trial, Random], None], int]] = {
    "means": (means, 34),
    "samples of one seed": (drawn, 22),
    "means in 16 bits": (of_16_bits, 7),
    "odd inputs": (odd, 12),
    "several in a row, weights changed": (in_a_row, 9),
    "forecast_many": (many, 7),
    "replayed recordings": (replayed, 7),
    "the fast path's own draws": (fast_draws, 2),
}
"""What is tried, and how often of a hundred."""


def run(seed: int) -> Trial:
    """The trial of a seed."""
    upstream.load(TOTO)
    r = Random(f"trial {seed}")
    trial = Trial(seed)
    names = list(KINDS)
    trial.kind = r.choices(names, [weight for _, weight in KINDS.values()])[0]
    torch.distributions.Distribution.set_default_validate_args(r.random() < 0.8)
    try:
        KINDS[trial.kind][0](trial, r)
    except Exception as error:
        trial.complaints.append(f"{type(error).__name__} out of nowhere: {error}")
        trial.described += "\n" + "".join(traceback.format_exception(error)[-4:])
    finally:
        torch.distributions.Distribution.set_default_validate_args(__debug__)
        toto_compile_patch.revert(force=True)
    return trial

"""``rng="fast"`` draws from upstream's distribution, in the first patch and in later ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch.decode import sampling
from toto_compile_patch.decode.sampling import mixture_mean
from toto_compile_patch.path_taken import PathTaken

DRAWS = 200_000
SIGNIFICANCE = 1e-4
"""Chance that a test here fails for nothing, were its seed not fixed."""

DF, LOC, SCALE, LOGIT = range(4)


def raw_mixture(components: int = 3) -> torch.Tensor:
    """Raw parameters of one mixture, ``1 kinds components``, whose every part shows."""
    raw = torch.zeros(1, 4, components)
    raw[0, DF] = torch.linspace(-2.0, 1.0, components)
    raw[0, LOC] = torch.linspace(-3.0, 2.0, components)
    raw[0, SCALE] = torch.linspace(-1.0, 0.5, components)
    raw[0, LOGIT] = torch.linspace(0.5, -0.5, components)
    return raw


def draw(raw: torch.Tensor, count: int) -> torch.Tensor:
    """Draws from each mixture, ``... count``."""
    component, radius, angle = torch.rand(3, *raw.shape[:-2], count, dtype=raw.dtype)
    return sampling.draw(sampling.chosen_components(raw, component), radius, angle)


def exact_cdf(raw: torch.Tensor, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mixture's cumulative distribution, from scipy's Student-T."""
    df, loc, scale, logit = raw[0].double().unbind(0)
    softplus = torch.nn.functional.softplus
    parts = zip(
        (2 + softplus(df)).tolist(),
        loc.tolist(),
        softplus(scale).tolist(),
        logit.softmax(-1).tolist(),
        strict=True,
    )
    total: np.ndarray[Any, Any] = sum(w * stats.t.cdf(x, d, m, s) for d, m, s, w in parts)
    return total


def p_value(drawn: torch.Tensor, raw: torch.Tensor) -> float:
    return float(stats.kstest(drawn.flatten().numpy(), lambda x: exact_cdf(raw, x)).pvalue)


@pytest.mark.parametrize("many_each", [True, False], ids=["shared", "one each"])
@pytest.mark.parametrize("components", [1, 3, 24])
def test_draws_follow_the_exact_mixture(components: int, many_each: bool) -> None:
    torch.manual_seed(0)
    raw = raw_mixture(components)
    drawn = draw(raw, DRAWS) if many_each else draw(raw.expand(DRAWS, -1, -1), 1)
    assert p_value(drawn, raw) > SIGNIFICANCE


@pytest.mark.parametrize("part", ["df", "loc", "scale", "weight"])
def test_a_wrong_parameter_would_be_caught(part: str) -> None:
    torch.manual_seed(0)
    raw = raw_mixture()
    wrong = raw.clone()
    wrong[0, ("df", "loc", "scale", "weight").index(part), 0] += 0.15 if part != "df" else 4.0
    assert p_value(draw(wrong, DRAWS), raw) < SIGNIFICANCE


def test_the_mean_is_that_of_the_draws() -> None:
    torch.manual_seed(0)
    raw = raw_mixture()
    drawn = draw(raw, DRAWS)
    assert abs(drawn.mean() - mixture_mean(raw)) < 5 * drawn.std() / DRAWS**0.5


@pytest.mark.parametrize("distribution", ["MixtureOfStudentTsOutput", "StudentTOutput"])
@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_samples_are_distributed_as_upstreams(distribution: str, use_kv_cache: bool) -> None:
    kwargs = {"k_components": 3} if distribution == "MixtureOfStudentTsOutput" else None
    model = small_model(
        output_distribution_classes=[f"<class 'model.distribution.{distribution}'>"],
        output_distribution_kwargs=kwargs,
    ).model
    assert least_p_value(model, use_kv_cache) > SIGNIFICANCE


@pytest.mark.parametrize(
    ("runtime", "precision"), [("compile", "model"), ("eager", "bf16"), ("compile", "bf16")]
)
def test_so_they_are_however_they_are_made(runtime: str, precision: str) -> None:
    model = small_model().model
    if runtime == "compile":
        model.compile(backend="eager")
    assert least_p_value(model, precision=precision) > SIGNIFICANCE
    assert toto_compile_patch.last_path() == PathTaken("fast", runtime=runtime)


def test_a_small_shift_would_be_caught() -> None:
    model = small_model().model
    upstream = paths_of(model)
    with torch.no_grad():
        model.unembed.bias.add_(0.3)
    assert least_p_value(model, precision="bf16", upstream=upstream) < SIGNIFICANCE


def least_p_value(
    model: Any,
    use_kv_cache: bool = True,
    precision: str = "model",
    upstream: np.ndarray[Any, Any] | None = None,
) -> float:
    """Of tests of each time step, over three patches, and of the spread from step to step.

    ``upstream``: its paths, where the model has changed since.
    """
    if upstream is None:
        upstream = paths_of(model, use_kv_cache)
    with toto_compile_patch.patched("fast_decode", fallback="error", precision=precision):
        fast = paths_of(model, use_kv_cache)
    assert fast.shape == upstream.shape
    tests = [
        stats.ks_2samp(fast[variate, step], upstream[variate, step]).pvalue
        for variate in range(2)
        for step in range(3 * PATCH)
    ]
    # A path's later patches depend on its own earlier ones, and variates on one another.
    for lag in (1, PATCH, 2 * PATCH):
        pairs = [paths[0, lag:] - paths[0, :-lag] for paths in (fast, upstream)]
        tests += [
            stats.ks_2samp(a, b).pvalue for a, b in zip(pairs[0][::5], pairs[1][::5], strict=True)
        ]
    tests.append(
        stats.ks_2samp(*(paths[0, -1] - paths[1, -1] for paths in (fast, upstream))).pvalue
    )
    return float(min(tests))


def paths_of(model: Any, use_kv_cache: bool = True) -> np.ndarray[Any, Any]:
    """4,000 paths of two variates, three patches long: ``variate step sample``."""
    inputs = series(24, variates=2)
    found = values(forecast(model, inputs, 3 * PATCH, 4000, 1000, use_kv_cache=use_kv_cache))
    array: np.ndarray[Any, Any] = found[0].double().numpy()
    return array


def run(seed: int, samples: int = 6, per_batch: int = 3, horizon: int = 3 * PATCH) -> torch.Tensor:
    torch.manual_seed(seed)
    model = small_model().model
    torch.manual_seed(seed)
    from toto.inference.forecaster import TotoForecaster

    result = TotoForecaster(model).forecast(
        series(40), horizon, num_samples=samples, samples_per_batch=per_batch
    )
    found: torch.Tensor = result.samples
    return found


def test_counting_chooses_what_searching_does() -> None:
    logits = 3 * torch.randn(50, 8, 24, dtype=torch.float64)
    uniform = torch.rand(50, 8, dtype=torch.float64)
    cumulative = logits.softmax(-1).cumsum(-1)
    wanted = torch.searchsorted(
        cumulative, (uniform * cumulative[..., -1]).unsqueeze(-1), right=True
    )
    assert torch.equal(sampling.counted(logits, uniform), wanted.squeeze(-1))


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_a_component_without_probability_is_never_chosen(chance: float) -> None:
    """Though a uniform number may be exactly the probability of those before it."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]], dtype=torch.float64)
    uniform = torch.tensor([[chance]], dtype=torch.float64)
    raw = torch.zeros(1, 4, 4, dtype=torch.float64)
    raw[:, LOGIT], raw[:, LOC] = logits, torch.arange(4.0)
    expected = 1 if chance == 0.0 else 3
    assert sampling.chosen_components(raw, uniform)[1].item() == expected
    assert sampling.counted(logits, uniform.squeeze(-1)).item() == expected


def test_no_number_below_one_chooses_beyond_the_last_component() -> None:
    raw = raw_mixture(24).double()
    raw[0, LOGIT] = torch.linspace(0, -30, 24)
    almost = torch.nextafter(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1).double())
    assert sampling.chosen_components(raw, almost)[1].item() == raw[0, LOC, 23]


def test_a_seed_gives_the_same_forecast_again() -> None:
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        assert torch.equal(run(1), run(1))
        assert not torch.equal(run(1), run(2))
        state = torch.random.get_rng_state()
        run(3)
        assert not torch.equal(state, torch.random.get_rng_state())


def test_samples_differ_from_one_another() -> None:
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        samples = run(1, samples=50, per_batch=1)
    assert samples[0, 0].unique(dim=-1).shape[-1] == 50

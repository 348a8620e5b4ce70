"""Every edit of a weight is noticed: of a row, column or head at once, any other in the end.

``python -m pytest tests/test_noticing.py --edits 2000 -s`` prints how many of each kind were seen,
and after how many forecasts.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from statistics import median
from typing import Any

import pytest
import torch
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch.decode.noticing import STRETCHES, Noted
from toto_compile_patch.decode.weights import prepared_weights

WIDTH = 768
HEADS = 12

Region = tuple[Any, ...]
"""Index of a part of a matrix."""


def real_width() -> Any:
    """A backbone as wide as the published one, with two layers, and a small head."""
    return small_model(
        patch_size=PATCH,
        stride=PATCH,
        embed_dim=WIDTH,
        num_layers=2,
        num_heads=HEADS,
        mlp_hidden_dim=4 * WIDTH,
        output_distribution_kwargs={"k_components": 24},
    ).model


def row(shape: torch.Size, r: Random) -> Region:
    return (r.randrange(shape[0]),)


def column(shape: torch.Size, r: Random) -> Region:
    return slice(None), r.randrange(shape[1])


def head_in_rows(shape: torch.Size, r: Random) -> Region:
    """Queries, keys and values have heads innermost among their rows."""
    return (slice(r.randrange(HEADS), None, HEADS),)


def head_in_columns(shape: torch.Size, r: Random) -> Region:
    size = max(1, shape[1] // HEADS)
    start = size * r.randrange(HEADS)
    return slice(None), slice(start, start + size)


def all_but_one_column(shape: torch.Size, r: Random) -> Region:
    left = r.randrange(shape[1])
    return slice(None), [column for column in range(shape[1]) if column != left]


def some_rows(shape: torch.Size, r: Random) -> Region:
    """All of some rows."""
    start = r.randrange(shape[0])
    return (slice(start, start + r.randint(1, 64)),)


def block(shape: torch.Size, r: Random) -> Region:
    rows, columns = (r.randrange(size) for size in shape)
    return slice(rows, rows + 64), slice(columns, columns + 64)


def element(shape: torch.Size, r: Random) -> Region:
    return r.randrange(shape[0]), r.randrange(shape[1])


AT_ONCE = (
    row,
    column,
    head_in_rows,
    head_in_columns,
    all_but_one_column,
    some_rows,
)
IN_THE_END = (block, element)


def by_data(weight: torch.nn.Parameter, region: Region) -> None:
    weight.data[region] *= -1.5


def by_numpy(weight: torch.nn.Parameter, region: Region) -> None:
    weight.detach().numpy()[region] *= 0.5


def by_storage(weight: torch.nn.Parameter, region: Region) -> None:
    flat = torch.tensor([], dtype=weight.dtype).set_(weight.untyped_storage())
    flat.view(weight.shape)[region] += 0.01


def by_dlpack(weight: torch.nn.Parameter, region: Region) -> None:
    torch.utils.dlpack.from_dlpack(weight.detach())[region] = 0.25


def by_swapping(weight: torch.nn.Parameter, region: Region) -> None:
    """The same values elsewhere, which a plain sum would not see."""
    weight.data[region] = weight.data[region].flip(0)


def by_a_fused_optimizer(weight: torch.nn.Parameter, region: Region) -> None:
    weight.grad = torch.zeros_like(weight)
    weight.grad[region] = 1.0
    torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0, fused=True).step()
    weight.grad = None


WAYS = (by_data, by_numpy, by_storage, by_dlpack, by_a_fused_optimizer)


@pytest.fixture(scope="module")
def model() -> Any:
    return real_width()


@pytest.fixture
def edits(request: pytest.FixtureRequest) -> int:
    """How many random edits of each kind to try."""
    count: int = request.config.getoption("--edits")
    return count


def matrices(model: Any) -> list[torch.nn.Parameter]:
    """Every matrix of which a copy is prepared."""
    parts = (model.transformer, model.unembed, model.output_distribution)
    return [weight for part in parts for weight in part.parameters() if weight.ndim == 2]


def forecasts_until_seen(noted: Noted) -> int:
    """How many forecasts look until one sees a change; more than ``STRETCHES``: none did."""
    for count in range(1, STRETCHES + 2):
        if noted.changed():
            return count
    return STRETCHES + 1


@pytest.mark.parametrize("kind", [*AT_ONCE, *IN_THE_END])
def test_random_edits(model: Any, edits: int, kind: Callable[[torch.Size, Random], Region]) -> None:
    """Random matrices, places and ways of editing, at the real width."""
    seen: list[int] = []
    weights = matrices(model)
    noted = prepared_weights(model).noted
    for seed in range(edits):
        r = Random(f"{kind.__name__} {seed}")
        weight = r.choice(weights)
        region = kind(weight.shape, r)
        before = weight.detach().clone()
        r.choice(WAYS)(weight, region)
        assert not torch.equal(weight, before)
        seen.append(forecasts_until_seen(noted))
        weight.data.copy_(before)
        assert not noted.changed(), "an edit that was taken back is none"
    print(
        f"\n{kind.__name__}: {edits} edits, seen after {min(seen)} to {max(seen)} forecasts, "
        f"median {median(seen):g}; missed: {sum(count > STRETCHES for count in seen)}"
    )
    assert max(seen) <= (1 if kind in AT_ONCE else STRETCHES)


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        (by_data, row),
        (by_numpy, column),
        (by_storage, head_in_columns),
        (by_dlpack, column),
        (by_a_fused_optimizer, row),
        (by_swapping, some_rows),
    ],
)
@pytest.mark.fault(
    injected="weights edited behind torch's back",
    where="between forecasts",
    observed="the next forecast is of the new weights",
    afterwards="no weight of before is used",
)
def test_the_next_forecast_is_upstreams(
    model: Any, way: Callable[..., None], kind: Callable[[torch.Size, Random], Region]
) -> None:
    toto_compile_patch.apply("fast_decode", fallback="error")
    before = values(forecast(model, series(40), PATCH))
    weight = model.transformer.layers[0].attention.wO.weight
    kept = weight.detach().clone()
    way(weight, kind(weight.shape, Random(3)))
    after = values(forecast(model, series(40), PATCH))
    toto_compile_patch.revert()
    torch.testing.assert_close(values(forecast(model, series(40), PATCH)), after)
    assert not torch.equal(after, before)
    weight.data.copy_(kept)


def test_eleven_of_twelve_heads() -> None:
    """A sample at a regular distance compares one column of some rows alone."""
    model = real_width()
    toto_compile_patch.apply("fast_decode", fallback="error")
    values(forecast(model, series(40), PATCH))
    model.transformer.layers[0].attention.wO.weight.data[:, 64:].zero_()
    fast = values(forecast(model, series(40), PATCH))
    toto_compile_patch.revert()
    torch.testing.assert_close(values(forecast(model, series(40), PATCH)), fast)


@pytest.mark.parametrize("horizon", [1, PATCH])
def test_an_edit_of_the_unembedding_is_seen_when_it_is_needed(horizon: int) -> None:
    model = real_width()
    toto_compile_patch.apply("fast_decode", fallback="error")
    values(forecast(model, series(40), horizon))
    of_the_last_step = model.unembed.weight.data[-WIDTH:]
    of_the_last_step[:, 1:].zero_()
    for wanted in (horizon, PATCH):
        fast = values(forecast(model, series(40), wanted))
        with toto_compile_patch.patched(["kv_cache"]):
            upstream = values(forecast(model, series(40), wanted))
        torch.testing.assert_close(fast, upstream)


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(7, 3),
        torch.randn(3, 7),
        torch.randn(96, 40).t(),
        torch.randn(96, 80)[:, :40],
        torch.randn(5, 1),
        torch.randn(0, 4),
        torch.randn(4000, 11),
        torch.randn(4000 * 11 + 1)[1:].view(4000, 11),
        torch.randn(40, 100).bfloat16(),
        torch.randn(8, 8, dtype=torch.float64),
        torch.randn(9),
        torch.full((6, 6), torch.nan),
    ],
    ids=lambda weight: f"{tuple(weight.shape)} {weight.stride()} {weight.dtype}",
)
def test_every_layout_of_a_weight(weight: torch.Tensor) -> None:
    """Each row and each column is met at once, and each element within a round."""
    other = torch.ones(2, 2, dtype=weight.dtype)
    noted = Noted.of([weight, other])
    assert not any(noted.changed() for _ in range(STRETCHES))
    matrix = weight if weight.ndim == 2 else weight.unsqueeze(0)
    for part in [*matrix.unbind(0), *matrix.unbind(1)][:200]:
        if not part.numel():
            continue
        kept = part.clone()
        part.copy_(torch.where(part.isnan(), 1.0, part + 1))
        assert noted.changed()
        part.copy_(kept)
    r = Random(1)
    for _ in range(8 if weight.numel() else 0):
        position = tuple(r.randrange(size) for size in weight.shape)
        kept = weight[position].clone()
        weight[position] = 3.25
        assert forecasts_until_seen(noted) <= STRETCHES
        weight[position] = kept
    assert not any(noted.changed() for _ in range(STRETCHES))

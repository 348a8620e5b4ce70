"""What is prepared of a model: usual layers in a form of their own, unusual ones as they are."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from pretend_gpu import PretendGpu
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import linear, silu
from toto.model.feed_forward import SwiGLU
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch import notices
from toto_compile_patch.decode import weights
from toto_compile_patch.decode.layer import (
    BYTES_AT_ONCE,
    ChunkedFeedForward,
    FeedForward,
    HeadProjection,
    OpaqueFeedForward,
    RMSNorm,
    Traceable,
    UnchangedModule,
)
from toto_compile_patch.decode.linear import (
    GatedLinear,
    OneRowLinear,
    PackedGatedLinear,
    PackedLinear,
    PlainLinear,
    gated_unit,
)
from toto_compile_patch.decode.weights import WeightFormat, can_be_packed, prepared_weights

EMBED_DIM, HIDDEN_DIM = 32, 64


def layer_norms(layer: Any) -> None:
    layer.norm1 = torch.nn.LayerNorm(EMBED_DIM)
    layer.norm2 = torch.nn.LayerNorm(EMBED_DIM)


def no_bias(layer: Any) -> None:
    up = torch.nn.Linear(EMBED_DIM, 2 * HIDDEN_DIM, bias=False)
    layer.mlp = torch.nn.Sequential(up, *list(layer.mlp)[1:])


def no_dropout(layer: Any) -> None:
    layer.mlp = torch.nn.Sequential(*list(layer.mlp)[:-1])


def one_more(layer: Any) -> None:
    up, gate, down, dropout = layer.mlp
    more = torch.nn.Linear(EMBED_DIM, EMBED_DIM)
    layer.mlp = torch.nn.Sequential(up, gate, down, more, dropout)


def another_end(layer: Any) -> None:
    more = torch.nn.Linear(EMBED_DIM, EMBED_DIM)
    layer.mlp = torch.nn.Sequential(*list(layer.mlp)[:-1], more)


def no_gate(layer: Any) -> None:
    up, down = torch.nn.Linear(EMBED_DIM, HIDDEN_DIM), torch.nn.Linear(HIDDEN_DIM, EMBED_DIM)
    layer.mlp = torch.nn.Sequential(up, torch.nn.Dropout(), down, torch.nn.Dropout())


def nothing(layer: Any) -> None:
    layer.mlp = torch.nn.Sequential()


UNUSUAL = (layer_norms, no_bias, no_dropout, one_more, another_end, no_gate, nothing)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", UNUSUAL)
def test_forecasts_of_unusual_layers_are_upstreams(
    change: Callable[[Any], None], cached: bool
) -> None:
    model = small_model().model
    for layer in model.transformer.layers[1:3]:
        change(layer)
    model = model.double().eval()
    inputs = series(40, variates=2, dtype=torch.float64)
    upstream = values(forecast(model, inputs, 3 * PATCH, use_kv_cache=cached))
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        fast = values(forecast(model, inputs, 3 * PATCH, use_kv_cache=cached))
    torch.testing.assert_close(fast, upstream, rtol=1e-9, atol=1e-9)


def prepared_layers(model: Any, precision: str = "model") -> list[Any]:
    toto_compile_patch.apply("fast_decode")
    return [traceable.real for traceable in prepared_weights(model, precision).layers]


def test_a_usual_layer_is_prepared_whole() -> None:
    model = small_model().model
    assert type(model.transformer.layers[0].mlp[1]) is SwiGLU
    for layer in prepared_layers(model):
        assert type(layer.feed_forward) is ChunkedFeedForward
        assert type(layer.norm1) is type(layer.norm2) is RMSNorm


@pytest.mark.parametrize("change", UNUSUAL)
def test_an_unusual_part_is_left_as_it_is(change: Callable[[Any], None]) -> None:
    model = small_model().model
    change(model.transformer.layers[1])
    usual, unusual, *_ = prepared_layers(model.eval())
    assert UnchangedModule not in {type(part) for part in (usual.norm1, usual.feed_forward)}
    part = unusual.norm1 if change is layer_norms else unusual.feed_forward
    assert type(part) is UnchangedModule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["packed", "plain"])
def test_layers_that_pass_on_keys_and_values_alone(dtype: torch.dtype) -> None:
    """The last one over time, and those over variates."""
    model = small_model(num_layers=4, spacewise_every_n_layers=2).model.to(dtype)
    layers = prepared_layers(model)
    assert [layer.over_time for layer in layers] == [True, False, True, False]
    assert [layer.alone is not None for layer in layers] == [False, True, True, True]


def test_what_is_prepared_goes_when_it_is_to_be_refreshed() -> None:
    """Though nothing has changed that could be seen."""
    model, other = small_model().model, small_model().model
    (first, *_), (of_other, *_) = prepared_layers(model), prepared_layers(other)
    toto_compile_patch.refresh(model)
    assert prepared_layers(model)[0] is not first
    assert prepared_layers(other)[0] is of_other


def test_memory_that_a_model_has_given_up_is_seen() -> None:
    """A recording that reads it could be replayed before the forecast is checked."""
    model = small_model().model
    toto_compile_patch.apply("fast_decode")
    prepared = prepared_weights(model)
    assert prepared.have_moved() is False
    weight = model.unembed.weight
    for numbers in (weight.detach().clone(), torch.zeros(2, 2).to_sparse()):
        elsewhere = torch.nn.Parameter(numbers)
        torch.utils.swap_tensors(weight, elsewhere)
        assert prepared.have_moved() is True
        torch.utils.swap_tensors(weight, elsewhere)
        assert prepared.have_moved() is False


@pytest.mark.parametrize("precision", ["model", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parameter_can_be_swapped(dtype: torch.dtype, precision: str) -> None:
    """Torch does so for those that want conversions to swap; it refuses what has views."""
    model = small_model(num_layers=4, spacewise_every_n_layers=2).model.to(dtype)
    inputs = series(40, 2, dtype=dtype)
    upstream = values(forecast(model.double(), series(40, 2, dtype=torch.float64), PATCH))
    model.to(dtype)
    with toto_compile_patch.patched("fast_decode", precision=precision, fallback="error"):
        forecast(model, inputs, PATCH)
        for parameter in model.parameters():
            torch.utils.swap_tensors(parameter, torch.nn.Parameter(parameter.detach().clone()))
        forecast(model, inputs, PATCH)
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            model.double()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        found = values(forecast(model, series(40, 2, dtype=torch.float64), PATCH))
    torch.testing.assert_close(found, upstream, rtol=1e-5, atol=1e-3)


def test_weights_of_another_type_go_when_the_model_is_converted() -> None:
    """All that was prepared holds the tensors that it was made of."""
    model = small_model().model
    freed = [ref(prepared_weights(model, precision)) for precision in ("model", "bf16")]
    held = StorageWeakRef(model.unembed.weight.untyped_storage())
    assert None not in [one() for one in freed]
    model.double()
    kept = prepared_weights(model)
    gc.collect()
    assert [one() for one in freed] == [None, None]
    assert held.expired()
    assert prepared_weights(model) is kept


def test_a_single_number_that_torch_edits_is_seen_at_once() -> None:
    """By the weight's version: few places are compared by their bits at each forecast."""
    model = small_model().model
    weight = model.unembed.weight
    before = prepared_weights(model)
    for row, column in ((1, 9), (7, 3), (20, 4), (30, 11)):
        with torch.no_grad():
            weight[row, column] += 1
        after = prepared_weights(model)
        assert after is not before
        before = after
    assert prepared_weights(model) is before


def test_weights_that_were_made_in_inference_mode_have_no_version() -> None:
    with torch.inference_mode():
        model = small_model().model
    prepared = prepared_weights(model)
    assert prepared_weights(model) is prepared


def test_elsewhere_than_on_a_cpu_rows_go_through_a_feed_forward_together() -> None:
    mlp = small_model().model.transformer.layers[0].mlp.to("meta")
    made = weights._feed_forward(mlp[0], mlp[2], WeightFormat(packed=False, bf16=False))
    assert type(made) is FeedForward


class TestPacking:
    def test_a_model_of_32_bits_needs_no_instructions_for_16(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(weights, "_supports_bf16", lambda: False)
        weight = torch.zeros(2, 2)
        assert can_be_packed(weight)
        assert not can_be_packed(weight, bf16=True)
        assert not can_be_packed(weight.bfloat16())
        monkeypatch.setattr(weights, "_supports_bf16", lambda: True)
        assert can_be_packed(weight, bf16=True)
        assert can_be_packed(weight.bfloat16())

    def test_what_is_not_packed(self) -> None:
        weight = torch.zeros(2, 2)
        assert can_be_packed(weight)
        assert not can_be_packed(weight.double())
        assert not can_be_packed(weight.half())
        assert not can_be_packed(weight.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not can_be_packed(weight)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not can_be_packed(weight)
        assert can_be_packed(weight)

    def test_elsewhere_than_on_x86_arms_library_has_to_be_there(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weight = torch.zeros(2, 2)
        monkeypatch.setattr(weights, "_IS_X86", False)
        monkeypatch.setattr(weights, "_is_made_by_acl", lambda: False)
        assert not can_be_packed(weight)
        monkeypatch.setattr(weights, "_is_made_by_acl", lambda: True)
        assert can_be_packed(weight)

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("bf16", [False, True])
    def test_a_format_makes_layers_of_its_kind(self, packed: bool, bf16: bool) -> None:
        if packed and not can_be_packed(torch.zeros(2, 2), bf16):
            pytest.skip("this processor packs no weights of 16 bits")
        weight, bias = torch.randn(6, 4), torch.randn(6)
        made = WeightFormat(packed, bf16).linear(weight, bias)
        assert type(made) is (PackedLinear if packed else PlainLinear)
        inputs = torch.randn(3, 4)
        exact = linear(inputs, weight, bias)
        found = made.apply(inputs.bfloat16() if bf16 else inputs)
        assert found.dtype is (torch.bfloat16 if bf16 else torch.float32)
        allowed = 0.1 if bf16 else 1e-5
        torch.testing.assert_close(found.float(), exact, rtol=allowed, atol=allowed)

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("bf16", [False, True])
    def test_heads_are_ordered_where_they_are_copied_anyway(self, packed: bool, bf16: bool) -> None:
        if packed and not can_be_packed(torch.zeros(2, 2), bf16):
            pytest.skip("this processor packs no weights of 16 bits")
        made = WeightFormat(packed, bf16).heads(torch.randn(12, 4), torch.randn(12), 2, 2)
        assert isinstance(made, HeadProjection)
        assert made.heads_first is (packed or bf16)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "on_x86", "said"),
    [
        (False, False, True, 1),
        (True, False, True, 0),
        (False, True, True, 0),
        (False, False, False, 0),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "model"])
def test_a_processor_without_instructions_for_16_bits_is_named(
    amx: bool,
    avx512_bf16: bool,
    on_x86: bool,
    said: int,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(notices, "_logged", {})
    monkeypatch.setattr(weights, "_has_amx", lambda: amx)
    monkeypatch.setattr(weights, "_has_avx512_bf16", lambda: avx512_bf16)
    monkeypatch.setattr(weights, "_IS_X86", on_x86)
    model = small_model().model
    with toto_compile_patch.patched("fast_decode", precision=precision, fallback="error"):
        caplog.clear()
        for _ in range(2):
            forecast(model, series(40), PATCH)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == (said if precision == "bf16" else 0)
    assert all("precision='bf16' is slower than float32" in line for line in told)


@pytest.mark.parametrize(
    ("capability", "precision", "said"),
    [
        ((7, 5), "bf16", "may be slower than float32 on this GPU"),
        ((8, 0), "bf16", ""),
        ((7, 5), "tf32x3", "multiplies as precision='model' does"),
        ((8, 6), "tf32x3", "multiplies as precision='model' does"),
        ((8, 0), "tf32x3", ""),
        ((9, 0), "tf32x3", ""),
        ((7, 0), "tf32", ""),
        ((7, 0), "model", ""),
    ],
)
def test_a_precision_that_is_of_no_use_on_a_gpu_is_named(
    capability: tuple[int, int], precision: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PretendGpu() as gpu:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        weight = gpu.tensor(torch.ones(2, 2))
        weight_format = WeightFormat.of(weight, precision)
        found = weights._gains_nothing(weight_format, precision, weight.device)
    assert found.startswith(said)
    assert bool(found) == bool(said)
    assert weight_format.three_passes == (precision == "tf32x3" and not said)


def gated(packed: bool, bf16: bool, features: int = 6) -> tuple[Any, PlainLinear]:
    """A gated linear layer in a format, and what it was made of."""
    if packed and not can_be_packed(torch.zeros(2, 2), bf16):
        pytest.skip("this processor packs no weights of 16 bits")
    torch.manual_seed(0)
    plain = PlainLinear(torch.randn(2 * features, 4), torch.randn(2 * features))
    return WeightFormat(packed, bf16).gated(*plain), plain


class TestGatedUnits:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("bf16", [False, True])
    def test_they_are_upstreams(self, packed: bool, bf16: bool) -> None:
        made, plain = gated(packed, bf16)
        assert type(made) is (PackedGatedLinear if packed and bf16 else GatedLinear)
        rows = torch.randn(9, 4)
        found, exact = made.product(rows), SwiGLU()(plain.product(rows))
        assert found.dtype is (torch.bfloat16 if bf16 else torch.float32)
        allowed = 0.1 if bf16 else 1e-5
        torch.testing.assert_close(found.float(), exact, rtol=allowed, atol=allowed)

    @pytest.mark.parametrize("bf16", [False, True])
    def test_where_arms_library_makes_products_they_are_made_after_them(
        self, monkeypatch: pytest.MonkeyPatch, bf16: bool
    ) -> None:
        made, _ = gated(True, bf16)
        monkeypatch.setattr(weights, "_is_made_by_acl", lambda: True)
        after, _ = gated(True, bf16)
        assert type(after) is GatedLinear
        assert type(after.linear) is PackedLinear
        rows, allowed = torch.randn(9, 4), 0.1 if bf16 else 1e-5
        found, expected = after.product(rows), made.product(rows)
        torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_those_of_odd_numbers_are_torchs(self, dtype: torch.dtype) -> None:
        """Far beyond what its exponential can hold, at infinity, and at what is no number."""
        one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
        if not can_be_packed(one):
            pytest.skip("this processor packs no such weights")
        odd = [0.0, 1e-30, -80.0, -87.5, -89.0, -1e30, 1e30, 3e38, torch.inf, -torch.inf, torch.nan]
        if dtype is torch.float32:
            # Products of 16 bits take it for 0, gated unit or not.
            odd.append(-1e-40)
        layer, rows = PackedLinear.of(one, zero), torch.tensor(odd, dtype=dtype).unsqueeze(1)
        allowed = 1e-6 if dtype is torch.float32 else 1 / 128
        torch.testing.assert_close(
            layer.silu(rows), silu(rows), equal_nan=True, atol=1e-34, rtol=allowed
        )
        for factor in (2.0, torch.inf, torch.nan):
            factors = torch.full_like(rows, factor)
            torch.testing.assert_close(layer.times(factors, rows), factors * rows, equal_nan=True)

    def test_in_16_bits_what_they_are_made_of_is_not_rounded(self) -> None:
        """Neither the gate before SiLU, nor the value before it is multiplied."""
        made, plain = gated(packed=True, bf16=True, features=64)
        halves = PlainLinear(*(part.bfloat16() for part in plain))
        rows = torch.randn(500, 4).bfloat16()
        exact = gated_unit(linear(rows.float(), *(part.float() for part in halves)))
        errors = [
            (found.float() - exact).abs().mean()
            for found in (made.product(rows), GatedLinear(halves).product(rows))
        ]
        assert errors[0] < 0.8 * errors[1]


class TestFeedForwards:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("bf16", [False, True])
    def test_blocks_of_rows_give_what_all_rows_do(self, packed: bool, bf16: bool) -> None:
        whole, plain = self.feed_forward(packed, bf16)
        a_block = BYTES_AT_ONCE // (2 if bf16 else 4)
        for count in (1, a_block, 2 * a_block + 3):
            rows, hidden = torch.randn(count, 4), torch.randn(count, 4)
            exact = plain.added_to(hidden, rows)
            by_itself, added = whole.apply(rows), whole.added_to(hidden.clone(), rows)
            assert added.dtype is torch.float32
            allowed = 0.3 if bf16 else 1e-5
            torch.testing.assert_close(added, exact, rtol=allowed, atol=allowed)
            torch.testing.assert_close(hidden + by_itself, added)

    def test_compiled_code_has_a_packed_one_whole(self) -> None:
        whole, _ = self.feed_forward(packed=True, bf16=False)
        traceable = Traceable.of(whole)
        assert type(traceable.stand_in) is OpaqueFeedForward
        assert traceable.stand_in.whole.out_features == 4
        assert traceable.opaque == (whole,)

    @pytest.mark.parametrize("bf16", [False, True])
    def test_compiled_code_of_a_single_row_reads_plain_weights(self, bf16: bool) -> None:
        whole, plain = self.feed_forward(packed=True, bf16=bf16)
        of_one_row = Traceable.of(whole).for_one_row
        assert type(of_one_row) is FeedForward
        assert type(of_one_row.down) is OneRowLinear
        up = whole.up if isinstance(whole.up, PackedGatedLinear) else whole.up.linear
        assert isinstance(up, (PackedGatedLinear, PackedLinear))
        assert of_one_row.up == GatedLinear(OneRowLinear(*up.original))
        row, hidden = torch.randn(1, 4), torch.randn(1, 4)
        found, exact = of_one_row.added_to(hidden, row), plain.added_to(hidden, row)
        allowed = 0.3 if bf16 else 1e-5
        torch.testing.assert_close(found, exact, rtol=allowed, atol=allowed)

    def feed_forward(self, packed: bool, bf16: bool) -> tuple[ChunkedFeedForward, FeedForward]:
        up, plain_up = gated(packed, bf16)
        plain_down = PlainLinear(torch.randn(4, 6), torch.randn(4))
        down = WeightFormat(packed, bf16).linear(*plain_down)
        assert isinstance(down, (PlainLinear, PackedLinear))
        return ChunkedFeedForward(up, down), FeedForward(GatedLinear(plain_up), plain_down)

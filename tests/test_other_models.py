"""Models and code that somebody has put together in another way: the forecast is upstream's."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import toto.inference.forecaster
import toto.model.attention
import toto.model.distribution
import toto.model.rope
import toto.model.transformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toto.model.attention import (
    AttentionAxis,
    SpaceWiseMultiheadAttention,
    TimeWiseMultiheadAttention,
)
from toto.model.backbone import TotoBackbone
from toto.model.rope import TimeAwareRotaryEmbedding
from toto.model.transformer import TransformerLayer
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch

HORIZON = 3 * PATCH
TESTS = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def reverted() -> Iterator[None]:
    yield
    toto_compile_patch.revert()


def mean(model: Any, use_kv_cache: bool = True, horizon: int = HORIZON) -> torch.Tensor:
    return values(forecast(model, series(64, variates=2), horizon, use_kv_cache=use_kv_cache))


def outcome(make: Callable[[], torch.Tensor]) -> torch.Tensor | str:
    """A forecast, or what was raised."""
    try:
        return make()
    except Exception as error:
        return repr(error)


def check(made: Callable[[], torch.Tensor], *, upstreams: str | None = None) -> None:
    """That a forecast is upstream's, and made by its code if a reason for that is given."""
    expected = outcome(made)
    toto_compile_patch.apply("fast_decode")
    found = outcome(made)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    path = toto_compile_patch.last_path()
    assert path is not None
    if upstreams is None:
        assert (path.taken, path.reason) == ("fast", "")
    else:
        assert path.taken == "upstream"
        assert upstreams in path.reason


def other_norms(model: Any) -> None:
    for layer in model.transformer.layers:
        norm = nn.LayerNorm(32, bias=False, eps=layer.norm1.eps)
        norm.weight = layer.norm1.scale
        layer.norm1 = norm


def norms_exchanged(model: Any) -> None:
    for layer in model.transformer.layers:
        layer.norm1.scale.data.uniform_(0.5, 1.5)
        layer.norm1, layer.norm2 = layer.norm2, layer.norm1


def more_in_feed_forwards(model: Any) -> None:
    for layer in model.transformer.layers:
        layer.mlp = nn.Sequential(nn.LayerNorm(32, elementwise_affine=False), *layer.mlp)


def other_order(model: Any) -> None:
    layers = list(model.transformer.layers)
    model.transformer.layers = nn.ModuleList([layers[2], layers[1], layers[0], layers[3]])


def one_layer_twice(model: Any) -> None:
    layers = list(model.transformer.layers)
    model.transformer.layers = nn.ModuleList([layers[0], layers[1], layers[0], layers[3]])


@pytest.mark.parametrize(
    "change",
    [other_norms, norms_exchanged, more_in_feed_forwards, other_order, one_layer_twice],
)
def test_modules_exchanged_between_forecasts(change: Callable[[Any], None]) -> None:
    """Their parameters lie where they lay."""

    def made() -> torch.Tensor:
        model = small_model().model
        mean(model)
        torch.manual_seed(1)
        change(model)
        return mean(model)

    check(made)


def of_layer(path: str) -> list[str]:
    return [f"transformer.layers.0.{path}", f"transformer.layers.1.{path}"]


LINEAR = [
    *of_layer("attention.wQKV"),
    *of_layer("attention.wO"),
    "unembed",
    "output_distribution.df",
    "output_distribution.loc_proj",
    "output_distribution.mixture_weights",
]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((path, name) for path in LINEAR for name in ("weight", "bias")),
        ("transformer.layers.0.mlp.0", "weight"),
        ("transformer.layers.0.mlp.2", "bias"),
        ("transformer.layers.0.norm1", "scale"),
        ("patch_embed.projection", "weight"),
    ],
)
@pytest.mark.parametrize("kind", ["buffer", "tensor"])
def test_weights_that_are_no_parameters(path: str, name: str, kind: str) -> None:
    """They are changed past what tells of a parameter's changes."""

    def made() -> torch.Tensor:
        model = small_model().model
        module = model.get_submodule(path)
        tensor = getattr(module, name).detach().clone()
        delattr(module, name)
        if kind == "buffer":
            module.register_buffer(name, tensor)
        else:
            setattr(module, name, tensor)
        mean(model)
        getattr(module, name).mul_(2.0)
        return mean(model)

    check(made, upstreams=f"{name} of {path} is no torch.nn.Parameter")


@pytest.mark.parametrize("path", [*LINEAR, "patch_embed.projection"])
def test_two_linear_layers_in_place_of_one(path: str) -> None:
    def made() -> torch.Tensor:
        model = small_model().model
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        one = getattr(module, name)
        torch.manual_seed(1)
        first = nn.Linear(one.in_features, 8, bias=False)
        setattr(module, name, nn.Sequential(first, nn.Linear(8, one.out_features)))
        return mean(model)

    check(made, upstreams="upstream's" if "embed.p" in path else "with a bias each")


@pytest.mark.parametrize("path", LINEAR)
def test_a_linear_layer_without_a_bias(path: str) -> None:
    def made() -> torch.Tensor:
        model = small_model().model
        model.get_submodule(path).bias = None
        return mean(model)

    check(made, upstreams="with a bias each")


def no_rotation(model: Any) -> None:
    model.transformer.layers[0].attention.rotary_emb = None


def another_rotation(model: Any) -> None:
    rotary = TimeAwareRotaryEmbedding(8, theta=100, use_xpos=True, cache_if_possible=True)
    model.transformer.layers[2].attention.rotary_emb = rotary


def half_a_rotation(model: Any) -> None:
    rotary = TimeAwareRotaryEmbedding(4, use_xpos=True, cache_if_possible=True)
    model.transformer.rotary_emb = rotary
    for layer in model.transformer.layers:
        if layer.attention.rotary_emb is not None:
            layer.attention.rotary_emb = rotary


def another_axis(model: Any) -> None:
    model.transformer.layers[0].attention.attention_axis = AttentionAxis.SPACE


def another_axis_of_a_layer(model: Any) -> None:
    model.transformer.layers[0].attention_axis = AttentionAxis.SPACE


def fewer_layers(model: Any) -> None:
    del model.transformer.layers[-2:]


def layers_in_a_list(model: Any) -> None:
    layers = list(model.transformer.layers)
    del model.transformer.layers
    model.transformer.layers = layers


def negative_eps(model: Any) -> None:
    model.transformer.layers[0].norm1.eps = -1e-9


def negated_view(model: Any) -> None:
    model.unembed.weight = nn.Parameter(torch._neg_view(-model.unembed.weight.detach()))


def no_transformer(model: Any) -> None:
    model.transformer = nn.Sequential(nn.Linear(4, 4))


def broken_head(model: Any) -> None:
    model.output_distribution.df.bias.data[0] = float("nan")


@pytest.mark.parametrize("use_kv_cache", [True, False])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_rotation, "the rotary embedding is not the transformer's"),
        (another_rotation, "the rotary embedding is not the transformer's"),
        (half_a_rotation, "does not turn whole heads"),
        (another_axis, "the attention axis has been changed"),
        (another_axis_of_a_layer, "the attention axis has been changed"),
        (fewer_layers, "the transformer has 2 layers, not 4"),
        (layers_in_a_list, "the transformer is not upstream's"),
        (negative_eps, "a norm has a negative eps"),
        (negated_view, "unembed.weight is a view that torch negates"),
        (no_transformer, "the model is not as upstream makes it"),
        (broken_head, "weights that are not finite"),
    ],
)
def test_a_model_that_was_changed(
    change: Callable[[Any], None], reason: str, use_kv_cache: bool
) -> None:
    def made() -> torch.Tensor:
        model = small_model().model
        change(model)
        return mean(model, use_kv_cache)

    check(made, upstreams=reason)


def test_a_head_that_is_broken_beyond_the_horizon() -> None:
    """Upstream looks at the whole patch."""

    def made() -> torch.Tensor:
        model = small_model().model
        model.unembed.bias.data[-1] = float("inf")
        return mean(model, horizon=PATCH // 2)

    check(made, upstreams="weights that are not finite")


def test_a_component_that_is_switched_off() -> None:
    def made() -> torch.Tensor:
        model = small_model().model
        model.output_distribution.mixture_weights.bias.data[0] = -torch.inf
        return mean(model)

    check(made)


@pytest.mark.skipif(not hasattr(TotoBackbone, "enable_variate_labels"), reason="none before 0.2.0")
def test_a_fusion_of_the_model_alone() -> None:
    def made() -> torch.Tensor:
        model = small_model().model
        torch.manual_seed(1)
        model.enable_variate_labels()
        model.transformer.fusion = None
        return mean(model)

    check(made, upstreams="fusion is not the model's")


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_a_module_that_leads_back_to_its_model(precision: str) -> None:
    """What was prepared keeps neither alive."""
    model = small_model().model
    model.transformer.layers[0].owner = [model]
    toto_compile_patch.apply("fast_decode", precision=precision, fallback="error")
    mean(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_buffer_that_has_no_memory_of_its_own() -> None:
    def made() -> torch.Tensor:
        model = small_model().model
        model.register_buffer("graph", torch.eye(4).to_sparse())
        mean(model)
        return mean(model)

    check(made)


@pytest.mark.parametrize("kind", ["hook", "pre-hook"])
def test_hooks_of_a_compiled_model(kind: str) -> None:
    def made() -> torch.Tensor:
        model: Any = torch.compile(small_model().model, backend="eager")
        if kind == "hook":
            model.register_forward_hook(lambda *a: a[-1]._replace(loc=a[-1].loc + 10))
        else:
            model.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0], *inputs[1:]))
        return mean(model, use_kv_cache=False)

    check(made, upstreams="the compiled model has hooks")


def louder(original: Any) -> Any:
    """The same function, whose results are larger, where they are numbers."""

    def replaced(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        is_number = isinstance(result, torch.Tensor) and result.is_floating_point()
        return 1.5 * result if is_number else result

    return replaced


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (TimeWiseMultiheadAttention, "run_attention"),
        (TimeWiseMultiheadAttention, "get_qkv"),
        (TimeWiseMultiheadAttention, "positional_embedding"),
        (SpaceWiseMultiheadAttention, "run_attention"),
        (TimeAwareRotaryEmbedding, "forward"),
        (TimeAwareRotaryEmbedding, "get_seq_pos"),
        (toto.model.attention, "scaled_dot_product_attention"),
        (toto.model.rope, "apply_rotary_emb"),
        (toto.model.transformer, "make_batched_block_mask"),
        (toto.inference.forecaster, "AffineTransformed"),
        (toto.model.distribution, "StudentT"),
        (TimeAwareRotaryEmbedding.__base__, "forward"),
        (TimeAwareRotaryEmbedding.__base__, "get_seq_pos"),
        (nn.Module, "__call__"),
        (TotoBackbone, "__call__"),
        (TransformerLayer, "__call__"),
        (nn.Linear, "__call__"),
        (nn.functional, "linear"),
        (nn.functional, "silu"),
        (nn.functional, "softmax"),
        (nn.functional, "softplus"),
    ],
)
def test_code_that_was_replaced(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that a class inherits, that a module imports, or that torch's modules call, too."""

    def made() -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, louder(getattr(owner, name)))
            return mean(small_model().model)

    check(made, upstreams="has been replaced")


@pytest.mark.parametrize("other", [nn.functional.gelu, nn.functional.hardswish, torch.tanh])
def test_a_function_of_torchs_in_place_of_another(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "silu", other)
            return mean(small_model().model)

    check(made, upstreams="silu has been replaced")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("torch.nn.functional", "scaled_dot_product_attention"),
        ("rotary_embedding_torch", "apply_rotary_emb"),
        ("gluonts.torch.distributions", "AffineTransformed"),
    ],
)
def test_a_source_that_is_replaced_after_the_import(
    source: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Toto's modules have the original."""
    module = import_module(source)

    def made() -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, louder(getattr(module, name)))
            return mean(small_model().model)

    check(made)


class Louder(TorchDispatchMode):
    """Makes all products larger."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return 1.5 * result if operator in products else result


def test_a_mode_of_the_users_ends_with_it() -> None:
    def made() -> torch.Tensor:
        model = small_model().model
        with Louder():  # type: ignore[no-untyped-call]
            mean(model)
        return mean(model)

    check(made)


def test_another_default_device_at_a_second_forecast() -> None:
    def made() -> torch.Tensor:
        model, inputs = small_model().model, series(64, variates=2)
        values(forecast(model, inputs, HORIZON))
        with torch.device("meta"):
            return values(forecast(model, inputs, HORIZON))

    check(made)


WITHOUT_ASSERTIONS = """
import sys
sys.path.insert(0, {tests!r})
from toto_cases import PATCH, forecast, series, small_model, values
import torch, toto_compile_patch
inputs = series(64, variates=2)
ids = inputs.id_mask.clone()
ids[:, 36:] = 1
inputs = inputs._replace(id_mask=ids)
upstream = values(forecast(small_model().model, inputs, PATCH))
toto_compile_patch.apply("fast_decode")
patched = values(forecast(small_model().model, inputs, PATCH))
path = toto_compile_patch.last_path()
print(torch.equal(upstream, patched), path.taken, path.reason)
"""


def test_without_assertions_upstream_goes_on() -> None:
    """A patch of two groups: what refuses it is an assertion."""
    script = WITHOUT_ASSERTIONS.format(tests=str(TESTS))
    command = [sys.executable, "-W", "ignore", "-O", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "True upstream Patches cannot span multiple datasets\n", done.stderr

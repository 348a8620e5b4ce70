"""``fast_decode``: what it takes, what it leaves to upstream, and what it promises about memory."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import toto.inference.forecaster
import toto.model.attention
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, forecast, series, small_model, values

import toto_compile_patch
from toto_compile_patch.decode import generation, transformer, weights
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.weights import ModelSettings

HORIZON = 3 * PATCH


@pytest.fixture
def applied() -> Iterator[None]:
    toto_compile_patch.apply("fast_decode")
    yield
    toto_compile_patch.revert()


def mean(model: Any, length: int = 40) -> torch.Tensor:
    return values(forecast(model, series(length), HORIZON))


def taken() -> tuple[str, str]:
    path = toto_compile_patch.last_path()
    assert path is not None
    return path.taken, path.reason


def assert_goes_to_upstream(model: Any, reason: str) -> None:
    """The forecast is upstream's own, for a reason that last_path() gives."""
    with toto_compile_patch.patched("fast_decode"):
        patched = mean(model)
        assert taken()[0] == "upstream"
        assert reason in taken()[1]
    assert torch.equal(patched, mean(model))
    with (
        toto_compile_patch.patched("fast_decode", fallback="error"),
        pytest.raises(toto_compile_patch.FallbackError, match="apply"),
    ):
        mean(model)


class TestWhatItDoesNotKnow:
    def test_another_class_of_model(self) -> None:
        model = small_model().model
        model.__class__ = type("MyBackbone", (type(model),), {})
        assert_goes_to_upstream(model, "MyBackbone")

    def test_a_scaler_of_their_own(self) -> None:
        model = small_model().model
        model.scaler.__class__ = type("MyScaler", (type(model.scaler),), {})
        assert_goes_to_upstream(model, "MyScaler")

    def test_a_distribution_of_their_own(self) -> None:
        model = small_model().model
        output = model.output_distribution
        output.__class__ = type("MyOutput", (type(output),), {})
        assert_goes_to_upstream(model, "MyOutput")

    def test_hooks_on_inner_modules(self) -> None:
        model = small_model().model
        seen: list[str] = []
        model.transformer.layers[1].register_forward_hook(lambda *_: seen.append("called"))
        assert_goes_to_upstream(model, "transformer.layers.1 has hooks")
        assert seen

    def test_global_hooks(self) -> None:
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        try:
            assert_goes_to_upstream(small_model().model, "global")
        finally:
            handle.remove()

    def test_a_replaced_submodule(self) -> None:
        class LowRank(torch.nn.Linear):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(inputs)

        model = small_model().model
        model.transformer.layers[0].attention.wO.__class__ = LowRank
        assert_goes_to_upstream(model, "LowRank")

    def test_a_parametrised_weight(self) -> None:
        model = small_model().model
        torch.nn.utils.parametrizations.weight_norm(model.unembed)
        assert_goes_to_upstream(model, "unembed")

    def test_a_method_of_one_object(self) -> None:
        model = small_model().model
        attention = model.transformer.layers[0].attention
        original = attention.run_attention
        attention.run_attention = lambda *args: 2 * original(*args)
        assert_goes_to_upstream(model, "run_attention")

    def test_a_method_of_the_models(self) -> None:
        model = small_model().model
        original = model.backbone
        model.backbone = lambda *args: original(*args)
        assert_goes_to_upstream(model, "backbone")

    def test_somebody_elses_patch_of_a_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        attention = toto.model.attention.BaseMultiheadAttention
        original = attention.run_attention

        def theirs(self: Any, *args: Any) -> Any:
            return 2 * original(self, *args)

        model = small_model().model
        toto_compile_patch.apply()
        monkeypatch.setattr(attention, "run_attention", theirs)
        patched = mean(model)
        assert taken()[0] == "upstream"
        assert "run_attention" in taken()[1]
        monkeypatch.undo()
        assert not torch.allclose(patched, mean(model))
        assert taken() == ("fast", "")

    @pytest.mark.parametrize(
        "kind",
        [
            toto.model.util.RMSNorm,
            toto.model.feed_forward.SwiGLU,
            torch.nn.Dropout,
            torch.nn.Linear,
            torch.nn.Sequential,
        ],
    )
    def test_somebody_elses_forward_of_a_module(
        self, kind: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Twice what the module gives, for every module of the class."""
        original, model = kind.forward, small_model().model
        toto_compile_patch.apply("fast_decode")
        plain = mean(model)
        monkeypatch.setattr(kind, "forward", lambda self, *args: 2 * original(self, *args))
        found = mean(model)
        assert f"{kind.__name__}.forward has been replaced" in taken()[1]
        toto_compile_patch.revert()
        assert torch.equal(found, mean(model))
        assert not torch.allclose(found, plain)

    def test_somebody_elses_patch_over_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        toto_compile_patch.apply()
        attention = toto.model.attention.BaseMultiheadAttention
        ours = attention.positional_embedding
        monkeypatch.setattr(attention, "positional_embedding", lambda *args: ours(*args))
        mean(small_model().model)
        assert "positional_embedding" in taken()[1]

    def test_a_forecaster_with_its_own_transformation(self) -> None:
        class Mine(TotoForecaster):  # type: ignore[misc]
            @staticmethod
            def create_affine_transformed(*args: Any) -> Any:
                return TotoForecaster.create_affine_transformed(*args)

        with toto_compile_patch.patched("fast_decode"):
            Mine(small_model().model).forecast(series(40), HORIZON)
        assert "create_affine_transformed" in taken()[1]

    def test_a_mock(self) -> None:
        model = MagicMock()
        model.patch_embed.stride = PATCH
        with toto_compile_patch.patched("fast_decode"), pytest.raises(Exception, match=r"."):
            TotoForecaster(model).forecast(series(40), HORIZON)
        assert "MagicMock" in taken()[1]

    def test_another_type_than_the_models(self) -> None:
        with toto_compile_patch.patched("fast_decode"), pytest.raises(RuntimeError, match="dtype"):
            forecast(small_model().model, series(40, dtype=torch.float64), HORIZON)
        assert "float64" in taken()[1]

    def test_each_reason_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        model = small_model().model
        model.scaler.__class__ = type("OnceLogged", (type(model.scaler),), {})
        with (
            caplog.at_level(logging.WARNING, "toto_compile_patch"),
            toto_compile_patch.patched("fast_decode"),
        ):
            mean(model)
            mean(model)
        assert sum("OnceLogged" in record.message for record in caplog.records) == 1


@pytest.mark.usefixtures("applied")
class TestChangedWeights:
    """The second of two forecasts is upstream's with the weights as they are then."""

    def assert_follows(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        inputs = series(40, dtype=dtype)
        fast = values(forecast(model, inputs, HORIZON))
        assert taken() == ("fast", "")
        toto_compile_patch.revert()
        upstream = values(forecast(model, inputs, HORIZON))
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(fast, upstream, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused adamw"])
    def test_training(self, optimizer: str) -> None:
        model = small_model().model
        before = mean(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        for weight in trained:
            weight.grad = torch.ones_like(weight)
        made: torch.optim.Optimizer = torch.optim.SGD(trained, lr=0.02)
        if optimizer != "sgd":
            made = torch.optim.AdamW(trained, lr=0.02, fused=optimizer == "fused adamw")
        made.step()
        assert not torch.allclose(before, mean(model))
        self.assert_follows(model)

    def test_loading(self) -> None:
        model = small_model(0).model
        mean(model)
        model.load_state_dict(small_model(1).model.state_dict())
        self.assert_follows(model)

    def test_half(self) -> None:
        model = small_model().model
        mean(model)
        self.assert_follows(model.half(), torch.float16)

    def test_bfloat16(self) -> None:
        model = small_model().model
        mean(model)
        self.assert_follows(model.bfloat16(), torch.bfloat16)

    @pytest.mark.parametrize(
        "name",
        [
            "unembed.weight",
            "unembed.bias",
            "output_distribution.loc_proj.weight",
            "output_distribution.loc_proj.bias",
            "transformer.layers.0.attention.wQKV.weight",
            "transformer.layers.0.attention.wQKV.bias",
            "transformer.layers.1.attention.wO.weight",
            "transformer.layers.2.mlp.0.weight",
            "transformer.layers.2.mlp.2.bias",
            "transformer.layers.3.norm1.scale",
            "patch_embed.projection.weight",
        ],
    )
    def test_in_place_without_a_trace(self, name: str) -> None:
        model = small_model().model
        before = mean(model)
        model.get_parameter(name).data.mul_(1.5)
        assert not torch.equal(before, mean(model))
        self.assert_follows(model)

    @pytest.mark.parametrize("part", ["wQKV", "wO"])
    def test_a_parameter_put_in_its_place(self, part: str) -> None:
        model = small_model().model
        mean(model)
        layer = getattr(model.transformer.layers[0].attention, part)
        layer.weight = torch.nn.Parameter(1.5 * layer.weight)
        layer.bias = torch.nn.Parameter(1.5 * layer.bias)
        self.assert_follows(model)

    def test_a_single_element_after_refresh(self) -> None:
        model = small_model().model
        mean(model)
        model.unembed.weight.data[0, 1] += 5
        toto_compile_patch.refresh(TotoForecaster(model))
        self.assert_follows(model)

    def test_a_weight_that_is_no_number_is_not_prepared_for_ever(self) -> None:
        model = small_model().model
        with torch.no_grad():
            model.unembed.weight[0] = torch.nan
        assert weights.prepared_weights(model) is weights.prepared_weights(model)

    def test_refresh_of_something_else(self) -> None:
        with pytest.raises(TypeError, match="TotoBackbone"):
            toto_compile_patch.refresh("model")

    def test_what_is_prepared_goes_with_the_model(self) -> None:
        model = small_model().model
        mean(model)
        reference = weakref.ref(model)
        del model
        gc.collect()
        assert reference() is None

    def test_what_is_prepared_goes_with_the_patch(self) -> None:
        model = small_model().model
        mean(model)
        assert weights.prepared_weights(model) is weights.prepared_weights(model)
        held = weakref.ref(weights.prepared_weights(model).head.real.weight)
        toto_compile_patch.revert()
        gc.collect()
        assert held() is None


@pytest.mark.usefixtures("applied")
class TestOwnership:
    def test_inputs_stay_and_results_own_their_memory(self) -> None:
        model = small_model().model
        inputs = series(40, variates=2, batch=2)
        before = [part.clone() if isinstance(part, torch.Tensor) else part for part in inputs]
        first = values(forecast(model, inputs, HORIZON, 4, 2))
        kept = first.clone()
        second = values(forecast(model, inputs, HORIZON, 4, 2))
        assert torch.equal(first, kept)
        assert first.data_ptr() != second.data_ptr()
        first.zero_()
        assert torch.equal(second, kept)
        for part, was in zip(inputs, before, strict=True):
            assert part is was or torch.equal(part, was)
        assert not first.requires_grad

    def test_threads_forecast_what_they_do_alone(self) -> None:
        models = [small_model(seed).model for seed in (0, 1)]
        alone = {
            (which, length): mean(models[which], length) for which in (0, 1) for length in (24, 40)
        }
        wrong: list[Any] = []

        def work(which: int, length: int) -> None:
            forecaster = TotoForecaster(models[which])
            for _ in range(30):
                found = forecaster.forecast(series(length), HORIZON).mean
                if not torch.equal(found, alone[which, length]) or taken() != ("fast", ""):
                    wrong.append((which, length))

        threads = [threading.Thread(target=work, args=key) for key in list(alone) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_last_path_is_this_threads(self) -> None:
        mean(small_model().model)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(toto_compile_patch.last_path()))
        thread.start()
        thread.join()
        assert found == [None]


class TestSamplesAtOnce:
    def request_for(self, samples: int, per_batch: int, length: int, horizon: int) -> Request:
        return Request.of(
            {
                "inputs": torch.zeros(1, 1, length),
                "prediction_length": horizon,
                "num_samples": samples,
                "sampling_batch_size": per_batch,
            }
        )

    def test_few_per_batch_are_decoded_together(self) -> None:
        model = small_model().model
        request = self.request_for(32, 1, 40, HORIZON)
        assert generation.samples_at_once(ModelSettings.of(model), request) == 32

    def test_memory_bounds_them_on_a_gpu_and_use_on_a_cpu(self) -> None:
        model = small_model(embed_dim=256, mlp_hidden_dim=1024).model
        horizon = 100 * PATCH
        requests = [self.request_for(10**6, each, 8000, horizon) for each in (1, 1000, 10**5)]
        few, more, most = (generation.samples_at_once(ModelSettings.of(model), r) for r in requests)
        assert 1 <= few <= more == most == 10**6 // -(-(10**6) // generation.ROWS_ON_A_CPU) + 1
        # Shapes alone decide, so a tensor without memory does for a GPU's.
        long = torch.zeros(1, 1, 8000, device="meta")
        few, more, most = (
            generation.samples_at_once(ModelSettings.of(model), dataclasses.replace(r, inputs=long))
            for r in requests
        )
        assert 1 <= few < more < most
        assert more >= 1000 - 1
        assert most >= 10**5 - 1

    def test_chunks_of_samples_make_up_the_forecast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = small_model().model
        monkeypatch.setattr(generation, "samples_at_once", lambda *_, **__: 4)
        with toto_compile_patch.patched("fast_decode", fallback="error"):
            samples = values(forecast(model, series(40), HORIZON, 10, 5))
        assert samples.shape == (1, 1, HORIZON, 10)

    @pytest.mark.fault(
        injected="memory ends",
        where="decoding",
        observed="fewer samples at once",
        afterwards="the samples are those of the seed",
    )
    def test_out_of_memory_is_tried_again_with_fewer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = small_model().model
        real, tried = transformer.decode_step, []

        def short_of_memory(*args: Any, **kwargs: Any) -> Any:
            samples = args[2].count
            tried.append(samples)
            if samples > 3:
                raise torch.OutOfMemoryError("no more")
            return real(*args, **kwargs)

        monkeypatch.setattr(generation, "decode_step", short_of_memory)
        with toto_compile_patch.patched("fast_decode", fallback="error"):
            samples = values(forecast(model, series(40), HORIZON, 12, 12))
        assert tried[:3] == [12, 6, 3]
        assert samples.shape[-1] == 12

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (torch.OutOfMemoryError("no more"), "no more"),
            (RuntimeError("could not create a primitive"), "not enough memory for this forecast"),
        ],
        ids=["torch's", "oneDNN's"],
    )
    @pytest.mark.fault(
        injected="memory ends, however few the samples",
        where="decoding",
        observed="an error that names memory",
        afterwards="the next forecast is as ever",
    )
    def test_where_one_sample_is_too_much_that_is_said(
        self, error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, tried = small_model().model, []

        def short_of_memory(*args: Any, **kwargs: Any) -> Any:
            tried.append(args[2].count)
            raise error

        toto_compile_patch.apply("fast_decode", fallback="error")
        before = values(forecast(model, series(40), HORIZON, 4, 4))
        with monkeypatch.context() as context:
            context.setattr(generation, "decode_step", short_of_memory)
            with pytest.raises(torch.OutOfMemoryError, match=says):
                forecast(model, series(40), HORIZON, 4, 4)
        assert tried == [4, 2, 1]
        assert torch.equal(values(forecast(model, series(40), HORIZON, 4, 4)), before)

    def test_other_errors_are_not_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, tried = small_model().model, []

        def broken(*args: Any, **kwargs: Any) -> Any:
            tried.append(args[2].count)
            raise RuntimeError("something else")

        monkeypatch.setattr(generation, "decode_step", broken)
        with (
            toto_compile_patch.patched("fast_decode", fallback="error"),
            pytest.raises(RuntimeError, match="something else"),
        ):
            forecast(model, series(40), HORIZON, 4, 4)
        assert tried == [4]


@pytest.mark.parametrize("name", ["generate_mean", "generate_samples"])
def test_signatures_are_upstreams(name: str) -> None:
    upstream = inspect.signature(getattr(TotoForecaster, name))
    with toto_compile_patch.patched("fast_decode"):
        assert inspect.signature(getattr(TotoForecaster, name)) == upstream


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_models_are_seen_through(how: str) -> None:
    plain = small_model().model
    upstream = mean(plain)
    if how == "in place":
        plain.compile(backend="eager")
        model = plain
    else:
        model = torch.compile(plain, backend="eager")
    with toto_compile_patch.patched():
        torch.testing.assert_close(mean(model), upstream, rtol=1e-5, atol=1e-4)
        assert taken() == ("fast", "")


def test_direct_calls_with_defaults() -> None:
    """generate_mean without masks, as upstream allows: no cache by default."""
    model = small_model().model
    forecaster = TotoForecaster(model)
    inputs = series(40).series[None]
    stamps = torch.zeros_like(inputs, dtype=torch.int)
    arguments = (inputs, HORIZON, stamps, stamps[..., 0])
    upstream = forecaster.generate_mean(*arguments)
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        fast = forecaster.generate_mean(*arguments)
        with pytest.raises(TypeError, match="prediction_length"):
            forecaster.generate_mean(inputs)
    torch.testing.assert_close(fast, upstream, rtol=1e-5, atol=1e-4)


def test_the_environment_chooses_rng_and_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTO_COMPILE_PATCH_RNG", "upstream")
    monkeypatch.setenv("TOTO_COMPILE_PATCH_FALLBACK", "error")
    model = small_model().model
    upstream = values(forecast(model, series(40), HORIZON, 4, 2))
    toto_compile_patch.apply()
    torch.testing.assert_close(
        values(forecast(model, series(40), HORIZON, 4, 2)), upstream, rtol=1e-4, atol=1e-3
    )
    model.transformer.layers[0].train()
    model.scaler.__class__ = type("MyScaler", (type(model.scaler),), {})
    with pytest.raises(toto_compile_patch.FallbackError):
        mean(model)


def test_a_buffer_that_is_none() -> None:
    """Torch lets a module have one, for whoever fills it later."""
    model = small_model().model
    upstream = mean(model)
    model.transformer.register_buffer("later", None)
    with toto_compile_patch.patched("fast_decode", fallback="error"):
        torch.testing.assert_close(mean(model), upstream, rtol=1e-5, atol=1e-4)
        assert taken() == ("fast", "")

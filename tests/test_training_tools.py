"""Fine-tuning and torch's own tools, whose results are upstream's, applied or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, tiny_model

import toto_compile_patch

HORIZON = 2 * PATCH


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def batches() -> list[Any]:
    """Series of which a fine-tuning step predicts each patch from those before it."""
    from toto.data.util.dataset import CausalMaskedTimeseries

    made = (series(length, 2, 2) for length in (40, 48, 56))
    return [
        CausalMaskedTimeseries(
            one.series,
            one.padding_mask,
            one.id_mask,
            one.timestamp_seconds,
            one.time_interval_seconds,
            num_exogenous_variables=0,
            input_slice=slice(0, -PATCH),
            target_slice=slice(PATCH, None),
        )
        for one in made
    ]


def fine_tuned() -> tuple[list[float], torch.Tensor, list[torch.Tensor]]:
    """Losses of a fine-tuning by Lightning, a forecast between its epochs each, and the weights."""
    lightning = pytest.importorskip("lightning")
    module = pytest.importorskip("toto.model.lightning_module")
    backbone = tiny_model().model
    losses: list[float] = []
    means: list[torch.Tensor] = []

    class Listening(lightning.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, *_: Any, **__: Any
        ) -> None:
            losses.append(outputs["loss"].item())

        def on_validation_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            losses.append(trainer.callback_metrics.get("val_loss", torch.zeros(())).item())

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            module.model.eval()
            means.append(TotoForecaster(module.model).forecast(series(40, 2), HORIZON).mean)
            module.model.train()

    torch.manual_seed(0)
    tuned = module.TotoForFinetuning(
        pretrained_backbone=backbone, lr=1e-2, warmup_steps=1, val_prediction_len=PATCH
    )
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Listening()],
        num_sanity_val_steps=0,
    )
    loader: Any = torch.utils.data.DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(tuned, loader, loader)
    return losses, torch.stack(means), [weight.detach().clone() for weight in backbone.parameters()]


@pytest.mark.slow
@pytest.mark.fault(
    injected="fine-tuning by Lightning, with a forecast between epochs",
    where="patched and not",
    observed="losses and weights are equal bit for bit",
    afterwards="each forecast is of the weights of then",
)
def test_fine_tuning_by_lightning() -> None:
    losses, means, weights = fine_tuned()
    toto_compile_patch.apply(fallback="error")
    patched_losses, patched_means, patched_weights = fine_tuned()
    assert patched_losses == losses
    assert len(set(losses)) > 6
    assert all(map(torch.equal, patched_weights, weights))
    # Between the epochs, the weights of then are forecast with.
    torch.testing.assert_close(patched_means, means, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(means[0], means[1])
    path = toto_compile_patch.last_path()
    assert path is not None
    assert path.taken == "fast"


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return type(error), str(error).splitlines()[:1]


class Forecasts(torch.nn.Module):
    """A module that forecasts, as somebody wraps a forecaster to export it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model().model

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inputs = series(40, 2)
        return TotoForecaster(self.model).forecast(inputs._replace(series=values), HORIZON).mean


def exported(module: torch.nn.Module, *inputs: torch.Tensor) -> Any:
    """What an exported module computes, and how many nodes it has."""
    program = torch.export.export(module, inputs, strict=False)
    found = program.module()(*inputs)
    numbers = found if isinstance(found, torch.Tensor) else found[1]
    return numbers.sum().item(), len(list(program.graph.nodes))


@pytest.mark.slow
@pytest.mark.fault(
    injected="torch.export of a model and of a forecaster",
    where="patched and not",
    observed="the same program, or torch's same refusal",
    afterwards="nothing of a trace is left",
)
def test_export() -> None:
    """Where torch refuses upstream's code, it does so by the same error; of which of the cache's
    numbers it speaks first, differs."""
    inputs = series(40, 2, 1)
    cases: list[Callable[[], Any]] = [
        lambda: exported(tiny_model().model, inputs.series, inputs.padding_mask, inputs.id_mask),
        lambda: exported(Forecasts(), inputs.series[0]),
    ]
    of_a_model, of_a_forecaster = [outcome(case) for case in cases]
    toto_compile_patch.apply(fallback="upstream")
    patched_model, patched_forecaster = [outcome(case) for case in cases]
    assert patched_model == of_a_model
    assert patched_forecaster[0] == of_a_forecaster[0]


@pytest.mark.fault(
    injected="torch.nn.DataParallel around a model",
    where="patched and not",
    observed="the same numbers, or upstream's same error",
    afterwards="the model forecasts on its own as ever",
)
def test_data_parallel() -> None:
    """It has nothing of what a forecaster asks a model for, and is refused by upstream's code."""
    inputs = series(40, 2, 1)
    parallel: Any = torch.nn.DataParallel(tiny_model().model)

    def of_the_model() -> float:
        total: float = parallel(inputs.series, inputs.padding_mask, inputs.id_mask).loc.sum().item()
        return total

    def of_a_forecaster() -> float:
        return TotoForecaster(parallel).forecast(inputs, HORIZON).mean.sum().item()

    before = outcome(of_the_model), outcome(of_a_forecaster)
    toto_compile_patch.apply(fallback="upstream")
    assert (outcome(of_the_model), outcome(of_a_forecaster)) == before
    own = TotoForecaster(parallel.module)
    patched = own.forecast(inputs, HORIZON).mean
    toto_compile_patch.revert()
    torch.testing.assert_close(patched, own.forecast(inputs, HORIZON).mean, rtol=1e-5, atol=1e-4)

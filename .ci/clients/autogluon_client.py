"""AutoGluon's own copy of Toto, by its ``TimeSeriesPredictor``, on a CPU.

AutoGluon refuses a CPU by a method that the model here overrides. toto-ts is not installed.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from autogluon.timeseries import TimeSeriesDataFrame, TimeSeriesPredictor
from autogluon.timeseries.models.toto import TotoModel
from bundled import COLUMNS, CONTEXT, DEMO, HORIZON, deviation, read_bundled
from sides import QUANTILES, Case, Client, ClientError, Floats, Side

import toto_compile_patch

SAMPLES = 256
LONG = 96
COPY = "autogluon.timeseries.models.toto._internal"
TABLE = read_bundled(CONTEXT)


class TotoOnCPU(TotoModel):  # type: ignore[misc]
    """AutoGluon's model, which wants a GPU, without that wish."""

    def _is_gpu_available(self) -> bool:
        return True

    def get_minimum_resources(self, is_gpu_available: bool = False) -> dict[str, int | float]:
        return {"num_cpus": 1}


@cache
def scratch() -> Path:
    """A folder that goes with the process."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def base_model() -> Path:
    """A checkpoint of the base architecture: random weights of seed 0, no dropout."""
    from autogluon.timeseries.models.toto.hf_pretrained_model import TotoConfig, TotoPretrainedModel

    file = Path(toto_compile_patch.__file__).parent / "tools" / "base_model.json"
    architecture = {**json.loads(file.read_text()), "dropout": 0.0}
    torch.manual_seed(0)
    weights = TotoPretrainedModel(TotoConfig(**architecture)).state_dict()
    folder = scratch() / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(architecture))
    # Layers share the rotary embedding's tensors, which a file may not.
    unshared = {name: tensor.clone() for name, tensor in weights.items()}
    safetensors.torch.save_file(unshared, folder / "model.safetensors")
    return folder


@cache
def demo_model() -> Path:
    """The demo model's checkpoint, which AutoGluon reads as it is."""
    folder = scratch() / "demo"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DEMO / name, folder)
    return folder


@cache
def data(columns: tuple[str, ...]) -> TimeSeriesDataFrame:
    """Columns of the bundled series as AutoGluon's items."""
    long = TABLE[list(columns)].melt(ignore_index=False, var_name="item_id", value_name="target")
    return TimeSeriesDataFrame.from_data_frame(
        long.rename_axis("timestamp").reset_index(), "item_id", "timestamp"
    )


@cache
def predictor(model: Path, columns: tuple[str, ...], horizon: int) -> TimeSeriesPredictor:
    """A predictor of nothing but Toto, which keeps its model loaded."""
    made = TimeSeriesPredictor(
        prediction_length=horizon,
        path=str(scratch() / f"predictor-{model.name}-{len(columns)}"),
        quantile_levels=list(QUANTILES),
        freq="h",
        verbosity=0,
        cache_predictions=False,
    )
    settings = {"model_path": str(model), "device": "cpu", "num_samples": SAMPLES}
    made.fit(
        data(columns),
        hyperparameters={TotoOnCPU: settings},
        enable_ensemble=False,
        skip_model_selection=True,
    )
    made.persist()
    return made


def predict(seed: int, model: Path, columns: tuple[str, ...], horizon: int) -> Floats:
    """Quantiles, as AutoGluon gives them (``quantile series time``)."""
    table = predictor(model, columns, horizon).predict(
        data(columns), random_seed=seed, use_cache=False
    )
    levels = [table[str(level)].to_numpy(float) for level in QUANTILES]
    return np.stack(levels).reshape(len(QUANTILES), len(columns), horizon)


def demo(seed: int, _: Side) -> Floats:
    """Three series by the demo model."""
    return predict(seed, demo_model(), COLUMNS, HORIZON)


def base(seed: int, _: Side) -> Floats:
    """One series by the base architecture."""
    return predict(seed, base_model(), COLUMNS[:1], LONG)


def revert_leaves_no_trace() -> None:
    """``apply()`` changes AutoGluon's copy, and ``revert()`` puts every object back."""
    import autogluon.timeseries.models.toto._internal.forecaster  # noqa: F401

    before = dict(_objects())
    toto_compile_patch.apply()
    if _changes(before, dict(_objects())) == []:
        raise ClientError("apply() changed nothing in AutoGluon's copy")
    toto_compile_patch.revert()
    if left := _changes(before, dict(_objects())):
        raise ClientError(f"revert() left {', '.join(left)} changed")


def _objects() -> Iterator[tuple[str, Any]]:
    """Every object that AutoGluon's copy, and a class that it defines, holds by a name."""
    for name, module in sorted(sys.modules.items()):
        if name == COPY or name.startswith(COPY + "."):
            for attribute, value in list(vars(module).items()):
                yield f"{name}.{attribute}", value
                if inspect.isclass(value) and value.__module__ == name:
                    for own, member in list(vars(value).items()):
                        yield f"{name}.{attribute}.{own}", member


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose objects are not the same."""
    missing = object()
    names = [*before, *(name for name in after if name not in before)]
    return [name for name in names if before.get(name, missing) is not after.get(name, missing)]


CLIENT = Client(
    name="AutoGluon",
    distribution="autogluon.timeseries",
    recipe="`apply()`",
    pitfalls="It refuses a CPU, unless a subclass of its `TotoModel` overrides "
    "`_is_gpu_available` and `get_minimum_resources`. It never calls `eval()`: with dropout above "
    "0 its own forecasts differ from call to call, and upstream's code makes them. Its "
    "huggingface_hub is one with which toto-ts' `Toto.from_pretrained` fails.",
    cases=(
        Case(f"3 series, {SAMPLES} samples, 32 at a time", demo, deviation(TABLE)),
        Case(
            f"base architecture, 1 series, horizon {LONG}, {SAMPLES} samples, 32 at a time",
            base,
            deviation(TABLE[["temp"]]),
            at_least=10.0,
            turns=1,
        ),
    ),
    checks=(revert_leaves_no_trace,),
)

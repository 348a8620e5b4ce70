"""The bundled demo model: it loads, it forecasts the held-out part, and it can be trained again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto.model.toto import Toto

import toto_compile_patch

DEMO = Path(toto_compile_patch.__file__).parent / "demo"
EVIDENCE = Path(__file__).parent.parent / ".ci" / "evidence"
CONTEXT, HORIZON, DAY = 512, 96, 24

Floats = npt.NDArray[np.floating[Any]]


@pytest.fixture(scope="module")
def toto() -> Any:
    return Toto.load_from_checkpoint(DEMO).eval()


@pytest.fixture(scope="module")
def log() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEMO / "training_log.json").read_text())
    return content


def paths(toto: Any, contexts: Floats, samples: int = 64) -> Floats:
    """Samples of forecasts: ``batch variate horizon samples``."""
    series = torch.tensor(contexts, dtype=torch.float32)
    inputs = MaskedTimeseries(
        series=series,
        padding_mask=torch.ones_like(series, dtype=torch.bool),
        id_mask=torch.zeros_like(series, dtype=torch.int),
        timestamp_seconds=torch.zeros_like(series, dtype=torch.int),
        time_interval_seconds=torch.full(series.shape[:2], 3600),
    )
    torch.manual_seed(0)
    with toto_compile_patch.patched():
        forecast = TotoForecaster(toto.model).forecast(
            inputs, prediction_length=HORIZON, num_samples=samples, samples_per_batch=samples
        )
    return np.asarray(forecast.samples)


def held_out(log: dict[str, Any]) -> tuple[Floats, Floats]:
    """Contexts and truths of the bundled columns: ``window variate steps``."""
    table = pd.read_csv(DEMO / "jfk_hourly_2013.csv").drop(columns="time")
    values = table.ffill().to_numpy().T
    origins = range(log["data"]["training_rows"], values.shape[-1] - HORIZON, 5 * DAY + 7)
    contexts = [values[:, origin - CONTEXT : origin] for origin in origins]
    truths = [values[:, origin : origin + HORIZON] for origin in origins]
    return np.stack(contexts), np.stack(truths)


def test_the_checkpoint_is_small_and_whole(toto: Any, log: dict[str, Any]) -> None:
    size = sum((DEMO / name).stat().st_size for name in ("model.safetensors", "config.json"))
    assert size < 6e6
    assert sum(weights.numel() for weights in toto.parameters()) == log["parameters"]
    assert log["losses"][-1]["loss"] < log["losses"][0]["loss"]


@pytest.mark.parametrize("variates", [1, 3])
def test_it_beats_the_last_day_repeated(toto: Any, log: dict[str, Any], variates: int) -> None:
    contexts, truths = (part[:, :variates] for part in held_out(log))
    forecast = np.median(paths(toto, contexts), axis=-1)
    naive = np.tile(contexts[..., -DAY:], HORIZON // DAY)
    ours, theirs = (np.abs(guess - truths).mean((0, 2)) for guess in (forecast, naive))
    assert (ours < theirs).all(), (ours, theirs)


def test_its_interval_holds_about_what_it_says(toto: Any, log: dict[str, Any]) -> None:
    contexts, truths = (part[:, :1] for part in held_out(log))
    low, high = np.quantile(paths(toto, contexts), (0.1, 0.9), axis=-1)
    within = ((low <= truths) & (truths <= high)).mean()
    assert 0.7 < within < 0.9
    width = (high - low).mean((0, 1))
    assert width[-DAY:].mean() > width[:DAY].mean()


def run(name: str, *arguments: object) -> None:
    command = [sys.executable, str(EVIDENCE / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_can_be_trained_again(tmp_path: Path) -> None:
    run("train_demo_model.py", "--steps", 4, "--out", tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "training_log.json"}
    assert np.isfinite(paths(Toto.load_from_checkpoint(tmp_path), np.ones((1, 1, 60)), 4)).all()


@pytest.mark.slow
def test_its_skill_can_be_measured_again(tmp_path: Path) -> None:
    pytest.importorskip("statsmodels")
    run("demo_model_skill.py", "--json", tmp_path / "skill.json")
    skill = json.loads((tmp_path / "skill.json").read_text())
    assert skill["windows"] >= 50
    assert len(skill["skill"]) == 3

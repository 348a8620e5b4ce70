"""A model of any carrier of Toto's code, its forecasts, and all that its modules hold.

Imported by the processes that tests start: nothing of Toto's is imported here by itself.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

AUTOGLUON = "autogluon.timeseries.models.toto._internal"
CLONE = "inference and model"
NAMESPACE = "toto.toto"

MODULES = {
    "toto": ("toto.inference.forecaster", "toto.model.toto", "toto.data.util.dataset"),
    NAMESPACE: tuple(
        f"{NAMESPACE}.{name}"
        for name in ("inference.forecaster", "model.toto", "data.util.dataset")
    ),
    CLONE: ("inference.forecaster", "model.toto", "data.util.dataset"),
    AUTOGLUON: tuple(
        f"{AUTOGLUON}.{name}" for name in ("forecaster", "backbone.backbone", "dataset")
    ),
}
"""Of each carrier: what forecasts, what makes a model, and what holds a series."""

ARGUMENTS: dict[str, Any] = {
    "patch_size": 8,
    "stride": 8,
    "embed_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "mlp_hidden_dim": 64,
    "dropout": 0.0,
    "spacewise_every_n_layers": 2,
    "scaler_cls": "<class 'model.scaler.CausalPatchStdMeanScaler'>",
    "output_distribution_classes": ["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
    "spacewise_first": False,
    "output_distribution_kwargs": {"k_components": 3},
    "use_memory_efficient_attention": False,
}


class Carrier:
    """A carrier, imported, with a forecaster of seeded weights in float64."""

    def __init__(self, name: str) -> None:
        # AutoGluon's packages are not imported for it in earnest.
        sys.may_import = True  # type: ignore[attr-defined]
        self.name = name
        forecaster, model, dataset = map(importlib.import_module, MODULES[name])
        torch.manual_seed(0)
        make = getattr(model, "Toto", None)
        backbone = make(**ARGUMENTS).model if make else model.TotoBackbone(**ARGUMENTS)
        self.forecaster = forecaster.TotoForecaster(backbone.double())
        self.series = dataset.MaskedTimeseries

    def forecasts(self) -> list[torch.Tensor]:
        """A mean, samples, and a mean without a cache."""
        seeded = torch.Generator().manual_seed(1)
        values = torch.randn(2, 3, 40, generator=seeded, dtype=torch.float64).cumsum(-1)
        zeros = torch.zeros(2, 3, 40)
        inputs = self.series(values, values == values, zeros, zeros, torch.full((2, 3), 60))
        made = []
        for samples, use_kv_cache in ((None, True), (4, True), (None, False)):
            torch.manual_seed(2)
            one = self.forecaster.forecast(
                inputs,
                prediction_length=19,
                num_samples=samples,
                samples_per_batch=samples or 1,
                use_kv_cache=use_kv_cache,
            )
            made.append(one.mean if samples is None else one.samples)
        return made

    def held(self) -> dict[Any, dict[str, Any]]:
        """All that its modules and their classes hold, by module and by class."""
        tops = {name.rpartition(".")[0] for name in MODULES[self.name]}
        found: dict[Any, dict[str, Any]] = {}
        for name, module in sys.modules.copy().items():
            if name.rpartition(".")[0] in tops:
                found[name] = dict(vars(module))
                own = [kind for kind in vars(module).values() if isinstance(kind, type)]
                found |= {kind: dict(vars(kind)) for kind in own if kind.__module__ == name}
        return found


def check_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """Forecasts agree to within rounding."""
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def check_same(before: dict[Any, dict[str, Any]], after: dict[Any, dict[str, Any]]) -> None:
    """Modules and classes hold the very objects that they held."""
    assert before.keys() == after.keys()
    for place, names in before.items():
        assert names.keys() == after[place].keys(), (place, names.keys() ^ after[place].keys())
        for name, value in names.items():
            assert after[place][name] is value, (place, name)

"""Random small models and series, one for each seed: everything that upstream supports.

To try more: ``python -m pytest tests/test_decode_equality.py --cases 5000``.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from toto.data.util.dataset import MaskedTimeseries
from toto.inference.forecaster import TotoForecaster
from toto_cases import SCALERS, small_model

DISTRIBUTIONS = ("MixtureOfStudentTsOutput", "StudentTOutput")


@dataclass(frozen=True)
class Case:
    """A model's shape, a series' shape, and what is asked of them."""

    seed: int
    model: dict[str, Any]
    labels: bool
    dtype: torch.dtype
    batch: int | None
    variates: int
    length: int
    id_mask: str
    padding: str
    exogenous: int
    known_future: bool
    horizon: int
    samples: int
    per_batch: int
    use_kv_cache: bool
    gentle: bool = False
    """Weights and values as in float32, whatever the type."""

    @classmethod
    def random(cls, seed: int) -> Case:
        r = Random(seed)
        every = r.choice([-1, 1, 2, 2, 3, 3])
        patch = r.choice([2, 4, 8, 8, 16])
        heads = r.choice([1, 2, 4])
        distribution = r.choice(DISTRIBUTIONS)
        variates = r.choice([1, 1, 2, 3, 5, 9])
        exogenous = r.randrange(variates) if r.random() < 0.3 else 0
        per_batch = r.choice([1, 2, 3])
        return cls(
            seed=seed,
            model={
                "patch_size": patch,
                "stride": patch,
                "embed_dim": heads * r.choice([4, 8, 16]),
                # Upstream's cache asks for the second layer, so there are at least two.
                "num_layers": max(2, every) * r.choice([1, 2]) if every > 0 else r.choice([2, 3]),
                "num_heads": heads,
                "mlp_hidden_dim": r.choice([16, 24, 64]),
                "spacewise_every_n_layers": every,
                "spacewise_first": r.random() < 0.5,
                "scaler_cls": f"<class 'model.scaler.{r.choice(SCALERS)}'>",
                "output_distribution_classes": [f"<class 'model.distribution.{distribution}'>"],
                "output_distribution_kwargs": (
                    {"k_components": r.choice([1, 2, 5])}
                    if distribution == "MixtureOfStudentTsOutput"
                    else None
                ),
                "stabilize_with_global": r.random() < 0.7,
                "scale_factor_exponent": r.choice([10.0, 1.0, 0.1]),
            },
            labels=r.random() < 0.25,
            dtype=r.choice([torch.float32, torch.float64]),
            batch=r.choice([None, 1, 2, 3]),
            variates=variates,
            length=r.choice([1, patch - 1, patch, patch + 1, 5 * patch, r.randint(1, 12 * patch)]),
            id_mask=r.choice(["zeros", "groups", "float groups", "broadcast", "changing"]),
            padding=r.choice(["none", "none", "left", "scattered", "float", "everything"]),
            exogenous=exogenous,
            known_future=exogenous > 0 and r.random() < 0.7,
            horizon=r.choice([1, patch, patch + 1, 3 * patch, r.randint(1, 5 * patch)]),
            samples=per_batch * r.choice([1, 2, 3]),
            per_batch=per_batch,
            use_kv_cache=r.random() < 0.6,
        )

    def build(self) -> Any:
        """The model; in float64 with weights so large that every part of it matters.

        In float32 such a model is chaotic: upstream is then off by more than 1e-5 itself.
        """
        model = small_model(self.seed, **self.model).model
        if self.labels and hasattr(model, "enable_variate_labels"):
            model.enable_variate_labels()
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if self.dtype is torch.float64 and not self.gentle and not name.endswith("bias"):
                    weight.mul_(2.0)
                weight.add_(0.01 * torch.randn(weight.shape, generator=generator))
        return model.to(self.dtype)

    def series(self) -> MaskedTimeseries:
        g = torch.Generator().manual_seed(self.seed + 1)
        batch = self.batch or 1
        shape = (batch, self.variates, self.length)
        r = Random(self.seed)
        level, spread = r.choice([(0.0, 1.0), (100.0, 3.0), (-1e4, 50.0), (5.0, 1e-3)])
        values = level + spread * torch.randn(shape, generator=g).cumsum(-1)
        weights = torch.ones(shape, dtype=torch.bool)
        if self.padding == "left":
            weights[..., : self.length // 3] = False
        elif self.padding == "scattered":
            weights = torch.rand(shape, generator=g) > 0.2
        elif self.padding == "float":
            weights = torch.rand(shape, generator=g)
        elif self.padding == "everything":
            weights = torch.zeros(shape, dtype=torch.bool)
        groups = torch.randint(0, 3, (batch, self.variates, 1), generator=g).expand(shape).clone()
        if self.id_mask == "zeros":
            groups = torch.zeros(shape, dtype=torch.int)
        elif self.id_mask == "float groups":
            groups = groups.float()
        elif self.id_mask == "broadcast":
            groups = torch.zeros(batch, 1, self.length)
        elif self.id_mask == "changing":
            patch = self.model["patch_size"]
            start = self.length % patch + patch
            groups[..., start:] = torch.randint(3, 5, (batch, self.variates, 1), generator=g)
        result = MaskedTimeseries(
            series=(values.float() if self.gentle else values).to(self.dtype),
            padding_mask=weights if self.padding != "float" else weights.to(self.dtype),
            id_mask=groups,
            timestamp_seconds=torch.zeros(shape, dtype=torch.int),
            time_interval_seconds=torch.full(shape[:-1], 60, dtype=torch.int),
        )
        if "num_exogenous_variables" in MaskedTimeseries._fields:
            result = result._replace(num_exogenous_variables=self.exogenous)
        if self.batch is None:
            result = MaskedTimeseries(
                *(part[0] if isinstance(part, torch.Tensor) else part for part in result)
            )
        return result

    def options(self, samples: bool) -> dict[str, Any]:
        """What ``TotoForecaster.forecast`` is asked for, beside series and horizon."""
        options: dict[str, Any] = {"use_kv_cache": self.use_kv_cache}
        if self.known_future and "num_exogenous_variables" in MaskedTimeseries._fields:
            g = torch.Generator().manual_seed(self.seed + 2)
            batch = () if self.batch is None else (self.batch,)
            future = torch.randn((*batch, self.exogenous, self.horizon), generator=g)
            options["future_exogenous_variables"] = future.to(self.dtype)
        if samples:
            options |= {"num_samples": self.samples, "samples_per_batch": self.per_batch}
        return options

    def forecast(self, model: Any, samples: bool, seed: int = 0) -> torch.Tensor:
        """Means, or samples from a seed."""
        inputs, options = self.series(), self.options(samples)
        torch.manual_seed(seed)
        result = TotoForecaster(model).forecast(inputs, self.horizon, **options)
        found: torch.Tensor = result.samples if samples else result.mean
        return found

"""The workloads of the benchmark: shapes and settings that Toto is really run with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One kind of forecast.

    Attributes:
        origin: where it comes from.
        batch: series at once.
        variates: of each series.
        length: time steps of context.
        horizon: time steps to forecast.
        samples: None for a mean forecast.
        per_batch: samples that upstream decodes at once.
        use_kv_cache: upstream's argument.
        own_groups: each series has an ``id_mask`` of its own.
        float_padding: the padding mask is of floats.
        inference_mode: run under ``torch.inference_mode()``.
        autocast: run under bfloat16 autocast.
        deterministic: run with ``torch.use_deterministic_algorithms(True)``.
    """

    origin: str
    batch: int
    variates: int
    length: int
    horizon: int
    samples: int | None
    per_batch: int = 1
    use_kv_cache: bool = True
    own_groups: bool = False
    float_padding: bool = False
    inference_mode: bool = False
    autocast: bool = False
    deterministic: bool = False

    def describe(self) -> str:
        samples = f"{self.samples}/{self.per_batch} samples" if self.samples else "mean"
        return (
            f"{self.origin}: {self.batch}x{self.variates}x{self.length}, "
            f"horizon {self.horizon}, {samples}"
        )


def _ett(horizon: int) -> Workload:
    return Workload("ETTh1-like", 1, 7, 2048, horizon, 256, 256, deterministic=True)


WORKLOADS = {
    "W1": Workload("quick start", 1, 7, 4096, 336, 256, 256, float_padding=True),
    "W2": Workload("price backtest", 1, 1, 1024, 1, 3072, 384),
    "W2-amp": Workload(
        "price backtest, autocast", 1, 1, 1024, 1, 3072, 384, inference_mode=True, autocast=True
    ),
    "W3": Workload("first fix's test", 1, 1, 512, 8, 256, 128),
    "W4": Workload("stress test", 1, 1, 256, 1, 64, 64),
    "W5-96": _ett(96),
    "W5-192": _ett(192),
    "W5-336": _ett(336),
    "W5-720": _ett(720),
    "W6": Workload(
        "AutoGluon-like", 24, 1, 4096, 64, 256, 32, own_groups=True, inference_mode=True
    ),
    "W7": Workload("many variates", 1, 16, 4096, 64, 128, 8, float_padding=True),
    "W8": Workload("sktime-like", 1, 1, 512, 64, 32, 1),
    "W9": Workload("short series", 1, 1, 40, 1, 512, 64),
    "WM": Workload("mean forecast", 1, 1, 512, 336, None),
    "WL": Workload("long horizon", 1, 1, 512, 336, 256, 128),
    "WG": Workload("GluonTS predictor", 1, 3, 512, 96, 100, 10, use_kv_cache=False),
}


def chosen(names: Iterable[str]) -> list[str]:
    """Names of workloads; ``W5`` stands for all of its horizons.

    Raises:
        ValueError: an unknown name.
    """
    found: list[str] = []
    for name in (name.strip() for name in names):
        matching = [known for known in WORKLOADS if known == name or known.startswith(f"{name}-")]
        exact = [known for known in matching if known == name] or matching
        if not exact:
            raise ValueError(f"unknown workload {name!r}: choose from {', '.join(WORKLOADS)}")
        found += exact
    return found

"""The workloads of the benchmark: shapes and settings that Toto is really run with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


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
        """Where it comes from, and its sizes, in a few words."""
        samples = f"{self.samples}/{self.per_batch} samples" if self.samples else "mean"
        return (
            f"{self.origin}: {self.batch}x{self.variates}x{self.length}, "
            f"horizon {self.horizon}, {samples}"
        )


_ROWS = json.loads(Path(__file__).with_suffix(".json").read_text())
WORKLOADS = {name: Workload(**row) for name, row in _ROWS.items()}


def chosen(names: Iterable[str]) -> list[str]:
    """Names of workloads; ``W5`` stands for all of its horizons.

    Raises:
        ValueError: an unknown name.
    """
    found: list[str] = []
    for name in (name.strip() for name in names):
        variants = [known for known in WORKLOADS if known.startswith(f"{name}-")]
        matching = [name] if name in WORKLOADS else variants
        if not matching:
            raise ValueError(f"unknown workload {name!r}: choose from {', '.join(WORKLOADS)}")
        found += matching
    return found

"""Parts of the output: the forecasts of a shard as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from toto_compile_patch.tools.backtest.job import Job
from toto_compile_patch.tools.backtest.regular import Problem
from toto_compile_patch.tools.backtest.scoring import SCORES, Made, scored
from toto_compile_patch.tools.series.notation import Doubles

_PATHS = b"toto_compile_patch.paths"


@dataclass(frozen=True)
class Part:
    """What comes of a shard.

    Attributes:
        index: of the shard.
        windows: of the shard, with a forecast or without.
        table: a row for each window that was forecast.
        problems: what was not forecast, and why.
    """

    index: int
    windows: int
    table: pa.Table
    problems: tuple[Problem, ...]


def table_of(
    made: Sequence[Made], paths: Sequence[str], timezone: str | None, job: Job
) -> pa.Table:
    """A row for each forecast.

    Args:
        made: the forecasts.
        paths: which code made them, in words.
        timezone: of the times.
        job: what was asked for.
    """
    cutoffs = pa.array([one.cut.cutoff for one in made], pa.int64())
    columns = {
        "item_id": pa.array([one.cut.item for one in made], pa.string()),
        "cutoff": cutoffs.cast(pa.timestamp("ns", timezone)),
        "window": pa.array([one.cut.index for one in made], pa.int64()),
        "mean": _lists([one.mean for one in made], job),
    }
    for i, level in enumerate(job.levels):
        columns[f"{level:g}"] = _lists([one.quantiles[i] for one in made], job)
    columns["truth"] = _lists([one.cut.window.truth[0] for one in made], job)
    scores = scored(made, job.levels)
    columns |= {name: pa.array(scores[name], pa.float64()) for name in SCORES}
    return pa.table(columns, metadata={_PATHS: json.dumps(list(paths)).encode()})


def paths_of(metadata: dict[bytes, bytes]) -> list[str]:
    """Which code made the forecasts of a part, by its metadata."""
    found: list[str] = json.loads(metadata.get(_PATHS, b"[]"))
    return found


def _lists(rows: Sequence[Doubles], job: Job) -> Any:
    flat = np.concatenate([*rows, np.empty(0)]).astype(np.float64)
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * job.horizon
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))

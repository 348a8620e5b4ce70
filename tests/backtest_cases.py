"""Files for the tests of ``backtest``, and what they read of its output."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HORIZON = 8
QUICK = ("--horizon", HORIZON, "--context", 64, "--samples", 16, "--threads", 1)
"""Options of a run that takes little time."""


def series_values(seed: int, rows: int) -> Any:
    steps = np.arange(rows)
    noise = np.random.default_rng(seed).normal(size=rows)
    return np.round(50 + 10 * seed + 8 * np.sin(2 * np.pi * steps / 24 + seed) + noise, 4)


def long_table(path: Path, series: int, rows: int) -> pd.DataFrame:
    """Write a file of several hourly series, and give what it holds."""
    hours = pd.date_range("2024-01-01", periods=rows, freq="h")
    frames = [
        pd.DataFrame(
            {"item_id": f"series {i}", "timestamp": hours, "target": series_values(i, rows)}
        )
        for i in range(series)
    ]
    table = pd.concat(frames, ignore_index=True)
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)
    return table


def read_output(folder: Path) -> pd.DataFrame:
    """The rows of all parts."""
    paths = sorted(folder.glob("part-*.parquet"))
    return pd.concat(map(pd.read_parquet, paths), ignore_index=True)


def by_row(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of all parts, by series and window: each is there once."""
    rows = read_output(folder).to_dict("records")
    found = {(row["item_id"], row["window"]): _plain(row) for row in rows}
    assert len(found) == len(rows)
    return found


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(cell) if isinstance(cell, np.ndarray) else cell for name, cell in row.items()
    }


def parts(folder: Path) -> dict[str, bytes]:
    """The files of the forecasts, byte by byte."""
    return {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}


def contents(folder: Path) -> dict[str, bytes]:
    """All files of an output but the one that says how the run was begun."""
    paths = (path for path in folder.iterdir() if path.name != "run.json")
    return {path.name: path.read_bytes() for path in paths}


def start(
    *arguments: object, limit: int | None = None, environ: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start the command in a process of its own, at the head of a group.

    Args:
        arguments: of the command.
        limit: bytes of the largest file that it may write.
        environ: further variables of its environment.
    """

    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-W", "ignore", "-m", "toto_compile_patch", "backtest"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env={**os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        start_new_session=True,
    )

#!/usr/bin/env python3
"""Does this version forecast faster than another one, and in no more memory?

    git worktree add ../before COMMIT
    python .ci/evidence/two_versions.py ../before [--workload W1,W4] [--runtime eager,compile]

Each version has a process of its own for each workload; they take turns. The ratio is this
version's seconds over the other's in the same round, the median of the rounds, after a warm-up:
below 1, this one is faster. Where a process's memory lies makes it faster or slower for as long as
it lives, by up to a tenth on some machines; so there are several pairs of processes, and the ratio
is the median of theirs. Random weights, the architecture of Toto-Open-Base-1.0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

WORKER = """
import json, statistics, sys, time, warnings
warnings.simplefilter("ignore")
import torch, toto_compile_patch
from toto_compile_patch.tools import bench, machine, models
from toto_compile_patch.tools.workloads import WORKLOADS

load, device = WORKLOADS[sys.argv[1]], torch.device("cpu")
model = bench.base_model(device, torch.float32)
side = bench.Side(models.toto_ts().TotoForecaster(model), {"runtime": sys.argv[2]})
inputs = bench.series(load, device, torch.float32)

def seconds():
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=load.autocast)
    with torch.inference_mode(load.inference_mode), autocast:
        start = time.perf_counter()
        side.forecast(load, inputs)
        return time.perf_counter() - start

torch.use_deterministic_algorithms(load.deterministic)
side.put_in_force()
for _ in range(2):
    seconds()
print(json.dumps(toto_compile_patch.__version__), flush=True)
for _ in sys.stdin:
    # Alike for both, whatever each version's own benchmark does.
    turn = [seconds()]
    while len(turn) < 20 and sum(turn) < 0.5:
        turn.append(seconds())
    print(json.dumps([statistics.median(turn), machine.peak_bytes(device)]), flush=True)
"""


class Version:
    """A process in which one version forecasts a workload when it is asked to."""

    def __init__(self, tree: Path, workload: str, runtime: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, workload, runtime],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name: str = self._answer()

    def turn(self) -> tuple[float, int]:
        """Seconds of a forecast, and the most bytes that the process has held so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds, peak = self._answer()
        return seconds, peak

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            sys.exit(f"error: the process of {self._process.args!r} ended")
        return json.loads(line)


def main() -> None:
    """Measure, print a table, and write the figures where they are wanted."""
    options = _parse()
    sys.path.insert(0, str(ROOT))
    from toto_compile_patch.tools import machine
    from toto_compile_patch.tools.workloads import chosen

    rows: dict[str, Any] = {}
    facts = machine.facts("cpu")
    for runtime in options.runtime.split(","):
        for workload in chosen(options.workload.split(",")):
            stolen = machine.read_stolen()
            row = measured(workload, runtime, options)
            rows[f"{workload}, {runtime}"] = {**row, "stolen": machine.stolen_since(stolen)}
            print(in_words(f"{workload}, {runtime}", row), flush=True)
            if options.json:
                options.json.write_text(json.dumps({**facts, "workloads": rows}, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="folder of the other version's repository")
    parser.add_argument(
        "--workload", default="W1,W2,W3,W4,W6,W8,W9,WM,WL,WG", help="names, between commas"
    )
    parser.add_argument("--runtime", default="eager", help="eager, compile, or both with a comma")
    parser.add_argument("--pairs", type=int, default=5, help="of processes (5)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each process (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    if options.pairs < 2 or options.rounds < 1:
        parser.error(
            "--pairs must be at least 2: one says nothing of how they differ; --rounds at least 1"
        )
    return options


def measured(workload: str, runtime: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratios and peak memory of both versions of a workload, over pairs of processes."""
    trees = (options.other.resolve(), ROOT)
    pairs = [
        _pair([Version(tree, workload, runtime) for tree in trees], options.rounds)
        for _ in range(options.pairs)
    ]
    ratios = [median(ours / theirs for theirs, ours in pair["seconds"]) for pair in pairs]
    of_both = zip(*(turn for pair in pairs for turn in pair["seconds"]), strict=True)
    return {
        "versions": pairs[0]["versions"],
        "seconds": [median(side) for side in of_both],
        "ratio": median(ratios),
        "ratios": ratios,
        "peak_mb": [
            median(side) for side in zip(*(pair["peak_mb"] for pair in pairs), strict=True)
        ],
    }


def _pair(versions: list[Version], rounds: int) -> dict[str, Any]:
    """Each round's seconds of both, and the most memory that each held."""
    turns = []
    for number in range(rounds):
        first, second = versions if number % 2 else versions[::-1]
        found = {first: first.turn(), second: second.turn()}
        turns.append([found[version] for version in versions])
    for version in versions:
        version.end()
    return {
        "versions": [version.name for version in versions],
        "seconds": [[seconds for seconds, _ in turn] for turn in turns],
        "peak_mb": [peak / 1e6 for _, peak in turns[-1]],
    }


def in_words(name: str, row: dict[str, Any]) -> str:
    """A line about a workload."""
    low, _, high = quantiles(row["ratios"], n=4)
    sides = [
        f"{version} {seconds:.3g} s, {peak:.0f} MB"
        for version, seconds, peak in zip(
            row["versions"], row["seconds"], row["peak_mb"], strict=True
        )
    ]
    return f"{name}: {'; '.join(sides)}; ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()

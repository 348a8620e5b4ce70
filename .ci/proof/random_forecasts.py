#!/usr/bin/env python3
"""Compare patched forecasts with upstream's on random models and series, until the time is over.

    python .ci/proof/random_forecasts.py --minutes 60 --out FILE
    python .ci/proof/random_forecasts.py --case SEED            one of them again

Exit code 1 where a forecast is not upstream's.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

RESULTS = Path(__file__).parent / "results"
TYPES = ("float64", "float32", "float16", "bfloat16")

HANGS_AFTER = 1800
"""Seconds after which a trial tells where it stands."""

WRITES_EVERY = 60
"""Seconds between two writings of the result so far."""


def main() -> int:
    """Run what the command line asks for."""
    options = parser().parse_args()
    found = Tally(options.first)
    import random_trials

    if options.case is not None:
        trial = random_trials.run(options.case)
        print(f"{trial.kind}: {trial.described}")
        print(f"compared: {trial.compared}, differences: {trial.differences}")
        print("\n".join(trial.complaints) or "no mismatch")
        return bool(trial.complaints)
    written = 0.0
    while found.seconds() < 60 * options.minutes and found.trials.total() < options.most:
        faulthandler.dump_traceback_later(HANGS_AFTER)
        found.take(random_trials.run(options.first + found.trials.total()))
        faulthandler.cancel_dump_traceback_later()
        if found.seconds() > written + WRITES_EVERY:
            written = found.seconds()
            found.write(options.out, random_trials.KINDS)
            print(found.progress(), flush=True)
    found.write(options.out, random_trials.KINDS)
    print(found.progress())
    return bool(found.mismatches)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--minutes", type=float, default=60.0, help="how long to try (60)")
    made.add_argument("--most", type=int, default=sys.maxsize, help="trials at most")
    made.add_argument("--first", type=int, default=0, help="the first seed (0)")
    made.add_argument("--out", type=Path, help="JSON file for the result")
    made.add_argument("--case", type=int, help="run the trial of one seed, and tell of it")
    return made


class Tally:
    """What all trials showed together."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.start = time.monotonic()
        self.trials: Counter[str] = Counter()
        self.forecasts: Counter[str] = Counter()
        self.paths: dict[str, Counter[str]] = {}
        self.excused = 0
        self.worst: dict[str, float] = {}
        self.mismatches: list[dict[str, Any]] = []

    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.start

    def take(self, trial: Any) -> None:
        """Take one more trial into account, and tell of what is wrong."""
        self.trials[trial.kind] += 1
        self.paths.setdefault(trial.kind, Counter()).update(trial.compared)
        self.excused += trial.excused
        for name, difference in trial.differences.items():
            self.worst[name] = max(self.worst.get(name, 0.0), difference)
        if trial.complaints:
            self.mismatches.append(
                {"seed": trial.seed, "kind": trial.kind, "complaints": trial.complaints[:5]}
            )
            print(f"MISMATCH in seed {trial.seed} ({trial.kind}): {trial.complaints[0]}")
            print(f"    again: {sys.executable} {Path(__file__)} --case {trial.seed}", flush=True)

    def progress(self) -> str:
        """A line."""
        paths = sum(self.paths.values(), Counter())
        return (
            f"{self.seconds() / 60:.1f} minutes: {self.trials.total()} trials, "
            f"forecasts {dict(paths)}, {len(self.mismatches)} mismatches"
        )

    def write(self, out: Path | None, kinds: Any) -> None:
        """Write the result so far to a file, if there is to be one."""
        if out:
            out.write_text(json.dumps(self.result(kinds), indent=1) + "\n")

    def result(self, kinds: Any) -> dict[str, Any]:
        """What is written down."""
        import torch

        import toto_compile_patch
        from toto_compile_patch.tools import machine

        paths = sum(self.paths.values(), Counter())
        return machine.facts("cpu") | {
            "machine": machine.name(torch.device("cpu")),
            "python": platform.python_version(),
            "package": toto_compile_patch.__version__,
            "minutes": round(self.seconds() / 60, 1),
            "minutes_of_a_processor": round(time.process_time() / 60, 1),
            "first_seed": self.first,
            "trials": self.trials.total(),
            "forecasts": paths["fast"] + paths["upstream"] + paths["raised"],
            "fast": paths["fast"],
            "left_to_upstream": paths["upstream"],
            "raised_by_both": paths["raised"],
            "refused_by_upstream_for_a_rounding": paths["refused by upstream for a rounding"],
            "kinds": {
                kind: {"trials": self.trials[kind], **self.paths.get(kind, {})} for kind in kinds
            },
            "worst_rounding": self.worst,
            "judged_beside_upstreams_own_error": self.excused,
            "mismatches": self.mismatches,
        }


def table() -> str:
    """A row for each kind of trial, of all runs whose results are kept."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("random_*.json"))]
    if not runs:
        return "**Not run yet.**"
    rows = []
    for kind in runs[0]["kinds"]:
        counts = sum((Counter(run["kinds"][kind]) for run in runs), Counter())
        wrong = sum(one["kind"] == kind for run in runs for one in run["mismatches"])
        numbers = (counts[name] for name in ("trials", "fast", "upstream", "raised"))
        rows.append(f"| {kind} | {' | '.join(map(str, numbers))} | {wrong} |")
    said = f"{sum(run['judged_beside_upstreams_own_error'] for run in runs)} forecasts were judged "
    said += "beside upstream's own error."
    found = [run.get("worst_rounding", {}) for run in runs]
    worst = {name: max(one.get(name, 0.0) for one in found) for name in TYPES}
    if any(worst.values()):
        said += " Greatest difference of the others, in standard deviations of the variate: "
        said += ", ".join(f"{name} {most:.1g}" for name, most in worst.items() if most) + "."
    return "\n".join(
        [
            "| kind | trials | forecasts by the fast path | left to upstream's code | both raise | "
            "mismatches |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            said,
            "",
            *map(in_words, runs),
        ]
    )


def in_words(run: dict[str, Any]) -> str:
    """Where a run was made, and how long it took."""
    return (
        f"- torch {run['torch']}, {run['toto']}, Python {run['python']}, {run['machine']}, "
        f"{run['date']}: {run['trials']} trials, seeds from {run['first_seed']} on, in "
        f"{run['minutes']:.0f} minutes, of which a machine shared with others gave "
        f"{run['minutes_of_a_processor']:.0f} of a processor."
    )


if __name__ == "__main__":
    sys.exit(main())

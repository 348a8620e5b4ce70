"""The tables of docs/proof/soak.md, mutation.md and coverage.md, from the results kept here."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
EXPLAINED = HERE / "survivors.json"
NOT_YET = "**Not measured yet.**"


def tables() -> dict[str, str]:
    """The tables by the names that pages have for them."""
    return {
        "soak": soak_table(),
        "mutation": mutation_table(),
        "survivors": survivors_table(),
        "coverage": coverage_table(),
    }


def soak_table() -> str:
    """What a soak saw on each stack."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("soak_*.json"))]
    if not runs:
        return NOT_YET
    rows: dict[str, list[str]] = {}

    def row(what: str, found: str) -> None:
        rows.setdefault(what, []).append(found)

    for run in runs:
        row("", f"torch {run['torch']}, {run['toto']}")
        made = _forecasts(run)
        row("forecasts, threads", f"{sum(made.values())}, {run['threads']}")
        for what, count in sorted(run["counts"].items(), key=lambda one: one[0] not in made):
            row(f"of these, {what}" if what in made else what, str(count))
        row("means that differ from upstream's", str(run["wrong"]))
        row("greatest difference, of what is allowed", f"{run['worst_mean']:.0%}")
        first, last = run["readings"][len(run["readings"]) // 3], run["readings"][-1]
        for name in ("memory_mb", "objects", "tensors", "descriptors", "threads"):
            counts = (f"{one[name]:.0f}" for one in (first, last))
            what = f"{name.replace('_mb', ', MB')} after {first['forecasts']} and all forecasts"
            row(what, " → ".join(counts))
        row("seconds", str(run["seconds"]))
        row("complaints", "; ".join(run["complaints"]) or "none")
    lines = [f"| {what} | {' | '.join(cells)} |" for what, cells in rows.items()]
    lines.insert(1, f"| --- |{' --- |' * len(runs)}")
    legend = "; ".join(dict.fromkeys(f"{run['device']}, {run['date']}" for run in runs))
    return "\n".join([*lines, "", f"{legend}."])


def _forecasts(run: dict[str, Any]) -> dict[str, int]:
    """How many forecasts were made each way."""
    return {
        what: count
        for what, count in run["counts"].items()
        if what.startswith(("means", "samples"))
    }


def mutation_table() -> str:
    """How many mutants of each module were killed."""
    lines = [
        "| module | mutants | tested | killed | survived |",
        "| --- | --- | --- | --- | --- |",
    ]
    total: Counter[str] = Counter()
    legends = []
    for name, run in _mutations().items():
        outcomes = run["outcomes"].values()
        counts = {"mutants": run["possible"], "tested": len(outcomes)}
        counts["survived"] = sum(not outcome for outcome in outcomes)
        counts["killed"] = counts["tested"] - counts["survived"]
        total.update(counts)
        lines.append(_row(f"`{name}`", counts))
        legends.append(f"{run['device']}, torch {run['torch']}, {run['toto']}, {run['date']}")
    if not total:
        return NOT_YET
    lines.append(_row("all", total))
    return "\n".join([*lines, "", *[f"{one}." for one in dict.fromkeys(legends)]])


def _mutations() -> dict[str, Any]:
    """What became of the mutants of each module."""
    files = sorted(RESULTS.glob("mutation_*.json"))
    names = (file.stem.removeprefix("mutation_").replace("decode_", "decode/") for file in files)
    return {name: json.loads(file.read_text()) for name, file in zip(names, files, strict=True)}


def _row(name: str, counts: dict[str, int] | Counter[str]) -> str:
    share = counts["killed"] / counts["tested"]
    cells = (counts["mutants"], counts["tested"], f"{counts['killed']} ({share:.0%})")
    return f"| {name} | {' | '.join(map(str, cells))} | {counts['survived']} |"


def survivors_table() -> str:
    """Every mutant that survived, and why."""
    explained = json.loads(EXPLAINED.read_text())
    lines = ["| where | change | why no test fails |", "| --- | --- | --- |"]
    for name, run in _mutations().items():
        for mutant, outcome in run["outcomes"].items():
            if not outcome:
                place, _, change = mutant.partition(" ")
                why = explained.get(name, {}).get(mutant, "not explained yet")
                shown = change.replace("|", "\\|")
                lines.append(f"| `{name}.py`, line {place.partition(':')[0]} | `{shown}` | {why} |")
    return "\n".join(lines)


def coverage_table() -> str:
    """Branches by room."""
    if not (RESULTS / "coverage.json").exists():
        return NOT_YET
    run = json.loads((RESULTS / "coverage.json").read_text())
    rooms: dict[str, list[int]] = {}
    for name, file in run["files"].items():
        room = name.rpartition("/")[0]
        counts = rooms.setdefault(f"`{room}/`" if room else "its own modules", [0, 0])
        counts[0] += file["branches"]
        counts[1] += file["covered"]
    rooms["all"] = [run["total"]["branches"], run["total"]["covered"]]
    rooms["a GPU alone, apart"] = [run["gpu"]["branches"], run["gpu"]["covered"]]
    lines = ["| room | branches | taken by tests | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {room} | {branches} | {covered} | {covered / branches:.1%} |"
        for room, (branches, covered) in rooms.items()
        if branches
    ]
    legend = f"{run['device']}, torch {run['torch']}, {run['toto']}, {run['date']}."
    return "\n".join([*lines, "", legend])

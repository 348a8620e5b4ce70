#!/usr/bin/env python3
"""Put the figures of examples/results into the tables of the README and of its pages in docs.

    python .ci/tables.py            write them
    python .ci/tables.py --check    exit code 1 where a page differs

A figure comes from a file that a command of theirs wrote; a file that is not there (no GPU has
been at hand, say) makes no table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROOF = ROOT / ".ci" / "proof"
RESULTS = ROOT / "examples" / "results"
CLIENTS = ROOT / ".ci" / "clients" / "results.json"
COMPILED = "patched, compile"


def markdown(headings: str, rows: list[list[str]], legend: str) -> str:
    """A table, and a line below it."""
    lines = [headings, " | ".join(["| ---", *["---"] * (headings.count(" | ") - 1), "--- |"])]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([*lines, "", legend])


def bench_table(files: list[Path]) -> str:
    """Workloads, upstream and patched, of runs on one machine."""
    runs = [json.loads(file.read_text()) for file in files]
    found = {name: row for run in runs for name, row in run["workloads"].items()}
    rows, some_batches = [], False
    for name, row in sorted(found.items()):
        if "failed" in row:
            continue
        upstream, patched = row["upstream"], row["patched"]
        some_batches |= in_part(upstream)
        peaks = [side["peak_gb"] for side in (upstream, patched)]
        cells = [
            f"{name}, {row['what'].replace(' samples', '')}",
            seconds(upstream) + (" ¹" if in_part(upstream) else ""),
            seconds(patched),
            f"**{times(upstream['ratio'])}**",
            seconds(row[COMPILED]) if COMPILED in row else "",
            " / ".join(f"{gb:.1f}" for gb in peaks) if None not in peaks else "",
        ]
        rows.append(cells)
    machines = dict.fromkeys(
        f"{run['machine']}, torch {run['torch']}, {run['date']}" for run in runs
    )
    legend = "; ".join(machines) + "."
    if some_batches:
        legend += " ¹ Measured on one of its batches of samples, times their number: "
        legend += "the whole takes minutes."
    headings = (
        "| workload: series x variates x context, horizon, samples | upstream | patched | times "
        "faster | patched, compiled | peak GB |"
    )
    return markdown(headings, rows, legend)


def in_part(upstream: dict[str, Any]) -> bool:
    """Whether upstream was measured on one of its batches of samples."""
    measured, _, whole, *_ = upstream["measured"].split()
    return bool(measured != whole)


GPU_RUNS = ("compiled", "precision", "upstream_compiled")
"""What a name ends in, where it is not of the benchmark's main run on a GPU (see .ci/gpu)."""


def is_of_a_gpu(file: Path) -> bool:
    """Whether a file is of the benchmark's main run on a GPU."""
    return "cpu" not in file.stem and not file.stem.endswith(GPU_RUNS)


GPU_SIDES = {
    "patched, compile+cudagraph": "patched, compiled",
    "patched, tf32x3": "tf32x3",
    "patched, tf32": "tf32",
    "patched, bf16": "bf16",
    "upstream compiled": "upstream, compiled",
}


def gpu_table(file: Path) -> str:
    """Workloads on a GPU: upstream, patched, and the patched side's other ways."""
    run = json.loads(file.read_text())
    others = [file.with_name(f"{file.stem}_{name}.json") for name in GPU_RUNS]
    ways = [json.loads(one.read_text())["workloads"] for one in others if one.exists()]
    # Only what was measured with this version has its column.
    sides = {
        side: heading
        for side, heading in GPU_SIDES.items()
        if any(side in row for way in ways for row in way.values())
    }
    rows, some_batches = [], False
    for name, row in run["workloads"].items():
        upstream = row["upstream"]
        some_batches |= in_part(upstream)
        cells = [f"{name}, {row['what'].replace(' samples', '')}"]
        cells.append(milliseconds(upstream) + (" ¹" if in_part(upstream) else ""))
        cells += [milliseconds(row["patched"]), f"**{times(upstream['ratio'])}**"]
        for side in sides:
            ratios = [way[name][side]["ratio"] for way in ways if side in way.get(name, {})]
            cells.append(milliseconds(row["patched"], ratios[0]) if ratios else "")
        rows.append(cells)
    legend = f"{run['machine']}, torch {run['torch']}, {run['date']}; milliseconds."
    if sides:
        legend += " Columns after the ratio are of runs of their own: patched, times the ratio to "
        legend += "it found there."
    if some_batches:
        legend += " ¹ Measured on one of its batches of samples, times their number."
    first = "workload: series x variates x context, horizon, samples"
    headings = f"| {' | '.join([first, 'upstream', 'patched', 'times faster', *sides.values()])} |"
    return markdown(headings, rows, legend)


def work_table(file: Path) -> str:
    """What a GPU has to do, upstream and patched, as counted."""
    run = json.loads(file.read_text())
    columns = ("operators", "float64", "tflop", "gb", "questions", "floor_ms")
    rows = []
    for name, row in sorted(run["workloads"].items()):
        both = ((row["upstream"][column], row["patched"][column]) for column in columns)
        cells = [
            " / ".join(f"{count:.0f}" if count >= 100 else f"{count:.2g}" for count in pair)
            for pair in both
        ]
        rows.append([f"{name}, {row['what'].replace(' samples', '')}", *cells])
    headings = (
        "| upstream / patched | operators | in float64 | TFLOP | GB read and written | questions | "
        "floor, ms |"
    )
    legend = f"Computed, not measured; {run['card']}, torch {run['torch']}, {run['date']}."
    return markdown(headings, rows, legend)


def milliseconds(side: dict[str, Any], ratio: float = 1.0) -> str:
    """Milliseconds, times a ratio, to three digits."""
    found = 1000 * side["seconds"] * ratio
    return f"{found:.0f}" if found >= 1000 else f"{found:.3g}"


def start_table(file: Path) -> str:
    """First forecasts of a compiled model."""
    run = json.loads(file.read_text())
    rows = [
        [name, *(f"{row[key]:.3g}" for key in ("trivial", "first", "second", "steady"))]
        for name, row in run["starts"].items()
    ]
    headings = "| seconds | trivial function | first forecast | second | steady |"
    return markdown(headings, rows, f"{run['machine']}, torch {run['torch']}, {run['date']}.")


def fixes_table(file: Path) -> str:
    """What dynamo does for each way to compile and patch Toto."""
    run = json.loads(file.read_text())
    rows = []
    for row in run["rows"].values():
        counts = ("graphs", "graph_breaks", "recompilations", "limit_hits")
        remark = f" (raises {row['error']})" if "error" in row else ""
        if runs := row.get("wrapper_runs"):
            remark = f" (it runs in {runs['compiled']} of {runs['eager']} compiled calls)"
        rows.append([row["way"] + remark, *(str(row.get(count, "")) for count in counts)])
    legend = f"Backend {run['backend']}, torch {run['machine']['torch']}, {run['machine']['date']}."
    headings = "| what is written | graphs | breaks | recompiled | limit hits |"
    return markdown(headings, rows, legend)


def ab_table(file: Path) -> str:
    """The demo model on the bundled series, upstream and patched."""
    run = json.loads(file.read_text())
    speeds = {speed["way"]: speed for speed in run["speed"]}
    rows = []
    for row in run["accuracy"]:
        speed = speeds.get(row["way"])
        cells = [row["way"], "", "", f"{row['mae']:.3f}", f"{row['mase']:.3f}", "", ""]
        if speed:
            cells[1:3] = f"{speed['median']:.3g}", f"**{times(speed['ratio'])}**"
        if row["coverage"] is not None:
            cells[5:] = f"{row['crps']:.3f}", f"{row['coverage']:.0%}"
        rows.append(cells)
    judgement, setting = run["judgement"], run["setting"]
    legend = (
        f"{setting['forecasts']}; {setting['machine']}, {setting['date']}. Quantiles of the "
        f"two sides differ by {judgement['distance']:.1%} of the interval, two seeds of upstream "
        f"by {judgement['between_seeds']:.1%}; mean forecasts by {judgement['mean']:.0e} standard "
        "deviations. Patched changes the "
        f"mean absolute error of median forecasts by {abs(run['mae_change']):.1%}, of mean "
        f"forecasts by {abs(run['mae_change_of_means']):.4%}."
    )
    headings = "| | median seconds | times faster | MAE | MASE | CRPS | 80 % interval holds |"
    return markdown(headings, rows, legend)


def clients_table(file: Path) -> str:
    """What forecasts by Toto, upstream and patched, and what one has to know of each."""
    runs = json.loads(file.read_text())
    rows, notes = [], []
    for run in runs.values():
        client = f"{run['client']} {run['version']}"
        for name, case in run["cases"].items():
            chance = [case[key] for key in ("distance", "between_seeds") if key in case]
            cells = [
                f"{client}: {name}",
                f"{case['upstream']:.3g} s",
                f"{case['patched']:.3g} s",
                f"**{times(case['ratio'])}**",
                f"{case['rounding']:.0e}",
                " / ".join(f"{distance:.1%}" for distance in chance),
            ]
            rows.append(cells)
        if run["pitfalls"]:
            notes.append(f"- {run['client']}: {run['recipe']}. {run['pitfalls']}")
    machines = dict.fromkeys(
        f"{run['machine']}, torch {run['torch']}, {run['date']}" for run in runs.values()
    )
    legend = f"{'; '.join(machines)}.\n\n" + "\n".join(notes)
    headings = (
        "| client | upstream | patched | times faster | differs by, in standard deviations | "
        "quantiles differ by / two seeds of upstream |"
    )
    return markdown(headings, rows, legend)


def from_to(ratios: list[float]) -> str:
    return f"{times(min(ratios))} to {times(max(ratios))}"


def many_table(file: Path) -> str:
    """Windows one by one, and those of one shape together."""
    if not file.exists():
        return "**Not measured yet.**"
    run = json.loads(file.read_text())
    rows = [
        [
            f"{name}, {row['what'].replace(' samples', '')}",
            f"{row['alone_ms']:.3g} ms",
            f"{row['many_ms']:.3g} ms",
            f"**{times(median(row['ratios']))}** ({from_to(row['ratios'])})",
        ]
        for name, row in run["many"].items()
    ]
    headings = (
        "| windows of | a window, by `forecast` | by `forecast_many` | times faster (the turns) |"
    )
    count = next(iter(run["many"].values()))["windows"]
    legend = f"{count} windows, both patched, in turns; {run['model']}; {run['device']}, "
    return markdown(headings, rows, f"{legend}torch {run['torch']}, {run['date']}.")


def shares_table(file: Path) -> str:
    """What a forecast on a CPU spends its time on."""
    run = json.loads(file.read_text())
    kinds = list(next(iter(run["shares"].values()))["shares"])
    rows = [
        [name, *(f"{share:.1%}" for share in row["shares"].values())]
        for name, row in run["shares"].items()
    ]
    legend = f"{run['device']}, torch {run['torch']}, {run['date']}."
    return markdown(f"| workload, version | {' | '.join(kinds)} |", rows, legend)


def precisions_table(file: Path) -> str:
    """What 16 bits gain on a CPU, and what they leave."""
    run = json.loads(file.read_text())
    kinds = list(next(iter(run["shares"].values()))["shares"])
    rows = [
        [
            name,
            f"{row['seconds']:.3g} s",
            f"{row['of_the_rate']:.1%}",
            f"{row['times_faster']:.2f}",
            f"{row['at_most']:.2f}",
            *(f"{row['shares'][kind]:.1%}" if row["shares"] else "" for kind in kinds),
        ]
        for name, row in run["shares"].items()
    ]
    legend = f"{run['device']}, torch {run['torch']}, {run['date']}."
    figures = "seconds | of the rate | times faster | at most"
    return markdown(f"| workload, precision | {figures} | {' | '.join(kinds)} |", rows, legend)


def errors_table(file: Path) -> str:
    """How far forecasts in 16 bits lie from exact ones."""
    run = json.loads(file.read_text())
    rows = [
        [f"{name}, {kind}", f"{error['mean']:.1e}", f"{error['most']:.1e}"]
        for name, kinds in run["errors"].items()
        for kind, error in kinds.items()
    ]
    legend = f"{run['windows']} windows, {run['samples']} samples; {run['device']}, "
    legend += f"torch {run['torch']}, {run['date']}."
    return markdown("| model, forecast | on average | at most |", rows, legend)


def versions_table(file: Path) -> str:
    """Seconds and memory of this version and of one before."""
    run = json.loads(file.read_text())
    rows, names = [], list[str]()
    for name, row in run["workloads"].items():
        names, (low, _, high) = row["versions"], quantiles(row["ratios"], n=4)
        seconds = [f"{one:.3g} s" for one in row["seconds"]]
        peaks = [f"{one / 1e3:.2f} GB" for one in row["peak_mb"]]
        rows.append([name, *seconds, f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})", *peaks])
    before, after = names
    headings = (
        f"| workload, runtime | {before} | {after} | ratio | peak, {before} | peak, {after} |"
    )
    legend = f"{run['device']}, torch {run['torch']}, {run['date']}."
    return markdown(headings, rows, legend)


def files_table() -> str:
    """Files as people have them, and what is said of each."""
    sys.path.insert(0, str(ROOT / "tests"))
    from people_files import CASES, outcome

    with TemporaryDirectory() as folder:
        rows = [
            [f"`{case.name}{case.asked}`", case.tests, outcome(case, Path(folder))]
            for case in CASES
        ]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return markdown("| file | what it tests | what is said of it |", rows, f"{len(rows)} files.")


def proof_tables() -> dict[str, str]:
    """The tables of docs/proof."""
    sys.path.insert(0, str(PROOF))
    import dangerous_calls
    import faults
    import inputs
    import matrix
    import messages
    import quality_tables
    import random_forecasts
    import release

    return {
        **quality_tables.tables(),
        "faults": faults.table(),
        "inputs": inputs.table(),
        "matrix": matrix.table(),
        "messages": messages.table(),
        "random": random_forecasts.table(),
        "release": release.table(),
        "dangerous-calls": dangerous_calls.table(),
    }


def times(ratio: float) -> str:
    """A ratio, to three digits."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def seconds(side: dict[str, Any]) -> str:
    """Seconds, to three digits."""
    return f"{side['seconds']:.3g} s"


def tables() -> dict[str, str]:
    """The tables by the names that pages have for them."""
    found = {
        "bench-cpu": bench_table(sorted(RESULTS.glob("bench_cpu*.json"))),
        "start-cpu": start_table(RESULTS / "start_cpu.json"),
        "ab-cpu": ab_table(RESULTS / "ab_cpu.json"),
        "many-cpu": many_table(RESULTS / "many_cpu.json"),
        "clients": clients_table(CLIENTS),
        "files": files_table(),
        "shares-cpu": shares_table(RESULTS / "shares_cpu.json"),
        "precisions-cpu": precisions_table(RESULTS / "precisions_cpu.json"),
        "precision-errors": errors_table(RESULTS / "precision_errors_cpu.json"),
        "versions-cpu": versions_table(RESULTS / "versions_cpu.json"),
        "obvious-fixes": fixes_table(RESULTS / "obvious_fixes_cpu.json"),
    }
    found |= proof_tables()
    found["work-gpu"] = work_table(RESULTS / "work_h100.json")
    found["bench-gpu"] = "\n\n".join(
        gpu_table(file) for file in sorted(RESULTS.glob("bench_*.json")) if is_of_a_gpu(file)
    )
    found["many-gpu"] = "\n\n".join(
        many_table(file) for file in sorted(RESULTS.glob("many_*.json")) if "cpu" not in file.stem
    )
    return found


def main() -> int:
    """Write or check the pages."""
    made, differs = tables(), False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        before = after = page.read_text()
        for name, table in made.items():
            head, start, rest = after.partition(f"<!-- table: {name} -->\n")
            if start:
                after = f"{head}{start}{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
        differs |= before != after
        if "--check" not in sys.argv:
            page.write_text(after)
    return int(differs and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())

"""The benchmark's figures as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_UPSTREAM, _PATCHED = "upstream", "patched"


def show(figures: dict[str, Any], console: Console) -> None:
    """Print a row for each workload and side, and what to know of them."""
    table = Table(
        title=f"{figures['machine']}, torch {figures['torch']}, {figures['dtype']}",
        caption=f"matrix products {figures['matrix_gflops']} GFLOP/s, "
        f"memory {figures['memory_gb_per_s']} GB/s, measured in this run",
    )
    table.add_column("", no_wrap=True)
    headings = ["seconds", "times slower", "from-to", "first, s", "peak GB", "CPU s", "of limit"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    notes: list[str] = []
    for name, row in figures["workloads"].items():
        if "failed" in row:
            notes.append(f"{name}: could not be measured: {row['failed']}")
            continue
        sides = [side for side in row if isinstance(row[side], dict)]
        for side in sides:
            table.add_row(*_cells(name, side, row[side]), end_section=side == sides[-1])
        notes += _notes(name, row)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _cells(name: str, side: str, found: dict[str, Any]) -> list[str]:
    ratios = found.get("ratios", [])
    return [
        f"{name} {side}",
        f"{found['seconds']:.3g}",
        f"[bold]{found['ratio']:.3g}[/]" if ratios else "",
        f"{min(ratios):.3g}-{max(ratios):.3g}" if ratios else "",
        f"{found['first_seconds']:.3g}" if "first_seconds" in found else "",
        "?" if found["peak_gb"] is None else f"{found['peak_gb']:.3g}",
        f"{found['cpu_seconds']:.3g}",
        f"{found['share_of_limit']:.0%}" if "share_of_limit" in found else "",
    ]


def _notes(name: str, row: dict[str, Any]) -> list[str]:
    upstream = row[_UPSTREAM]
    notes = []
    batches = upstream["measured"].split()
    if batches[0] != batches[2]:
        notes.append(f"{name}: upstream measured on {upstream['measured']}, times the rest")
    elif (pairs := len(upstream["ratios"])) < 5:
        notes.append(f"{name}: {pairs} pairs")
    for side, found in row.items():
        if isinstance(found, dict) and "accuracy" in found:
            figures = found["accuracy"]
            notes.append(
                f"{name}, {side}: median forecast off by {figures['difference']:.2g} of the "
                f"series' standard deviation (two seeds: {figures['between_seeds']:.2g}); mean "
                f"error {figures['error']:.4g}, before {figures['error_before']:.4g}"
            )
    if row["disturbed"]:
        notes.append(
            f"{name}: the machine was disturbed ({row['stolen']:.0%} of its time stolen, "
            f"spread {upstream['spread']} and {row[_PATCHED]['spread']}): measure again"
        )
    return notes

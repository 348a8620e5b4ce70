"""What the matrix of versions found (see noxfile.py), as a long table and a short one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "matrix.json"
TOTO = ("toto-ts", "timecopilot-toto")
COLUMNS = ("torch", "xformers", "wrapt", "numpy", "Python")
COUNTS = ("passed", "failed", "skipped", "seconds")


def table() -> str:
    """One row for each combination, and below them the machine and what failed."""
    found = rows()
    lines = [["Toto", *COLUMNS, *COUNTS, "date"]]
    lines.append(["---"] * len(lines[0]))
    for row in found:
        versions = [row["versions"].get(name, "") for name in COLUMNS]
        counts = [str(row[count]) for count in COUNTS]
        lines.append([toto_of(row), *versions, *counts, row["date"]])
    legend = "; ".join(dict.fromkeys(row["machine"] for row in found))
    legend += ", which others used too; seconds include those of installing."
    legend += "".join(f" Failed: `{name}`." for row in found for name in row["failures"])
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", legend])


def rows() -> list[dict[str, Any]]:
    """What the runs kept, in the order of the list of combinations."""
    return list(json.loads(RESULTS.read_text()).values())


def toto_of(row: dict[str, Any]) -> str:
    """The distribution that Toto came from, and its version."""
    [found] = [f"{name} {row['versions'][name]}" for name in TOTO if name in row["versions"]]
    return found

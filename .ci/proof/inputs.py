#!/usr/bin/env python3
"""What upstream and the patched code make of each odd input, for the table of docs/proof/inputs.md.

    python .ci/proof/inputs.py      make all calls anew, and write results/inputs.json

Exit code 1 where the two differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(__file__).parent / "results" / "inputs.json"


def main() -> int:
    """Make all calls, and write what came of them."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from odd_inputs import GROUPS
    from odd_outcomes import ORDINARY, outcome

    from toto_compile_patch.tools import machine

    torch.distributions.Distribution.set_default_validate_args(True)
    rows = [
        {"group": group, "input": row.what, "asked": what, **vars(outcome(row, asked))}
        for group, every in GROUPS.items()
        for row in every
        for what, asked in ORDINARY.items()
        if asked.samples or not row.draws
    ]
    RESULTS.write_text(json.dumps(machine.facts("cpu") | {"rows": rows}, indent=1) + "\n")
    different = [row for row in rows if row["complaint"]]
    for row in different:
        print(f"{row['input']}, {row['asked']}: {row['complaint']}, upstream: {row['upstream']}")
    return bool(different)


def table() -> str:
    """A row for each input: what upstream makes of it, and what the patched code does."""
    if not RESULTS.exists():
        return "**Not run yet.**"
    run = json.loads(RESULTS.read_text())
    cells: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in run["rows"]:
        cells.setdefault((row["group"], row["input"]), []).append(row)
    lines = ["| | input | upstream | patched |", "| --- | --- | --- | --- |"]
    group_before = ""
    for (group, what), rows in cells.items():
        named = group if group != group_before else ""
        group_before = group
        theirs = " / ".join(dict.fromkeys(escaped(row["upstream"]) for row in rows))
        ours = " / ".join(dict.fromkeys(in_words(row) for row in rows))
        lines.append(f"| {named} | {what} | {theirs} | {ours} |")
    legend = (
        f"{len(cells)} inputs, {len(run['rows'])} calls; torch {run['torch']}, {run['toto']}, "
        f"{run['date']}."
    )
    return "\n".join([*lines, "", legend])


def escaped(text: str) -> str:
    """As a cell of a table holds it: an error as code."""
    text = text.replace("|", "\\|").replace("`", "'")
    return f"`{text}`" if ": " in text else text


def in_words(row: dict[str, str]) -> str:
    """What the patched code makes of an input."""
    if row["complaint"]:
        return f"**differs**: {escaped(row['complaint'])}"
    if not row["made_by"]:
        return "the same error"
    by = "the fast path" if row["made_by"] == "fast" else "upstream's code"
    return f"the same, by {by}"


if __name__ == "__main__":
    sys.exit(main())

"""What a doctor finds: something in the way, or something to know, and its cure.

What is said stands in ``catalogue.json``: by name, each finding's level, its words with places for
what was seen, and its cure; what known errors of scripts mean; and cures that several have.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

_CATALOGUE = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
_PREFIXES = ("TOTO_COMPILE_PATCH", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_COMPILE")

_LONGEST_REASON = 160
"""In the last line; the diagnosis above has it whole."""


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        level: ``problem``: in the way of what was asked for; ``trap``: bites whoever comes near;
            ``note``: good to know.
        what: what it is, in plain words.
        cure: what to do about it, in one line; empty where nothing is to be done.
    """

    level: str
    what: str
    cure: str = ""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What was looked at, and the diagnosis.

    Attributes:
        findings: what is in the way, traps, and what is good to know.
    """

    findings: list[Finding] = field(default_factory=list)

    all_well: ClassVar[str] = "Nothing is in the way."
    """What is said where nothing waits for a cure."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is in the way of what was asked for."""
        return not problems(self.findings)

    @property
    def last_word(self) -> str:
        """What is in the way and what to do next, the gravest first, or that nothing is."""
        waiting = problems(self.findings)
        if not waiting:
            return self.all_well
        first = waiting[0]
        lead = f"In the way, first of {len(waiting)}" if len(waiting) > 1 else "In the way"
        cure = first.cure or "mend that, and ask the doctor again"
        what = textwrap.shorten(first.what, _LONGEST_REASON, placeholder=" ...")
        return f"{lead}: {what} To do next: {cure}"

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"healthy": self.healthy, "last_word": self.last_word, **asdict(self)}


def finding(key: str, /, **seen: Any) -> Finding:
    """A finding of the catalogue.

    Args:
        key: what the catalogue calls it.
        **seen: what stands in the places of its words and its cure; ``level``, where it is not the
            catalogue's.
    """
    row = _CATALOGUE["findings"][key]
    cure = row.get("cure", "").format_map({**_CATALOGUE["cures"], **seen})
    what = row["what"].format_map(seen)
    # What is seen may be a message without its full stop.
    what += "" if what.endswith((".", "!", "?")) else "."
    return Finding(seen.get("level", row["level"]), what, cure)


def failure(error: str) -> Finding:
    """What an exception of a script means, where that is known."""
    meaning, cure = meaning_of(error)
    if meaning:
        return finding("known error", meaning=meaning, cure=cure)
    first_line = next(iter(error.splitlines()), error)
    return finding("other error", error=first_line.rstrip("."))


def meaning_of(error: str) -> tuple[str, str]:
    """What is known of an exception: its meaning and its cure; empty where nothing is."""
    for pattern, row in _CATALOGUE["errors"].items():
        if re.search(pattern, error, re.DOTALL):
            return row["meaning"], row["cure"].format_map(_CATALOGUE["cures"])
    return "", ""


def problems(findings: list[Finding]) -> list[Finding]:
    """Those that are in the way."""
    return [finding for finding in findings if finding.level == "problem"]


def bearing_variables() -> dict[str, str]:
    """The environment variables that bear on compiling and on this package."""
    return {name: text for name, text in sorted(os.environ.items()) if name.startswith(_PREFIXES)}


def compiling_switched_off(variables: dict[str, str], level: str) -> Iterator[Finding]:
    """What environment variables say against all compiling."""
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if variables.get(name, "0") not in ("", "0"):
            yield finding("compiling switched off", level=level, variable=name)

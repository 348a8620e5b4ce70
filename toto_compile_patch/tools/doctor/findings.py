"""What a doctor finds: something in the way, or something to know, and its cure."""

from __future__ import annotations

from dataclasses import dataclass

APPLY = "import toto_compile_patch; toto_compile_patch.apply()"


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


def problems(findings: list[Finding]) -> list[Finding]:
    """Those that are in the way."""
    return [finding for finding in findings if finding.level == "problem"]

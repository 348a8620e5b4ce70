"""Numbers with what they count, as sentences want them."""

from __future__ import annotations


def counted(number: int, what: str, plural: str | None = None) -> str:
    """A number and what it counts: 1 window, 3 windows, 1,000 windows."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"

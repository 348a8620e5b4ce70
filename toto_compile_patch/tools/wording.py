"""How the commands say what several of them say."""

from __future__ import annotations


def counted(number: float, what: str, several: str = "") -> str:
    """So many of something: ``1 window``, ``2 windows``, ``0.5 CPUs``,
    ``1,000 windows``.

    Args:
        number: how many.
        what: one of them.
        several: more than one of them, or none; default: with an s at its end.
    """
    word = what if number == 1 else several or f"{what}s"
    return f"{number:,} {word}" if isinstance(number, int) else f"{number:g} {word}"

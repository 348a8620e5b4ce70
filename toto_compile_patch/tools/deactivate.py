"""``toto-compile-patch deactivate``: takes back what ``activate`` did."""

from __future__ import annotations

import argparse

from toto_compile_patch.tools import activate


def run(options: argparse.Namespace) -> int:
    """Remove the file that ``activate`` wrote, and say so.

    Raises:
        UsageError: it cannot be removed.
    """
    return activate.deactivate()

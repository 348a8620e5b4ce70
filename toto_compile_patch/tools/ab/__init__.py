"""``ab``: the user's series forecast by upstream's code and patched, side by side."""

from __future__ import annotations

import argparse

from toto_compile_patch.tools.ab.asked import data_of


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code.

    Raises:
        UsageError: it cannot be run as it was asked for.
    """
    # What is wrong with the file is said before torch is imported.
    data = data_of(options)
    from toto_compile_patch.tools.ab import compare

    return compare.run(options, data)

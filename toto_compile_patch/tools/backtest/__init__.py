"""``backtest``: rolling-origin forecasts of every series of a file, that go on after a kill."""

from __future__ import annotations

import argparse


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code.

    Raises:
        UsageError: it cannot be run as it was asked for.
    """
    # Whoever asks for a module of this package need not have pandas; and what is wrong with the
    # file is said before torch is imported.
    from toto_compile_patch.tools.backtest.asked import asked_by

    asked = asked_by(options)
    from toto_compile_patch.tools.backtest import command

    return command.run(options, asked)

"""``backtest``: rolling-origin forecasts of every series of a file, that go on after a kill."""

from __future__ import annotations

import argparse

from toto_compile_patch.tools.checks import UsageError


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code.

    Raises:
        UsageError: it cannot be run as it was asked for.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        said = str(error).partition("\n")[0]
        raise UsageError(
            f"pyarrow cannot be imported ({said}): pip install 'toto-compile-patch[backtest]'"
        ) from None
    from toto_compile_patch.tools.backtest import command

    return command.run(options)

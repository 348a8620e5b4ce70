"""``fingerprints``: which definitions of Toto's code are known, and which differ.

For whoever supports a new release of toto-ts. Files are read, and nothing of them is run: the
release need not be installed, nor work.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from toto_compile_patch import carriers
from toto_compile_patch.tested_code import FINGERPRINTS, INHERITED
from toto_compile_patch.tools.checks import UsageError, report
from toto_compile_patch.tools.screen import console_of, show_table

_WIDTH = 130


@dataclass(frozen=True)
class Definition:
    """A definition that is replaced or relied on.

    Attributes:
        symbol: its dotted name.
        found: its fingerprints in the files; more than one where it is defined more than once.
        known: those of tested code; none where tested code inherits it.
    """

    symbol: str
    found: list[str]
    known: list[str]

    @property
    def state(self) -> str:
        """What is to be said of it, in words."""
        if not self.found:
            return "NOT FOUND" if self.known else "inherited, as known"
        if not self.known:
            return "DIFFERS: was inherited"
        return "known" if set(self.found) & set(self.known) else "DIFFERS"

    @property
    def differs(self) -> bool:
        """Whether it is not as tested code has it."""
        return not self.state.endswith("known")


def run(options: argparse.Namespace) -> int:
    """Print each definition's fingerprints; return 1 where any differs from tested code.

    Raises:
        UsageError: there is no such folder, none of Toto's code in it, or the figures cannot be
            written.
    """
    folder = str(options.folder or next(iter(carriers.folders_of_package("toto")), ""))
    if not folder:
        raise UsageError("toto is not installed: pip install toto-ts, or give a package's FOLDER")
    if not Path(folder).is_dir():
        raise UsageError(f"no folder {folder}: give that of a package toto")
    definitions = compare(folder)
    if not any(definition.found for definition in definitions):
        raise UsageError(
            f"{folder} holds no package toto: give the folder that holds its model and inference, "
            "such as site-packages/toto"
        )
    differing = [definition for definition in definitions if definition.differs]
    figures = [{**asdict(one), "state": one.state} for one in definitions]
    told = {"folder": folder, "definitions": figures}
    report(options.json, told, lambda: _show(folder, definitions, differing))
    return 1 if differing else 0


def compare(folder: str) -> list[Definition]:
    """Each definition that is replaced or relied on, as a folder's files have it and as known."""
    found = carriers.fingerprints_in(folder)
    return [
        Definition(
            symbol,
            sorted(found.get(carriers.qualified(symbol), ())),
            sorted(FINGERPRINTS.get(symbol, ())),
        )
        for symbol in (*FINGERPRINTS, *INHERITED)
    ]


def _show(folder: str, definitions: list[Definition], differing: list[Definition]) -> None:
    rows = [
        (one.symbol, " ".join(one.found) or "-", "\n".join(one.known) or "-", one.state)
        for one in definitions
    ]
    console = console_of(_WIDTH)
    show_table(console, ("definition", "here", "known", "state"), rows, folder)
    if not differing:
        console.print("All of them are known.")
        return
    console.print(f"Other than known, or missing: {len(differing)} of {len(definitions)}:")
    for one in differing:
        console.print(f"  {one.symbol}: {one.state}", markup=False, soft_wrap=True)
    console.print(
        "What to do: 'A new release of toto-ts' in MAINTAINING.md of this package's repository."
    )

"""The doctor's reports: tables where rich is installed, plain lines where it is not."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from toto_compile_patch.tools.doctor.environment import Environment
from toto_compile_patch.tools.doctor.examination import Examination, Group
from toto_compile_patch.tools.doctor.findings import Examined
from toto_compile_patch.tools.doctor.trial import Trial
from toto_compile_patch.tools.wording import counted

_MOST_ROWS = 12
_MOST_NAMES = 3
_LONG_NAME = 26
_COLUMNS = 100
_MARKS = {"problem": "!! ", "trap": " ! ", "note": "   "}
_STYLES = {"problem": "bold red", "trap": "yellow", "note": "dim"}


class Screen:
    """Standard output, for headings, tables, and findings with their cures."""

    def __init__(self) -> None:
        # Into a file or a pipe, rich would write 80 columns.
        self._width = shutil.get_terminal_size((_COLUMNS, 24)).columns
        self._console: Any = None
        with suppress(ImportError):
            from rich.console import Console

            self._console = Console(highlight=False, width=self._width)

    def heading(self, text: str) -> None:
        """A line that stands apart."""
        self.line(f"--- {text} ".ljust(self._width, "-"))

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line of text."""
        if self._console:
            self._console.print(text, markup=False, style=style)
        else:
            print(text)

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[object]], whole: Sequence[str] = ()
    ) -> None:
        """A table; columns of numbers stand to the right. Long tables are cut, and say so.

        Args:
            headings: of the columns.
            rows: their cells; without any, there is no table.
            whole: headings of columns that are not to be broken into lines.
        """
        if not rows:
            return
        cells = [[str(cell) for cell in row] for row in rows[:_MOST_ROWS]]
        if self._console:
            from toto_compile_patch.tools.screen import table_of

            table = table_of(headings, cells)
            table.pad_edge, table.padding = False, (0, 1)
            for column, heading, cell in zip(table.columns, headings, rows[0], strict=True):
                number = isinstance(cell, int)
                column.justify = "right" if number else "left"
                column.no_wrap = number or (heading in whole and self._width >= _COLUMNS)
                column.overflow = "fold"
            self._console.print(table)
        else:
            cells = [[" ".join(cell.split()) for cell in row] for row in (headings, *cells)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for row in cells:
                self.line("  ".join(map(str.ljust, row, widths)).rstrip())
        if len(rows) > _MOST_ROWS:
            self.line(f"  ... and {len(rows) - _MOST_ROWS} more: --json has them all", "dim")
        self.line()

    def diagnosis(self, found: Examined) -> None:
        """Each finding, with its cure below; and in one line, the last, what to do next."""
        self.heading("diagnosis")
        for finding in found.findings:
            self._paragraph(_MARKS[finding.level], finding.what, _STYLES[finding.level])
            if finding.cure:
                self._paragraph("   cure: ", finding.cure)
        style = "green" if found.healthy else "bold red"
        if self._console:
            self._console.print(found.last_word, markup=False, style=style, soft_wrap=True)
        else:
            print(found.last_word)

    def _paragraph(self, lead: str, text: str, style: str | None = None) -> None:
        """A text whose further lines stand under its first."""
        text = textwrap.fill(
            lead + text,
            min(self._width, _COLUMNS) - 1,
            subsequent_indent=" " * len(lead),
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.line(text, style)


def show(found: Environment | Examination) -> None:
    """Print what was found in an environment, or seen of a script."""
    if isinstance(found, Environment):
        _show_environment(Screen(), found)
    else:
        _show_examination(Screen(), found)


def _show_environment(screen: Screen, found: Environment) -> None:
    untested = [(symbol.name, symbol.problem) for symbol in found.symbols if symbol.problem]
    tested, symbols = len(found.symbols) - len(untested), len(found.symbols)
    code = f"{tested} of {counted(symbols, 'symbol')} as tested"
    code = code if symbols else "could not be read"
    screen.heading("installed")
    screen.table(("", "version"), [*found.versions.items(), ("toto's code", code)])
    screen.table(("not code that was tested", "why"), untested)
    screen.heading("what apply() does here")
    patches = [(row.name, row.state, row.detail) for row in found.patches]
    screen.table(("patch", "state", ""), patches)
    if found.carriers:
        screen.heading("where Toto's code is")
        # Without patches, nothing is reached.
        applies = any(row.state == "applied" for row in found.patches)
        places = [
            (c.name, c.state if applies else c.state.partition(",")[0], c.code, c.folder)
            for c in found.carriers
        ]
        screen.table(("package", "state", "code", "where"), places)
    screen.table(("environment variable", "value"), list(found.variables.items()))
    if found.trials:
        screen.heading("a small forecast with random weights")
        forecasts = [(one.device, _made_by(one), f"{one.seconds:.2f}") for one in found.trials]
        screen.table(("on", "made by", "seconds"), forecasts)
    if found.products:
        screen.heading("matrix products")
        for products in found.products:
            screen.line(products.sentence)
        screen.line()
    screen.diagnosis(found)


def _show_examination(screen: Screen, found: Examination) -> None:
    screen.line()
    screen.heading(f"doctor: {found.script}, exit code {found.exit_code}")
    if found.observed:
        rows = [
            (way["count"], _path(way), "yes" if way["compiled"] else "no", way["place"])
            for way in found.forecasts
        ]
        screen.table(("forecasts", "made by", "model compiled", "asked for at"), rows)
        _show_compiler(screen, found)
    screen.diagnosis(found)


def _made_by(trial: Trial) -> str:
    if trial.error:
        return f"nobody: {trial.error}"
    if trial.path is not None and trial.is_fast:
        return f"the fast path, {trial.path.runtime}"
    return f"upstream: {trial.path.reason}" if trial.path else "upstream, unpatched"


def _path(way: dict[str, Any]) -> str:
    if way["carrier"]:
        return f"{way['carrier']}, not reached by apply()"
    if way["path"] == "fast":
        return f"the fast path, {way['runtime']}"
    if way["reason"]:
        return f"upstream: {way['reason']}"
    if way["patches"]:
        return f"upstream, with {', '.join(way['patches'])}"
    return "upstream, unpatched"


def _show_compiler(screen: Screen, found: Examination) -> None:
    counts = found.counts or {}
    if not any(counts.values()):
        screen.line("torch.compile: no graph was compiled in this process.\n")
        return
    told = "{graphs}, {graph_breaks}, {recompilations}, {limit_hits} hit"
    screen.line(f"torch {found.torch}: {told.format_map(found.counts_in_words)}")
    if found.seconds:
        told = "Compiling took {compiling:.1f} s, all forecasts together {forecasting:.1f} s beside"
        screen.line(f"{told.format_map(found.seconds)} that.")
    screen.line()
    functions = [
        (_in_lines(f.name), f.graphs, f.breaks, f.recompilations, f.limit_hits, f.place)
        for f in found.functions
    ]
    headings = ("function", "graphs", "breaks", "recomp.", "limit", "where")
    screen.table(headings, functions, whole=("function", "where"))
    breaks = [(g.count, g.reason, g.place, _some(g.functions)) for g in found.breaks]
    screen.table(("breaks", "reason", "where", "in"), breaks, whole=("where",))
    listed, breaks_counted = sum(group.count for group in found.breaks), counts["graph_breaks"]
    if breaks and listed != breaks_counted:
        screen.line(
            f"(Dynamo's log lists {listed}, and its counter says {breaks_counted}.)\n", "dim"
        )
    for heading, groups in (("recompiled", found.recompilations), ("limits hit", found.limits)):
        rows = [(g.count, _reason(g), _some(g.functions, between=",\n")) for g in groups]
        screen.table((heading, "because this changed", "in"), rows, whole=("in",))


def _reason(group: Group) -> str:
    if len(group.values) == 1:
        return re.sub(r"\bN\b", group.values[0].replace("\\", ""), group.reason)
    return f"{group.reason} (N: {_some(group.values, 8)})" if group.values else group.reason


def _some(names: Sequence[str], most: int = _MOST_NAMES, between: str = ", ") -> str:
    """The first names, and how many more there are."""
    left = len(names) - most
    return between.join([*names[:most], *([f"{left} more"] if left > 0 else [])])


def _in_lines(name: str) -> str:
    """A long name of a method broken where its own begins."""
    return name.replace(".", "\n  .", 1) if len(name) > _LONG_NAME else name

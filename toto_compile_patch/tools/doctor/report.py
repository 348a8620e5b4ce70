"""The doctor's reports: tables where rich is installed, plain lines where it is not."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from toto_compile_patch.tools.doctor.findings import Finding, problems

if TYPE_CHECKING:
    from toto_compile_patch.tools.doctor.environment import Environment
    from toto_compile_patch.tools.doctor.script import Examination, Group

_MOST_ROWS = 12
_MOST_NAMES = 3
_LONG_NAME = 26
_COLUMNS = 100
_MARKS = {"problem": "!!", "trap": " !", "note": "  "}
_STYLES = {"problem": "bold red", "trap": "yellow", "note": "dim"}


class Page:
    """Where a report goes: headings, tables, and findings with their cures."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console: Any = None
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            # Into a file or a pipe, rich would write 80 columns.
            width = None if stream.isatty() else shutil.get_terminal_size((_COLUMNS, 24)).columns
            self._console = Console(file=stream, highlight=False, width=width)

    @property
    def width(self) -> int:
        """Columns that a line may have."""
        if self._console is not None:
            return int(self._console.width)
        return shutil.get_terminal_size((_COLUMNS, 24)).columns

    def heading(self, text: str) -> None:
        """A line that stands apart."""
        if self._console is not None:
            self._console.rule(text, align="left", style="default")
        else:
            print(f"--- {text} ---", file=self._stream)

    def line(self, text: str = "", style: str = "") -> None:
        """A line of text."""
        if self._console is not None:
            self._console.print(text, markup=False, style=style or None)
        else:
            print(text, file=self._stream)

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[object]], whole: Sequence[str] = ()
    ) -> None:
        """A table; columns of numbers stand to the right. Long tables are cut, and say so.

        Args:
            headings: of the columns.
            rows: their cells.
            whole: headings of columns that are not to be broken into lines.
        """
        shown = [[str(cell) for cell in row] for row in rows[:_MOST_ROWS]]
        right = [all(isinstance(row[i], int) for row in rows) for i in range(len(headings))]
        if self._console is not None:
            self._rich_table(headings, shown, right, whole)
        else:
            self._plain_table(headings, shown, right)
        if len(rows) > _MOST_ROWS:
            self.line(f"  ... and {len(rows) - _MOST_ROWS} more: --json has them all", "dim")
        self.line()

    def findings(self, findings: Sequence[Finding]) -> None:
        """Each finding, with its cure below."""
        for finding in findings:
            lead = _MARKS[finding.level]
            self._paragraph(f"{lead} ", finding.what, _STYLES[finding.level])
            if finding.cure:
                self._paragraph("   cure: ", finding.cure, "")

    def _paragraph(self, lead: str, text: str, style: str) -> None:
        """A text whose further lines stand under its first."""
        lines = textwrap.wrap(
            lead + text,
            min(self.width, _COLUMNS) - 1,
            subsequent_indent=" " * len(lead),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines:
            self.line(line, style)

    def _rich_table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[bool],
        whole: Sequence[str],
    ) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        for heading, is_right in zip(headings, right, strict=True):
            table.add_column(
                heading,
                justify="right" if is_right else "left",
                no_wrap=is_right or (heading in whole and self.width >= _COLUMNS),
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)

    def _plain_table(
        self, headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]
    ) -> None:
        cells = [[" ".join(cell.split()) for cell in row] for row in [headings, *rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
        for row in cells:
            padded = (
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(row, widths, right, strict=True)
            )
            print("  ".join(padded).rstrip(), file=self._stream)


def show_environment(found: Environment, stream: TextIO) -> None:
    """Print what was found in an environment."""
    page = Page(stream)
    page.heading("installed")
    page.table(("", "version"), [*found.versions.items(), ("toto's code", _code(found))])
    if unknown := [(symbol.name, symbol.problem) for symbol in found.symbols if symbol.problem]:
        page.table(("not code that was tested", "why"), unknown)
    page.heading("what apply() does here")
    page.table(("patch", "state", ""), [(row.name, row.state, row.detail) for row in found.patches])
    if found.carriers:
        page.heading("where Toto's code is")
        page.table(
            ("package", "state", "code", "where"),
            [(c.name, c.state, c.code, c.folder) for c in found.carriers],
        )
    if found.variables:
        page.table(("environment variable", "value"), list(found.variables.items()))
    _show_diagnosis(page, found.findings, "apply() applies everything that is asked for.")


def _code(found: Environment) -> str:
    known = sum(not symbol.problem for symbol in found.symbols)
    if not found.symbols:
        return "could not be read"
    return f"{known} of {len(found.symbols)} symbols are code that was tested"


def show_examination(found: Examination, stream: TextIO) -> None:
    """Print what was seen of a script."""
    page = Page(stream)
    page.line()
    page.heading(f"doctor: {found.script}, exit code {found.exit_code}")
    if found.observed:
        _show_forecasts(page, found)
        _show_compiler(page, found)
    _show_diagnosis(page, found.findings, "Nothing is in the way.")


def _show_forecasts(page: Page, found: Examination) -> None:
    if found.forecasts:
        rows = [
            (way["count"], _path(way), "yes" if way["compiled"] else "no", way["place"])
            for way in found.forecasts
        ]
        page.table(("forecasts", "made by", "model compiled", "asked for at"), rows)


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


def _show_compiler(page: Page, found: Examination) -> None:
    counts = found.counts or {}
    if not any(counts.values()):
        page.line("torch.compile: no graph was compiled in this process.")
        page.line()
        return
    page.line(
        f"torch {found.torch}: {counts['graphs']} graphs, {counts['graph_breaks']} breaks, "
        f"{counts['recompilations']} recompilations, {counts['limit_hits']} recompile limits hit"
    )
    if found.seconds:
        page.line(
            f"Compiling took {found.seconds['compiling']:.1f} s, all forecasts together "
            f"{found.seconds['forecasting']:.1f} s beside that."
        )
    page.line()
    page.table(
        ("function", "graphs", "breaks", "recomp.", "limit", "where"),
        [
            (_in_lines(f.name), f.graphs, f.breaks, f.recompilations, f.limit_hits, f.place)
            for f in found.functions
        ],
        whole=("function", "where"),
    )
    _show_breaks(page, found.breaks, counts["graph_breaks"])
    for heading, groups in (("recompiled", found.recompilations), ("limits hit", found.limits)):
        if groups:
            page.table(
                (heading, "because this changed", "in"),
                [
                    (group.count, _reason(group), _some(group.functions, between=",\n"))
                    for group in groups
                ],
                whole=("in",),
            )


def _show_breaks(page: Page, breaks: Sequence[Group], counted: int) -> None:
    if not breaks:
        return
    page.table(
        ("breaks", "reason", "where", "in"),
        [(group.count, group.reason, group.place, _some(group.functions)) for group in breaks],
        whole=("where",),
    )
    listed = sum(group.count for group in breaks)
    if listed != counted:
        page.line(f"(These are the {listed} of dynamo's log; its counter says {counted}.)", "dim")
        page.line()


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


def _show_diagnosis(page: Page, findings: Sequence[Finding], healthy: str) -> None:
    page.heading("diagnosis")
    if not problems(list(findings)):
        page.line(healthy, "green")
    page.findings(findings)

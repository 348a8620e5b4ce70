"""Tables and progress as the commands show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


def table_of(
    headings: Iterable[str],
    rows: Iterable[Iterable[str]],
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """The first column to the left, figures to the right.

    Args:
        headings: of the columns.
        rows: their cells, taken as plain text: a column's name may look like markup.
        title: above.
        caption: below.
    """
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False)
    table.padding = (0, 1, 0, 0)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def console_of(width_of_a_file: int, stderr: bool = False) -> Console:
    """Standard output or error, of a width of its own where that is no terminal.

    Args:
        width_of_a_file: characters of a line there.
        stderr: whether to write to standard error.
    """
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = width_of_a_file
    return console


def show_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Print a table, or where that is too wide, each figure in a line of its own: none is cut.

    Args:
        console: where to.
        headings: of the columns.
        rows: their cells.
        title: above.
        caption: below.
    """
    table = table_of(headings, rows, title, caption)
    unbounded = console.options.update(max_width=_WIDEST)
    if Measurement.get(console, unbounded, table).maximum <= console.width:
        console.print(table)
        return
    lines = [title] if title else []
    for name, *cells in rows:
        lines.append(name)
        told = zip(headings[1:], cells, strict=True)
        lines += [f"  {heading}: {' '.join(cell.split())}" for heading, cell in told if cell]
    for line in [*lines, *([caption] if caption else [])]:
        console.print(line, markup=False, highlight=False)


_WIDEST = 10_000
"""Characters that no table needs."""


class ProgressLine(Progress):
    """A line on stderr that says what is being done, how far it is, and for how long it has been
    done; gone at the end."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        super().__init__(
            TextColumn("{task.description:<30}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # The line is drawn by the machine that is being timed.
            refresh_per_second=2,
        )
        self._task = self.add_task("", total=total)

    def say(self, doing: str, steps: int = 0) -> None:
        """Say what comes now, and that so many steps more are done."""
        self.update(self._task, description=doing, advance=steps)

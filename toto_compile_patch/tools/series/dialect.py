"""How a CSV file is written: its encoding, what separates its cells, and whether it has a header.

What stands here is what pandas leaves to its caller.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.notation import GAPS

HEAD_BYTES = 2**20
"""Of a file, by which its dialect is told."""

_ROWS = 200
"""That are looked at for it."""

# The longer marks first: one of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)

_OTHERS = (
    (b"PAR1", "a Parquet file: name it .parquet"),
    (b"PK\x03\x04", "an Excel or zip file: save the table as CSV, and give that"),
    (b"\xd0\xcf\x11\xe0", "an Excel file: save the table as CSV, and give that"),
)

_FEWEST_TIMES = 3
"""Columns that are named by times, to say that a file stands on its side."""

_YEAR = re.compile(r"(18|19|20|21)\d\d")
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?(\D.*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}(\D.*)?"
)
_NUMBER = re.compile(r"[-+]?(\d[\d.,'\s]*|[.,]\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        encoding: as Python names it.
        separator: of the cells.
        has_header: whether its first line names the columns.
        columns: their names; without a header, their places, counted from 1.
    """

    encoding: str
    separator: str
    has_header: bool
    columns: tuple[str, ...]

    @property
    def told(self) -> list[str]:
        """What of it is not what most files have, in words."""
        names = {";": "semicolons", "\t": "tabs", "|": "bars"}
        found = [f"cells separated by {names[self.separator]}"] if self.separator != "," else []
        if not self.encoding.startswith("utf-8"):
            found.append(f"encoding {self.encoding}")
        if not self.has_header:
            found.append("no header line, columns are named by their place")
        return found


def dialect_of(head: bytes, path: str) -> Dialect:
    """Tell the dialect of a file by its first bytes, ``HEAD_BYTES`` at most.

    Args:
        head: those bytes.
        path: of the file, for messages.

    Raises:
        UsageError: it is no CSV file, or not one that can be read rightly.
    """
    for start, what in _OTHERS:
        if head.startswith(start):
            raise UsageError(f"{path} is {what}")
    encoding, text = _decoded(head, path)
    separator = _separator(text, path)
    rows = list(itertools.islice(_rows(text, separator), _ROWS))
    if not rows:
        raise UsageError(f"{path} is empty: give a table with a header line")
    first, others = rows[0], rows[1:]
    if _times_at_end(first) >= _FEWEST_TIMES:
        raise UsageError(
            f"{path} has columns that are named by times ({first[-1]}): turn it about, so that "
            "each row is a time and each column a series"
        )
    has_header = _is_header(first, others)
    names = (
        tuple(cell or f"column {place}" for place, cell in enumerate(first, 1))
        if has_header
        else tuple(map(str, range(1, len(first) + 1)))
    )
    return Dialect(encoding, separator, has_header, names)


def _decoded(head: bytes, path: str) -> tuple[str, str]:
    """The encoding, and the text up to its last whole line."""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    for encoding in [marked] if marked else _guesses(head):
        # The last character may be cut in two.
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            text = decoder.decode(head, final=len(head) < HEAD_BYTES)
        except UnicodeDecodeError:
            continue
        whole = text if len(head) < HEAD_BYTES else text[: text.rfind("\n") + 1] or text
        return encoding, whole
    raise UsageError(f"{path} is no text in UTF-8, UTF-16 or Latin-1: save it as CSV in UTF-8")


def _guesses(head: bytes) -> list[str]:
    if b"\0" not in head:
        return ["utf-8", "cp1252"]
    # Text without a mark: of most characters, one byte of the two is 0.
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) < len(head) // 4:
        return []
    return ["utf-16-le" if odd > even else "utf-16-be"]


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    found = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    return ([cell.strip() for cell in row] for row in found if any(row))


def _separator(text: str, path: str) -> str:
    try:
        for mark in ";\t|,":
            widths = [len(row) for row in itertools.islice(_rows(text, mark), _ROWS)]
            same = sum(width == widths[0] for width in widths)
            if widths and widths[0] > 1 and same > len(widths) / 2:
                return mark
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read as CSV ({error}): correct it") from None
    first = text.strip().partition("\n")[0].split()
    if len(first) > 1 and _is_spaced(text, len(first)):
        raise UsageError(f"{path} is separated by spaces: separate the cells by commas")
    return ","


def _is_spaced(text: str, width: int) -> bool:
    lines = [line.split() for line in itertools.islice(io.StringIO(text), _ROWS) if line.strip()]
    return all(len(line) == width for line in lines) and any(
        _NUMBER.fullmatch(line[-1]) for line in lines
    )


def _times_at_end(row: Sequence[str]) -> int:
    """How many of the last cells of a row are times, one later than the other."""
    found = list(itertools.takewhile(lambda cell: _DATE.fullmatch(cell), reversed(row)))
    years = list(itertools.takewhile(lambda cell: _YEAR.fullmatch(cell), reversed(row)))
    if any(one <= other for one, other in itertools.pairwise(years)):
        years = []
    return max(len(found), len(years))


def _is_header(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: it holds words where the others do not."""
    kinds = [_kind(cell) for cell in first]
    if set(kinds) <= {"text", ""}:
        return True
    named = [cell for cell in first if cell]
    if named == [str(place) for place in range(len(named))] and len(named) > 1:
        # As pandas names columns that have no names, unless the first one counts rows.
        return not (others and others[0][0] == "1" and first[0] == "0")
    for place, kind in enumerate(kinds):
        below = [_kind(row[place]) for row in others if place < len(row)]
        known = [kind for kind in below if kind]
        if kind == "text" and known and known.count("text") < len(known) / 2:
            return True
    return False


def _kind(cell: str) -> str:
    if cell.lower() in GAPS:
        return ""
    if _DATE.fullmatch(cell):
        return "time"
    return "number" if _NUMBER.fullmatch(cell) else "text"

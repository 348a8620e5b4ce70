"""How a CSV file is written: its encoding, what separates its cells, and whether it has a header.

What stands here is what pandas leaves to its caller.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.series.notation import GAPS
from toto_compile_patch.tools.wording import counted

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
    (b"ARROW1", "a Feather file: save the table as Parquet or CSV"),
    (b"PK\x03\x04", "an Excel or zip file: save the table as CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel file: save the table as CSV"),
    (b"\x1f\x8b", "compressed: name it .csv.gz"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
    (b"<", "a page of HTML or XML: save the table as CSV"),
    (b"{", "JSON: save the table as CSV"),
    (b"[", "JSON: save the table as CSV"),
)

_SEPARATORS = ";\t|,"
_TOLD_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)

_FEWEST_TIMES = 3
"""Columns that are named by times, to say that a file stands on its side."""

# What may be a number, too; a name, where each is later than the one before it.
_YEAR_OR_MONTH = re.compile(r"(18|19|20|21)\d\d(\.(0[1-9]|1[0-2]))?")
_DATE = re.compile(
    r"(\d{4}[-/]\d{1,2}|\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})([T ,].*)?"
)
_NUMBER = re.compile(r"[-+\u2212]?(\d[\d.,'\s\u00a0\u202f]*|[.,]\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        encoding: as Python names it.
        separator: of the cells.
        is_told: whether a line before the table tells its separator.
        has_header: whether its first line names the columns.
        columns: their names; without a header, their places, counted from 1.
    """

    encoding: str
    separator: str
    is_told: bool
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


def dialect_of(head: bytes, is_whole: bool, path: str) -> Dialect:
    """Tell the dialect of a file by its first bytes.

    Args:
        head: those bytes.
        is_whole: whether they are all that there are.
        path: of the file, for messages.

    Raises:
        UsageError: it is no CSV file, or not one that can be read rightly.
    """
    for start, what in _OTHERS:
        if head.lstrip().startswith(start):
            raise UsageError(f"{path} is {what}, and give that")
    encoding, text = _decoded(head, is_whole, path)
    told = _TOLD_SEPARATOR.fullmatch(text.partition("\n")[0].strip().strip('"'))
    if told:
        text = text.partition("\n")[2]
    separator = told[1] if told and told[1] in _SEPARATORS else _separator(text, path)
    rows = list(itertools.islice(_rows(text, separator), _ROWS))
    if not rows:
        raise UsageError(f"{path} is empty: give a table with a header line")
    _check_beginning(rows, path)
    first, others = rows[0], rows[1:]
    if _times_at_end(first) >= _FEWEST_TIMES:
        raise UsageError(
            f"{path} has columns that are named by times ({first[-1]}): transpose it, so that "
            "each row is a time and each column a series"
        )
    has_header = _is_header(first, others, path)
    if has_header:
        columns = _names(first, others, path)
    else:
        columns = tuple(map(str, range(1, len(first) + 1)))
    return Dialect(encoding, separator, bool(told), has_header, columns)


def _decoded(head: bytes, is_whole: bool, path: str) -> tuple[str, str]:
    """The encoding, and the text up to its last whole line."""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    for encoding in [marked] if marked else _guesses(head):
        # The last character may be cut in two.
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            text = decoder.decode(head, final=is_whole)
        except UnicodeDecodeError:
            continue
        return encoding, text if is_whole else text[: text.rfind("\n") + 1] or text
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
    return ([cell.strip() for cell in row] for row in found if row)


def _separator(text: str, path: str) -> str:
    """What splits most rows alike, and then makes most numbers and times."""
    best, choice = (0.0, 0), ","
    for mark in _SEPARATORS:
        rows = list(itertools.islice(_rows(text, mark), _ROWS))
        if not rows:
            continue
        width, count = Counter(map(len, rows)).most_common(1)[0]
        clean = sum(_kind(cell) in ("number", "time") for row in rows for cell in row)
        if width > 1 and (found := (round(count / len(rows), 1), clean)) > best:
            best, choice = found, mark
    if not best[1] and _is_spaced(text):
        raise UsageError(f"{path} is separated by spaces: separate the cells by commas")
    return choice


def _is_spaced(text: str) -> bool:
    lines = [line.split() for line in itertools.islice(io.StringIO(text), _ROWS) if line.strip()]
    widths = {len(line) for line in lines[1:]}
    numbers = sum(bool(_NUMBER.fullmatch(line[-1])) for line in lines)
    return len(widths) == 1 and widths != {1} and 2 * numbers > len(lines)


def _check_beginning(rows: Sequence[Sequence[str]], path: str) -> None:
    """Whether the table begins in the first row.

    Raises:
        UsageError: lines stand before it.
    """
    if not any(rows[0]):
        raise UsageError(f"{path} begins with a row without a single cell: delete it")
    width, _ = Counter(map(len, rows)).most_common(1)[0]
    start = next(place for place, row in enumerate(rows) if len(row) == width)
    begins_with_words = {_kind(cell) for cell in rows[start]} <= {"text", ""}
    # A header that is one cell short lacks a name for the first column.
    if start and (begins_with_words or len(rows[0]) < width - 1):
        raise UsageError(
            f"{path} has {counted(start, 'row')} before its table ({rows[0][0]!r}): delete what "
            "stands there, so that the names of the columns come first"
        )


def _times_at_end(row: Sequence[str]) -> int:
    """How many of the last cells of a row are times, one later than the other."""
    found = list(itertools.takewhile(_DATE.fullmatch, reversed(row)))
    likely = list(itertools.takewhile(_YEAR_OR_MONTH.fullmatch, reversed(row)))
    if any(one <= other for one, other in itertools.pairwise(likely)):
        likely = []
    return max(len(found), len(likely))


def _is_header(first: Sequence[str], others: Sequence[Sequence[str]], path: str) -> bool:
    """Whether the first row names the columns: it holds words where the others do not.

    Raises:
        UsageError: it may as well be one of them.
    """
    below = [[row[place] for row in others if place < len(row)] for place in range(len(first))]
    kinds = [_kind(cell) for cell in first]
    alike = [cell for cell, cells in zip(first, below, strict=True) if _are_alike(cell, cells)]
    # A time tells more than a word that ends with a number.
    if any(re.search(r"\d\D+\d", cell) for cell in alike):
        return False
    if any(map(_is_a_name, kinds, below)):
        return True
    if alike:
        return False
    if set(kinds) <= {"text", ""} or not first[0]:
        return True
    if _count_up(first) and not all(map(_count_up, others[:3])):
        raise UsageError(
            f"{path}: its first row, {', '.join(first)}, may hold names or values: name the "
            "columns by words"
        )
    return False


def _is_a_name(kind: str, below: Sequence[str]) -> bool:
    """Whether a cell is a word above what is none."""
    known = [kind for kind in map(_kind, below) if kind]
    return kind == "text" and bool(known) and 2 * known.count("text") < len(known)


def _are_alike(cell: str, below: Sequence[str]) -> bool:
    """Whether a cell with letters or marks is written as most of those below it are."""
    if not re.search(r"\d", cell) or _kind(cell) == "number":
        return False
    alike = sum(_shape(other) == _shape(cell) for other in below)
    return bool(below) and 2 * alike > len(below)


def _shape(cell: str) -> str:
    return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", cell))


def _count_up(row: Sequence[str]) -> bool:
    """Whether a row is 0, or 0, 1, 2, or 101, 102: as programs name columns without names."""
    if not all(cell.isdecimal() for cell in row):
        return False
    numbers = list(map(int, row))
    return numbers == list(range(numbers[0], numbers[0] + len(row))) and (
        len(row) > 1 or numbers == [0]
    )


def _names(first: Sequence[str], others: Sequence[Sequence[str]], path: str) -> tuple[str, ...]:
    """The names of the columns.

    Raises:
        UsageError: one that holds something has none, and is no index that a program wrote.
    """
    if len(others) > 1 and _is_of_units(others[0], others[1:]):
        raise UsageError(
            f"{path}: its first two rows hold no values ({', '.join(filter(None, first))}; "
            f"{', '.join(filter(None, others[0]))}): delete the one that does not name the columns"
        )
    for place, name in enumerate(first):
        cells = [row[place] for row in others if place < len(row)]
        if place and not name and any(cells):
            raise UsageError(
                f"{path}: column {place + 1} has no name in the header line: name it there, and "
                "if commas are decimal marks, separate the cells by semicolons"
            )
    names = (" ".join(name.split()) for name in first)
    return tuple(name or f"column {place}" for place, name in enumerate(names, 1))


def _is_of_units(row: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether a row holds words alone where those below hold numbers or times."""
    if not {_kind(cell) for cell in row} <= {"text", ""}:
        return False
    for place, cell in enumerate(row):
        below = [kind for kind in (_kind(other[place]) for other in others if place < len(other))]
        if _kind(cell) == "text" and below and 2 * below.count("text") < len(below):
            return True
    return False


def _kind(cell: str) -> str:
    if cell.lower() in GAPS:
        return ""
    if _DATE.fullmatch(cell):
        return "time"
    return "number" if _NUMBER.fullmatch(cell) else "text"

"""Files as people have them, and what becomes of each: read rightly, or refused with a cure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
from toto_compile_patch.tools.scores import season_of
from toto_compile_patch.tools.series.layout import Wanted
from toto_compile_patch.tools.series.single import Series, read_series

ROWS = 60
HOURS = pd.date_range("2024-01-01", periods=ROWS, freq="h")
DAYS = pd.date_range("2024-01-01", periods=ROWS, freq="D")
MONTHS = pd.date_range("2020-01-01", periods=ROWS, freq="MS")
LOAD = [round(1234.5 + 100 * float(np.sin(i / 4)) + i % 7, 2) for i in range(ROWS)]
OFTEN = 3_600
DAILY = 86_400


@dataclass(frozen=True)
class Case:
    """A file, and what is expected of it.

    Attributes:
        name: of the file.
        tests: what it tests, in words.
        write: writes it.
        start: its first time; None: it has no times.
        step: seconds between its rows, at the median.
        season: that follows.
        values: its numbers, in the order of time; None: those of ``LOAD``.
        says: what the line about it says, or the error.
        refused: whether it is.
        options: of the command.
    """

    name: str
    tests: str
    write: Callable[[Path], object]
    start: str | None = "2024-01-01"
    step: int = OFTEN
    season: int = 24
    values: Any = None
    says: str = ""
    refused: bool = False
    options: dict[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The options as they are typed."""
        return "".join(
            f" --{name.replace('_', '-')} {value}" for name, value in self.options.items()
        )


def read(case: Case, folder: Path) -> Series:
    """Write a file and read it, as ``ab`` does.

    Raises:
        UsageError: it is refused.
    """
    path = folder / case.name
    case.write(path)
    options = dict(case.options)
    item = options.pop("item", None)
    return read_series(path, (), Wanted(**options), item)


def outcome(case: Case, folder: Path) -> str:
    """What is said of a file."""
    try:
        series = read(case, folder)
    except UsageError as error:
        return f"refused: {str(error).replace(f'{folder}/', '')}"
    dialect, times = series.notes
    notes = [*filter(None, [dialect]), f"times: {times}; season {season_of(series, 512)}"]
    return f"read: {'; '.join(notes)}"


def csv(
    times: Any,
    values: Any = None,
    header: str | None = "time,load",
    separator: str = ",",
    encoding: str = "utf-8",
) -> Callable[[Path], object]:
    """Writes a CSV file of two columns, or of more where cells hold separators."""
    rows = [
        f"{time}{separator}{cell}"
        for time, cell in zip(times, LOAD if values is None else values, strict=True)
    ]
    text = "\n".join(([header] if header else []) + rows) + "\n"
    return lambda path: path.write_bytes(text.encode(encoding))


def stamps(form: str, times: pd.DatetimeIndex = HOURS) -> list[str]:
    """Times, written in a form."""
    return times.strftime(form).tolist()


ISO = stamps("%Y-%m-%d %H:%M")


def comma(value: float) -> str:
    return f"{value:.2f}".replace(".", ",")


def german(value: float) -> str:
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"time": HOURS, "load": LOAD, **columns})


def shuffled(table: pd.DataFrame) -> pd.DataFrame:
    return table.sample(frac=1, random_state=1)


def without(times: list[str], *rows: int) -> Callable[[Path], object]:
    kept = [i for i in range(ROWS) if i not in rows]
    return csv([times[i] for i in kept], [LOAD[i] for i in kept])


def gappy(*rows: int) -> list[float]:
    return [np.nan if i in rows else value for i, value in enumerate(LOAD)]


def local_autumn() -> list[str]:
    """Hours of Berlin, without their offset, around the end of summer time."""
    times = pd.date_range("2024-10-26", periods=ROWS, freq="h", tz="Europe/Berlin")
    return stamps("%Y-%m-%d %H:%M", times)


def local_offsets() -> list[str]:
    times = pd.date_range("2024-10-26", periods=ROWS, freq="h", tz="Europe/Berlin")
    return [time.isoformat() for time in times]


def long_layout(items: int, order: str) -> pd.DataFrame:
    tables = [frame(item_id=f"shop {i}").assign(load=np.array(LOAD) + i) for i in range(items)]
    return pd.concat(tables).sort_values(
        ["time", "item_id"] if order == "time" else "item_id", kind="stable"
    )


def parquet(table: pd.DataFrame, **how: Any) -> Callable[[Path], object]:
    return lambda path: table.to_parquet(path, **how)


def to_csv(table: pd.DataFrame, **how: Any) -> Callable[[Path], object]:
    return lambda path: table.to_csv(path, index=False, **how)


CASES = [
    Case("plain.csv", "ISO times, a comma, a dot", csv(ISO), says="column time, hourly"),
    Case("mark.csv", "UTF-8 with a byte-order mark", csv(ISO, encoding="utf-8-sig")),
    Case("utf16.csv", "UTF-16, as Excel saves text", csv(ISO, encoding="utf-16"), says="utf-16"),
    Case(
        "latin1.csv",
        "Latin-1, an umlaut in the header",
        csv(ISO, header="Zeit,Last für München", encoding="latin-1"),
        says="cp1252",
    ),
    Case("tabs.tsv", "tabs", csv(ISO, separator="\t", header="time\tload"), says="tabs"),
    Case(
        "semicolons.csv",
        "semicolons, decimal commas",
        csv(ISO, map(comma, LOAD), "time;load", ";"),
        says="cells separated by semicolons, decimal commas",
    ),
    Case(
        "german.csv",
        "semicolons, decimal commas, dots between thousands, dd.mm.yyyy",
        csv(stamps("%d.%m.%Y %H:%M"), map(german, LOAD), "Datum;Last", ";"),
        says="column Datum (%d.%m.%Y %H:%M), hourly",
    ),
    Case(
        "german_latin1.csv",
        "the same in Latin-1, with dates alone",
        csv(stamps("%d.%m.%Y", DAYS), map(german, LOAD), "Tag;Größe", ";", "latin-1"),
        step=DAILY,
        season=7,
        says="column Tag (%d.%m.%Y), daily",
    ),
    Case(
        "months.csv",
        "dd.mm.yyyy, the first day of each month",
        csv(stamps("%d.%m.%Y", MONTHS)),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        says="monthly",
    ),
    Case(
        "quoted.csv",
        "thousands separated by commas, in quotes",
        csv(ISO, [f'"{value:,.2f}"' for value in LOAD]),
        says="marks between thousands",
    ),
    Case(
        "thousands.csv",
        "1,234 alone: thousands or decimals?",
        csv(ISO, [f'"{int(value):,}"' for value in LOAD]),
        refused=True,
        says="say which mark stands before the decimals, --decimal . or --decimal ,",
    ),
    Case(
        "thousands_told.csv",
        "the same, with --decimal .",
        csv(ISO, [f'"{int(value):,}"' for value in LOAD]),
        values=[int(value) for value in LOAD],
        options={"decimal": "."},
    ),
    Case(
        "spaces.csv",
        "thousands separated by narrow spaces",
        csv(ISO, [f"{value:,.2f}".replace(",", "\u202f") for value in LOAD]),
        says="marks between thousands",
    ),
    Case(
        "american.csv",
        "mm/dd/yyyy, with am and pm",
        csv(stamps("%m/%d/%Y %I:%M %p", pd.date_range("2024-01-12", periods=ROWS, freq="h"))),
        start="2024-01-12",
        says="%m/%d/%Y %I:%M %p",
    ),
    Case(
        "british.csv",
        "dd/mm/yyyy",
        csv(stamps("%d/%m/%Y", DAYS)),
        step=DAILY,
        season=7,
        says="%d/%m/%Y",
    ),
    Case(
        "slashes.csv",
        "slashes and no day above 12: days or months first?",
        csv(stamps("%d/%m/%Y", MONTHS)),
        refused=True,
        says="--time-format '%d/%m/%Y' or '%m/%d/%Y'",
    ),
    Case(
        "slashes_told.csv",
        "the same, with --time-format",
        csv(stamps("%d/%m/%Y", MONTHS)),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        options={"time_format": "%d/%m/%Y"},
    ),
    Case(
        "both_orders.csv",
        "days first in some rows, months first in others",
        csv([*stamps("%d/%m/%Y", DAYS[:30]), *stamps("%m/%d/%Y", DAYS[30:])]),
        refused=True,
        says="'13/01/2024' and '01/31/2024': write all of them alike",
    ),
    Case(
        "epoch.csv",
        "seconds since 1970, in a column named ts",
        csv(HOURS.asi8 // 10**9, header="ts,load"),
        says="column ts (seconds since 1970), hourly",
    ),
    Case(
        "epoch_ms.csv",
        "milliseconds since 1970, in a column named t",
        csv(HOURS.asi8 // 10**6, header="t,load"),
        says="column t (milliseconds since 1970), hourly",
    ),
    Case(
        "digits.csv",
        "dates as 20240131, in a column named day",
        csv(stamps("%Y%m%d", DAYS), header="day,load"),
        step=DAILY,
        season=7,
        says="column day (%Y%m%d), daily",
    ),
    Case(
        "counted.csv",
        "steps counted in a column named time",
        csv(range(ROWS)),
        start=None,
        season=1,
        says="column time (a count of steps)",
    ),
    Case(
        "two_times.csv",
        "two columns of times",
        to_csv(frame(changed=HOURS).rename(columns={"time": "made"})),
        refused=True,
        says="several columns of times: made, changed: name one with --time",
    ),
    Case(
        "two_times_told.csv",
        "the same, with --time",
        to_csv(frame(changed=HOURS + pd.Timedelta(days=9)).rename(columns={"time": "made"})),
        options={"time": "made"},
    ),
    Case(
        "headless.csv",
        "no header line",
        csv(ISO, header=None),
        says="no header line, columns are named by their place",
    ),
    Case("shuffled.csv", "rows in any order", to_csv(shuffled(frame())), says="sorted"),
    Case("newest_first.csv", "the newest row first", to_csv(frame()[::-1]), says="sorted"),
    Case(
        "duplicated.csv",
        "a row twice",
        to_csv(pd.concat([frame()[:9], frame()[8:]])),
        refused=True,
        says="2024-01-01 08:00:00 is there twice: leave one of the rows",
    ),
    Case(
        "rows_missing.csv",
        "rows left out",
        without(ISO, 20, 21, 40),
        values=gappy(20, 21, 40),
        says="hourly, 3 missing rows filled in as gaps",
    ),
    Case(
        "gaps.csv",
        "empty cells, NA, n/a and -",
        csv(ISO, [{20: "", 21: "NA", 30: "n/a", 31: "-"}.get(i, x) for i, x in enumerate(LOAD)]),
        values=gappy(20, 21, 30, 31),
    ),
    Case(
        "autumn.csv",
        "local times, of which an hour comes twice when clocks go back",
        csv(local_autumn()),
        refused=True,
        says="2024-10-27 02:00:00 is there twice: leave one of the rows, or, if clocks went back",
    ),
    Case(
        "offsets.csv",
        "the same with its two offsets from UTC",
        csv(local_offsets()),
        start="2024-10-25 22:00",
    ),
    Case(
        "some_offsets.csv",
        "times with a time zone and without",
        csv([*local_offsets()[:30], *local_autumn()[30:]]),
        refused=True,
        says="times with a time zone and times without",
    ),
    Case(
        "index.parquet",
        "Parquet with its times as the index",
        parquet(pd.DataFrame({"load": LOAD}, index=HOURS)),
        says="hourly",
    ),
    Case(
        "zoned.parquet",
        "Parquet with a time zone",
        parquet(pd.DataFrame({"load": LOAD}, index=HOURS.tz_localize("America/New_York"))),
        start="2024-01-01 05:00",
    ),
    Case(
        "index.csv",
        "CSV with the index that pandas writes",
        lambda path: frame().to_csv(path),
        says="column time, hourly",
    ),
    Case(
        "long.csv",
        "long layout, many items",
        to_csv(long_layout(3, "item_id")),
        refused=True,
        says="3 series, named by column 'item_id': choose one with --item: shop 0, shop 1, shop 2",
    ),
    Case(
        "long_told.csv",
        "the same, with --item",
        to_csv(long_layout(3, "item_id")),
        values=[value + 1 for value in LOAD],
        options={"item": "shop 1"},
    ),
    Case(
        "long_by_time.csv",
        "the same, one time after the other",
        to_csv(long_layout(3, "time")),
        values=[value + 2 for value in LOAD],
        options={"item": "shop 2"},
    ),
    Case(
        "wide.csv",
        "wide layout, several columns of numbers",
        to_csv(frame(price=LOAD)),
        refused=True,
        says="name what to forecast with --column, once for each: load, price",
    ),
    Case(
        "on_its_side.csv",
        "a series in each row, and times as names of columns",
        to_csv(pd.DataFrame([LOAD], columns=ISO).assign(shop="a").iloc[:, ::-1].iloc[:, :30]),
        refused=True,
        says="turn it about",
    ),
    Case(
        "text.csv",
        "text in the target",
        csv(ISO, [*LOAD[:30], "twelve", *LOAD[31:]]),
        refused=True,
        says="column 'load' of",
    ),
    Case(
        "decimals_mixed.csv",
        "decimal dots and decimal commas",
        csv(ISO, [*LOAD[:30], *map(comma, LOAD[30:])], "time;load", ";"),
        refused=True,
        says="and '1234.5': write all of them alike",
    ),
    Case(
        "unquoted.csv",
        "decimal commas between commas",
        csv(ISO, map(comma, LOAD)),
        refused=True,
        says="if commas are decimal marks, separate the cells by semicolons",
    ),
    Case("one_row.csv", "one row", csv(ISO[:1], LOAD[:1]), refused=True, says="has 1 row"),
    Case("none.csv", "a header alone", csv([], []), refused=True, says="has no rows"),
    Case("empty.csv", "nothing", lambda path: path.touch(), refused=True, says="is empty"),
    Case(
        "book.csv",
        "an Excel file that is named .csv",
        lambda path: path.write_bytes(b"PK\x03\x04 and more"),
        refused=True,
        says="an Excel or zip file: save the table as CSV",
    ),
    Case(
        "clock.csv",
        "times of day without a date",
        csv(stamps("%H:%M")),
        refused=True,
        says="data row 1: '00:00'",
    ),
]

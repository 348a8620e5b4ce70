"""Files as people have them, and what becomes of each: read rightly, or refused with a cure."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toto_compile_patch.tools.checks import UsageError
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
    options: dict[str, Any] = field(default_factory=dict)

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
    options: dict[str, Any] = dict(case.options)
    item, column = options.pop("item", None), options.pop("column", None)
    return read_series(path, [column] if column else [], Wanted(**options), item)


def outcome(case: Case, folder: Path) -> str:
    """What is said of a file."""
    try:
        series = read(case, folder)
    except UsageError as error:
        return f"refused: {str(error).replace(f'{folder}/', '')}"
    dialect, times = series.notes
    notes = [*filter(None, [dialect]), f"times: {times}; season {series.season(512)}"]
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
    return pd.DataFrame({"time": HOURS, "load": LOAD} | columns)


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
        says="transpose it",
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
    Case(
        "weather.csv",
        "hours as 2024013123",
        csv(stamps("%Y%m%d%H"), header="MESS_DATUM;TT", separator=";"),
        says="column MESS_DATUM (%Y%m%d%H), hourly",
    ),
    Case("minutes.csv", "202401312359", csv(stamps("%Y%m%d%H%M")), says="(%Y%m%d%H%M), hourly"),
    Case("seconds.csv", "20240131235959", csv(stamps("%Y%m%d%H%M%S")), says="hourly"),
    Case(
        "figures_told.csv",
        "2024013123.0, as a table with gaps has it, with --time-format",
        csv([f"{stamp}.0" for stamp in stamps("%Y%m%d%H")]),
        options={"time_format": "%Y%m%d%H"},
        says="%Y%m%d%H",
    ),
    Case(
        "short_years.csv",
        "yy/mm/dd",
        csv(stamps("%y/%m/%d", DAYS)),
        step=DAILY,
        season=7,
        says="(%y/%m/%d), daily",
    ),
    Case(
        "short_german.csv",
        "dd.mm.yy",
        csv(stamps("%d.%m.%y", DAYS)),
        step=DAILY,
        season=7,
        says="(%d.%m.%y), daily",
    ),
    Case(
        "last_century.csv",
        "years of two figures from 1947 on",
        csv(stamps("%m/13/%y", pd.date_range("1947-01-01", periods=ROWS, freq="MS"))),
        refused=True,
        says="may be of this century or of the last: write them with four figures",
    ),
    Case(
        "months_by_name.csv",
        "months by name, the newest first",
        csv(stamps("%b %Y", MONTHS[::-1]), LOAD[::-1], "Month,Sales"),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        says="column Month (%b %Y), monthly, sorted",
    ),
    Case(
        "short_months.csv",
        "Jan-24",
        csv(stamps("%b-%y", MONTHS)),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        says="(%b-%y), monthly",
    ),
    Case(
        "weeks.csv",
        "ISO weeks",
        csv(
            stamps("%G-W%V", pd.date_range("2024-01-01", periods=ROWS, freq="7D")), header="w,load"
        ),
        step=7 * DAILY,
        season=52,
        says="column w (weeks), weekly",
    ),
    Case(
        "quarters.csv",
        "quarters",
        csv([f"{2010 + i // 4}Q{i % 4 + 1}" for i in range(ROWS)], header="quarter,load"),
        start="2010-01-01",
        step=91 * DAILY,
        season=4,
        says="column quarter (quarters), quarterly",
    ),
    Case(
        "bigquery.csv",
        "times that end with UTC",
        csv(stamps("%Y-%m-%d %H:%M:%S UTC"), header="hour_start,load"),
        says="column hour_start, hourly",
    ),
    Case(
        "intervals.csv",
        "intervals, as grid operators publish them",
        csv([f"{one} - {one}" for one in stamps("%d.%m.%Y %H:%M")], header="MTU,load"),
        says="column MTU (%d.%m.%Y %H:%M), hourly",
    ),
    Case(
        "excels_days.csv",
        "Excel's numbers of days",
        csv(range(45292, 45292 + ROWS), header="Datum,load"),
        step=DAILY,
        season=7,
        says="column Datum (Excel's days), daily",
    ),
    Case(
        "unknown_times.csv",
        "times in a form that is not known",
        csv([f"{stamp} Uhr" for stamp in stamps("%d.%m.%Y %H:%M")], header="wann,load"),
        refused=True,
        says="column 'wann' of unknown_times.csv holds no times that are known (data row 1: "
        "'01.01.2024 00:00 Uhr'): say how they are written with --time-format",
    ),
    Case(
        "unknown_dates.csv",
        "the column date in an unknown form beside another one of times",
        to_csv(pd.DataFrame({"date": [f"day {i}" for i in range(ROWS)], "sent": HOURS, "y": LOAD})),
        refused=True,
        says="column 'date' of unknown_dates.csv holds no times that are known",
    ),
    Case(
        "prices_like_years.csv",
        "values like years beside months by name",
        to_csv(
            pd.DataFrame(
                {"Monat": MONTHS.strftime("%b %Y"), "Preis": range(1950, 1950 + ROWS), "n": LOAD}
            )
        ),
        refused=True,
        says="name what to forecast with --column, once for each: Preis, n",
    ),
    Case(
        "ids.csv",
        "an id for each row",
        to_csv(pd.DataFrame({"id": range(10**8, 10**8 + ROWS), "time": HOURS, "load": LOAD})),
        says="column time, hourly",
    ),
    Case(
        "tabs_thousands.tsv",
        "tabs, and dots that may be thousands",
        csv(ISO, [f"{v:,}".replace(",", ".") for v in range(900, 1500, 10)], "t\tv", "\t"),
        refused=True,
        says="column 'v' of tabs_thousands.tsv: '1.000' may be 1000 or 1.000",
    ),
    Case(
        "clock_beside.csv",
        "12.30 in another column says nothing of decimals",
        csv(ISO, [f"12.30;{v:,}".replace(",", ".") for v in range(1000, 1060)], "t;Uhr;v", ";"),
        refused=True,
        says="'1.000' may be 1000 or 1.000",
        options={"column": "v"},
    ),
    Case(
        "percent.csv",
        "the target with a unit, beside another column of numbers",
        csv(ISO, [f"{value:.1f}%,8" for value in LOAD], "time,CPU,hosts"),
        refused=True,
        says="column 'CPU' of percent.csv holds cells that are no numbers, such as '1234.5%'",
    ),
    Case(
        "pandas_series.csv",
        "a series as pandas writes it",
        lambda path: pd.Series(LOAD, index=HOURS).to_csv(path),
        says="column 1, hourly",
    ),
    Case(
        "numbered.csv",
        "0 as the name of the only column",
        to_csv(pd.DataFrame(LOAD)),
        refused=True,
        says="its first row, 0, may hold names or values: name the columns by words",
    ),
    Case(
        "first_gap.csv",
        "no header line, and a gap first",
        csv(ISO, ["n.a.", *LOAD[1:]], header=None),
        values=gappy(0),
        says="no header line",
    ),
    Case(
        "trailing.csv",
        "decimal commas between commas that fit the header",
        csv(ISO, [f"{int(value)},5" for value in LOAD], "time,load,"),
        refused=True,
        says="column 3 has no name in the header line: name it there, and if commas are decimal",
    ),
    Case(
        "title.csv",
        "a title above the header",
        csv(ISO, header="Load of a town\n\ntime,load"),
        refused=True,
        says="has 1 row before its table ('Load of a town'): delete what stands there",
    ),
    Case(
        "units.csv",
        "a row of units below the header",
        csv(["UTC", *ISO[:-1]], ["MW", *LOAD[:-1]]),
        refused=True,
        says="its first two rows hold no values (time, load; UTC, MW): delete the",
    ),
    Case(
        "told.csv",
        "sep=; in the first line",
        csv(ISO, map(comma, LOAD), "sep=;\ntime;load", ";"),
        says="cells separated by semicolons, decimal commas",
    ),
    Case(
        "footer.csv",
        "a total below the rows",
        csv([*ISO, "Total"], [*LOAD, 99]),
        refused=True,
        says="data row 61: 'Total' is not a time: correct it, delete the row",
    ),
    Case(
        "half_time.csv",
        "24:00 for midnight",
        csv([stamp.replace(" 00:00", " 24:00") for stamp in stamps("%d.%m.%Y %H:%M")]),
        refused=True,
        says="data row 1: '01.01.2024 24:00' is not a time written as %d.%m.%Y %H:%M",
    ),
    Case(
        "minus.csv",
        "minus signs as typesetters make them",
        csv(ISO, [f"\u2212{value}" for value in LOAD]),
        values=[-value for value in LOAD],
    ),
    Case(
        "trading_days.csv",
        "business days",
        csv(stamps("%Y-%m-%d", pd.bdate_range("2024-01-01", periods=ROWS)), header="Date,Close"),
        step=DAILY,
        season=5,
        says="column Date, on business days",
    ),
    Case(
        "counted_rows.csv",
        "the column load counts like an index",
        csv(ISO, range(ROWS)),
        values=range(ROWS),
    ),
    Case(
        "no_year.csv",
        "days without a year",
        csv(stamps("%b %d", DAYS)),
        refused=True,
        says="holds no times that are known (data row 1: 'Jan 01')",
    ),
    Case(
        "air_passengers.csv",
        "months of 1949 and later with two figures of the year",
        csv(stamps("%b-%y", pd.date_range("1949-01-01", periods=ROWS, freq="MS"))),
        refused=True,
        says="may be of this century or of the last: write them with four figures",
    ),
    Case(
        "parts.csv",
        "year and month in columns of their own",
        to_csv(pd.DataFrame({"Year": MONTHS.year, "Month": MONTHS.month, "sales": LOAD})),
        refused=True,
        says="has times in parts (Year, Month): write them as one column, such as 2024-01",
    ),
    Case(
        "months_first.csv",
        "months as 01.2020",
        csv(stamps("%m.%Y", MONTHS), header="Monat,Absatz"),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        says="column Monat (%m.%Y), monthly",
    ),
    Case(
        "six_figures.csv",
        "yymmdd, the first day of each month",
        csv(stamps("%y%m%d", MONTHS)),
        refused=True,
        says="holds numbers that are no times (data row 1: 200101)",
    ),
    Case(
        "new_york.csv",
        "days of a place whose clocks change, with offsets from UTC",
        to_csv(
            pd.DataFrame(
                {
                    "Date": pd.bdate_range("2024-02-01", periods=ROWS, tz="America/New_York"),
                    "Close": LOAD,
                }
            )
        ),
        start="2024-02-01",
        step=DAILY,
        season=5,
        says="column Date (days of a place, without their offsets), on business days",
    ),
    Case(
        "filtered.parquet",
        "Parquet with the index of filtered rows",
        lambda path: frame()[frame().index != 5].to_parquet(path),
        values=gappy(5),
        says="column time, hourly, 1 missing row filled in as gaps",
    ),
    Case(
        "elapsed.csv",
        "seconds since a start",
        csv([i / 10 for i in range(ROWS)]),
        start=None,
        season=1,
        says="column time (a count of steps)",
    ),
    Case(
        "fractions.csv",
        "seconds since 1970 with fractions",
        csv([f"{second}.25" for second in HOURS.asi8 // 10**9]),
        says="column time (seconds since 1970), hourly",
    ),
    Case(
        "siblings.csv",
        "1,234 beside a column that proves dots",
        csv(ISO, [f'"{v:,.2f}","{int(v):,}"' for v in LOAD], "time,Close,Volume"),
        values=[int(value) for value in LOAD],
        options={"column": "Volume"},
    ),
    Case(
        "quoted_german.csv",
        "dd.mm.yyyy between commas, and dots that may be thousands",
        csv(stamps("%d.%m.%Y", DAYS), [f'"12.{345 + i}"' for i in range(ROWS)]),
        refused=True,
        says="'12.345' may be 12345 or 12.345: say which mark stands before the decimals",
    ),
    Case(
        "infinite.csv",
        "infinity in most rows",
        csv(ISO, ["inf" if i % 3 else i for i in range(ROWS)]),
        refused=True,
        says="has no column of numbers to forecast",
    ),
    Case(
        "title_with_comma.csv",
        "a title with a comma above the header",
        csv(ISO, header="Load, Berlin\ntime,load"),
        refused=True,
        says="first two rows hold no values (Load, Berlin; time, load): delete the one that does",
    ),
    Case(
        "shop.csv",
        "a text column that looks like its name",
        csv(ISO, [f"shop2,{value}" for value in LOAD], "time,shop1,load"),
        says="column time, hourly",
    ),
    Case(
        "constant_beside.csv",
        "a column that is the same in all rows",
        csv(ISO, [f"1,{value}" for value in LOAD], "time,store,load"),
    ),
    Case(
        "codes_beside.csv",
        "codes of letters and figures in another column",
        csv(ISO, [f"{85000 + i}{'ABC'[i % 3]},{v}" for i, v in enumerate(LOAD)], "time,code,load"),
    ),
    Case(
        "header_in_lines.csv",
        "a line break in the name of a column",
        csv(ISO, header='time,"load\n(MW)"'),
    ),
    Case(
        "typed.parquet",
        "Parquet with decimal numbers, and a column of yes and no",
        lambda path: frame(load=[Decimal(str(v)) for v in LOAD], on=[True] * ROWS).to_parquet(path),
        says="column time, hourly",
    ),
    Case(
        "late_marks.csv",
        "marks between thousands in later rows alone",
        csv(ISO, [*LOAD[:30], *(f'"{value:,.2f}"' for value in LOAD[30:])]),
    ),
    Case(
        "truncated.csv.gz",
        "a compressed file that was cut off",
        lambda path: path.write_bytes(gzip.compress(b"time,load\n" * 999)[:-20]),
        refused=True,
        says="truncated.csv.gz cannot be unpacked",
    ),
    Case(
        "panel.csv",
        "a hundred items, one time after the other",
        to_csv(
            pd.concat([frame(item_id=f"s{i}") for i in range(100)])
            .sort_values("time", kind="stable")
            .rename(columns={"time": "when"})
        ),
        says="column when, hourly",
        options={"item": "s3"},
    ),
    Case(
        "no_item.csv",
        "an id left empty",
        to_csv(frame(item_id=["a"] * 59 + [""])),
        refused=True,
        says="column 'item_id' of no_item.csv, data row 60: the id of the series is missing",
    ),
    Case(
        "as_told.csv",
        "words in the times, named by --time-format",
        csv(stamps("%Y-%m-%d %H:%M UTC")),
        options={"time_format": "%Y-%m-%d %H:%M UTC"},
        says="(%Y-%m-%d %H:%M UTC), hourly",
    ),
    Case(
        "empty_first.csv",
        "a row of separators before the header",
        csv(ISO, header=",\ntime,load"),
        refused=True,
        says="begins with a row without a single cell: delete it",
    ),
    Case(
        "bare_utf16.csv",
        "UTF-16 without a byte-order mark",
        csv(ISO, encoding="utf-16-le"),
        says="encoding utf-16-le",
    ),
    Case(
        "headless_years.csv",
        "no header line, and values like years, of which none follows the one before it",
        csv(ISO, [f"{1900 + i % 7},1850,1840" for i in range(ROWS)], header=None),
        values=[1900 + i % 7 for i in range(ROWS)],
        says="no header line",
        options={"column": "2"},
    ),
    Case(
        "headless_prices.csv",
        "no header line, and prices like years and months",
        csv(ISO, [f"{2001.5 + i % 7},2041.2,2030.12,2039.9" for i in range(ROWS)], header=None),
        values=[2001.5 + i % 7 for i in range(ROWS)],
        says="no header line",
        options={"column": "2"},
    ),
    Case(
        "months_on_their_side.csv",
        "a series in each row, and months with dots as names of columns",
        to_csv(pd.DataFrame([LOAD[:30]], columns=stamps("%Y.%m", MONTHS)[:30])),
        refused=True,
        says="transpose it",
    ),
    Case(
        "headless_months.csv",
        "no header line, months by name, and a gap first",
        csv(stamps("%b %Y", MONTHS), ["n.a.", *LOAD[1:]], header=None),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        values=gappy(0),
        says="column 1 (%b %Y), monthly",
    ),
    Case(
        "headless_figures.csv",
        "no header line, and nothing but figures",
        csv(stamps("%Y%m%d", DAYS), [200 + i % 7 for i in range(ROWS)], header=None),
        step=DAILY,
        season=7,
        values=[200 + i % 7 for i in range(ROWS)],
        says="column 1 (%Y%m%d), daily",
    ),
    Case(
        "months_gap.csv",
        "months by name, of which the first has no value",
        csv(stamps("%b %Y", MONTHS), ["", *LOAD[1:]]),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        values=gappy(0),
        says="column time (%b %Y), monthly",
    ),
    Case(
        "named_months.csv",
        "days with months in words",
        csv(stamps("%d %B %Y", DAYS)),
        step=DAILY,
        season=7,
        says="column time (%d %B %Y), daily",
    ),
    Case(
        "oracle.csv",
        "01-Jan-24",
        csv(stamps("%d-%b-%y", DAYS)),
        step=DAILY,
        season=7,
        says="column time (%d-%b-%y), daily",
    ),
    Case(
        "some_offsets_german.csv",
        "offsets in the last rows alone, behind dd.mm.yyyy",
        csv([f"{time}{'+01:00' * (i > 50)}" for i, time in enumerate(stamps("%d.%m.%Y %H:%M"))]),
        refused=True,
        says="data row 52: '03.01.2024 03:00+01:00' is not a time written as %d.%m.%Y %H:%M",
    ),
    Case(
        "years_between.csv",
        "ten years between the last two rows",
        csv([*ISO[:-1], "2034-01-01 00:00"]),
        says="hourly, unevenly spaced: rows are used in order, ignoring the time between them",
    ),
    Case(
        "years_between_zoned.csv",
        "the same with a time zone",
        csv([f"{time}Z" for time in (*ISO[:-1], "2034-01-01 00:00")]),
        says="hourly, unevenly spaced: rows are used in order, ignoring the time between them",
    ),
    Case(
        "date_and_hour.csv",
        "dates and hours in columns of their own",
        to_csv(pd.DataFrame({"date": HOURS.date, "hour": HOURS.hour, "load": LOAD})),
        refused=True,
        says="or, if another column holds the time of day, write both as one column",
        options={"column": "load"},
    ),
    Case(
        "no_times.csv",
        "a column of numbers, and nothing else",
        lambda path: path.write_text("\n".join(["load", *map(str, LOAD)])),
        start=None,
        season=1,
        says="no column: rows are used in order",
    ),
    Case("one_item.csv", "long layout, one item", to_csv(frame(item_id="a")), says="hourly"),
    Case(
        "empty_column.csv",
        "a column without a single value",
        csv(ISO, [f",{value}" for value in LOAD], "when,note,load"),
        says="column when, hourly",
    ),
    Case(
        "bytes.csv",
        "values as large as seconds since 1970",
        csv(ISO, [round(1e6 * value) for value in LOAD], "when,bytes"),
        values=[round(1e6 * value) for value in LOAD],
        says="column when, hourly",
    ),
    Case(
        "endless_count.csv",
        "infinity among steps that are counted",
        csv([*range(ROWS - 1), "inf"]),
        refused=True,
        says="holds numbers that are no times (data row 1: 0)",
    ),
    Case(
        "two_times.parquet",
        "Parquet with two columns of times, and --time",
        parquet(frame(sent=HOURS + pd.Timedelta(days=9)).rename(columns={"time": "made"})),
        options={"time": "made"},
        says="column made, hourly",
    ),
    Case(
        "durations.parquet",
        "Parquet with a column time of numbers that are no times, beside one of times",
        parquet(pd.DataFrame({"time": LOAD[::-1], "when": HOURS, "load": LOAD})),
        options={"column": "load"},
        says="column when, hourly",
    ),
    Case(
        "strings.parquet",
        "Parquet with 1,234 as text, beside a column of numbers",
        parquet(frame(load=[f"{int(value):,}" for value in LOAD], price=LOAD)),
        refused=True,
        says="say which mark stands before the decimals, --decimal . or --decimal ,",
        options={"column": "load"},
    ),
    Case(
        "none.parquet", "Parquet without rows", parquet(frame()[:0]), refused=True, says="no rows"
    ),
    Case(
        "dots.csv",
        "dots in the time of day, in a column that nothing else calls times",
        csv(stamps("%d.%m.%Y %H.%M"), header="wann;v", separator=";"),
        says="column wann (%d.%m.%Y %H.%M), hourly",
        options={"column": "v"},
    ),
    Case(
        "dots_iso.csv",
        "the same behind 2024-01-31",
        csv(stamps("%Y-%m-%d %H.%M"), header="wann,v"),
        says="column wann (%Y-%m-%d %H.%M), hourly",
    ),
    Case(
        "spaced_dates.csv",
        "dd mm yyyy",
        csv(stamps("%d %m %Y", DAYS), range(ROWS), "Datum;v", ";"),
        step=DAILY,
        season=7,
        values=range(ROWS),
        says="column Datum (%d %m %Y), daily",
    ),
    Case(
        "spaced_dates_in_doubt.csv",
        "dd mm yyyy, the first day of each month: days or months first?",
        csv(stamps("%d %m %Y", MONTHS), header="Datum,v"),
        refused=True,
        says="may be read in more than one way: say which with --time-format '%d %m %Y' or '%m",
    ),
    Case(
        "hours_alone.csv",
        "31.01.2024 23, under a name that is not known",
        csv(stamps("%d.%m.%Y %H"), header="wann,v"),
        refused=True,
        says="column 'wann' of hours_alone.csv holds no times that are known",
        options={"column": "v"},
    ),
    Case(
        "hours_alone_told.csv",
        "the same, with --time-format",
        csv(stamps("%d.%m.%Y %H"), header="wann,v"),
        says="column wann (%d.%m.%Y %H), hourly",
        options={"time_format": "%d.%m.%Y %H"},
    ),
    Case(
        "no_year_german.csv",
        "days without a year, as 31.01., which come again",
        csv(
            stamps("%d.%m.", pd.date_range("2022-01-01", periods=1000, freq="D")),
            range(1000),
            "wann,v",
        ),
        refused=True,
        says="column 'wann' of no_year_german.csv holds no times that are known",
        options={"column": "v"},
    ),
    Case(
        "items_of_unknown_times.csv",
        "long layout, and times in a form that is not known",
        csv(
            [f"{item},{time} Uhr" for item in "abc" for time in stamps("%d.%m.%Y %H:%M")],
            [*LOAD] * 3,
            "item_id,wann,v",
        ),
        refused=True,
        says="column 'wann' of items_of_unknown_times.csv holds no times that are known",
        options={"item": "b"},
    ),
    Case(
        "clock_alone.csv",
        "times of day without a date, in a column whose name means times",
        csv(stamps("%H.%M"), header="Uhrzeit,v"),
        refused=True,
        says="column 'Uhrzeit' of clock_alone.csv holds numbers that are no times",
        options={"column": "v"},
    ),
    Case(
        "year_and_month.csv",
        "months as 2020.01",
        csv(stamps("%Y.%m", MONTHS), header="x,v"),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        says="column x (%Y.%m), monthly",
    ),
    Case(
        "month_and_year.csv",
        "months as 1.2020 and 12.2020",
        csv([f"{time.month}.{time.year}" for time in MONTHS], header="x,v"),
        start="2020-01-01",
        step=31 * DAILY,
        season=12,
        says="column x (%m.%Y), monthly",
    ),
    Case(
        "rates.csv",
        "rates that look like months and years",
        csv(range(ROWS), [f"1.{1950 + 7 * i % 100}" for i in range(ROWS)], "t,rate"),
        start=None,
        season=1,
        values=[float(f"1.{1950 + 7 * i % 100}") for i in range(ROWS)],
        says="column t (a count of steps)",
    ),
    Case(
        "days_and_months.csv",
        "days without a year, as 31.01, which are no count of steps",
        csv(stamps("%d.%m", DAYS)),
        refused=True,
        says="holds numbers that are no times (data row 1: 01.01)",
    ),
    Case(
        "days_first.csv",
        "ddmmyyyy, which is no count of steps",
        csv(stamps("%d%m%Y", DAYS)),
        refused=True,
        says="holds numbers that are no times (data row 1: 01012024)",
    ),
    Case(
        "counted_anyhow.csv",
        "steps counted in a column named time, in any order",
        to_csv(shuffled(pd.DataFrame({"time": range(ROWS), "load": LOAD}))),
        start=None,
        season=1,
        says="column time (a count of steps), sorted",
    ),
    Case(
        "excels_commas.csv",
        "Excel's numbers of days, with decimal commas",
        csv([f"{45292 + i / 24:.9f}".replace(".", ",") for i in range(ROWS)], LOAD, "Datum;v", ";"),
        says="column Datum (Excel's days), hourly",
    ),
    *(
        Case(
            f"may_be_{name}.csv",
            f"{what}, under a name that is not known",
            csv(cells, header="x;v", separator=";"),
            refused=True,
            says=f"column 'x' of may_be_{name}.csv holds numbers that may be times "
            f"(data row 1: {cells[0]}): if so, say --time x, or how",
            options={"column": "v"},
        )
        for name, what, cells in (
            ("excels_days", "Excel's numbers of days", [str(45292 + i) for i in range(ROWS)]),
            ("years", "years", [str(1960 + i) for i in range(ROWS)]),
            (
                "parts_of_years",
                "years and their parts",
                [f"{2010 + i / 12:.4f}" for i in range(ROWS)],
            ),
            (
                "quarters",
                "quarters as 2010.1",
                [f"{2010 + i // 4}.{i % 4 + 1}" for i in range(ROWS)],
            ),
            ("julian_days", "Julian days", [f"{2460310.5 + i}" for i in range(ROWS)]),
            ("days_of_a_year", "2024031", stamps("%Y%j", DAYS)),
            (
                "weeks",
                "202452",
                stamps("%G%V", pd.date_range("2024-01-01", periods=ROWS, freq="W")),
            ),
            ("short_days", "yymmdd", stamps("%y%m%d", DAYS)),
            ("days_first", "ddmmyyyy", stamps("%d%m%Y", DAYS)),
            (
                "seconds",
                "seconds since 1970 of events",
                [str(HOURS[0].value // 10**9 + i * i) for i in range(ROWS)],
            ),
            ("commas", "Excel's days with decimal commas", [f"{45292 + i},5" for i in range(ROWS)]),
        )
    ),
    Case(
        "may_be_told.csv",
        "Excel's numbers of days, with --time",
        csv([45292 + i for i in range(ROWS)], header="x,v"),
        step=DAILY,
        season=7,
        says="column x (Excel's days), daily",
        options={"time": "x"},
    ),
    Case(
        "counter.csv",
        "a counter beside the target, and no times",
        csv([100_000 + 7 * i for i in range(ROWS)], header="meter,v"),
        start=None,
        season=1,
        says="no column: rows are used in order",
        options={"column": "v"},
    ),
    Case(
        "years_alone.csv",
        "a single column of values like years",
        lambda path: path.write_text("\n".join(["v", *map(str, range(1960, 1960 + ROWS))])),
        start=None,
        season=1,
        values=range(1960, 1960 + ROWS),
        says="no column: rows are used in order",
    ),
    Case(
        "quarters_or_months.csv",
        "2010-1: quarters or months?",
        csv([f"{2010 + i // 4}-{i % 4 + 1}" for i in range(ROWS)]),
        refused=True,
        says="'2010-1' and all others may be quarters or months: write them as 2024-Q1 or as",
    ),
    Case(
        "other_format.csv",
        "--time-format that the times are not written as",
        csv(ISO),
        refused=True,
        says="column 'time' of other_format.csv, data row 1: '2024-01-01 00:00' is not written as "
        "--time-format %d.%m.%Y says: correct the format, or leave it out",
        options={"time_format": "%d.%m.%Y"},
    ),
    Case(
        "other_mark.csv",
        "decimal commas, with --decimal .",
        csv(ISO, map(comma, LOAD), separator=";", header="time;load"),
        refused=True,
        says="is not a number: correct it, delete the row, leave the cell empty if it is a gap, or "
        "give --decimal ,",
        options={"decimal": "."},
    ),
    Case(
        "format_of_gaps.csv",
        "--time and --time-format of a column of gaps",
        csv([""] * ROWS, header="x,v"),
        refused=True,
        says="column 'x' of format_of_gaps.csv holds no times that are known (data row 1: '')",
        options={"time": "x", "time_format": "%d.%m.%Y"},
    ),
    Case(
        "one_month.csv",
        "a single month as 1.2020",
        lambda path: path.write_text("x,v\n1.2020,5\n"),
        refused=True,
        says="one_month.csv has 1 row",
        options={"column": "v"},
    ),
    Case(
        "format_of_none.csv",
        "--time-format, and no column that looks like times",
        csv(["a"] * ROWS, header="shop,v"),
        refused=True,
        says="has no column that is written as --time-format %d.%m.%Y says: correct the format, or",
        options={"time_format": "%d.%m.%Y", "column": "v"},
    ),
]

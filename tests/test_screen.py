"""What the commands show: whole, however narrow a terminal is and whatever it can show."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from ab_cases import figures_of
from backtest_cases import QUICK, long_table
from rich.console import Console

from toto_compile_patch.tools import bench, cli
from toto_compile_patch.tools.ab.words import show, tables
from toto_compile_patch.tools.screen import show_table

HEADINGS = ("workload", "seconds", "from-to")
ROWS = (("W1 [b]upstream[/b]", "350.123", "0.00123-0.00456"), ("W1 patched", "11.7", ""))
NARROW = 28


def shown(width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        show_table(console, HEADINGS, ROWS, title="a machine", caption="measured")
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_table_that_is_too_wide_is_a_figure_a_line() -> None:
    assert shown(NARROW) == [
        "a machine",
        "W1 [b]upstream[/b]",
        "  seconds: 350.123",
        "  from-to: 0.00123-0.00456",
        "W1 patched",
        "  seconds: 11.7",
        "measured",
    ]


def test_a_table_that_fits_is_a_table() -> None:
    widest = max(map(len, shown(200)[1:-1]))
    found = shown(widest)
    assert found[1].split() == list(HEADINGS)
    assert ROWS[0][0] in found[3]
    assert "  seconds: 11.7" in shown(widest - 1)


@pytest.mark.parametrize("width", [30, 50, 80])
def test_no_figure_of_a_comparison_is_cut(width: int, tmp_path: Path) -> None:
    figures, console = figures_of(tmp_path), Console(width=width)
    with console.capture() as capture:
        show(figures, console)
    found = capture.get()
    assert "…" not in found
    for headings, rows, _ in tables(figures):
        for text in [*headings[1:], *(cell for row in rows for cell in row)]:
            assert text in found


def test_bench_says_what_its_columns_are(capsys: pytest.CaptureFixture[str]) -> None:
    side = {"seconds": 0.123456, "peak_gb": 1.5, "cpu_seconds": 0.2, "spread": 1.0}
    upstream = {**side, "ratio": 29.8, "ratios": [28.0, 31.0], "measured": "8 of 8 batches of 64"}
    patched = {**side, "share_of_limit": 0.5}
    workload = {"upstream": upstream, "patched": patched, "disturbed": False, "stolen": 0.0}
    rates = {"matrix_gflops": 70, "memory_gb_per_s": 20.0, "pairs": 2}
    about = {"machine": "a machine", "torch": "2.7.0", "dtype": "float32", **rates}
    bench._show({**about, "workloads": {"W9": workload}}, Console(width=50))
    found = " ".join(capsys.readouterr().out.split())
    assert "W9 upstream seconds: 0.123 times slower: 29.8 from-to: 28-31" in found
    for heading in filter(None, bench.HEADINGS):
        assert f"{heading.removesuffix(', s').capitalize()}: ".lower() in found.lower()
    assert "so many times faster is patched" in found


def test_what_a_terminal_cannot_show_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_table(tmp_path / "a.csv", series=1, rows=100)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    arguments = (tmp_path / "a.csv", "--output", tmp_path / "Höhe", *QUICK)
    assert cli.main(["backtest", *map(str, arguments)]) == 0
    terminal.seek(0)
    assert "H\\xf6he" in terminal.read()


COMMANDS = ("ab", "backtest", "run", "doctor", "bench", "start", "fingerprints")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_an_option_does_is_said_without_its_name(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = re.findall(r"^  -[-\w, .{}]*  +(\S.*)$", capsys.readouterr().out, re.MULTILINE)
    assert said
    fragments = re.compile("(of|that|for|from|the same|likewise|which)\\b")
    assert [text for text in said if fragments.match(text)] == []


def test_without_a_command_the_commands_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert not said.out
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s+\w", said.err, re.MULTILINE)

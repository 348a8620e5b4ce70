"""``start``: what it measures of each side, by a small model that nothing compiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toto_cases import tiny_model

import toto_compile_patch
from toto_compile_patch.tools import bench, cli, start

STARTS = ["upstream, cold", "upstream, warm", "patched, cold", "patched, warm"]


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, str]]:
    """Of each start: its side, whether patches stood after it, and the folder of its cache."""
    found: list[tuple[str, bool, str]] = []

    def here(
        function: Callable[..., Any], side: str, mode: str, environment: dict[str, str]
    ) -> Any:
        seconds = function(side, mode)
        patched = toto_compile_patch.is_applied("fast_decode")
        found.append((side, patched, environment["TORCHINDUCTOR_CACHE_DIR"]))
        return seconds

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setattr(bench, "base_model", lambda *_: tiny_model().model)
    monkeypatch.setattr(
        start, "JOB", replace(start.JOB, length=32, horizon=16, samples=2, per_batch=2)
    )
    monkeypatch.setattr(start, "call_apart", here)
    return found


def test_each_side_starts_cold_and_warm(
    caches: list[tuple[str, bool, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["start", "--json", str(tmp_path / "start.json")]) == 0
    starts = json.loads((tmp_path / "start.json").read_text())["starts"]
    assert list(starts) == STARTS
    for seconds in starts.values():
        assert list(seconds) == ["trivial", "first", "second", "steady"]
        assert all(taken >= 0 for taken in seconds.values())
    printed = capsys.readouterr().out
    assert all(one in printed for one in STARTS)
    (_, _, one), (_, _, same), (_, _, other), (_, _, last) = caches
    assert one == same != other == last
    assert [patched for _, patched, _ in caches] == [False, False, True, True]

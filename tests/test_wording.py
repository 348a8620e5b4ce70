"""How the commands count."""

from __future__ import annotations

import pytest

from toto_compile_patch.tools.wording import counted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0, "window"), "0 windows"),
        ((1, "window"), "1 window"),
        ((1_000_000, "window"), "1,000,000 windows"),
        ((1.0, "CPU"), "1 CPU"),
        ((0.5, "CPU"), "0.5 CPUs"),
        ((2, "patch", "patches"), "2 patches"),
    ],
)
def test_one_and_several(given: tuple[float, str], said: str) -> None:
    assert counted(*given) == said

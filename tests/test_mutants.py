"""The faults that ``.ci/proof/mutation.py`` puts into code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / ".ci" / "proof"))

from mutants import mutants


def changes(source: str) -> list[str]:
    return [mutant.change for mutant in mutants(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", ["a < b → a <= b"]),
        ("x = a is not None", ["a is not None → a is None"]),
        ("x = a + b", ["a + b → a - b"]),
        ("x += a", ["x += a → x -= a"]),
        ("x = a and b", ["a and b → a or b"]),
        ("x = not a", ["not a → a"]),
        ("x = -a", ["-a → a"]),
        ("x = -1", ["-1 → -2"]),
        ("x = 3", ["3 → 4"]),
        ("f(keepdim=True)", ["f(keepdim=True) → pass", "True → False"]),
        ("if a:\n    b", ["a → not a"]),
        ("x = a if b else c", ["b → not b"]),
        ("x = [a for a in b if a]", ["a → not a"]),
        ("def f():\n    return a", ["return a → return None"]),
        ("x = a.contiguous()", ["a.contiguous() → a"]),
        ("x = reversed(a)", ["reversed(a) → a"]),
        ("a.b = c", ["a.b = c → pass"]),
        ("raise a", ["raise a → pass"]),
    ],
)
def test_each_kind_of_fault(source: str, expected: list[str]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nx = torch.cat(a)",
        "def f(a: 1 + 1) -> 3: ...",
        "@dataclass(frozen=True)\nclass A: ...",
        '"""Text."""',
        "x = f'{a + b}'",
        "x = A.of(a)",
        "def f():\n    return",
    ],
)
def test_what_is_no_fault_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_a_mutant_differs_in_one_place_and_the_next_one_in_another() -> None:
    found = mutants("x = a + b\n\ny = c * 2")
    assert [(one.line, one.text, one.source) for one in found] == [
        (1, "x = a + b", "x = a - b\ny = c * 2"),
        (3, "y = c * 2", "x = a + b\ny = c / 2"),
        (3, "y = c * 2", "x = a + b\ny = c * 3"),
    ]

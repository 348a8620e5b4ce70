"""The table of faults: what is injected, where, what is seen, and which test holds it.

A row is the mark ``fault`` of a test, and stands nowhere else: there is no row without its test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
COLUMNS = ("injected", "where", "observed", "afterwards")


def table() -> str:
    """A row for each mark, by file and line."""
    lines = [
        "| what is injected | where | what is observed | state afterwards | held by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for test, fault in faults():
        lines.append(f"| {' | '.join(fault[column] for column in COLUMNS)} | {test} |")
    return "\n".join([*lines, "", f"{len(lines) - 2} faults."])


def faults() -> Iterator[tuple[str, dict[str, str]]]:
    """The marked tests, and what their marks say.

    Raises:
        ValueError: a mark says more or less than the table shows.
    """
    for file in sorted(TESTS.glob("test_*.py")):
        for name, mark in _marks(ast.parse(file.read_text(encoding="utf-8")), ""):
            fault = {str(word.arg): str(ast.literal_eval(word.value)) for word in mark.keywords}
            if tuple(fault) != COLUMNS:
                raise ValueError(f"{file.name} {name}: a fault says {', '.join(COLUMNS)}")
            yield f"{file.stem} {name}", fault


def _marks(node: ast.AST, within: str) -> Iterator[tuple[str, ast.Call]]:
    """The names of the tests below a node that have the mark, and their marks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _marks(child, f"{within}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            for decorator in child.decorator_list:
                if (
                    isinstance(decorator, ast.Call)
                    and ast.unparse(decorator.func) == "pytest.mark.fault"
                ):
                    yield within + child.name, decorator

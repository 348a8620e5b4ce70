"""Name lines of code: the function around a line, and a file's path as an import would have it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

_PACKAGES = re.compile(r".*[/\\](?:site|dist)-packages[/\\]")


@lru_cache(maxsize=256)
def short(file: str) -> str:
    """A path from where its package is, or else from the working directory."""
    packaged = _PACKAGES.sub("", file)
    if packaged != file or not file:
        return packaged
    top = Path(file)
    while (top.parent / "__init__.py").exists():
        top = top.parent
    if top != Path(file):
        return str(Path(file).relative_to(top.parent))
    relative = os.path.relpath(file)
    return top.name if relative.startswith("..") else relative


def function_at(file: str, line: int, otherwise: str = "") -> str:
    """Qualified name of the innermost function around a line.

    A function that dynamo made to resume another one is at a line of that one's.
    """
    spans = [span for span in _functions_in(file) if span[0] <= line <= span[1]]
    return max(spans)[2] if spans else otherwise


@lru_cache(maxsize=64)
def _functions_in(file: str) -> tuple[tuple[int, int, str], ...]:
    """First line, last line and qualified name of each function."""
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ()
    return tuple(_walk(tree, ""))


def _walk(node: Any, prefix: str) -> Iterator[tuple[int, int, str]]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{prefix}{child.name}."
            if not isinstance(child, ast.ClassDef):
                first = min(line.lineno for line in (child, *child.decorator_list))
                yield first, child.end_lineno or first, inner[:-1]
        yield from _walk(child, inner)

"""Fingerprints of source code: equal for equal code, whatever its layout or the Python version.

``ast.dump`` prints the same source differently on Python 3.10, 3.12 and 3.13, so the tree is
walked here: comments, formatting, annotations and docstrings do not count, and neither do the
fields that a Python version added and left empty.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Container, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

_IGNORED_FIELDS = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind", "simple"}


def fingerprint(code: Any) -> str | None:
    """Return 16 hexadecimal digits for a plain function or class, None for anything else.

    A wrapper (``functools.partial``, ``wrapt.FunctionWrapper``, a mock) has no fingerprint: what
    it does cannot be read from one piece of source. Types are compared as they are, since a
    wrapt proxy passes ``isinstance`` for what it wraps.
    """
    if type(code) is FunctionType:
        code = code.__code__
    elif not issubclass(type(code), type):
        return None
    return _fingerprint_of(code)


@lru_cache(maxsize=256)
def _fingerprint_of(code: CodeType | type) -> str | None:
    try:
        return fingerprint_source(inspect.getsource(code))
    except (OSError, TypeError, SyntaxError):
        # No source, or that of a lambda, which is a fragment of the statement around it.
        return None


def fingerprint_source(source: str) -> str:
    """Return the fingerprint of source text, which may be indented."""
    return _fingerprint_of_tree(ast.parse(textwrap.dedent(source)))


def fingerprint_definitions(source: str, wanted: Container[str]) -> dict[str, str]:
    """Return the fingerprints of functions, classes and methods of a file, without running it.

    Args:
        source: the whole file.
        wanted: qualified names (``Class.method``); others are passed over.

    Raises:
        SyntaxError: the file is no Python.
        ValueError: it holds null bytes.
    """
    return dict(_definitions(ast.parse(source), "", wanted))


def _definitions(
    tree: ast.Module | ast.ClassDef, prefix: str, wanted: Container[str]
) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{node.name}"
            if name in wanted:
                yield name, _fingerprint_of_tree(ast.Module([node], []))
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{name}.", wanted)


def _fingerprint_of_tree(tree: ast.Module) -> str:
    # Not needed where nothing is patched: the package is imported without it.
    import hashlib

    return hashlib.sha256(_canonical(tree).encode()).hexdigest()[:16]


def _canonical(node: Any) -> str:
    if isinstance(node, list):
        return "[" + ",".join(_canonical(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        node = ast.Assign(targets=[node.target], value=node.value)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = _without_docstring(value)
        if name not in _IGNORED_FIELDS and value is not None and value != []:
            fields.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _without_docstring(body: list[Any]) -> list[Any]:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return body[1:]
    return body

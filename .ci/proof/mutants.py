"""The mutants of a module: small faults put into its code, one at a time.

What is mutated: comparisons, arithmetic, ``and`` and ``or``, signs, ``not``, numbers, flags,
conditions, values that are returned, and calls and statements that can be left out. What is not:
annotations, decorators, docstrings, texts and imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
_UNTOUCHED_FIELDS = ("annotation", "returns", "decorator_list")
_UNTOUCHED_NODES = (ast.Import, ast.ImportFrom, ast.JoinedStr)


@dataclass(frozen=True)
class Mutant:
    """A module with one fault.

    Attributes:
        line, column: where the fault is, in the module as it is written.
        text: that line.
        kind: of the fault.
        change: the code that was changed, before and after.
        source: the whole module with the fault.
    """

    line: int
    column: int
    text: str
    kind: str
    change: str
    source: str

    @property
    def name(self) -> str:
        """Tells it from the module's other mutants."""
        return f"{self.line}:{self.column} {self.change}"


@dataclass(frozen=True)
class _Place:
    """Where a node stands in its parent."""

    parent: ast.AST
    field: str
    index: int | None
    node: Any

    def put(self, node: Any) -> None:
        """Let another node stand here."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its code."""
    tree = ast.parse(source)
    lines, modules = source.splitlines(), _imported_modules(tree)
    found = []
    for place in _places(tree):
        node = place.node
        for kind, other in _faults(place, modules):
            place.put(other)
            shown = _shown(node)
            change = f"{_short(shown)} → {_short(_shown(other))}"
            text = lines[shown.lineno - 1].strip()
            at = shown.lineno, shown.col_offset
            found.append(Mutant(*at, text, kind, change, ast.unparse(tree)))
            place.put(node)
    return sorted(found, key=lambda mutant: (mutant.line, mutant.column))


def _shown(node: Any) -> Any:
    """Of a node, the part that differs in its mutants."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return node.test
    return node.ifs[0] if isinstance(node, ast.comprehension) else node


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:60]} … {text[-27:]}"


def _imported_modules(tree: ast.Module) -> frozenset[str]:
    """Names by which the module knows other modules: what stands after their dot is no method."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    return frozenset(name.asname or name.name for node in imports for name in node.names)


def _places(parent: ast.AST) -> Iterator[_Place]:
    """Every place of a tree that may be mutated."""
    for field, value in ast.iter_fields(parent):
        if field in _UNTOUCHED_FIELDS:
            continue
        nodes = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, node in list(nodes):
            if isinstance(node, ast.AST) and not isinstance(node, _UNTOUCHED_NODES):
                yield _Place(parent, field, index, node)
                if not _is_negative_number(node):
                    yield from _places(node)


def _is_negative_number(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
    )


def _faults(place: _Place, modules: frozenset[str]) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a place, and what kind of fault that is."""
    yield from _wrong_operators(place.node)
    yield from _wrong_values(place.node)
    yield from _negated_conditions(place.node)
    yield from _left_out(place.node)
    if not isinstance(place.parent, ast.Expr):
        yield from _without_a_call(place.node, modules)


def _wrong_operators(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            operators = [*node.ops]
            operators[index] = _COMPARISONS[type(operator)]()
            yield "comparison", ast.Compare(node.left, operators, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield "arithmetic", ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        other = ast.AugAssign(node.target, _ARITHMETIC[type(node.op)](), node.value)
        yield "arithmetic", other
    elif isinstance(node, ast.BoolOp):
        other_operator = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield "and, or", ast.BoolOp(other_operator, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", node.operand
    elif isinstance(node, ast.UnaryOp) and not _is_negative_number(node):
        yield "sign", node.operand


def _wrong_values(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if _is_negative_number(node):
        yield "number", ast.Constant(ast.literal_eval(node) - 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "number", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Return) and not _is_false(node.value):
        yield "return", ast.Return(ast.Constant(None))


def _is_false(value: ast.expr | None) -> bool:
    """Whether it is nothing, False or an empty list: for most callers the same as None."""
    return (
        value is None
        or (isinstance(value, ast.Constant) and not value.value)
        or (isinstance(value, ast.List) and not value.elts)
    )


def _negated_conditions(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """A condition whose outermost operator is mutated anyway is not negated as well."""
    if isinstance(node, ast.If) and not _is_mutated_itself(node.test):
        yield "condition", ast.If(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.While) and not _is_mutated_itself(node.test):
        yield "condition", ast.While(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.IfExp) and not _is_mutated_itself(node.test):
        yield "condition", ast.IfExp(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.comprehension):
        for index, test in enumerate(node.ifs):
            if not _is_mutated_itself(test):
                tests = [*node.ifs]
                tests[index] = _negated(test)
                yield "condition", ast.comprehension(node.target, node.iter, tests, node.is_async)


def _is_mutated_itself(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) or (
        isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    )


def _negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _left_out(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if (
        isinstance(node, ast.Raise)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or (isinstance(node, ast.Assign) and all(_is_part(target) for target in node.targets))
    ):
        yield "left out", ast.Pass()


def _without_a_call(node: ast.AST, modules: frozenset[str]) -> Iterator[tuple[str, ast.AST]]:
    """What a method is called on, in place of what it returns."""
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Attribute) and _has_methods(node.func.value, modules):
        yield "call", node.func.value
    elif isinstance(node.func, ast.Name) and node.func.id == "reversed":
        yield "call", node.args[0]


def _is_part(target: ast.expr) -> bool:
    """Whether it is a part of something, which is there without the assignment."""
    return isinstance(target, (ast.Attribute, ast.Subscript))


def _has_methods(value: ast.expr, modules: frozenset[str]) -> bool:
    """Whether it is an object, as far as one can tell: no module, no class, not ``self``."""
    root = value
    while isinstance(root, ast.Attribute):
        root = root.value
    if not isinstance(root, ast.Name):
        return True
    return not (root.id in modules or root.id in ("self", "cls") or root.id[:1].isupper())

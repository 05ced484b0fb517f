"""Reads from the source what each error advises."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "src/skipgpt"
VALUE = "…"
"""Stands in a piece of advice for what only a run can tell."""

POSITIONAL = {
    "advising": 0, "_fail": 0, "BadParameter": 0, "stoppable": 1, "writing_file": 1,
    "refuse_given": 4, "check_limit": 2,
}  # fmt: skip
"""Calls that take advice without its name, and where."""
NOT_ADVICE = {"Failure"}
"""Calls with a `todo` that is no error's: it stands in a report."""


class Advice(NamedTuple):
    """What one place of the source advises."""

    module: str
    text: str
    line: int


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax of each module, by its path below the package."""
    return {
        path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    }


@cache
def all_advice() -> tuple[Advice, ...]:
    """Every piece of advice: of alternatives each, and of equal ones in a module each place."""
    found = set()
    for module, tree in trees().items():
        for node, function in _calls(tree):
            for expression in _advising(node):
                for text in _texts(expression, module, function):
                    if any(letter.isalpha() for letter in text.replace(VALUE, "")):
                        found.add(Advice(module, text, node.lineno))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                for default in _defaults(function):
                    found |= {
                        Advice(module, text, function.lineno)
                        for text in _texts(default, module, function)
                        if text
                    }
    return tuple(sorted(found))


def _defaults(function: ast.FunctionDef) -> list[ast.expr]:
    """What a parameter for advice is where it is not given."""
    named = function.args
    last = zip(reversed(named.args), reversed(named.defaults), strict=False)
    pairs = [*last, *zip(named.kwonlyargs, named.kw_defaults, strict=True)]
    return [value for argument, value in pairs if argument.arg == "todo" and value is not None]


def _calls(tree: ast.AST, function: ast.AST | None = None) -> Iterator[tuple[ast.Call, ast.AST]]:
    for child in ast.iter_child_nodes(tree):
        inside = child if isinstance(child, ast.FunctionDef) else function
        if isinstance(child, ast.Call):
            yield child, inside or tree
        yield from _calls(child, inside)


def _advising(call: ast.Call) -> list[ast.expr]:
    name = _name_of(call)
    if name in NOT_ADVICE:
        return []
    place = POSITIONAL.get(name)
    given = [] if place is None else call.args[place : place + 1]
    return given + [each.value for each in call.keywords if each.arg == "todo"]


def _name_of(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _texts(node: ast.AST, module: str, function: ast.AST) -> list[str]:
    """What an expression may come to."""

    def of(each: ast.AST) -> list[str]:
        return _texts(each, module, function)

    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(p.value) if isinstance(p, ast.Constant) else VALUE for p in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a, b in itertools.product(of(left), of(right))]
        case ast.IfExp(body=first, orelse=second):
            return of(first) + of(second)
        case ast.BoolOp(values=several) | ast.Tuple(elts=several) | ast.List(elts=several):
            return [text for each in several for text in of(each)]
        case ast.Dict(values=several):
            return [text for each in several for text in of(each)]
        case ast.Lambda(body=body) | ast.Return(value=body) if body is not None:
            return of(body)
        case ast.Subscript(value=ast.Name() as table, slice=ast.Constant(value=key)):
            return _entries(table, key, module, function) or of(table)
        case ast.Attribute(attr=name):
            return _returned(name) or [VALUE]
        case ast.Subscript(value=value):
            return of(value)
        case ast.Call(func=ast.Attribute(attr="format", value=value)):
            return [re.sub(r"\{\w+\}", VALUE, text) for text in of(value)]
        case ast.Call(func=ast.Attribute(attr="get", value=value)):
            return of(value)
        case ast.Call(func=ast.Attribute(attr="join"), args=[parts]):
            return of(parts)
        case ast.Call(func=ast.Name(id="filter"), args=[_, parts]):
            return of(parts)
        case ast.Call():
            return _returned(_name_of(node)) or [VALUE]
        case ast.Name(id=name):
            return _assigned(name, module, function) or [VALUE]
    return [VALUE]


@cache
def _assigned(name: str, module: str, function: ast.AST) -> list[str]:
    """What a name is given: in the function, or as a constant of any module."""
    if name.isupper() or name.startswith("_"):
        places = [(m, t) for m, t in trees().items() if m == module or name.isupper()]
    else:
        places = [(module, function)]
    found = []
    for where, tree in places:
        for node in ast.walk(tree):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
                if any(getattr(each, "id", None) == name for each in ast.walk(node.target)):
                    found += _last_of_tuples(_name_of(node.iter), where)
            elif any(getattr(each, "id", None) == name for each in targets):
                value = getattr(node, "value", None)
                if value is not None:
                    found += _texts(value, where, function)
    return found


def _entries(table: ast.Name, key: object, module: str, function: ast.AST) -> list[str]:
    """One entry of a dictionary of this module."""
    found = []
    for node in ast.walk(trees()[module]):
        if getattr(getattr(node, "target", None), "id", None) != table.id:
            continue
        if isinstance(value := getattr(node, "value", None), ast.Dict):
            for each, text in zip(value.keys, value.values, strict=True):
                if isinstance(each, ast.Constant) and each.value == key:
                    found += _texts(text, module, function)
    return found


def _last_of_tuples(name: str, module: str) -> list[str]:
    """The last texts of the tuples that a function lists."""
    found = []
    for function in ast.walk(trees()[module]):
        if isinstance(function, ast.FunctionDef) and function.name == name:
            for node in ast.walk(function):
                if isinstance(node, ast.Tuple) and len(node.elts) == 4:
                    found += _texts(node.elts[-1], module, function)
    return found


@cache
def _returned(name: str) -> list[str]:
    """What a function of the package returns."""
    found = []
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        found += _texts(inner.value, module, node)
    return found

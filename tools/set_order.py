"""Finds loops over sets: a heuristic over the syntax tree, without types.

An expression counts as a set when it is a set literal or comprehension, a call of ``set`` or
``frozenset``, a set method or operator on one, or a name or attribute that the same file annotates
or assigns as a set. Consumers that do not care for the order (``sorted``, ``any``, ``sum`` ...) may
iterate over it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

ANNOTATIONS = frozenset({"set", "frozenset", "Set", "FrozenSet", "AbstractSet", "MutableSet"})
METHODS = frozenset({"union", "intersection", "difference", "symmetric_difference"})
UNORDERED = frozenset({"sorted", "set", "frozenset", "any", "all", "sum", "len", "min", "max"})


def set_iterations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, description) of every place where the order of a set could leak out."""
    known = _annotated_names(tree)
    harmless = _harmless(tree)
    for node in ast.walk(tree):
        for iterated in _iterated(node):
            if id(node) not in harmless and _is_set(iterated, known):
                yield iterated.lineno, f"iterates over the set {ast.unparse(iterated)}"


def _annotated_names(tree: ast.Module) -> set[str]:
    """Names (variables, parameters) and attributes that hold sets, as ``name`` or ``.name``."""
    known: set[str] = set()
    fields = {
        id(item)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for item in owner.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and _is_set_annotation(node.annotation):
            known.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and _is_set_annotation(node.annotation):
            known.add(f".{_name(node.target)}" if id(node) in fields else _name(node.target))
        elif isinstance(node, ast.Assign) and _is_set(node.value, known):
            known.update(_name(target) for target in node.targets)
    return known - {"", "."}


def _name(target: ast.expr) -> str:
    if isinstance(target, ast.Name):
        return target.id
    return f".{target.attr}" if isinstance(target, ast.Attribute) else ""


def _is_set_annotation(annotation: ast.expr | None) -> bool:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value.split("[")[0].split(".")[-1] in ANNOTATIONS
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    if isinstance(annotation, ast.Attribute):
        return annotation.attr in ANNOTATIONS
    return isinstance(annotation, ast.Name) and annotation.id in ANNOTATIONS


def _is_set(node: ast.expr, known: set[str]) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in ("set", "frozenset")
        case ast.Call(func=ast.Attribute(attr=name, value=value)):
            return name in METHODS or (name == "copy" and _is_set(value, known))
        case ast.BinOp(op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor()):
            return _is_set(node.left, known) or _is_set(node.right, known)
        case ast.IfExp():
            return _is_set(node.body, known) or _is_set(node.orelse, known)
        case ast.Name(id=name):
            return name in known
        case ast.Attribute(attr=name):
            return f".{name}" in known
    return False


def _iterated(node: ast.AST) -> list[ast.expr]:
    """What *node* iterates over, where order can show."""
    match node:
        case ast.For():
            return [node.iter]
        case ast.ListComp() | ast.DictComp() | ast.GeneratorExp():
            return [generator.iter for generator in node.generators]
        case ast.Starred():
            return [node.value]
        case ast.Call(func=ast.Name(id="list" | "tuple" | "iter" | "enumerate" | "next" | "map")):
            return list(node.args)
        case ast.Call(func=ast.Attribute(attr="pop", value=value), args=[]):
            return [value]
        case ast.Call(func=ast.Attribute(attr="join" | "extend")):
            return list(node.args)
    return []


def _harmless(tree: ast.Module) -> set[int]:
    """Generators and comprehensions that feed a consumer which ignores the order."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in UNORDERED:
                found.update(id(argument) for argument in node.args)
        elif isinstance(node, ast.Set):
            found.update(id(item) for item in node.elts)
    return found

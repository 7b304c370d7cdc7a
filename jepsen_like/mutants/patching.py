"""Changes one line of a function while it is loaded, and puts it back.

A ``Rewrite`` names a function of the product, a text that stands exactly once in its source, and
what stands there instead. The changed source is compiled in the place of the function and its code
object swapped in: whoever imported the function under another name runs the changed one too. A
text that is no longer there is an error: the bug has to follow the code.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dis
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, Final

import msgspec

from jepsen_like.errors import JepsenLikeError

_FLAGS: Final = sum(
    getattr(__future__, name).compiler_flag for name in __future__.all_feature_names
)
_OUTER: Final = "_outer"


class PatchError(JepsenLikeError):
    """A rewrite does not fit the code that it is for."""


class Rewrite(msgspec.Struct, frozen=True):
    """*target*: "package.module:Class.function". *old* stands once in its source; *new* is put in
    its place. Both begin and end where they like, with the indentation that the file has."""

    target: str
    old: str
    new: str


def find(target: str) -> FunctionType:
    """The function that *target* names.

    Raises:
        PatchError: there is none.
    """
    module_name, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = inspect.getattr_static(found, name)
    except (ImportError, AttributeError) as error:
        raise PatchError(f"{target}: {error}") from error
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    found = inspect.unwrap(found)
    if not isinstance(found, FunctionType):
        raise PatchError(f"{target} is a {type(found).__name__}, not a function")
    return found


@contextmanager
def rewritten(rewrites: Sequence[Rewrite]) -> Iterator[None]:
    """With all *rewrites* in force, in this process.

    Raises:
        PatchError: one of them does not fit; nothing was changed.
    """
    by_target: dict[str, list[Rewrite]] = {}
    for rewrite in rewrites:
        by_target.setdefault(rewrite.target, []).append(rewrite)
    functions = {target: find(target) for target in by_target}
    changed = {target: _changed(functions[target], each) for target, each in by_target.items()}
    before = {target: function.__code__ for target, function in functions.items()}
    try:
        for target, code in changed.items():
            functions[target].__code__ = code
        yield
    finally:
        for target, code in before.items():
            functions[target].__code__ = code


def _changed(function: FunctionType, rewrites: Sequence[Rewrite]) -> CodeType:
    """The code of *function* with *rewrites* in its text."""
    code = function.__code__
    text = inspect.getsource(code)
    for rewrite in rewrites:
        count = text.count(rewrite.old)
        if count != 1:
            raise PatchError(f"{rewrite.target}: {rewrite.old!r} stands there {count} times")
        text = text.replace(rewrite.old, rewrite.new)
    try:
        tree = ast.parse(textwrap.dedent(text))
    except SyntaxError as error:
        raise PatchError(f"{rewrites[0].target} does not compile: {error}") from error
    (definition,) = tree.body
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        raise PatchError(f"{rewrites[0].target} is not written as a function")
    definition.decorator_list = []
    # A method that says super() has a free variable; it must have the same one afterwards.
    outer = ast.parse(f"def {_OUTER}({', '.join(code.co_freevars)}): pass")
    outer.body[0].body = [definition]  # type: ignore[attr-defined]
    ast.increment_lineno(definition, code.co_firstlineno - 1)
    made = compile(outer, code.co_filename, "exec", flags=code.co_flags & _FLAGS, dont_inherit=True)
    inner = _constant(_constant(made, _OUTER), code.co_name)
    if inner.co_freevars != code.co_freevars:
        raise PatchError(f"{rewrites[0].target} has other free variables: {inner.co_freevars}")
    known = {**vars(builtins), **function.__globals__}
    unknown = sorted(name for name in _globals_of(inner) if name not in known)
    if unknown:
        raise PatchError(f"{rewrites[0].target}: {unknown} are not known in its module")
    return inner.replace(co_qualname=code.co_qualname)


def _globals_of(code: CodeType) -> Iterator[str]:
    """Names that *code* and the functions in it take from their module."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            yield str(instruction.argval)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _globals_of(each)


def _constant(code: CodeType, name: str) -> CodeType:
    return next(
        each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name
    )

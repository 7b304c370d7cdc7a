"""House rules as data: each finds its breaches, and says why it exists and what to do instead.

A rule is a pure function from sources to complaints, so that ``tests/test_repo_rules.py`` can show
each one a bad snippet and see it complain. What ruff and mypy already check is not repeated here,
save the length of lines, which must hold in files that ruff does not read as code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tools.set_order import set_iterations

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70  # without its docstring
LINE_COLUMNS_MAX = 100

#: Files over FILE_LINES_MAX that are allowed to stay so, and may only shrink. Meant to be empty.
LONG_FILES: dict[str, int] = {}


class Source(NamedTuple):
    """One Python file. *path* is relative to the repository, with forward slashes."""

    path: str
    text: str
    tree: ast.Module
    nodes: tuple[ast.AST, ...]
    """All of *tree*, walked once for all rules."""

    @property
    def room(self) -> str:
        """The room that the file stands in: "consensus", "errors", "" for the front door."""
        parts = self.path.removesuffix(".py").split("/")
        if parts[0] != "quorate" or parts[1] == "__init__":
            return ""
        return parts[1]


class Complaint(NamedTuple):
    """One breach: where, and what was found there."""

    path: str
    line: int
    found: str


class Rule(NamedTuple):
    """A house rule. *applies* selects files by path; *find* looks into one of them."""

    name: str
    reason: str
    cure: str
    applies: Callable[[str], bool]
    find: Callable[[Source], Iterator[Complaint]]


def parse(path: str, text: str) -> Source:
    """A source from its text; *path* decides which rules apply."""
    tree = ast.parse(text, filename=path)
    return Source(path, text, tree, tuple(ast.walk(tree)))


def python_files(root: Path = ROOT) -> list[Path]:
    """Every Python file of the repository that is ours, in a fixed order."""
    folders = ("quorate", "jepsen_like", "tools", "bench", "tests", "examples")
    return [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]


def python_sources(root: Path = ROOT) -> Iterator[Source]:
    """They, parsed; one is held at a time."""
    for path in python_files(root):
        yield parse(path.relative_to(root).as_posix(), path.read_text("utf-8"))


def check(rule: Rule, source: Source) -> list[Complaint]:
    """The breaches of *rule* in *source*; empty when it does not apply there."""
    return list(rule.find(source)) if rule.applies(source.path) else []


def explain(rule: Rule, complaints: list[Complaint]) -> str:
    """What a failing test says: the places, why the rule exists, and the cure."""
    places = "\n".join(f"  {item.path}:{item.line}: {item.found}" for item in complaints)
    return f"{rule.name}\n{places}\n  why:  {rule.reason}\n  cure: {rule.cure}"


def _product(path: str) -> bool:
    return path.startswith("quorate/")


def _pure(path: str) -> bool:
    return path.startswith(("quorate/consensus/", "quorate/crdt/"))


def _anywhere(path: str) -> bool:
    return path.endswith(".py")


# --- layers ---------------------------------------------------------------------------------------

#: What a room may import of quorate, as patterns over the dotted name after "quorate.". The
#: replication contract is what a machine needs; what clients need of machines stands in base.
CONTRACT = (
    r"replication\.(machine|tables|deadlines|levels|effects|results|\w*_commands|\w*_results)"
)
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "base": ("errors",),
    "consensus": ("errors", "base"),
    "crdt": ("errors", "base"),
    "storage": ("errors", "base", r"consensus\.(messages|output)"),
    "replication": ("errors", "base", "consensus", "storage", "crdt"),
    "locks": ("errors", "base", CONTRACT),
    "tasks": ("errors", "base", CONTRACT),
    "client": ("errors", "base"),
}
#: Where everything meets, whole nodes for tests, and the two front doors.
UNLIMITED = ("server", "testing", "coordinator", "__main__", "")


def imports(source: Source) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import; *name* is "" for a plain ``import module``."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, module, alias.name) for alias in node.names)


def calls(source: Source) -> Iterator[tuple[int, str]]:
    """(line, name) of every call of a plain name."""
    for node in source.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.lineno, node.func.id


def _find_layers(source: Source) -> Iterator[Complaint]:
    room = source.room
    if room in UNLIMITED:
        return
    if room not in LAYERS:
        yield Complaint(source.path, 1, f"room {room!r} has no line in LAYERS")
        return
    for line, module, name in imports(source):
        if module.startswith("."):
            yield Complaint(source.path, line, "relative import")
        if module.split(".")[0] != "quorate":
            continue
        target = (f"{module}.{name}" if module.count(".") <= 1 and name else module)[8:]
        if target.split(".")[0] == room:
            continue
        if not any(re.match(rf"(?:{pattern})(?:\.|$)", target) for pattern in LAYERS[room]):
            yield Complaint(
                source.path, line, f"{room} imports quorate.{target or '(the package)'}"
            )


# --- purity ---------------------------------------------------------------------------------------

IMPURE_MODULES = frozenset(
    {"asyncio", "concurrent", "datetime", "io", "lmdb", "logging", "multiprocessing", "os"}
    | {"pathlib", "queue", "sched", "secrets", "select", "selectors", "shutil", "signal", "socket"}
    | {"ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid", "uvloop"}
)
#: Builtins whose answer differs between two runs, or that reach outside.
IMPURE_CALLS = frozenset({"open", "input", "hash", "id", "print", "Random", "SystemRandom"})


def _find_impurity(source: Source) -> Iterator[Complaint]:
    for line, module, name in imports(source):
        top = module.split(".")[0]
        if top in IMPURE_MODULES:
            yield Complaint(source.path, line, f"import of {module}")
        if top == "random" and name != "Random":
            yield Complaint(source.path, line, f"import of random{'.' + name if name else ''}")
    for node in source.nodes:
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield Complaint(source.path, node.lineno, "async code")
    for line, function in calls(source):
        if function in IMPURE_CALLS:
            yield Complaint(source.path, line, f"call of {function}()")


def _find_set_iteration(source: Source) -> Iterator[Complaint]:
    for line, found in set_iterations(source.tree):
        yield Complaint(source.path, line, found)


# --- what product code must not do ----------------------------------------------------------------


def _find_lmdb(source: Source) -> Iterator[Complaint]:
    for line, module, _name in imports(source):
        if module.split(".")[0] == "lmdb":
            yield Complaint(source.path, line, "import of lmdb")


UNSAFE_MODULES = frozenset({"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"})


def _find_unsafe(source: Source) -> Iterator[Complaint]:
    for line, module, _name in imports(source):
        if module.split(".")[0] in UNSAFE_MODULES:
            yield Complaint(source.path, line, f"import of {module}")
    for line, function in calls(source):
        if function in ("eval", "exec"):
            yield Complaint(source.path, line, f"call of {function}()")


def _find_assert(source: Source) -> Iterator[Complaint]:
    for node in source.nodes:
        if isinstance(node, ast.Assert):
            yield Complaint(source.path, node.lineno, "bare assert")


def _find_print(source: Source) -> Iterator[Complaint]:
    for line, function in calls(source):
        if function == "print":
            yield Complaint(source.path, line, "call of print()")


_REMINDER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")


def _find_reminders(source: Source) -> Iterator[Complaint]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := _REMINDER.search(line):
            yield Complaint(source.path, number, match.group())


# --- size -----------------------------------------------------------------------------------------


def _find_long_file(source: Source) -> Iterator[Complaint]:
    lines = len(source.text.splitlines())
    allowed = LONG_FILES.get(source.path, FILE_LINES_MAX)
    if lines > allowed:
        yield Complaint(source.path, lines, f"{lines} lines, at most {allowed}")


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the last one, its docstring not counted."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        docstring = node.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def _find_long_function(source: Source) -> Iterator[Complaint]:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = function_lines(node)
            if lines > FUNCTION_LINES_MAX:
                found = f"{node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"
                yield Complaint(source.path, node.lineno, found)


#: What the checkers are told at the end of a line; the formatter does not break a line for it.
_PRAGMA = re.compile(r"\s*# (noqa|type:)\b.*$")


def _find_long_line(source: Source) -> Iterator[Complaint]:
    for number, whole in enumerate(source.text.splitlines(), 1):
        line = _PRAGMA.sub("", whole) if len(whole) > LINE_COLUMNS_MAX else whole
        if len(line) > LINE_COLUMNS_MAX:
            yield Complaint(source.path, number, f"{len(line)} columns")


# --- documentation --------------------------------------------------------------------------------


def _find_undocumented(source: Source) -> Iterator[Complaint]:
    """Methods are not asked: the twins of a protocol have their contract written there."""
    if ast.get_docstring(source.tree) is None:
        yield Complaint(source.path, 1, "module without docstring")
    for node in source.tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        overload = any(
            isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list
        )  # the implementation below it has the docstring
        if not node.name.startswith("_") and ast.get_docstring(node) is None and not overload:
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield Complaint(source.path, node.lineno, f"{kind} {node.name} without docstring")


RULES: tuple[Rule, ...] = (
    Rule(
        "layers",
        "each room can be read, tested and replaced knowing only the rooms below it",
        "move the code to the room that may know both sides, or hand the object in; the table is "
        "LAYERS in tools/repo_rules.py",
        _product,
        _find_layers,
    ),
    Rule(
        "purity of consensus/ and crdt/",
        "a run must be replayable from a seed: time, chance, disk and network are handed in",
        "take a tick, a message or a `Random` as an argument; replication/ and server/ do the rest",
        _pure,
        _find_impurity,
    ),
    Rule(
        "no iteration over sets in consensus/ and crdt/",
        "the order of a set of strings differs between processes, and so would what is sent",
        "iterate over sorted(...)",
        _pure,
        _find_set_iteration,
    ),
    Rule(
        "only storage/lmdb_opening.py imports lmdb",
        "LMDB's errors must become ours, and its settings decide what is durable: one module has "
        "to get that right",
        "use the interfaces of quorate.storage.interfaces and elements, or open_lmdb in storage/",
        lambda path: _product(path) and path != "quorate/storage/lmdb_opening.py",
        _find_lmdb,
    ),
    Rule(
        "no pickle, no eval",
        "whoever can send bytes, or write a file, would run code",
        "use msgspec with a typed decoder",
        lambda path: not path.startswith("tests/"),
        _find_unsafe,
    ),
    Rule(
        "no bare assert in product code",
        "`python -O` strips it, and the message has no facts",
        "use must(condition, claim, **facts) from quorate.base.invariants",
        _product,
        _find_assert,
    ),
    Rule(
        "no print outside server/",
        "a library's host owns its output",
        "log through logging.getLogger(__name__), return the value, or raise",
        lambda path: _product(path) and not path.startswith("quorate/server/"),
        _find_print,
    ),
    Rule(
        "no reminders in code",
        "a reminder in a file is never due",
        "do it now, or write it down where work is planned",
        _anywhere,
        _find_reminders,
    ),
    Rule(
        "short files",
        "a file that grows past its purpose has found a second one",
        "split by purpose, not by size: what has a name of its own becomes a module",
        _product,
        _find_long_file,
    ),
    Rule(
        "short functions",
        "what does not fit on a screen is not read, only searched",
        "push ifs up and loops down: the parent branches, leaves compute",
        lambda path: not path.startswith("tests/"),
        _find_long_function,
    ),
    Rule(
        "short lines",
        "two files side by side, without wrapping",
        "break the line; shorten the comment",
        _anywhere,
        _find_long_line,
    ),
    Rule(
        "documented",
        "a newcomer reads the docstrings of a room before its code",
        "say what it is for, its units, its errors and who owns what",
        lambda path: not path.startswith(("tests/", "examples/")),
        _find_undocumented,
    ),
)

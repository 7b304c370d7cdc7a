"""The rules of the house. A failure names the places, why the rule exists, and what to do instead.

Every rule is also shown a snippet that breaks it, so that a rule which cannot fail is found too.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools import docs_rules, repo_rules
from tools.check import steps
from tools.set_order import set_iterations

ROOT = Path(__file__).resolve().parent.parent
RULES = {rule.name: rule for rule in repo_rules.RULES}

#: Traces of the place where the project was made; none may travel with it. Spelt in two halves,
#: so that this file does not break its own rule.
FORBIDDEN = ("/wo" + "rk/", "/tm" + "p/v/", "/ro" + "ot/", "hel" + "per session", "sub" + "agent")
SECRETS = re.compile("-----BEGIN [A-Z ]*PRIV" + r"ATE KEY-----|\bghp_\w{30}|\bAKIA[0-9A-Z]{16}\b")


def test_every_file_keeps_every_house_rule() -> None:
    """One test for all, since each file is parsed once and then forgotten."""
    found: dict[str, list[repo_rules.Complaint]] = {name: [] for name in RULES}
    for source in repo_rules.python_sources(ROOT):
        for name, rule in RULES.items():
            found[name] += repo_rules.check(rule, source)
    said = [repo_rules.explain(RULES[name], items) for name, items in found.items() if items]
    assert not said, "\n".join(said)


CORE = "quorate/consensus/core.py"
BAD = [
    ("layers", "quorate/errors.py", "from quorate.base.types import Term"),
    ("layers", "quorate/base/x.py", "from quorate.consensus import core"),
    ("layers", CORE, "import quorate.storage.wal"),
    ("layers", CORE, "def f():\n    from quorate import storage"),
    ("layers", CORE, "from .progress import Progress"),
    ("layers", "quorate/crdt/x.py", "from quorate.consensus.messages import Entry"),
    ("layers", "quorate/storage/x.py", "from quorate.consensus.core import Core"),
    ("layers", "quorate/storage/x.py", "from quorate.replication import machine"),
    ("layers", "quorate/replication/x.py", "from quorate.server import cli"),
    ("layers", "quorate/client/x.py", "from quorate.storage.wal import Wal"),
    ("layers", "quorate/client/x.py", "from quorate.consensus.messages import Entry"),
    ("layers", "quorate/client/x.py", "from quorate.replication.replica import Replica"),
    ("layers", "quorate/client/x.py", "from quorate.replication.machine import Machine"),
    ("layers", "quorate/locks/x.py", "from quorate.replication.sessions import Sessions"),
    ("layers", "quorate/newroom/x.py", "pass"),
    ("layers", CORE, "import quorate"),
    *[
        ("purity of consensus/ and crdt/", path, code)
        for path in (CORE, "quorate/crdt/x.py")
        for code in (
            "import time",
            "import os.path",
            "from datetime import datetime",
            "import random",
            "from random import choice",
            "from random import Random\nr = Random(1)",
            "import asyncio",
            "async def f(): pass",
            "x = hash('a')",
            "f = open('x')",
            "import logging",
        )
    ],
    ("no iteration over sets in consensus/ and crdt/", CORE, "for x in {1, 2}: pass"),
    ("only storage/lmdb_opening.py imports lmdb", "quorate/storage/wal.py", "import lmdb"),
    (
        "only storage/lmdb_opening.py imports lmdb",
        "quorate/server/x.py",
        "from lmdb import Environment",
    ),
    ("no pickle, no eval", "bench/x.py", "import pickle"),
    ("no pickle, no eval", "quorate/base/x.py", "from marshal import loads"),
    ("no pickle, no eval", "quorate/base/x.py", "eval('1')"),
    ("no bare assert in product code", "quorate/base/x.py", "def f(x):\n    assert x"),
    ("no print outside server/", "quorate/base/x.py", "print(1)"),
    ("no reminders in code", "tests/x.py", "x = 1  # TO" + "DO later"),
    ("short files", "quorate/base/x.py", "x = 1\n" * 601),
    ("short functions", "quorate/base/x.py", "def f():\n" + "    x = 1\n" * 70),
    ("short lines", "tests/x.py", "x = '" + "y" * 100 + "'"),
    ("short lines", "tests/x.py", "x = '" + "y" * 100 + "'  # noqa: E501"),
    ("documented", "quorate/base/x.py", "x = 1"),
    ("documented", "quorate/base/x.py", "'''m'''\ndef f(): pass"),
    ("documented", "quorate/base/x.py", "'''m'''\nclass C: pass"),
]


@pytest.mark.parametrize(("name", "path", "code"), BAD)
def test_rule_can_fail(name: str, path: str, code: str) -> None:
    complaints = repo_rules.check(RULES[name], repo_rules.parse(path, code))
    assert complaints
    assert RULES[name].cure in repo_rules.explain(RULES[name], complaints)


def test_every_rule_is_shown_to_fail() -> None:
    assert {name for name, _path, _code in BAD} == set(RULES)


GOOD = [
    ("layers", "quorate/client/x.py", "from quorate.base.kv_commands import Put"),
    ("layers", "quorate/locks/x.py", "from quorate.replication.machine import Machine"),
    ("layers", "quorate/locks/x.py", "from quorate.replication import tables"),
    ("layers", "quorate/storage/x.py", "from quorate.consensus.messages import Entry"),
    ("layers", "quorate/storage/x.py", "from quorate.consensus import messages"),
    ("layers", "quorate/server/x.py", "from quorate.storage.wal import Wal"),
    ("layers", "quorate/__main__.py", "from quorate.server.cli import main"),
    ("layers", "quorate/__init__.py", "from quorate.client.connect import connect"),
    ("layers", "quorate/base/x.py", "import msgspec\nfrom quorate.errors import QuorateError"),
    ("purity of consensus/ and crdt/", CORE, "from random import Random\ndef f(r: Random): ..."),
    ("purity of consensus/ and crdt/", "quorate/server/x.py", "import time"),
    ("only storage/lmdb_opening.py imports lmdb", "quorate/storage/lmdb_opening.py", "import lmdb"),
    ("no bare assert in product code", "tests/x.py", "assert True"),
    ("no print outside server/", "quorate/server/x.py", "print(1)"),
    ("short lines", "tests/x.py", "x = '" + "y" * 90 + "'  # noqa: E501"),
    ("short functions", "bench/x.py", "def f():\n    '''" + "d\n" * 80 + "'''\n    pass"),
    ("documented", "quorate/base/x.py", "'''m'''\ndef _f(): pass"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "code"), GOOD)
def test_rule_is_silent_on_good_code(name: str, path: str, code: str) -> None:
    assert repo_rules.check(RULES[name], repo_rules.parse(path, code)) == []


@pytest.mark.parametrize(
    "code",
    [
        "for x in {1, 2}: f(x)",
        "for x in set(y): f(x)",
        "def f(v: frozenset[int]):\n    for x in v: g(x)",
        "def f(v: AbstractSet[int]):\n    return [g(x) for x in v]",
        "class C:\n    v: frozenset[int]\n    def f(self):\n        for x in self.v: g(x)",
        "class C:\n    def f(self):\n        self.v = set()\n        return list(self.v)",
        "a = {1}\nb = tuple(a | {2})",
        "a = {x for x in y}\nf(*a)",
        "for x in a.union(b): f(x)",
        "a = set()\na.pop()",
        "','.join({'a', 'b'})",
    ],
)
def test_set_iteration_is_found(code: str) -> None:
    assert list(set_iterations(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "for x in sorted({1, 2}): f(x)",
        "a = {1}\nany(x > 1 for x in a)",
        "a = {1}\nb = {x + 1 for x in a}",
        "a = [1]\nfor x in a: f(x)",
        "def f(v: frozenset[int]):\n    return sum(1 for x in v)",
        "a = [1]\na.pop()",
        "d = {}\nd.pop('x')",
    ],
)
def test_order_free_use_of_sets_is_allowed(code: str) -> None:
    assert not list(set_iterations(ast.parse(code)))


def test_ratchet_is_tight() -> None:
    for path, allowed in repo_rules.LONG_FILES.items():
        lines = len((ROOT / path).read_text("utf-8").splitlines())
        assert lines == allowed, f"{path}: lower its number in LONG_FILES, or remove it"


# --- the frame -----------------------------------------------------------------------------------


def _tracked_texts() -> list[tuple[str, str]]:
    """Every text file of the repository; without git, what its own folders hold."""
    git = shutil.which("git")
    names: list[str] = []
    if git is not None and (ROOT / ".git").exists():
        command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        names = [name for name in listing.stdout.decode().split("\0") if name]
    else:
        files = [*repo_rules.python_files(ROOT), *docs_rules.documents(ROOT)]
        names = [file.relative_to(ROOT).as_posix() for file in files]
    found = []
    for name in names:
        try:
            found.append((name, (ROOT / name).read_text("utf-8")))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # binary, or removed but not yet committed
    return found


def test_no_traces_of_the_workplace_and_no_secrets() -> None:
    for name, text in _tracked_texts():
        for word in FORBIDDEN:
            assert word not in text, f"{name}: {word!r}: write it so that it holds on any machine"
        assert not SECRETS.search(text), f"{name}: looks like a credential: generate it in the test"


def test_readme_has_the_two_commands() -> None:
    """One line each that does everything on a machine with only Python."""
    readme = (ROOT / "README.md").read_text("utf-8")
    fences = re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL)
    start = "python3 -m venv .venv && .venv/bin/pip install -q "
    commands = [fence.strip() for fence in fences if fence.startswith(start)]
    assert [command.split(" && ")[-1] for command in commands] == [
        ".venv/bin/quorate demo",
        ".venv/bin/python -m tools.check",
    ]


def test_ci_runs_the_test_command_of_the_readme(tmp_path: Path) -> None:
    """The awk program in .ci/run finds exactly the line that readers are shown."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    extraction = re.search(
        r"^test_command=\$\(.*?^    inside.*?\)$", script, re.DOTALL | re.MULTILINE
    )
    assert extraction is not None
    program = f'root="{ROOT}"\n{extraction.group()}\nprintf %s "$test_command"'
    bash = shutil.which("bash")
    assert bash is not None
    found = subprocess.run([bash, "-euc", program], capture_output=True, text=True, check=True)
    assert found.stdout.endswith(".venv/bin/python -m tools.check")
    assert found.stdout in (ROOT / "README.md").read_text("utf-8")


def test_licence_is_whole_and_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in licence
    assert "limitations under the License." in licence


def test_every_dependency_says_why() -> None:
    """A dependency line in pyproject.toml ends with a comment."""
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    packages = re.compile(r'^    "(lmdb|msgspec|[a-z][\w.\[\],-]*)(?=[>=<;"\[]).*",')
    for line in lines[lines.index("dependencies = [") + 1 : lines.index("[project.scripts]")]:
        if packages.match(line) and "quorate[" not in line and "pytest>=" not in line:
            assert "  #" in line, f"say why: {line.strip()}"


def test_all_checks_are_in_the_one_command() -> None:
    quick = [step.name for step in steps(deep=False, fix=False)]
    assert quick == ["format", "lint", "types", "quick tests"]
    assert [step.name for step in steps(deep=True, fix=False)][4] == "deep tests"

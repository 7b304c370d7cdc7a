"""Tables in the pages that are made from the code, or point into the tests."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from jepsen_like.workloads.registry import WORKLOADS
from tools import module_table

ROOT = Path(__file__).resolve().parent.parent
GUARANTEES = ROOT / "docs" / "guarantees.md"
CONSISTENCY = ROOT / "docs" / "consistency.md"
INVARIANTS = ROOT / "jepsen_like" / "simulation" / "invariants.py"
_REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_the_table_of_modules_is_fresh() -> None:
    page = module_table.PAGE.read_text("utf-8")
    assert module_table.updated(page) == page, "run `python -m tools.module_table`"


def references() -> list[tuple[str, str]]:
    pages = (GUARANTEES, CONSISTENCY)
    return [found for page in pages for found in _REFERENCE.findall(page.read_text("utf-8"))]


@functools.cache
def names_in(path: str) -> frozenset[str]:
    """Functions and classes of a file; a page names some files often."""
    text = (ROOT / path).read_text("utf-8")
    return frozenset(re.findall(r"^ *(?:async def|def|class) (\w+)", text, re.MULTILINE))


@pytest.mark.parametrize(("path", "name"), references())
def test_every_promise_is_bound_to_a_test_that_exists(path: str, name: str) -> None:
    assert name in names_in(path), f"a page names {path}::{name}"


def test_every_row_of_levels_under_faults_names_a_test() -> None:
    page = CONSISTENCY.read_text("utf-8").partition("## Levels under faults")[2]
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| fault", "| promise"))]
    assert len(rows) >= 10
    for row in rows:
        assert _REFERENCE.search(row), f"no test behind: {row}"


def promises() -> list[tuple[str, str, str]]:
    """The rows: what is promised, what of the kit holds it, its tests."""
    rows = [line for line in GUARANTEES.read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = [row.strip("| ").split(" | ") for row in rows if not row.startswith("| promise")]
    return [(promise, held_by, tests) for promise, held_by, tests in cells]


def test_every_row_of_promises_names_a_test() -> None:
    assert len(promises()) >= 20
    for promise, _held_by, tests in promises():
        assert _REFERENCE.search(tests), f"no test behind: {promise}"


# --- what of the fault kit holds them -------------------------------------------------------------


@functools.cache
def violations() -> frozenset[str]:
    """Names that a simulated run can end with, as they stand in the code."""
    found: set[str] = set()
    for path in sorted((ROOT / "jepsen_like" / "simulation").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                found.update(_name_in(node))
    return frozenset(found)


def _name_in(call: ast.Call) -> list[str]:
    """The name that ``claim(holds, NAME, …)``, ``_violate(NAME, …)`` or ``Violation(name=NAME)``
    gives."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    given: list[ast.expr] = []
    if function == "claim":
        given = call.args[1:2]
    elif function == "_violate":
        given = call.args[:1]
    elif isinstance(call.func, ast.Name) and call.func.id == "Violation":
        given = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
    constants = [node.value for node in given if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def test_every_promise_is_bound_to_what_the_kit_checks() -> None:
    known = violations() | set(WORKLOADS)
    bound: set[str] = set()
    for promise, held_by, _tests in promises():
        names = re.findall(r"`([^`]+)`", held_by)
        assert names or held_by == "-", f"nothing holds: {promise}"
        assert ", ".join(f"`{name}`" for name in names) == held_by or held_by == "-", held_by
        assert set(names) <= known, f"no such checker: {set(names) - known}, for: {promise}"
        bound.update(names)
    assert known <= bound, f"checked, but promised nowhere: {known - bound}"


def test_every_invariant_is_explained_where_the_page_says() -> None:
    text = ast.get_docstring(ast.parse(INVARIANTS.read_text("utf-8"))) or ""
    explained = set(re.findall(r"^([a-z]+(?:-[a-z]+)*)\s{2,}", text, re.MULTILINE))
    assert {"stale-read", "order", "liveness"} <= explained
    assert explained == violations()

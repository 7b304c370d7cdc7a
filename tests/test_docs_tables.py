"""Tables in the pages that are made from the code, or point into the tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tools import module_table

ROOT = Path(__file__).resolve().parent.parent
GUARANTEES = ROOT / "docs" / "guarantees.md"
_REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_the_table_of_modules_is_fresh() -> None:
    page = module_table.PAGE.read_text("utf-8")
    assert module_table.updated(page) == page, "run `python -m tools.module_table`"


def references() -> list[tuple[str, str]]:
    return _REFERENCE.findall(GUARANTEES.read_text("utf-8"))


@pytest.mark.parametrize(("path", "name"), references())
def test_every_promise_is_bound_to_a_test_that_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    assert name in names, f"docs/guarantees.md names {path}::{name}"


def test_every_row_of_promises_names_a_test() -> None:
    rows = [line for line in GUARANTEES.read_text("utf-8").splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise", "|---"))]
    assert len(promises) >= 20
    for row in promises:
        assert _REFERENCE.search(row), f"no test behind: {row}"

"""The tests of the CRDTs, tested: with each of ``mutants.py`` they must fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crdt.mutants import MUTANTS
from tests.mutating import ROOT, Mutant, Room

ROOM = Room("tests/crdt")
FILES = tuple(
    sorted(
        path.stem.removeprefix("test_")
        for path in (ROOT / "tests" / "crdt").glob("test_*.py")
        if path.stem != "test_mutants"
    )
)


def test_every_mutant_finds_its_place() -> None:
    ROOM.check_places(MUTANTS)


@pytest.mark.deep
def test_without_a_mutant_all_is_green(tmp_path: Path) -> None:
    ROOM.check_green(FILES, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    ROOM.check_caught(mutant, tmp_path)

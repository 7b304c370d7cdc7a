"""The tests of this room, tested: with each of ``mutants.py`` they must fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutating import Mutant, Room
from tests.tasks.mutants import MUTANTS

ROOM = Room("tests/tasks", needs=("tests/replication",))
#: The tests that the mutants name, in the order in which they are named.
FILES = tuple(dict.fromkeys(each for mutant in MUTANTS for each in mutant.tests))


def test_every_mutant_finds_its_place() -> None:
    ROOM.check_places(MUTANTS)


@pytest.mark.deep
def test_without_a_mutant_all_is_green(tmp_path: Path) -> None:
    ROOM.check_green(FILES, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    ROOM.check_caught(mutant, tmp_path)

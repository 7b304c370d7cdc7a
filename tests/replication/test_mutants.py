"""The tests of the machines, tested: with each of ``mutants.py`` they must fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutating import Mutant, Room
from tests.replication.driver_mutants import DRIVER_MUTANTS
from tests.replication.mutants import MUTANTS
from tests.replication.watch_mutants import WATCH_MUTANTS

ROOM = Room("tests/replication")
ALL = MUTANTS + DRIVER_MUTANTS + WATCH_MUTANTS
MACHINES = ("ordered_keys", "tables", "batch", "kv", "sessions", "runs", "machines", "restoring")
LOG = ("replica", "proposals", "log_cache", "sending", "disk", "reading", "clock", "recovery")
STATE = ("checkpoints", "snapshots", "divergence", "acknowledging", "fake_cluster")
WATCHES = ("feeds", "leases", "kv_watch", "kv_fences")
FILES = MACHINES + LOG + STATE + WATCHES


def test_every_mutant_finds_its_place() -> None:
    ROOM.check_places(ALL)


@pytest.mark.deep
def test_without_a_mutant_all_is_green(tmp_path: Path) -> None:
    ROOM.check_green(FILES, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.what)
def test_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    ROOM.check_caught(mutant, tmp_path)

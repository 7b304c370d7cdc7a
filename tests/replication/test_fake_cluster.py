"""Random faults against three replicas; a failure names its seed.

Replay one with ``QUORATE_SEED=7 pytest tests/replication/test_fake_cluster.py``.
"""

from __future__ import annotations

import logging
import os

import pytest

from tests.replication.driving import virtually
from tests.replication.fake_cluster import run_cluster
from tests.sharing import turn

REPLAY = os.environ.get("QUORATE_SEED")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("seed", [int(REPLAY)] if REPLAY else turn(range(12)))
def test_nothing_acknowledged_is_lost_done_twice_or_out_of_order(seed: int) -> None:
    virtually(run_cluster(seed, faults=8))


def test_the_same_seed_is_the_same_run() -> None:
    first, second = (virtually(run_cluster(5, faults=2)) for _ in range(2))
    hashes = [
        {member.machines.state_hash for member in cluster.members.values()}
        for cluster in (first, second)
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_many_more_seeds(seed: int) -> None:
    virtually(run_cluster(seed, faults=15))

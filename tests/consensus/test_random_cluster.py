"""Whole clusters under random faults: safety while they last, liveness once they are gone."""

from __future__ import annotations

import os

import pytest

from tests.consensus.chaos import run_seed
from tests.sharing import turn

ONE = os.environ.get("QUORATE_SEED")
SEEDS = [int(ONE)] if ONE else turn(range(60))
TICKS = 500


@pytest.mark.parametrize("seed", SEEDS)
def test_a_faulty_cluster_stays_safe_and_heals(seed: int) -> None:
    run_seed(seed, TICKS)


@pytest.mark.deep
@pytest.mark.parametrize("first", range(1000, 5000, 100))
def test_a_faulty_cluster_stays_safe_and_heals_deep(first: int) -> None:
    for seed in range(first, first + 100):
        run_seed(seed, 2 * TICKS)


@pytest.mark.deep
@pytest.mark.parametrize("first", range(10_000, 11_000, 100))
def test_leases_stay_linearizable(first: int) -> None:
    for seed in range(first, first + 100):
        run_seed(seed, 2 * TICKS, leases=True)

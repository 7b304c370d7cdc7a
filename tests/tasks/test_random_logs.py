"""All that there is, by chance, on a node that restarts and breaks off: the same at every index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import sharing
from tests.tasks.random_logs import play

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", sharing.turn(range(24)))
def test_replicas_of_a_log_are_alike_at_every_index(seed: int) -> None:
    play(seed, 60)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(100, 200))
def test_replicas_of_a_long_log_are_alike(seed: int) -> None:
    play(seed, 500)


@pytest.mark.deep
def test_the_order_of_hashes_does_not_matter() -> None:
    found = play(7, 200).machines.state_hash.hex()
    said = subprocess.run(
        [sys.executable, "-m", "tests.tasks.random_logs", "7", "200"],
        cwd=ROOT, env=sharing.under_other_hashes(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split() == [found]

"""Equal state, event and random numbers give an equal output: in this process and in others."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from tests.consensus.trace import digest
from tests.sharing import under_other_hashes

ROOT = Path(__file__).resolve().parents[2]
SEEDS, TICKS = 3, 200


@functools.cache
def here() -> str:
    return digest(range(SEEDS), TICKS)


def test_the_same_seeds_give_the_same_traces() -> None:
    assert digest(range(SEEDS), TICKS) == here()


def test_the_trace_shows_differences() -> None:
    assert digest(range(1), TICKS) != digest(range(1, 2), TICKS)


def test_the_order_of_sets_and_hashes_does_not_matter() -> None:
    """Strings hash differently in every process; nothing may depend on it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.consensus.trace", str(SEEDS), str(TICKS)],
        cwd=ROOT,
        env=under_other_hashes(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == here()

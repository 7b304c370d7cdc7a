"""Equal state, event and random numbers give an equal output: in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.consensus.trace import digest

ROOT = Path(__file__).resolve().parents[2]
SEEDS, TICKS = 3, 200


def test_the_same_seeds_give_the_same_traces() -> None:
    assert digest(range(SEEDS), TICKS) == digest(range(SEEDS), TICKS)


def test_the_trace_shows_differences() -> None:
    assert digest(range(1), TICKS) != digest(range(1, 2), TICKS)


def test_the_order_of_sets_and_hashes_does_not_matter() -> None:
    """Strings hash differently in every process; nothing may depend on it."""
    found = set()
    for hash_seed in ("1", "2"):
        found.add(
            subprocess.run(
                [sys.executable, "-m", "tests.consensus.trace", str(SEEDS), str(TICKS)],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        )
    assert found == {digest(range(SEEDS), TICKS)}

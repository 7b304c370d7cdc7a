"""Quick versions of the storage torture; ``python -m tools.torture --deep`` runs the long ones."""

from __future__ import annotations

import pytest

from tools.torture import QUICK, SUITES, Suite, Tally

#: What each suite must at least have tried, or it has quietly stopped testing.
TRIED_MIN = {
    "wal: file cut off at every byte": {"offsets": 5000, "refused": 5000},
    "wal: unacknowledged tail lost from every byte on": {"offsets": 2000, "recovered": 500},
    "wal: everything lost from every sector on": {"offsets": 10},
    "wal: every bit flipped": {"bits": 24_000, "refused": 20_000},
    "wal: a few bytes of a sector damaged": {"damages": 1000, "refused": 1000},
    "wal: a segment deleted, swapped or duplicated": {"refused": 30},
    "wal: crash before every operation": {"crash points": 150, "reorderings": 400},
    "wal: crash in recovery after a crash": {"crash points": 1000, "reorderings": 1000},
    "wal: process killed, then power lost": {"crash points": 150, "reorderings": 150},
    "wal: every operation fails once": {"poisoned": 200, "disk full": 50},
    "wal: every operation of recovery fails once": {"failures": 1000},
}
WAL_SUITES = [suite for suite in SUITES if suite.name.startswith("wal: ")]


def test_every_suite_has_a_least_count() -> None:
    assert {suite.name for suite in WAL_SUITES} == set(TRIED_MIN)


@pytest.mark.parametrize("suite", WAL_SUITES, ids=lambda suite: suite.name)
def test_torture(suite: Suite) -> None:
    tally = Tally()
    suite.run(QUICK, tally)
    assert tally.violation_count == 0, "\n".join(tally.violations)
    for what, least in TRIED_MIN[suite.name].items():
        assert tally.counts[what] >= least, (what, tally.counts)

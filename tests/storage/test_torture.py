"""Quick versions of the storage torture; ``python -m tools.torture --deep`` runs the long ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sharing import turn
from tools import torture
from tools.torture import QUICK, SUITES, Suite, Tally

#: What each suite must at least have tried, or it has quietly stopped testing.
TRIED_MIN = {
    "wal: file cut off at every byte": {"offsets": 4500, "refused": 4500},
    "wal: unacknowledged tail lost from every byte on": {"offsets": 2000, "recovered": 500},
    "wal: everything lost from every sector on": {"offsets": 10},
    "wal: every bit flipped": {"bits": 24_000, "refused": 20_000},
    "wal: a few bytes of a sector damaged": {"damages": 500, "refused": 400},
    "wal: a segment deleted, swapped or duplicated": {"refused": 30},
    "wal: a record of an earlier life comes back": {"refused": 1},
    "wal: crash before every operation": {"crash points": 150, "reorderings": 400},
    "wal: crash in recovery after a crash": {"crash points": 500, "reorderings": 500},
    "wal: process killed, then power lost": {"crash points": 150, "reorderings": 150},
    "wal: every operation fails once": {"poisoned": 200, "disk full": 50},
    "wal: every operation of recovery fails once": {"failures": 1000},
    "store: crash before every operation": {"crash points": 70, "reorderings": 120},
    "store: crash in opening after a kill": {"crash points": 100, "reorderings": 200},
    "store: power lost inside of a commit": {"crash points": 150},
    "store: every operation fails once": {"reported": 50, "disk full": 5},
    "store: no space at every size": {"disk full": 40},
    "store: data file cut off": {"offsets": 30, "refused": 20},
    "store: bits flipped": {"bits": 1000, "refused": 200, "recovered": 500},
    "store: sectors blanked, pages lost, bytes damaged": {"damages": 200, "refused": 20},
    "store: sound files are never refused": {"commits": 40},
    "elements: crash before every operation": {"crash points": 30, "reorderings": 40},
    "elements: power lost inside of a commit": {"crash points": 100},
    "elements: every operation fails once": {"reported": 10, "disk full": 10},
    "elements: no space at every size": {"disk full": 40},
    "elements: data file damaged": {"damages": 400, "refused": 30},
    "node: crash between log and store": {"crash points": 100, "reorderings": 200},
    "node: process killed at any time": {"kills": 2, "recovered": 2},
}


def test_every_suite_has_a_least_count() -> None:
    assert {suite.name for suite in SUITES} == set(TRIED_MIN)


@pytest.mark.parametrize("suite", turn(SUITES), ids=lambda suite: suite.name)
def test_torture(suite: Suite) -> None:
    tally = Tally()
    suite.run(QUICK, tally)
    assert tally.violation_count == 0, "\n".join(tally.violations)
    for what, least in TRIED_MIN[suite.name].items():
        assert tally.counts[what] >= least, (what, tally.counts)


def test_a_violation_is_printed_with_its_replay_and_ends_in_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(effort: torture.Effort, tally: Tally) -> None:
        tally.count("tries")
        tally.violation(f"seed {effort.seed}: crash before operation 3")

    monkeypatch.setattr(torture, "SUITES", (Suite("broken: on purpose", broken),))
    report = tmp_path / "report.json"
    assert torture.main(["--quick", "--seed", "5", "--json", str(report)]) == 1
    printed = capsys.readouterr().out
    assert "seed 5: crash before operation 3" in printed
    assert '--quick --seed 5 --only "broken: on purpose"' in printed
    assert json.loads(report.read_text("utf-8"))["violations"] == 1

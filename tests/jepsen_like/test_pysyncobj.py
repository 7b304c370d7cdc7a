"""The kit finds PySyncObj's defects by itself, and its checkers are silent where nothing is wrong.

The second half needs no PySyncObj; the first is skipped without it: it is in the extra "bench".
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping

import msgspec
import pytest

from jepsen_like.cli import main
from jepsen_like.systems.pysyncobj.watch import Entry, Photo, Watch, photo
from tests.sharing import under_other_hashes

pytestmark = pytest.mark.shared

needs_pysyncobj = pytest.mark.skipif(
    importlib.util.find_spec("pysyncobj") is None,
    reason="PySyncObj is not installed: pip install 'quorate[bench]'",
)

#: Found by counting up from 0; nothing in them is arranged.
SEEDS_WITH = {
    "acknowledged-write-on-no-replica": 12,
    "cluster-wedged": 37,
    "applied-entries-truncated": 36,
    "leader-without-quorum": 39,
    "concurrent-membership-changes": 0,
    "committed-entries-lost-by-power-failure": 1,
    "committed-entries-lost-by-kill": 9,
    "lock-held-by-two": 42,
}


def violations_of(seed: int) -> dict[str, dict]:
    search = importlib.import_module("jepsen_like.systems.pysyncobj.search")
    result = search.find_defects([seed])
    return {each["name"]: each for each in result["violations"]}


@needs_pysyncobj
@pytest.mark.parametrize(("name", "seed"), SEEDS_WITH.items())
def test_each_defect_is_found_with_its_evidence(name: str, seed: int) -> None:
    found = violations_of(seed)
    assert name in found, f"replay with: python -m jepsen_like pysyncobj --seed {seed}"
    evidence = found[name]["evidence"]
    assert evidence["seed"] == found[name]["first_seed"] == seed
    assert evidence["text"]
    assert set(evidence["logs"]) == set(evidence["members"])
    assert evidence["trace"]
    json.dumps(evidence)


@needs_pysyncobj
def test_a_vote_counted_twice_is_seen_in_the_evidence() -> None:
    evidence = violations_of(39)["leader-without-quorum"]["evidence"]
    arrived = evidence["votes_arrived"]
    assert len(arrived) > len(set(arrived))


@needs_pysyncobj
def test_a_wedged_cluster_names_the_command_that_raises() -> None:
    text = violations_of(37)["cluster-wedged"]["evidence"]["text"]
    assert "raised so far" in text
    assert "Error" in text


@needs_pysyncobj
def test_the_same_seed_runs_the_same_whatever_the_hash_seed() -> None:
    simulation = importlib.import_module("jepsen_like.systems.pysyncobj.simulation")
    program = (
        "from jepsen_like.systems.pysyncobj.simulation import run_seed;print(run_seed(36).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=under_other_hashes(),
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.strip() == simulation.run_seed(36).digest


@needs_pysyncobj
def test_without_faults_and_in_batches_nothing_is_found() -> None:
    simulation = importlib.import_module("jepsen_like.systems.pysyncobj.simulation")
    for seed in range(3):
        plan = simulation.draw_plan(seed)
        calm = msgspec.structs.replace(
            plan,
            faults=(),
            batteries=False,
            local_reads=False,
            locks=True,
            quality=type(plan.quality)(),
            settings=msgspec.structs.replace(plan.settings, append_entries_use_batch=True),
            rough_s=10.0,
        )
        report = simulation.run_seed(seed, calm)
        assert report.valid, report.violations
        assert report.operations["ok"] > 20


@needs_pysyncobj
def test_the_library_is_as_it_was_after_a_run() -> None:
    names_of = ("pysyncobj.syncobj", "pysyncobj.journal", "pysyncobj.batteries", "os")
    modules = [importlib.import_module(name) for name in names_of]
    before = [dict(vars(module)) for module in modules]
    violations_of(36)
    for module, names in zip(modules, before, strict=True):
        assert dict(vars(module)) == names


@needs_pysyncobj
def test_the_command_says_what_it_found_and_exits_with_1(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", "--system", "pysyncobj", "--seed", "36", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["system"] == "pysyncobj"
    assert result["version"]
    assert result["valid"] is False
    assert result["seeds"] == 1
    assert result["virtual_seconds"] > 0
    assert {"name", "count", "first_seed", "evidence"} <= set(result["violations"][0])
    assert main(["pysyncobj", "--seed", "36"]) == 1
    assert "applied-entries-truncated" in capsys.readouterr().out


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture) -> None:
    assert main(["pysyncobj", "--seeds", "0"]) == 2
    assert capsys.readouterr().err


# --- the checkers by themselves -------------------------------------------------------------------


class Fake:
    """A member that does what it is told."""

    def __init__(self, name: str, members: tuple[str, ...] = ("n1", "n2", "n3")) -> None:
        self.name, self.members, self.running = name, members, True
        self.term, self.leads, self.commit, self.applied, self.first = 0, False, 0, 0, 1
        self.log: list[Entry] = []
        self.lineage: Mapping[int, bytes] = {}

    @property
    def members_count(self) -> int:
        return len(self.members)

    @property
    def last(self) -> int:
        return self.first + len(self.log) - 1

    def entry(self, index: int) -> Entry | None:
        place = index - self.first
        return self.log[place] if 0 <= place < len(self.log) else None


class Cluster:
    """Three of them, which follow the rules unless a test breaks one."""

    def __init__(self) -> None:
        self.members = [Fake(f"n{number}") for number in (1, 2, 3)]
        self.watch = Watch(self.members)

    @property
    def found(self) -> set[str]:
        return set(self.watch.violations)

    def elect(self, leader: Fake, voters: list[Fake], term: int) -> None:
        before = photo(leader)
        self.watch.voted(leader.name, leader.name, term)
        for voter in voters:
            voter.term = term
            self.watch.voted(voter.name, leader.name, term)
            self.watch.vote_sent(voter.name, leader.name, term)
            self.watch.vote_arrived(voter.name, leader.name, term)
        leader.term, leader.leads = term, True
        self.watch.stepped(leader, before, "vote")

    def append(self, entry: Entry, *members: Fake) -> None:
        for member in members:
            before = photo(member)
            member.log.append(entry)
            self.watch.stepped(member, before, "append")

    def execute(self, member: Fake, index: int, *, acknowledge: bool = False) -> None:
        before = photo(member)
        entry = member.entry(index)
        assert entry is not None
        member.commit = max(member.commit, index)
        self.watch.executed(member, index, entry.content)
        member.lineage = {**member.lineage, index: entry.content}
        member.applied = index
        if acknowledge:
            self.watch.acknowledged(member, entry, entry.content)
        self.watch.stepped(member, before, "execute")


def entry(index: int, term: int, content: bytes = b"", *, membership: bool = False) -> Entry:
    return Entry(index, term, content or b"%d" % index, membership)


def test_silent_on_a_cluster_that_keeps_the_rules() -> None:
    cluster = Cluster()
    n1, n2, n3 = cluster.members
    cluster.elect(n1, [n2], 1)
    for index in range(1, 6):
        cluster.append(entry(index, 1), n1, n2)
        cluster.execute(n1, index, acknowledge=True)
        cluster.execute(n2, index)
    cluster.append(entry(6, 1), n1)  # of the old leader, never committed
    n1.leads = False
    cluster.elect(n2, [n3], 2)
    for index in range(1, 6):
        cluster.append(entry(index, 1), n3)
        cluster.execute(n3, index)
    cluster.append(entry(6, 2, b"other"), n2, n3)
    cut = n1.log.pop()
    cluster.watch.removed(n1, [cut], n1.applied, "append from n2")
    cluster.append(entry(6, 2, b"other"), n1)
    for member in (n2, n1, n3):
        cluster.execute(member, 6, acknowledge=member is n2)
    n3.first, n3.log = 5, n3.log[4:]  # a snapshot took the place of the rest
    cluster.append(entry(7, 2, membership=True), n2, n1)
    cluster.execute(n2, 7, acknowledge=True)
    cluster.append(entry(8, 2, membership=True), n2)
    cluster.watch.restarted(n1, photo(n1), list(n1.log), "kill")
    cluster.watch.finished()
    cluster.watch.settled()
    assert cluster.found == set()


def test_one_voter_twice_is_no_quorum() -> None:
    cluster = Cluster()
    n1, n2, _n3 = cluster.members
    for member in cluster.members:
        member.members = ("n1", "n2", "n3", "n4", "n5")
    cluster.elect(n1, [n2, n2], 1)
    assert cluster.found == {"leader-without-quorum"}


def test_two_leaders_and_two_votes_in_a_term() -> None:
    cluster = Cluster()
    n1, n2, n3 = cluster.members
    cluster.elect(n1, [n3], 1)
    cluster.elect(n2, [n3], 1)
    assert cluster.found == {"two-leaders-in-one-term", "voted-twice-in-one-term"}


def test_acknowledged_by_one_alone_and_then_nowhere() -> None:
    cluster = Cluster()
    n1 = cluster.members[0]
    cluster.append(entry(1, 1), n1)
    cluster.execute(n1, 1, acknowledge=True)
    assert cluster.found == {"acknowledged-without-quorum", "committed-without-quorum"}
    n1.log, n1.lineage = [], {}
    cluster.watch.finished()
    assert "acknowledged-write-on-no-replica" in cluster.found


def test_applied_entries_that_are_cut_off() -> None:
    cluster = Cluster()
    n1, n2, _n3 = cluster.members
    cluster.append(entry(1, 1), n1, n2)
    cluster.execute(n1, 1, acknowledge=True)
    cluster.execute(n2, 1)
    cut = n2.log.pop()
    cluster.watch.removed(n2, [cut], 1, "append from n1")
    assert cluster.found == {"applied-entries-truncated", "acknowledged-write-below-quorum"}


def test_other_breaches_by_name() -> None:
    cluster = Cluster()
    n1, n2, n3 = cluster.members
    cluster.append(entry(1, 1), *cluster.members)
    cluster.execute(n1, 1)
    cluster.execute(n1, 1)
    assert cluster.found == {"entry-executed-again"}
    n2.log[0] = entry(1, 1, b"different")
    cluster.watch.executed(n2, 1, b"different")
    assert "state-machines-diverge" in cluster.found
    cluster.watch.acknowledged(n3, entry(1, 1), b"asked for")
    assert "acknowledged-another-command" in cluster.found
    cluster.watch.stepped(n3, Photo(9, leads=False, commit=9, applied=9, last=9), "step")
    assert {"term-decreases", "commit-index-decreases", "applied-index-decreases"} <= cluster.found
    n3.log = []
    before = Photo(5, leads=False, commit=1, applied=1, last=1)
    cluster.watch.restarted(n3, before, [entry(1, 1)], "kill")
    assert {"committed-entries-lost-by-kill", "term-forgotten-by-kill"} <= cluster.found


def test_two_changes_of_the_membership_at_once() -> None:
    cluster = Cluster()
    n1, n2, _n3 = cluster.members
    cluster.elect(n1, [n2], 1)
    cluster.append(entry(1, 1, membership=True), n1)
    assert cluster.found == set()
    cluster.append(entry(2, 1, membership=True), n1)
    assert cluster.found == {"concurrent-membership-changes"}

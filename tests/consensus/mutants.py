"""Bugs put into a copy of the core on purpose, each of which the quick tests must find.

``python -m tests.consensus.mutants [NAME …]`` runs them and prints what killed each. A mutant is a
replacement in the source text, so that it can be any bug; ``test_mutants.py`` watches that each
still applies, and the deep run that each is still caught.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CORE = Path("quorate/consensus")
#: The quick tests take some 30 s on two busy cores; a mutant may loop.
RUN_SECONDS_MAX = 300


class Mutant(NamedTuple):
    """*old* stands exactly once in *file*; *new* is the bug."""

    name: str
    file: str
    old: str
    new: str

    def applied(self, root: Path = ROOT) -> str:
        """The file's text with the bug in it."""
        text = (root / CORE / self.file).read_text("utf-8")
        count = text.count(self.old)
        assert count == 1, f"mutant {self.name!r}: {count} times in {self.file}: {self.old!r}"
        return text.replace(self.old, self.new)


MUTANTS = [
    # --- votes ---
    Mutant("a repeated vote counts twice", "election.py",
           "state.votes.setdefault(reply.sender, reply.granted)",
           "state.votes.setdefault(next((n for n in state.membership.members() "
           "if n not in state.votes), reply.sender), reply.granted)"),
    Mutant("some founders elect a leader before all are named", "election.py",
           "if membership.unmet():", "if False:"),
    Mutant("a vote is forgotten by a restart", "state.py",
           "self.vote = hard.vote\n        self.log", "self.vote = NO_NODE\n        self.log"),
    Mutant("messages leave before term and vote are durable", "state.py",
           "if self.persisted_term == self.term and self.persisted_vote == self.vote:",
           "if True:"),
    Mutant("votes go to all who ask", "election.py",
           "granted = request.term >= state.term and free and current",
           "granted = request.term >= state.term and current"),
    Mutant("votes go to shorter logs", "election.py",
           "granted = request.term >= state.term and free and current",
           "granted = request.term >= state.term and free"),
    Mutant("the longer log wins, whatever its terms", "election.py",
           "(request.last_term, request.last_index) >= (\n        state.log.last_term,\n"
           "        state.log.last_index,\n    )",
           "request.last_index >= state.log.last_index"),
    Mutant("votes of the last election still count", "roles.py",
           "    state.votes = {}\n", ""),
    Mutant("a vote of the last term is kept in the next", "roles.py",
           "        state.vote = NO_NODE\n", ""),
    Mutant("a leader before its own vote is durable", "election.py",
           "    if state.role is Role.CANDIDATE and state.node_id not in state.votes:\n",
           "    if False:\n"),
    Mutant("no stickiness", "election.py",
           "return state.role is Role.LEADER or state.tick < state.sticky_until",
           "return False"),
    Mutant("a pre-vote raises the term", "core.py",
           "            case VoteRequest() if message.pre:\n"
           "                return True  # asks about a term nobody is in yet\n", ""),
    Mutant("elections need one majority of a joint configuration", "quorum.py",
           "    if not voters_old:\n        return result\n", "    return result\n"),
    Mutant("timeouts are not random", "roles.py",
           "least + int(state.random.random() * (most - least))", "least"),
    Mutant("a stale term is not refused", "core.py",
           "            self._answer_stale(message)\n            return\n", "            pass\n"),
    Mutant("learners campaign", "state.py",
           "return self.members.votes_since(self.commit, self.node_id) and not self.disk_stalled()",
           "return not self.disk_stalled()"),
    Mutant("who is left out by an uncommitted change is silent", "state.py",
           "self.members.votes_since(self.commit, self.node_id)",
           "self.membership.is_voter(self.node_id)"),
    # --- the log ---
    Mutant("entries of earlier terms commit by counting", "leader.py",
           "if index <= state.commit or state.log.term_at(index) != state.term:",
           "if index <= state.commit:"),
    Mutant("a repeated append truncates", "follower.py",
           "        if state.log.term_at(entry.index) == entry.term:\n            continue\n",
           "        if state.log.term_at(entry.index) == entry.term and "
           "entry.index <= state.commit:\n            continue\n"),
    Mutant("an append that does not fit is taken", "follower.py",
           "if state.log.term_at(request.prev_index) != request.prev_term:",
           "if state.log.term_at(request.prev_index) is None:"),
    Mutant("an append is acknowledged before it is durable", "follower.py",
           "if state.persisted >= index:", "if True:"),
    Mutant("a heartbeat vouches for what is not durable", "follower.py",
           "durable=LogIndex(min(state.verified, state.persisted)),", "durable=state.verified,"),
    Mutant("the leader counts itself before its fsync", "leader.py",
           "state.match[state.node_id] = state.persisted\n",
           "state.match[state.node_id] = state.log.last_index\n"),
    Mutant("commit goes past what was verified", "follower.py",
           "min(leader_commit, state.verified)", "min(leader_commit, state.log.last_index)"),
    Mutant("what one leader verified holds for the next", "roles.py",
           "        state.verified = state.commit  # what an earlier leader verified, "
           "a new one may overwrite\n", ""),
    Mutant("a late fsync vouches for what was truncated", "state.py",
           "pending.last_index = LogIndex(min(pending.last_index, last))", "pass"),
    Mutant("what was truncated still counts as durable", "state.py",
           "        self.persisted = LogIndex(min(self.persisted, last))\n", ""),
    Mutant("commits need one majority of a joint configuration", "quorum.py",
           "return min(reached, _majority_value(voters_old, values)) if voters_old else reached",
           "return reached"),
    Mutant("learners count in commits", "leader.py",
           "quorum_index(membership.voters, membership.voters_old, state.match)",
           "quorum_index(membership.members(), (), state.match)"),
    Mutant("a minority is enough in even clusters", "quorum.py",
           "return voter_count // 2 + 1", "return (voter_count + 1) // 2"),
    Mutant("no entry of the own term goes first", "leader.py",
           '    append_entry(state, EntryKind.NOOP, b"")\n', ""),
    Mutant("hints are ignored", "leader.py",
           "progress.become_probe(LogIndex(min(reply.index, hint.index + 1)))",
           "progress.become_probe(reply.index)"),
    Mutant("a stale refusal rewinds the match", "progress.py",
           "self.next = LogIndex(max(next_index, self.match + 1))", "self.next = next_index"),
    Mutant("a lost append is never missed", "progress.py",
           "if verified >= self.expected_at(round_number):", "if True:"),
    Mutant("a lost acknowledgement is never repeated", "follower.py",
           "durable=LogIndex(min(state.verified, state.persisted)),", "durable=LogIndex(0),"),
    Mutant("appends in flight are not bounded", "progress.py",
           "len(self._inflight) >= inflight_messages_max\n", "False\n"),
    Mutant("a probe is sent twice", "progress.py",
           "return round_number > self.probe_round and not 0 < self.probe_last <= verified",
           "return True"),
    Mutant("proposals are not bounded", "leader.py",
           "state.uncommitted_bytes + size > state.config.uncommitted_bytes_max",
           "False"),
    # --- reads ---
    Mutant("reads without a heartbeat round", "reads.py",
           "    if _alone(state):\n", "    if True:\n"),
    Mutant("reads before an own entry is committed", "reads.py",
           "    if state.log.term_at(state.commit) != state.term:\n"
           "        state.reads_early.append((context, requester))\n        return\n", ""),
    Mutant("any echo confirms any round", "leader.py",
           "        state.acked_rounds[node] = round_number\n",
           "        state.acked_rounds[node] = state.round\n"),
    Mutant("reads are confirmed by one majority of a joint configuration", "reads.py",
           "return quorum_value(membership.voters, membership.voters_old, values)",
           "return quorum_value(membership.voters, (), values)"),
    Mutant("a deposed leader leaves its readers waiting", "roles.py",
           "        refuse_read(state, read.context, read.requester)\n", "        pass\n"),
    Mutant("a lease runs from the answer", "reads.py",
           "sent_ms + state.config.lease_ms", "state.now_ms + state.config.lease_ms"),
    Mutant("a transfer leaves the lease alone", "transfer.py",
           "    state.transfer_sent = True\n    state.lease_until_ms = -1\n", ""),
    Mutant("a newer term ends the promise to a lease", "roles.py",
           "        state.vote = NO_NODE\n",
           "        state.vote, state.sticky_until = NO_NODE, 0\n"),
    Mutant("a restart ends the promise to a lease", "state.py",
           "config.election_ticks_min if config.lease_reads else 0", "0"),
    Mutant("a lease outlives the voters who gave it", "leader.py",
           "        reads.end_lease(state)\n", "        pass\n"),
    Mutant("ticks that are late shorten a promise", "core.py",
           "            election.date_promise(state)\n", "            pass\n"),
    Mutant("who promised to give no vote votes for itself", "election.py",
           "state.elapsed < state.election_timeout or state.tick < state.sticky_until:",
           "state.elapsed < state.election_timeout:"),
    Mutant("who forgets promises at a restart gives them", "follower.py",
           "sticky=config.lease_reads,", "sticky=config.lease_reads or not config.fast_failover,"),
    Mutant("a lease is as long as the leader's own settings say", "reads.py",
           "return state.config.lease_ms * 4 <= promise_ms * 3", "return True"),
    # --- membership ---
    Mutant("a change while another is pending", "changes.py",
           "if state.members.index > state.commit or state.membership.joint:", "if False:"),
    Mutant("a change before an own entry is committed", "changes.py",
           "if state.log.term_at(state.commit) != state.term:", "if False:"),
    Mutant("a truncated change stays in force", "state.py",
           "        self.members.truncate(last)\n", ""),
    Mutant("a removed leader stays", "changes.py",
           "        become_follower(state, state.term, NO_NODE)\n", "        pass\n"),
    Mutant("a lagging learner is promoted", "changes.py",
           "if lag > state.config.promote_lag_entries_max:", "if False:"),
    Mutant("a joint configuration is never left", "changes.py",
           "    if membership.joint:\n", "    if membership.joint and False:\n"),
    Mutant("a configuration holds only when it is committed", "leader.py",
           "    state.members.append(index, membership)\n    follow_membership(state)\n", ""),
    # --- snapshots ---
    Mutant("an older snapshot is installed", "follower.py",
           "    if index <= state.commit:\n", "    if index < 0:\n"),
    Mutant("a snapshot discards the suffix it should keep", "follower.py",
           "    if state.log.term_at(index) == offer.id.term:\n", "    if False:\n"),
    Mutant("a snapshot leaves the old configuration", "follower.py",
           "    state.members.reset(offer.membership, offer.membership_index)\n", ""),
    Mutant("a snapshot is acknowledged before it is durable", "follower.py",
           "def _answer_offer(state: State, offer: SnapshotOffered, index: LogIndex) -> None:\n"
           "    state.out_after.append(",
           "def _answer_offer(state: State, offer: SnapshotOffered, index: LogIndex) -> None:\n"
           "    state.out_messages.append("),
    Mutant("a cut after an installed snapshot crashes", "core.py",
           "        if floor.index <= state.log.floor.index:\n"
           "            return  # a snapshot that was installed meanwhile left nothing to cut\n",
           ""),
    # --- leaders ---
    Mutant("no check-quorum", "leader.py",
           "if not quorum_is_active(state, state.membership):", "if False:"),
    Mutant("a connection is a sign of life", "leader.py",
           "    if progress is not None and progress.state is ProgressState.PROBE:\n"
           "        progress.probe_sent = False\n        send_appends(state, node, progress)\n",
           "    if progress is not None:\n        progress.heard_tick = state.tick\n"
           "        progress.probe_sent = False\n        send_appends(state, node, progress)\n"),
    Mutant("a leader with a stalled disk stays", "leader.py",
           "    if state.disk_stalled():\n", "    if False:\n"),
    Mutant("a leader handing over takes proposals", "leader.py",
           "    if state.transfer_target != NO_NODE:\n", "    if False:\n"),
    Mutant("a transfer waits for nobody's log", "transfer.py",
           "if node == state.transfer_target and progress.match == state.log.last_index:",
           "if node == state.transfer_target:"),
    Mutant("a transfer never ends", "transfer.py",
           "state.tick >= state.transfer_deadline", "False"),
]  # fmt: skip


class Verdict(NamedTuple):
    """What became of a mutant. *killer*: the first test that failed, "" if none did."""

    name: str
    killer: str


def _copy(target: Path) -> None:
    for folder in ("quorate", "tests/consensus"):
        ignored = shutil.ignore_patterns("__pycache__", "test_mutants.py")
        shutil.copytree(ROOT / folder, target / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", target)
    shutil.copy(ROOT / "tests" / "sharing.py", target / "tests")


def _first_failure(root: Path) -> str:
    """Run the quick tests there until one fails; its name, or ""."""
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "tests/consensus",
            ],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        return "(it runs for ever)"
    if done.returncode == 0:
        return ""
    found = re.search(
        r"^(?:FAILED|ERROR) tests/consensus/(.*?)(?: - |$)", done.stdout, re.MULTILINE
    )
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return found[1]


def judge(mutant: Mutant | None) -> Verdict:
    """Try one mutant in a copy of its own; None: the copy as it is, which must survive."""
    with tempfile.TemporaryDirectory(prefix="quorate-mutant-") as folder:
        root = Path(folder)
        _copy(root)
        if mutant is not None:
            (root / CORE / mutant.file).write_text(mutant.applied(root), "utf-8")
        return Verdict(mutant.name if mutant else "(none)", _first_failure(root))


def main(names: Sequence[str]) -> int:
    """Judge the mutants whose name contains one of *names*, or all; how many survived."""
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    survivors = 0
    for mutant in chosen:
        verdict = judge(mutant)
        survivors += not verdict.killer
        print(f"{verdict.name}: {verdict.killer or 'SURVIVED'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} were caught")
    return survivors


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]) > 0)

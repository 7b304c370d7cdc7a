"""Bugs of the log: what matches, what is durable, what is committed."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one

_FOLLOWER, _LEADER = "quorate.consensus.follower", "quorate.consensus.leader"
_QUORUM = "quorate.consensus.quorum"

MUTANTS = (
    Mutant(
        name="old-term-commits-by-counting",
        bug="entries of earlier terms are committed when a majority holds them",
        source="Raft 5.4.2, figure 8 (trap 2); logcabin 44",
        rewrites=one(
            f"{_LEADER}:advance_commit",
            "if index <= state.commit or state.log.term_at(index) != state.term:",
            "if index <= state.commit:",
        ),
        profile=profiles.LONG_TAILS,
        budget=40,
    ),
    Mutant(
        name="append-truncates-what-matches",
        bug="a follower deletes all after an append's first entry, also what matches",
        source="PySyncObj defect C (trap 3); hashicorp/raft 113",
        rewrites=one(
            f"{_FOLLOWER}:_take_entries",
            "        if state.log.term_at(entry.index) == entry.term:\n            continue\n",
            "        if entry.index <= state.commit:\n            continue\n",
        ),
        profile=profiles.REPLAYED,
    ),
    Mutant(
        name="append-without-match",
        bug="an append is taken although the entry before it is another one here",
        source="Raft figure 2, AppendEntries rule 2",
        rewrites=one(
            f"{_FOLLOWER}:on_append_request",
            "if state.log.term_at(request.prev_index) != request.prev_term:",
            "if state.log.term_at(request.prev_index) is None:",
        ),
        profile=profiles.ELECTIONS,
        budget=40,
    ),
    Mutant(
        name="ack-before-disk",
        bug="a follower acknowledges entries before its fsync",
        source="Raft figure 2 (trap 1); PySyncObj defect F",
        rewrites=one(f"{_FOLLOWER}:_accept", "if state.persisted >= index:", "if True:"),
    ),
    Mutant(
        name="heartbeat-vouches-too-much",
        bug="the answer to a heartbeat vouches for entries that are not durable",
        source="own",
        rewrites=one(
            f"{_FOLLOWER}:on_heartbeat",
            "durable=LogIndex(min(state.verified, state.persisted)),",
            "durable=state.verified,",
        ),
    ),
    Mutant(
        name="own-fsync-not-awaited",
        bug="a leader counts itself before its own fsync",
        source="etcd 14370 (trap 22)",
        rewrites=one(
            f"{_LEADER}:on_own_persisted",
            "state.match[state.node_id] = state.persisted",
            "state.match[state.node_id] = state.log.last_index",
        ),
    ),
    Mutant(
        name="commit-past-match",
        bug="a follower takes the leader's commit index past what matches the leader's log",
        source="PySyncObj defect A (trap 4); ra 508",
        rewrites=one(
            f"{_FOLLOWER}:_commit_to",
            "min(leader_commit, state.verified)",
            "min(leader_commit, state.log.last_index)",
        ),
        profile=profiles.ELECTIONS,
    ),
    Mutant(
        name="match-outlives-the-leader",
        bug="what one leader verified counts as verified for the next",
        source="copycat 265 (trap 4)",
        rewrites=one(
            "quorate.consensus.roles:become_follower",
            "        state.verified = state.commit  # what an earlier leader verified, "
            "a new one may overwrite\n",
            "",
        ),
        profile=profiles.ELECTIONS,
        budget=40,
    ),
    Mutant(
        name="ack-without-term",
        bug="an acknowledgement of an earlier leadership counts in this one",
        source="PySyncObj defect D (trap 5)",
        rewrites=one(
            "quorate.consensus.core:Core._on_message",
            "elif message.term < state.term:",
            "elif message.term < state.term and not isinstance(message, AppendReply):",
        ),
        profile=profiles.REPLAYED,
        budget=40,
    ),
    Mutant(
        name="late-fsync-vouches",
        bug="the end of a write vouches for entries that were truncated meanwhile",
        source="own",
        rewrites=one(
            "quorate.consensus.state:State.truncate",
            "pending.last_index = LogIndex(min(pending.last_index, last))",
            "pass",
        ),
        profile=profiles.ELECTIONS,
        budget=40,
    ),
    Mutant(
        name="learners-count",
        bug="learners count in the quorum that commits",
        source="thesis 4.2.1",
        rewrites=one(
            f"{_LEADER}:advance_commit",
            "quorum_index(membership.voters, membership.voters_old, state.match)",
            "quorum_index(membership.members(), (), state.match)",
        ),
    ),
    Mutant(
        name="half-is-a-majority",
        bug="half of an even number of voters is taken for a majority",
        source="openraft 1802 (trap 27)",
        rewrites=one(
            f"{_QUORUM}:quorum_size", "return voter_count // 2 + 1", "return (voter_count + 1) // 2"
        ),
    ),
    Mutant(
        name="joint-commit-by-new-voters",
        bug="in a joint configuration the new voters alone commit",
        source="thesis 4.3 (traps 7, 27)",
        rewrites=one(
            f"{_QUORUM}:quorum_value",
            "return min(reached, _majority_value(voters_old, values)) if voters_old else reached",
            "return reached",
        ),
        profile=profiles.SHRINKING,
    ),
    Mutant(
        name="no-check-quorum",
        bug="a leader that hears from no quorum leads on",
        source="thesis 6.2 (trap 21); PySyncObj defect G",
        rewrites=one(
            f"{_LEADER}:on_tick", "if not quorum_is_active(state, state.membership):", "if False:"
        ),
        profile=profiles.ELECTIONS,
    ),
    Mutant(
        name="stalled-disk-leads",
        bug="a leader whose disk does not answer keeps leading",
        source="hashicorp/raft 503, etcd 13527 (trap 14)",
        rewrites=one(f"{_LEADER}:on_tick", "if state.disk_stalled():", "if False:"),
        profile=profiles.STALLED_DISKS,
    ),
)

"""Bugs of linearizable reads."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one

_READS = "quorate.consensus.reads"

MUTANTS = (
    Mutant(
        name="local-reads",
        bug="linearizable reads are answered from the local state",
        source="PySyncObj defect G (trap 10)",
        rewrites=one(
            "quorate.replication.reading:Serving.query", "if query.linearizable:", "if False:"
        ),
    ),
    Mutant(
        name="read-without-a-round",
        bug="a leader vouches for a read without asking a quorum whether it still leads",
        source="thesis 6.4, step 3 (trap 10)",
        rewrites=one(f"{_READS}:_lead_read", "if _alone(state):", "if True:"),
        profile=profiles.SLEEPING_LEADERS,
        budget=40,
    ),
    Mutant(
        name="read-before-own-commit",
        bug="a new leader vouches for reads before an entry of its own term is committed",
        source="thesis 6.4, step 1 (trap 10)",
        rewrites=one(
            f"{_READS}:_lead_read",
            "if state.log.term_at(state.commit) != state.term:",
            "if False:",
        ),
        profile=profiles.NEW_LEADERS,
        budget=40,
    ),
    Mutant(
        name="any-echo-confirms",
        bug="an echo of any heartbeat confirms the latest round of reads",
        source="etcd 20418 (trap 10)",
        rewrites=one(
            "quorate.consensus.leader:_heard",
            "        state.acked_rounds[node] = round_number",
            "        state.acked_rounds[node] = state.round",
        ),
        profile=profiles.SLEEPING_LEADERS,
        budget=40,
    ),
    Mutant(
        name="context-used-twice",
        bug="a new round of reads takes the context of an earlier one, and its late answer",
        source="etcd 20418, 21399 (trap 10)",
        rewrites=one(
            "quorate.replication.reading:Reads._begin", "        self._next_context += 1\n", ""
        ),
        budget=40,
    ),
    Mutant(
        name="read-before-apply",
        bug="a read is answered before the entry it must see is applied here",
        source="thesis 6.4, step 4 (trap 10)",
        rewrites=one(
            "quorate.replication.reading:Reads.ready",
            "if granted.index <= applied:",
            "if granted.index:",
        ),
    ),
    Mutant(
        name="lease-from-the-answer",
        bug="a lease runs from when its answers came, not from when its round was sent",
        source="thesis 6.4.1 (trap 11); tikv 964",
        rewrites=one(
            f"{_READS}:renew_lease",
            "sent_ms + state.config.lease_ms",
            "state.now_ms + state.config.lease_ms",
        ),
        profile=profiles.LATE_ANSWERS,
        budget=40,
    ),
    Mutant(
        name="lease-outlives-transfer",
        bug="a lease still holds after the leader told another member to campaign",
        source="sofa-jraft 34 (trap 11)",
        rewrites=one(
            "quorate.consensus.transfer:send_timeout_now",
            "    state.transfer_sent = True\n    state.lease_until_ms = -1\n",
            "",
        ),
        profile=profiles.TRANSFERS,
        budget=40,
    ),
    Mutant(
        name="lease-outlives-its-voters",
        bug="a lease still holds when others than those who granted it can elect a leader",
        source="our own; thesis 4.3 and 6.4.1",
        rewrites=one(
            "quorate.consensus.leader:append_membership",
            "        reads.end_lease(state)\n",
            "        pass\n",
        ),
        profile=profiles.LEASED_CHURN,
        budget=40,
    ),
    Mutant(
        name="lateness-shortens-promises",
        bug="ticks of before a promise to a lease, which come late, count against it",
        source="our own; thesis 6.4.1",
        rewrites=one(
            "quorate.consensus.core:Core._on_tick",
            "            election.date_promise(state)\n",
            "            state.heard_since_tick = False\n",
        ),
        profile=profiles.LATE_VOTERS,
        budget=40,
    ),
    Mutant(
        name="ticks-too-fast",
        bug="members tick twice as fast as their clocks run, and end their promises early",
        source="our own; thesis 6.4.1: clocks of about equal rate",
        rewrites=one(
            "quorate.replication.clock:TickPace.passed",
            "self._counted_s += ticks * self._tick_s",
            "self._counted_s += ticks * self._tick_s / 2",
        ),
        profile=profiles.LATE_VOTERS,
        budget=40,
    ),
    Mutant(
        name="promise-forgotten",
        bug="a restart forgets that a leader was heard, whose lease counts on it",
        source="thesis 6.4.1 (trap 11)",
        rewrites=one(
            "quorate.consensus.state:State.__init__",
            "config.election_ticks_min if config.lease_reads else 0",
            "0",
        ),
        profile=profiles.LEASED_RESTARTS,
        budget=40,
    ),
)

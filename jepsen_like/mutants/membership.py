"""Bugs of membership changes, and of who a member is."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one

_CHANGES = "quorate.consensus.changes"
_ELECTION = "quorate.consensus.election"

MUTANTS = (
    Mutant(
        name="changes-pile-up",
        bug="a change is accepted while another is not committed",
        source="PySyncObj defect E (trap 7); thesis 4.1",
        rewrites=one(
            f"{_CHANGES}:_guard",
            "if state.members.index > state.commit or state.membership.joint:",
            "if False:",
        ),
        profile=profiles.CHURN,
        budget=40,
    ),
    Mutant(
        name="change-before-own-commit",
        bug="a new leader changes the members before an entry of its own term is committed",
        source="raft-dev 2015, braft 182 (trap 6)",
        rewrites=one(
            f"{_CHANGES}:_guard",
            "if state.log.term_at(state.commit) != state.term:",
            "if False:",
        ),
        profile=profiles.CHURN,
        budget=40,
    ),
    Mutant(
        name="truncated-change-stays",
        bug="a configuration stays in force after its entry was truncated",
        source="cowsql/raft 150 (trap 8)",
        rewrites=one(
            "quorate.consensus.state:State.truncate", "        self.members.truncate(last)\n", ""
        ),
        profile=profiles.CHURN,
        budget=40,
    ),
    Mutant(
        name="removed-leader-stays",
        bug="a leader goes on leading after a configuration without it was committed",
        source="thesis 4.2.2 (trap 7)",
        rewrites=one(
            f"{_CHANGES}:on_commit",
            "        become_follower(state, state.term, NO_NODE)\n",
            "        pass\n",
        ),
        profile=profiles.SHRINKING,
    ),
    Mutant(
        name="joint-for-ever",
        bug="a joint configuration is never left",
        source="thesis 4.3",
        rewrites=one(f"{_CHANGES}:on_commit", "if membership.joint:", "if False:"),
        profile=profiles.SHRINKING,
    ),
    Mutant(
        name="snapshot-keeps-old-members",
        bug="an installed snapshot leaves the configuration as it was",
        source="openraft 1808, etcd 11510 (trap 8)",
        rewrites=one(
            "quorate.consensus.follower:on_snapshot_offered",
            "    state.members.reset(offer.membership, offer.membership_index)\n",
            "",
        ),
        profile=profiles.LAGGING_CHURN,
    ),
    Mutant(
        name="checkpoint-keeps-old-members",
        bug="a checkpoint holds the configuration of the log's beginning, not of its own entry",
        source="canonical/raft 250 (trap 8)",
        rewrites=one(
            "quorate.replication.checkpoints:Checkpointer._write",
            "replica.core.state.members.step_at(replica.applied)",
            "replica.core.state.members.step_at(replica.core.state.log.floor.index)",
        ),
        profile=profiles.LAGGING_CHURN,
    ),
    Mutant(
        name="incarnation-not-checked",
        bug="a member whose disk was wiped comes back under its old number",
        source="dragonboat 256, openraft 1385 (trap 24)",
        rewrites=one(
            "quorate.server.identity:Gate.check_member",
            "if pinned and pinned != incarnation:",
            "if False:",
        ),
        profile=profiles.DAMAGE,
    ),
    Mutant(
        name="pins-only-when-applied",
        bug="who stands behind a number is known only once the entry that says so is applied again",
        source="our own: a node that had just started let a wiped member in",
        rewrites=one(
            "quorate.server.node:Node.pinned",
            "return membership.incarnation(node) or",
            "return",
        ),
        profile=profiles.WIPED_AND_RESTARTED,
        budget=40,
    ),
    Mutant(
        name="founded-by-a-majority",
        bug="some founders elect a leader before all have been on record",
        source="our own: the rest may meet a founder that was wiped, and elect another",
        rewrites=one(f"{_ELECTION}:_result", "if membership.unmet():", "if False:"),
    ),
    Mutant(
        name="removal-told-early",
        bug="a removal is called done once its joint configuration is committed",
        source="our own: the removed node is switched off, and the others still need its vote",
        rewrites=one(
            "quorate.server.admin:Admin._committed",
            "if state.commit >= index and not (in_force.joint and made == index):",
            "if state.commit >= index:",
        ),
        profile=profiles.SHRINKING,
    ),
)

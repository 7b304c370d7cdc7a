"""Membership changes by joint consensus (thesis 4.3), with the guards that 4.1 and 4.2 ask for."""

from __future__ import annotations

from quorate.base.types import NO_NODE
from quorate.consensus import leader, transfer
from quorate.consensus.events import ChangeMembership
from quorate.consensus.membership import ChangeKind, Membership, changed
from quorate.consensus.output import Refusal, Role
from quorate.consensus.roles import become_follower
from quorate.consensus.state import State
from quorate.errors import MembershipError


def on_change(state: State, event: ChangeMembership) -> None:
    """Append the new configuration, or say which guard refused it."""
    refusal = _guard(state)
    if refusal is not None:
        state.refuse(refusal)
        return
    others = any(change.kind is not ChangeKind.INCARNATION for change in event.changes)
    if others and state.membership.unmet():
        state.refuse(Refusal.CHANGE_PENDING, "who the founders are is being recorded")
        return
    try:
        target = changed(state.membership, event.changes)
    except MembershipError as error:
        state.refuse(Refusal.BAD_CHANGE, str(error))
        return
    behind = _learner_behind(state, event)
    if behind:
        state.refuse(Refusal.LEARNER_BEHIND, behind)
        return
    if target.joint and not leader.quorum_is_active(state, _final_voters(target)):
        state.refuse(Refusal.QUORUM_LOST)
        return
    state.out_proposed = leader.append_membership(state, target)


def _guard(state: State) -> Refusal | None:
    if state.role is not Role.LEADER:
        return Refusal.NOT_LEADER
    if state.transfer_target != NO_NODE:
        return Refusal.TRANSFERRING
    if state.log.term_at(state.commit) != state.term:
        return Refusal.TERM_NOT_COMMITTED  # the single-server bug: thesis 4.1, raft-dev 2015
    if state.members.index > state.commit or state.membership.joint:
        return Refusal.CHANGE_PENDING
    return None


def _learner_behind(state: State, event: ChangeMembership) -> str:
    """A learner promoted too early stalls the commits of the new majority (thesis 4.2.1)."""
    membership = state.membership
    for change in event.changes:
        if change.kind is not ChangeKind.PROMOTE:
            continue
        if membership.incarnations and not membership.incarnation(change.node):
            return f"node {change.node} has not shown its data directory; start it first"
        progress = state.progress[change.node]  # a learner, or the change was refused before
        lag = state.log.last_index - progress.match
        if lag > state.config.promote_lag_entries_max:
            return f"node {change.node} is {lag} entries behind; wait until it has caught up"
        silent = progress.heard_tick + state.config.election_ticks_max < state.tick
        if progress.match == 0 or silent:  # a new learner gets the benefit of the doubt: not here
            return f"node {change.node} has not been heard from; start it first"
    return ""


def _final_voters(target: Membership) -> Membership:
    return Membership(voters=target.voters)


def on_commit(state: State) -> None:
    """A committed joint configuration is left at once; a leader outside the new one resigns
    (thesis 4.2.2), after it has managed the cluster until then."""
    if state.members.index > state.commit:
        return
    membership = state.membership
    if membership.joint:
        leader.append_membership(state, membership.without_old())
        leader.advance_commit(state)  # a majority of the new voters may be this node alone
    elif not membership.is_voter(state.node_id):
        best = transfer.best_target(state)
        if best != NO_NODE:
            transfer.send_timeout_now(state, best)
        become_follower(state, state.term, NO_NODE)

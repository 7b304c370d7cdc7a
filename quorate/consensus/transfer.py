"""Handing leadership over (thesis 3.10)."""

from __future__ import annotations

from quorate.base.types import NO_NODE, NodeId
from quorate.consensus import leader
from quorate.consensus.messages import TimeoutNow
from quorate.consensus.output import Refusal, Role
from quorate.consensus.progress import Progress
from quorate.consensus.state import State


def on_transfer(state: State, target: NodeId) -> None:
    """Stop taking proposals, bring the target up to date, tell it to campaign at once."""
    if state.role is not Role.LEADER:
        state.refuse(Refusal.NOT_LEADER)
        return
    if state.transfer_target != NO_NODE:
        state.refuse(Refusal.TRANSFERRING)
        return
    chosen = target or best_target(state)
    if chosen == state.node_id or chosen not in state.membership.voters:
        state.refuse(Refusal.BAD_TARGET, f"target {target}, voters {state.membership.voters}")
        return
    progress = state.progress[chosen]
    if not _alive(state, progress):
        state.refuse(Refusal.UNREACHABLE_TARGET, f"node {chosen} has not been heard from")
        return
    state.transfer_target = chosen
    state.transfer_deadline = state.tick + state.config.election_ticks_max
    on_progress(state, chosen, progress)
    if state.transfer_target != NO_NODE and progress.match < state.log.last_index:
        leader.send_appends(state, chosen, progress)


def on_progress(state: State, node: NodeId, progress: Progress) -> None:
    """Thesis 3.10: the target is told to campaign once it has the whole log."""
    if node == state.transfer_target and progress.match == state.log.last_index:
        send_timeout_now(state, node)


def send_timeout_now(state: State, node: NodeId) -> None:
    """Tell the target to campaign. The lease is void from here: it may win at any moment."""
    state.transfer_sent = True
    state.lease_until_ms = -1
    state.send(TimeoutNow(state.term, state.node_id, node))


def on_tick(state: State) -> None:
    """A target that did not take over within an election timeout will not: lead on."""
    if state.transfer_target != NO_NODE and state.tick >= state.transfer_deadline:
        state.transfer_target = NO_NODE


def best_target(state: State) -> NodeId:
    """The live voter with the longest log; the lowest id among equals; 0 if there is none."""
    candidates = [
        (progress.match, -node)
        for node, progress in state.progress.items()
        if node in state.membership.voters and _alive(state, progress)
    ]
    return NodeId(-max(candidates)[1]) if candidates else NO_NODE


def _alive(state: State, progress: Progress) -> bool:
    return progress.heard_tick + state.config.election_ticks_max >= state.tick

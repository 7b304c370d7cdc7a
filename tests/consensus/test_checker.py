"""The checker itself can fail: each invariant is broken by hand once, and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.checker import CoreChecker
from quorate.consensus.events import Tick
from quorate.consensus.messages import AppendReply, HeartbeatReply, VoteReply, VoteRequest
from quorate.consensus.output import Output, Role
from quorate.consensus.state import State
from quorate.errors import InvariantViolationError
from tests.consensus.solo import ME, PEER, THIRD, Solo


def leader() -> Solo:
    return Solo().lead().settle()


def follower() -> Solo:
    solo = Solo(terms=(1, 1, 2), vote=2, commit=2)
    solo.heartbeat(2)
    return solo


def set_field(name: str, value: object) -> Callable[[State], None]:
    return lambda state: setattr(state, name, value)


def _become(state: State, role: Role) -> None:
    state.role, state.leader, state.progress, state.match = role, NodeId(0), {}, {}


def _forget_last(state: State) -> None:
    state.log.truncate(LogIndex(2))
    state.persisted = LogIndex(2)
    state.match[ME] = LogIndex(2)
    for progress in state.progress.values():
        progress.next = LogIndex(3)
    state.uncommitted_bytes = 0


def leader_with_more() -> Solo:
    solo = leader()
    solo.propose()
    return solo


BROKEN: list[tuple[str, Callable[[], Solo], Callable[[State], None]]] = [
    ("in order", follower, set_field("commit", LogIndex(9))),
    ("durable that is not in the log", follower, set_field("persisted", LogIndex(9))),
    ("from the future", follower, set_field("term", Term(1))),
    ("matches the leader's log", follower, set_field("verified", LogIndex(9))),
    ("on its way to the disk", follower, set_field("vote", THIRD)),
    ("follows itself", leader, set_field("leader", PEER)),
    ("progress per other member", leader, lambda state: state.progress.clear()),
    ("counts of itself", leader, lambda state: state.match.update({ME: LogIndex(9)})),
    ("uncommitted bytes", leader, set_field("uncommitted_bytes", 5)),
    ("match, next", leader, lambda state: setattr(state.progress[PEER], "next", LogIndex(1))),
    ("what it confirmed", leader, lambda state: state.match.update({PEER: LogIndex(1)})),
    ("keeps reads", follower, lambda state: state.reads_early.append((1, ME))),
    ("only a leader hands over", follower, set_field("transfer_target", PEER)),
    ("only a leader follows itself", follower, set_field("leader", ME)),
    ("candidate votes for itself", follower, set_field("role", Role.CANDIDATE)),
    ("commit never goes back", follower, set_field("commit", LogIndex(1))),
    ("time never goes back", follower, set_field("tick", -1)),
    ("one leader per term", follower, set_field("leader", THIRD)),
    ("committed entry never changes", follower, lambda s: s.log._terms.__setitem__(1, Term(2))),
    ("resigns to follower", leader, lambda state: _become(state, Role.PRE_CANDIDATE)),
    ("never overwrites", leader_with_more, _forget_last),
]


@pytest.mark.parametrize(("claim", "start", "damage"), BROKEN, ids=[item[0] for item in BROKEN])
def test_a_broken_invariant_is_named(
    claim: str, start: Callable[[], Solo], damage: Callable[[State], None]
) -> None:
    solo = start()
    damage(solo.state)
    with pytest.raises(InvariantViolationError, match=claim):
        solo.checker.after_step(Output())


T2 = Term(2)
UNSAFE = [
    VoteRequest(T2, ME, PEER, LogIndex(3), T2),
    VoteReply(T2, ME, THIRD, granted=True),
    AppendReply(T2, ME, PEER, ok=True, index=LogIndex(4), hint_index=LogIndex(0), hint_term=Term(0),
                round=0),
    HeartbeatReply(T2, ME, PEER, 1, LogIndex(4), sticky=False, durable=LogIndex(4)),
    HeartbeatReply(Term(3), ME, PEER, 1, LogIndex(0), sticky=False),
]  # fmt: skip


@pytest.mark.parametrize("message", UNSAFE, ids=lambda message: type(message).__name__)
def test_a_promise_before_its_fsync_is_named(message: VoteReply) -> None:
    solo = follower()
    with pytest.raises(InvariantViolationError, match="first"):
        solo.checker.after_step(Output(messages=(message,)))


def test_a_new_term_that_goes_to_no_disk_is_named() -> None:
    solo = follower()
    core = solo.core
    checker = CoreChecker(core)
    output = core.step(VoteReply(Term(9), PEER, ME, granted=False))
    assert output.persist is not None
    with pytest.raises(InvariantViolationError, match="goes to the disk"):
        checker.after_step(Output())


def test_a_healthy_step_passes() -> None:
    solo = leader()
    for _ in range(5):
        solo.step(Tick(1))

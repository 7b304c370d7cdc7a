"""Digests of peers against the own history."""

from __future__ import annotations

import pytest

from quorate.base.limits import MEMBERS_MAX
from quorate.base.types import LogIndex, NodeId
from quorate.replication import divergence as module
from quorate.replication.divergence import DivergenceWatch
from quorate.replication.transport import StateDigest


def state(index: int) -> bytes:
    return index.to_bytes(8, "big")


def digest(index: int, sender: int = 2, *, wrong: bool = False) -> StateDigest:
    return StateDigest(NodeId(sender), LogIndex(index), state(index + 1000 * wrong))


class Desk(DivergenceWatch):
    def __init__(self, upto: int = 0) -> None:
        super().__init__()
        self.at = 0
        self.reset(LogIndex(0), state(0))
        self.advance(upto)

    def advance(self, upto: int) -> None:
        while self.at < upto:
            self.at += 1
            self.applied(LogIndex(self.at), state(self.at))

    def hear(self, each: StateDigest) -> None:
        self.on_digest(each, LogIndex(self.at))


def test_equal_states_are_silent_and_different_ones_named_once() -> None:
    desk = Desk(10)
    desk.hear(digest(7))
    assert (desk.compared, desk.alarms) == (1, [])
    for _ in range(3):
        desk.hear(digest(8, wrong=True))
    (alarm,) = desk.alarms
    assert "node 2 after entry 8" in alarm


def test_a_member_that_always_lags_compares_all_the_same() -> None:
    desk = Desk(10)
    for at in range(11, 30):
        desk.hear(digest(at + 5, wrong=True))  # always ahead of what is applied here
        desk.advance(at)
    assert desk.alarms
    assert desk.compared >= 3


def test_after_a_snapshot_only_what_is_known_is_compared() -> None:
    desk = Desk(10)
    desk.hear(digest(15, wrong=True))
    desk.at = 50
    desk.reset(LogIndex(50), state(50))
    desk.advance(51)
    for index in (10, 15, 49):
        desk.hear(digest(index, wrong=True))
    assert desk.alarms == []
    desk.hear(digest(50, wrong=True))
    assert len(desk.alarms) == 1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HASHES_KEPT", 16)
    desk = Desk(100)
    assert len(desk._hashes) == 16
    desk.hear(digest(50, wrong=True))  # too long ago
    assert desk.compared == 0
    for sender in range(2, 200):
        desk.hear(digest(1000, sender))
        desk.hear(digest(99, sender, wrong=True))
    assert len(desk._ahead) == MEMBERS_MAX
    assert len(desk.alarms) == module.ALARMS_MAX


def test_a_digest_of_the_wrong_length_is_ignored() -> None:
    desk = Desk(10)
    desk.hear(StateDigest(NodeId(2), LogIndex(5), b"x" * 10_000_000))
    assert (desk.compared, desk.alarms) == (0, [])

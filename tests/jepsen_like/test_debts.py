"""What members owe one another of their converging data decides who may lose it, and who may go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from jepsen_like.simulation.debts import Debts
from jepsen_like.simulation.invariants import Invariants
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership

ACTOR = 7


class Cast:
    """Three voters that run, as a stage; each with its last sequence of one actor."""

    def __init__(self, *sequences: int) -> None:
        self.last = dict(enumerate(sequences, 1))
        self.down: set[int] = set()

    def leader(self) -> int:
        return 1

    def nodes(self) -> list[int]:
        return list(self.last)

    def runs(self, number: int) -> bool:
        return number not in self.down

    def node(self, number: int) -> Any:
        last = self.last[number]
        tier = SimpleNamespace(
            frontier={ACTOR: last},
            stage=0,
            covers=lambda owed: all(sequence <= last for sequence in owed.values()),
        )
        core = SimpleNamespace(
            state=SimpleNamespace(membership=Membership(voters=tuple(map(NodeId, self.last))))
        )
        return SimpleNamespace(
            parts=SimpleNamespace(converging=SimpleNamespace(engine=tier)),
            replica=SimpleNamespace(core=core),
        )


def debts(stage: Cast) -> Debts:
    return Debts(cast("Any", stage), Invariants(lambda: 0.0))


def test_who_alone_has_what_another_lost_may_not_leave() -> None:
    stage = Cast(5, 5, 0)
    found = debts(stage)
    found.owe(1)
    stage.last[1] = 0
    assert not found.may_leave(2)
    assert found.may_leave(1)
    assert found.may_leave(3)
    stage.last[3] = 5
    assert found.may_leave(2)
    stage.down.add(3)
    assert not found.may_leave(2)


def test_what_nobody_else_had_is_owed_by_nobody() -> None:
    stage = Cast(9, 5, 5)
    found = debts(stage)
    found.owe(1)
    stage.last[1] = 0
    assert found.may_leave(2)
    stage.last[1] = 5
    assert found.can_spare(2)


def test_one_after_another_may_lose_its_own() -> None:
    stage = Cast(5, 5, 5)
    found = debts(stage)
    assert found.can_spare(1)
    found.owe(1)
    stage.last[1] = 0
    assert not found.can_spare(2)
    stage.last[1] = 5
    assert found.can_spare(2)


def test_what_was_made_under_other_voters_is_on_each_before_one_may_lose_it() -> None:
    stage = Cast(5, 5, 5)
    found = debts(stage)
    assert found.can_spare(1)
    stage.last[1] = 6
    assert found.can_spare(1)  # no quorum has it
    stage.last[4] = 5
    assert not found.can_spare(1)  # one of the voters before may have been a quorum with it
    stage.last = dict.fromkeys(stage.last, 6)
    assert found.can_spare(1)

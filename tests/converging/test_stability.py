"""What the leader proposes of CRDT data, by itself: only what is true, only what the log takes, and
all of it in the end. The log is the real machine; what the members tell is made up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from quorate.base.results import Failure
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership
from quorate.crdt.dots import make_actor, member_of
from quorate.replication.converging import stability as stability_module
from quorate.replication.converging.lives import Expel, FoldLives, PrepareFold, Rescue, Stable
from quorate.replication.converging.reports import Report
from quorate.replication.converging.stability import PROPOSE_S, QUIET_S, STABLE_S, Stability
from tests.converging.tiers import Log


class Scene:
    """Members with what they have on their disks; *told*: whether all have said so."""

    def __init__(self, *members: int) -> None:
        self.log = Log()
        self.members = list(members)
        self.frontiers: dict[int, dict[int, int]] = {each: {} for each in members}
        self.stages = dict.fromkeys(members, 0)
        self.told = True
        self.leads = True
        self.proposed: list[Any] = []
        self.now_s = 100.0
        self.stability = Stability(
            self.log.lives,
            self,  # type: ignore[arg-type]  as Reports
            lambda: Membership(tuple(map(NodeId, self.members))),
            leads=lambda: self.leads,
            propose=self.propose,
        )

    # --- as Reports -------------------------------------------------------------------------------

    def everyone(self) -> dict[int, Report] | None:
        if not self.told:
            return None
        return {
            each: Report(self.stages[each], dict(self.frontiers[each]), 1) for each in self.members
        }

    def silent(self) -> list[int]:
        return [] if self.told else self.members[1:]

    # ----------------------------------------------------------------------------------------------

    def propose(self, command: Any) -> None:
        self.proposed.append(command)
        result = self.log.submit(command)
        assert not isinstance(result, Failure), (command, result)

    def begin(self, member: int) -> int:
        return make_actor(member, self.log.begin(member))

    def have(self, members: Iterable[int], actor: int, sequence: int) -> None:
        for each in members:
            self.frontiers[each][actor] = sequence

    def tick(self, seconds: float = 0.0) -> list[Any]:
        """What is proposed by then."""
        before = len(self.proposed)
        end_s = self.now_s + seconds
        while True:
            self.stability.on_tick(self.now_s)
            if self.now_s >= end_s:
                return self.proposed[before:]
            self.now_s = min(self.now_s + 0.1, end_s)


def test_stable_is_what_all_have_and_is_said_once() -> None:
    scene = Scene(1, 2, 3)
    one, two = scene.begin(1), scene.begin(2)
    scene.have((1, 2, 3), one, 5)
    scene.have((1,), one, 9)
    scene.have((1, 2), two, 4)
    stranger = make_actor(3, 7)
    scene.have((1, 2, 3), stranger, 2)
    assert scene.tick(1) == [Stable(((one, 5),))], "the log does not know the stranger"
    assert not scene.tick(2)
    scene.have((1, 2, 3), two, 4)
    scene.have((2, 3), one, 6)
    assert scene.tick(STABLE_S + PROPOSE_S) == [Stable(((one, 6), (two, 4)))]
    scene.told = False
    scene.have((1, 2, 3), two, 8)
    assert not scene.tick(3), "somebody has told nothing in this life"
    assert scene.stability.waits_for() == []
    scene.told, scene.leads = True, False
    assert not scene.tick(3)
    scene.leads = True
    assert scene.tick(1) == [Stable(((two, 8),))]


def test_a_fold_waits_for_quiet_for_everybody_and_for_what_any_of_them_has() -> None:
    scene = Scene(1, 2)
    old, other = scene.begin(1), scene.begin(2)
    new = scene.begin(1)
    scene.have((1, 2), old, 3)
    scene.have((1, 2), other, 1)
    told = scene.tick(QUIET_S - 0.2)
    assert [type(each) for each in told] == [Stable]
    scene.begin(1)  # lives begin and end again
    assert not scene.tick(QUIET_S - 0.2)
    assert scene.tick(0.5) == [PrepareFold(1, ((old, 3), (new, 0)))]
    assert scene.stability.waits_for() == [1, 2]
    scene.stages[1] = 1
    assert not scene.tick(2), "the other is not prepared"
    assert scene.stability.waits_for() == [2]
    scene.have((1,), other, 6)
    scene.stages[2] = 1
    assert not scene.tick(2), "what the first one has is to be had by both"
    scene.have((1,), other, 7)  # and what comes after that is not waited for
    scene.have((2,), other, 6)
    told = scene.tick(1)
    folds = [each for each in told if isinstance(each, FoldLives)]
    assert [dict(each.settled)[other] for each in folds] == [6]
    assert scene.log.lives.generation == 1
    assert scene.stability.waits_for() == [], "nobody is to be folded"


def test_lives_behind_one_that_may_be_admitted_wait_for_it() -> None:
    scene = Scene(1, 2)
    first, strange = scene.begin(1), make_actor(1, 50)
    scene.log.adopt(1, 90)
    scene.begin(1)
    scene.have((1, 2), first, 1)
    scene.frontiers[1][strange] = 4
    told = [each for each in scene.tick(QUIET_S + 1) if isinstance(each, PrepareFold)]
    assert told == [PrepareFold(1, ((first, 1),))]
    assert scene.stability.waits_for() == [1, 2]
    scene.stages = {1: 3, 2: 3}
    scene.log.submit(FoldLives(1, scene.log.lives.changes, ((first, 1),)))
    assert scene.stability.waits_for() == [1], "who has what the log does not know"
    assert not [each for each in scene.tick(9) if isinstance(each, PrepareFold)]
    assert scene.log.adopt(1, 50, over=True)
    scene.have((2,), strange, 4)
    told = [each for each in scene.tick(QUIET_S + 1) if isinstance(each, PrepareFold)]
    assert told == [PrepareFold(2, ((strange, 4), (make_actor(1, 90), 0)))]


def test_who_is_gone_is_expelled_and_its_last_records_are_waited_for_while_somebody_has_them() -> (
    None
):
    scene = Scene(1, 2, 3)
    one, three = scene.begin(1), scene.begin(3)
    scene.have((1,), three, 8)
    scene.have((2,), three, 5)
    scene.have((1, 2), one, 1)
    scene.members.remove(3)
    told = scene.tick(QUIET_S + 2)
    assert [each for each in told if not isinstance(each, Stable)] == [
        Expel((3,)),
        PrepareFold(1, ((three, 8),)),
    ]
    scene.have((1,), three, 5)  # its disk is gone, and they with it
    assert scene.tick(1) == [PrepareFold(1, ((three, 5),))]
    assert not scene.tick(1)


def test_what_is_being_rescued_is_not_folded(monkeypatch: Any) -> None:
    monkeypatch.setattr(stability_module, "STABLE_MARKS_MAX", 1)
    scene = Scene(1, 2)
    lives = [scene.begin(1), scene.begin(2)]
    for each in lives:
        scene.have((1, 2), each, 1)
    scene.log.submit(Rescue(make_actor(9, 4)))
    told = scene.tick(QUIET_S + 2)
    assert told == [Stable(((lives[0], 1),)), Stable(((lives[1], 1),))], "some at a time"


class AnyHistory(RuleBasedStateMachine):
    """Whatever members tell, the log takes all that is proposed, and it is true."""

    sequences = st.integers(1, 6)

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(1, 2, 3)
        self.scene.stability._propose = self.proposed
        for member in (1, 2, 3):
            self.scene.begin(member)

    def proposed(self, command: Any) -> None:
        scene = self.scene
        held = [scene.frontiers[each] for each in scene.members]
        if isinstance(command, Stable):
            assert all(each.get(a, 0) >= n for a, n in command.marks for each in held)
        if isinstance(command, FoldLives):
            assert all(each.get(a, 0) >= n for a, n in command.settled for each in held)
            assert {scene.stages[each] for each in scene.members} == {
                3 * scene.log.lives.generation + 1
            }
        if isinstance(command, PrepareFold):
            lives, present = scene.log.lives, scene.log.lives.present()
            stages = {scene.stages[each] for each in scene.members}
            assert lives.preparing or stages == {3 * lives.generation}
            assert not [actor for actor, _ in command.last if actor in present]
            for actor, last in command.last:
                assert last == max(each.get(actor, 0) for each in held)
        if isinstance(command, Expel):
            assert not set(command.members) & set(scene.members)
        scene.propose(command)

    @rule(member=st.sampled_from([1, 2, 3]))
    def restarts(self, member: int) -> None:
        if member in self.scene.members:
            self.scene.begin(member)

    @rule(data=st.data(), member=st.sampled_from([1, 2, 3]), more=sequences)
    def joins(self, data: st.DataObject, member: int, more: int) -> None:
        known = self.scene.log.lives.known()
        actor = data.draw(st.sampled_from(known))
        held = self.scene.frontiers[member]
        held[actor] = held.get(actor, 0) + more

    @rule()
    def all_are_equal(self) -> None:
        most: dict[int, int] = {}
        for each in self.scene.members:
            for actor, sequence in self.scene.frontiers[each].items():
                most[actor] = max(most.get(actor, 0), sequence)
        for each in self.scene.members:
            self.scene.frontiers[each] = dict(most)

    @rule(member=st.sampled_from([1, 2, 3]))
    def takes_its_step(self, member: int) -> None:
        """Prepared with all that those have who go; or folded, when the log says so."""
        scene, lives = self.scene, self.scene.log.lives
        stage, held = scene.stages[member], scene.frontiers[member]
        if stage < 3 * lives.generation:
            scene.stages[member] = 3 * lives.generation
            for actor in [each for each in held if lives.is_retired(each)]:
                del held[actor]
        elif lives.preparing and all(held.get(a, 0) >= n for a, n in lives.preparing):
            scene.stages[member] = 3 * lives.generation + 1

    @precondition(lambda self: len(self.scene.members) > 1)
    @rule(member=st.sampled_from([1, 2, 3]))
    def is_removed(self, member: int) -> None:
        if member in self.scene.members:
            self.scene.members.remove(member)

    @rule(seconds=st.sampled_from([0.0, 0.3, QUIET_S + 1]), leads=st.booleans())
    def time_passes(self, seconds: float, leads: bool) -> None:
        self.scene.leads = leads
        self.scene.tick(seconds)

    def teardown(self) -> None:
        scene, lives = self.scene, self.scene.log.lives
        for member in scene.members:
            scene.begin(member)
        scene.leads = True
        for _ in range(12):
            self.all_are_equal()
            for member in scene.members:
                self.takes_its_step(member)
            scene.tick(QUIET_S + 1)
        assert not lives.closed()
        assert lives.known() == lives.present()
        assert {member_of(each) for each in lives.present()} == set(scene.members)


AnyHistory.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestAnyHistory = AnyHistory.TestCase

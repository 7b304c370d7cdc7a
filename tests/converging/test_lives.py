"""Lives: given out once, closed by the next, folded when everybody has them whole."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quorate.base.results import Failure
from quorate.crdt.dots import epoch_of, make_actor, member_of
from quorate.replication.converging import lives as lives_module
from quorate.replication.converging.life_records import FoldedAway, Marks
from quorate.replication.converging.lives import (
    ESTATES,
    IMPROVISED_MAX,
    Adopt,
    Begin,
    Begun,
    Expel,
    FoldLives,
    LivesMachine,
    Noted,
    PrepareFold,
    Rescue,
    Rescued,
    Rescuing,
    Stable,
    to_marks,
)
from quorate.server.clients import INTERNAL
from quorate.storage.memory_store import MemoryImage
from tests.replication.support import Node, restored, run_of, state_of, store_checkpoint, submit

_results = msgspec.msgpack.Decoder(list[list[Failure | Begun | Noted | Rescuing]])


class Log:
    """A node with the machine alone, and short ways to talk to it."""

    def __init__(self) -> None:
        self.lives = LivesMachine()
        self.node = Node([self.lives])

    def do(self, command: Any) -> Any:
        (outcome,) = self.node.entry(submit(run_of("lives", command))).outcomes
        ((result,),) = _results.decode(outcome.results)
        return result

    def begin(self, member: int, nonce: int) -> int:
        result = self.do(Begin(member, nonce))
        assert isinstance(result, Begun), result
        return result.epoch

    def refused(self, command: Any, why: str) -> None:
        before = state_of(self.node.machines)
        result = self.do(command)
        assert isinstance(result, Failure), result
        assert why in result.message
        assert state_of(self.node.machines) == before

    def fold(self, last: Marks) -> None:
        generation = self.lives.generation + 1
        assert self.do(PrepareFold(generation, last)) == Noted()
        assert self.do(FoldLives(generation, self.lives.changes, last)) == Noted()


def test_a_life_asked_for_twice_is_one_and_the_next_closes_it() -> None:
    log = Log()
    first = log.begin(3, nonce=70)
    assert log.begin(3, nonce=70) == first
    second = log.begin(3, nonce=71)
    assert second > first
    assert log.lives.present() == (make_actor(3, second),)
    assert log.lives.closed() == (make_actor(3, first),)
    assert log.lives.is_admitted(make_actor(3, first)), "what it wrote still spreads"
    assert not log.lives.is_admitted(make_actor(4, 1))
    assert not log.lives.is_admitted(-1)
    log.refused(Begin(0, 1), "no member")


def test_a_life_begun_without_the_log_is_adopted_once_and_never_under_a_number_that_was_used() -> (
    None
):
    log = Log()
    log.begin(3, nonce=70)
    assert log.do(Adopt(3, 500, 71)) == Begun(500)
    assert log.do(Adopt(3, 500, 71)) == Begun(500), "the answer was lost"
    assert log.begin(3, nonce=71) == 500, "the process has a life"
    log.refused(Adopt(3, 500, 72), "last known one is 500")
    log.refused(Adopt(3, 499, 72), "last known one is 500")
    log.refused(Adopt(3, 501 + IMPROVISED_MAX, 72), "cannot have life")
    assert log.begin(3, nonce=73) == 501
    assert log.lives.epoch_known(3) == 501


def test_a_life_that_is_over_is_adopted_until_a_fold_has_passed_it_by() -> None:
    log = Log()
    log.do(Adopt(3, 500, 70))
    over = Adopt(3, 400, 71, over=True)
    assert log.lives.admits(make_actor(3, 400), over=True)
    assert not log.lives.admits(make_actor(3, 400), over=False), "it may still be written to"
    changes = log.lives.changes
    assert log.do(over) == log.do(over) == Begun(400)
    assert log.lives.changes == changes + 1
    assert log.lives.present() == (make_actor(3, 500),)
    assert log.lives.closed() == (make_actor(3, 400),)
    log.refused(Adopt(3, 400, 72, over=True), "cannot have life")
    log.begin(3, nonce=73)
    last = to_marks({}, [make_actor(3, 400), make_actor(3, 500)])
    assert log.do(PrepareFold(1, last)) == Noted()
    log.refused(Adopt(3, 450, 71, over=True), "cannot have life")
    assert log.do(FoldLives(1, log.lives.changes, last)) == Noted()
    log.refused(Adopt(3, 450, 71, over=True), "cannot have life")
    log.refused(Adopt(3, 400, 71, over=True), "cannot have life")


def test_who_was_expelled_lives_no_more() -> None:
    log = Log()
    log.begin(2, nonce=1)
    log.begin(3, nonce=2)
    log.do(Expel((3, 9)))
    assert log.lives.present() == (make_actor(2, 1),)
    assert log.lives.is_admitted(make_actor(3, 1))
    assert log.lives.is_expelled(3)
    assert not log.lives.is_expelled(9), "it never began a life"
    log.refused(Begin(3, 3), "was removed")
    log.refused(Adopt(3, 7, 3), "was removed")
    changes = log.lives.changes
    log.do(Expel((3,)))
    assert log.lives.changes == changes


def test_folding_takes_two_entries_and_forgets_the_names() -> None:
    log = Log()
    old, gone = make_actor(1, log.begin(1, 1)), make_actor(3, log.begin(3, 2))
    heir = make_actor(1, log.begin(1, 3))
    log.do(Expel((3,)))
    log.do(Stable(((old, 4), (heir, 7), (make_actor(8, 1), 3))))
    assert log.lives.stable() == {old: 4, heir: 7}
    log.do(Stable(((old, 2), (heir, 9))))
    assert log.lives.stable() == {old: 4, heir: 9}, "it never goes back"
    log.refused(FoldLives(1, log.lives.changes, ((old, 5),)), "not prepared")
    log.refused(PrepareFold(2, ((old, 5),)), "does not follow")
    log.refused(PrepareFold(1, ((heir, 5),)), "not the first closed")
    log.refused(PrepareFold(1, ()), "takes 1 to")
    last = ((old, 5), (gone, 2))
    assert log.do(PrepareFold(1, last)) == Noted()
    assert log.lives.preparing == last
    log.refused(PrepareFold(1, ((old, 5),)), "with other lives")
    log.do(PrepareFold(1, ((old, 4), (gone, 2))))  # whoever had the fifth is gone for good
    settled = ((old, 4), (heir, 9), (gone, 2))
    log.refused(FoldLives(1, log.lives.changes - 1, settled), "begun or ended")
    log.refused(FoldLives(1, log.lives.changes, ((old, 4), (gone, 1))), "not everybody")
    assert log.do(FoldLives(1, log.lives.changes, settled)) == Noted()
    assert log.lives.generation == 1
    assert not log.lives.preparing
    assert log.lives.fold == FoldedAway(1, ((old, heir), (gone, heir)), settled)
    assert log.lives.known() == (heir,)
    assert log.lives.stable() == {heir: 9}
    assert log.lives.is_retired(old)
    assert log.lives.retired_epoch(3) == 1
    assert not log.lives.is_retired(heir)
    assert log.lives.epoch_known(1) == 2, "numbers are not given out again"


def test_of_one_member_the_first_lives_go_first() -> None:
    log = Log()
    actors = [make_actor(1, log.begin(1, nonce)) for nonce in (1, 2, 3)]
    log.refused(PrepareFold(1, ((actors[1], 0),)), "not the first closed")
    log.refused(PrepareFold(1, ((actors[1], 0), (actors[0], 0))), "not the first closed")
    log.fold(((actors[0], 0),))
    log.fold(((actors[1], 0),))
    assert log.lives.known() == (actors[2],)


def test_nobody_is_folded_without_an_heir() -> None:
    log = Log()
    actor = make_actor(1, log.begin(1, 1))
    log.do(Expel((1,)))
    log.do(PrepareFold(1, ((actor, 0),)))
    log.refused(FoldLives(1, log.lives.changes, ((actor, 0),)), "inherit")


def test_lives_are_bounded_and_folding_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives_module, "LIVES_MAX", 3)
    log = Log()
    actors = [make_actor(1, log.begin(1, nonce)) for nonce in (1, 2, 3)]
    log.refused(Begin(1, 4), "a member is away")
    log.fold(to_marks({}, actors[:2]))
    assert log.begin(1, 4) == 4


def test_only_nodes_propose() -> None:
    assert "lives" in INTERNAL


class LivesAgainstAModel(RuleBasedStateMachine):
    """The same commands to the machine, and to sets and dicts."""

    members = st.integers(1, 3)
    nonces = st.integers(1, 4)

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.nonce: dict[int, int] = {}  # of all lives ever
        self.open: dict[int, int] = {}
        self.retired: set[int] = set()
        self.expelled: set[int] = set()
        self.stable: dict[int, int] = {}
        self.estates: dict[int, int] = {}  # by life, while it is being rescued
        self.rescued: set[int] = set()  # lives, ever

    def closed(self) -> list[int]:
        first: dict[int, int] = {}  # of each estate, the first of which not all is there
        for each in sorted(self.estates.values()):
            first.setdefault(member_of(each), each)
        return [
            actor
            for actor in sorted(self.nonce)
            if actor not in self.retired
            and actor not in self.open.values()
            and actor < first.get(member_of(actor), actor + 1)
        ]

    def highest(self, member: int) -> int:
        return max(
            [epoch_of(each) for each in (*self.nonce, *self.rescued) if member_of(each) == member],
            default=0,
        )

    def opened(self, member: int, epoch: int, nonce: int) -> None:
        self.open[member] = make_actor(member, epoch)
        self.nonce[self.open[member]] = nonce

    @rule(member=members, nonce=nonces)
    def begin(self, member: int, nonce: int) -> None:
        result = self.log.do(Begin(member, nonce))
        if member in self.expelled:
            assert isinstance(result, Failure)
        elif member in self.open and self.nonce[self.open[member]] == nonce:
            assert result == Begun(epoch_of(self.open[member]))
        else:
            assert result == Begun(self.highest(member) + 1)
            self.opened(member, result.epoch, nonce)

    @rule(member=members, above=st.integers(-2, 3), nonce=nonces)
    def adopt(self, member: int, above: int, nonce: int) -> None:
        epoch = self.highest(member) + above
        actor = member << 32 | max(epoch, 0)
        result = self.log.do(Adopt(member, epoch, nonce))
        again = self.open.get(member) == actor and self.nonce[actor] == nonce
        if member not in self.expelled and actor not in self.rescued and (above > 0 or again):
            assert result == Begun(epoch)
            self.opened(member, epoch, nonce)
        else:
            assert isinstance(result, Failure)

    @rule(member=members)
    def expel(self, member: int) -> None:
        self.log.do(Expel((member,)))
        if self.highest(member):
            self.expelled.add(member)
            self.open.pop(member, None)

    @rule(data=st.data())
    def stabilise(self, data: st.DataObject) -> None:
        if not self.nonce:
            return
        actor = data.draw(st.sampled_from(sorted(self.nonce)))
        sequence = data.draw(st.integers(0, 9))
        self.log.do(Stable(((actor, sequence),)))
        if actor not in self.retired:
            self.stable[actor] = max(sequence, self.stable.get(actor, 0))

    @rule(count=st.integers(1, 4))
    def fold(self, count: int) -> None:
        lives = self.log.lives
        closed = self.closed()
        last = to_marks({}, closed[:count])
        prepared = self.log.do(PrepareFold(lives.generation + 1, last))
        if isinstance(prepared, Failure):
            assert not closed or dict(lives.preparing).keys() != dict(last).keys()
            return
        folded = self.log.do(FoldLives(lives.generation + 1, lives.changes, last))
        assert isinstance(folded, Failure) == (not self.open), folded
        if self.open:
            self.retired.update(closed[:count])
            for actor in closed[:count]:
                self.stable.pop(actor, None)
            assert lives.fold is not None
            for actor, heir in lives.fold.heirs:
                assert heir == self.open.get(member_of(actor), min(self.open.values()))

    @rule(member=st.integers(1, 2), epoch=st.integers(1, 6))
    def rescue(self, member: int, epoch: int) -> None:
        actor = make_actor(member, epoch)
        result = self.log.do(Rescue(actor))
        if actor in self.nonce and actor not in self.retired:
            assert isinstance(result, Failure)
        elif actor in self.estates:
            assert result.estate == self.estates[actor]
        else:
            assert result.since == (1 if actor in self.rescued else 0)
            estate = result.estate
            assert member_of(estate) == member + ESTATES
            assert estate not in self.nonce
            self.nonce[estate], self.estates[actor] = 0, estate
            self.rescued.add(actor)

    @rule(data=st.data())
    def is_rescued(self, data: st.DataObject) -> None:
        if not self.estates:
            return
        actor = data.draw(st.sampled_from(sorted(self.estates)))
        estate, since = self.estates[actor], self.log.lives.since(actor)
        assert isinstance(self.log.do(Rescued(actor, estate + 1, since + 1, ())), Failure)
        assert isinstance(self.log.do(Rescued(actor, estate, since, ())), Failure)
        if since == 0:  # once more, the model does not count
            for _ in range(2):
                assert self.log.do(Rescued(actor, estate, 1, ((actor, 1),))) == Noted()
            assert self.log.lives.after(estate) == ((actor, 1),)
            del self.estates[actor]

    @rule()
    def restart(self) -> None:
        """A checkpoint, and whatever is kept outside the tables from it."""
        whole = Log()
        for payload in self.log.node.log:
            whole.node.feed(payload)
        image = MemoryImage()
        store_checkpoint(image, whole.node.machines.take_checkpoint(b""))
        again = LivesMachine()
        machines = restored(image, [again])
        assert state_of(machines) == state_of(self.log.node.machines)
        assert again.stable() == self.log.lives.stable()
        assert again.present() == self.log.lives.present()
        assert again.fold == self.log.lives.fold

    @invariant()
    def same(self) -> None:
        lives = self.log.lives
        known = sorted(set(self.nonce) - self.retired)
        assert lives.known() == tuple(known)
        assert lives.present() == tuple(sorted(self.open.values()))
        assert lives.closed() == tuple(self.closed())
        for actor in self.rescued:
            assert lives.estate(actor) == self.estates.get(actor, 0)
            assert not lives.admits(actor, over=True)
        for estate in self.estates.values():
            assert lives.is_rescuing(estate)
        assert lives.stable() == self.stable
        for actor, nonce in self.nonce.items():
            assert lives.is_admitted(actor) == (actor not in self.retired)
            assert lives.holder(actor) == (0 if actor in self.retired else nonce)
            assert lives.is_retired(actor) == (actor in self.retired)
        for member in (1, 2, 3):
            assert lives.epoch_known(member) == self.highest(member)


LivesAgainstAModel.TestCase.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None
)
TestLivesAgainstAModel = LivesAgainstAModel.TestCase

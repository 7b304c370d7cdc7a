"""A bounded counter under every kind of delivery: no right is spent twice, none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.crdt_operations import Decrement, Increment, Transfer
from quorate.crdt.bounded import all_rights, rights
from quorate.crdt.kinds import BoundedCounter
from tests import sharing
from tests.crdt.support import Step, World, steps, sync


@pytest.mark.parametrize(
    "examples", [sharing.examples(60), pytest.param(10_000, marks=pytest.mark.deep)]
)
def test_what_is_spent_was_there(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(steps(BoundedCounter, 30))
    def search(script: list[Step]) -> None:
        made, balance = World(BoundedCounter), 0
        for step in script:
            known = len(made.deltas)
            made.take(step)
            if len(made.deltas) > known:
                match step.operation:
                    case Increment(by):
                        balance += by
                    case Decrement(by):
                        balance -= by
            assert balance >= 0, "the sum of all that was carried out, anywhere"
            for replica in made.replicas:
                assert rights(replica.state, (), replica.actor) >= 0
                assert replica.value() >= 0
        sync(*made.replicas)
        for replica in made.replicas:
            assert replica.value() == balance
            assert sum(all_rights(replica.state, ()).values()) == balance

    search()


@settings(max_examples=sharing.examples(40), deadline=None)
@given(st.data())
def test_an_actor_never_has_fewer_rights_than_it_believes(data: st.DataObject) -> None:
    """What has not arrived can only add to them."""
    made = World(BoundedCounter)
    for step in data.draw(steps(BoundedCounter, 30)):
        made.take(step)
    believed = [rights(replica.state, (), replica.actor) for replica in made.replicas]
    sync(*made.replicas)
    for replica, before in zip(made.replicas, believed, strict=True):
        assert rights(replica.state, (), replica.actor) >= before
        if before:
            replica.apply(Decrement(before))
    made.replicas[0].apply(Increment(1))
    made.replicas[0].apply(Transfer(2, 1, 1))

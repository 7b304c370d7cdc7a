"""Causal contexts against plain sets of dots."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quorate.crdt.codec import decode_context, encode_context
from quorate.crdt.context import CausalContext, pointwise_minimum
from quorate.crdt.dots import make_actor
from tests import sharing

ACTORS = [make_actor(1, 1), make_actor(1, 2), make_actor(2, 1)]
DOTS = st.tuples(st.sampled_from(ACTORS), st.integers(1, 20))
SETS = st.frozensets(DOTS, max_size=40)


def dots(context: CausalContext) -> frozenset[tuple[int, int]]:
    return frozenset(
        (actor, counter)
        for actor, first, last in context.runs()
        for counter in range(first, last + 1)
    )


class ContextMachine(RuleBasedStateMachine):
    """Any additions, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.context = CausalContext()
        self.model: frozenset[tuple[int, int]] = frozenset()

    @rule(dot=DOTS)
    def add(self, dot: tuple[int, int]) -> None:
        self.context.add(*dot)
        self.model |= {dot}

    @rule(dot=DOTS, length=st.integers(1, 8))
    def add_run(self, dot: tuple[int, int], length: int) -> None:
        actor, first = dot
        self.context.add_run(actor, first, first + length - 1)
        self.model |= {(actor, counter) for counter in range(first, first + length)}

    @rule(others=SETS)
    def update(self, others: frozenset[tuple[int, int]]) -> None:
        self.context.update(CausalContext.of(sorted(others)))
        self.model |= others

    @rule(others=SETS)
    def minus(self, others: frozenset[tuple[int, int]]) -> None:
        self.context = self.context.minus(CausalContext.of(sorted(others)))
        self.model -= others

    @invariant()
    def holds_the_same(self) -> None:
        assert dots(self.context) == self.model
        assert self.context.count() == len(self.model)
        assert bool(self.context) == bool(self.model)
        for actor in ACTORS:
            for counter in range(30):
                assert self.context.contains(actor, counter) == ((actor, counter) in self.model)

    @invariant()
    def is_in_normal_form(self) -> None:
        assert self.context == CausalContext.of(sorted(self.model))
        for actor, runs in self.context.cloud.items():
            ends = [self.context.vector.get(actor, 0)]
            assert runs, "no empty clouds"
            for first, last in runs:
                assert ends[-1] + 1 < first <= last, "runs are apart"
                ends.append(last)
        assert all(self.context.vector.values()), "no empty vectors"
        assert decode_context(encode_context(self.context)) == self.context


TestContext = ContextMachine.TestCase
TestContext.settings = settings(
    max_examples=sharing.examples(90), stateful_step_count=20, deadline=None
)


@given(SETS, SETS)
def test_relations_are_those_of_sets(one: frozenset, other: frozenset) -> None:
    a, b = CausalContext.of(sorted(one)), CausalContext.of(sorted(other))
    assert a.covers(b) == (one >= other)
    assert a.is_disjoint(b) == one.isdisjoint(other)
    assert dots(a.minus(b)) == one - other
    assert dots(pointwise_minimum([a, b])) == one & other
    assert dots(a.without([2])) == frozenset(dot for dot in one if dot[0] != 2)
    both = a.copy()
    both.update(b)
    assert dots(both) == one | other
    assert dots(a) == one, "a copy is one"
    assert (a == b) == (one == other)
    assert (encode_context(a) == encode_context(b)) == (one == other)


def test_contiguous_dots_take_one_number() -> None:
    context = CausalContext()
    for counter in range(1000, 0, -1):
        context.add(1, counter)
    assert (context.vector, context.cloud) == ({1: 1000}, {})
    assert context.width() == 1


def test_every_second_dot_takes_runs_and_the_gaps_close() -> None:
    context = CausalContext.of([(1, counter) for counter in range(2, 2000, 2)])
    assert context.width() == 2 * 999
    for counter in range(1, 2000, 2):
        context.add(1, counter)
    assert context.width() == 1


def test_no_contexts_have_nothing_in_common() -> None:
    assert not pointwise_minimum([])

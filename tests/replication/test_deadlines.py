"""Deadlines against the plainest of models: whatever is renewed, ended, put back or swept, what is
due comes in the order of (deadline, id)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quorate.replication import deadlines as module
from quorate.replication.deadlines import Deadlines

ids = st.integers(0, 12)
times = st.integers(1, 60)
steps = st.one_of(
    st.tuples(st.just("set"), ids, times),
    st.tuples(st.just("end"), ids, st.just(0)),
    st.tuples(st.just("due"), times, st.integers(1, 4)),
    st.tuples(st.just("undo"), times, st.just(0)),
    st.tuples(st.just("sweep"), st.just(0), st.just(0)),
    st.tuples(st.just("load"), st.just(0), st.just(0)),
)


@given(st.lists(steps, max_size=60), st.sampled_from([0, 3, 1000]))
def test_what_is_due_comes_in_order(does: list[tuple[str, int, int]], stale_max: int) -> None:
    living: dict[int, int] = {}
    deadlines: Deadlines[int] = Deadlines(living.get)
    before, module.STALE_MAX = module.STALE_MAX, stale_max  # type: ignore[misc]
    try:
        for what, one, two in does:
            _step(deadlines, living, what, one, two)
            assert deadlines.first_ms() == min(living.values(), default=None)
            assert len(deadlines) >= len(living)
    finally:
        module.STALE_MAX = before  # type: ignore[misc]


def _step(deadlines: Deadlines[int], living: dict[int, int], what: str, one: int, two: int) -> None:
    if what == "set":
        # As the machines do: what is put off stands there already, an earlier time is told.
        stands = living.get(one)
        living[one] = two
        if stands is None or two < stands:
            deadlines.add(two, one)
    elif what == "end":
        living.pop(one, None)
    elif what == "due":
        expected = sorted((at, each) for each, at in living.items() if at <= one)
        for _, wanted in expected[:two]:
            assert deadlines.take(one) == wanted
            del living[wanted]
        if two >= len(expected):
            assert deadlines.take(one) is None
    elif what == "undo":
        taken = deadlines.take(one)
        if taken is not None:
            assert (living[taken], taken) == min((at, each) for each, at in living.items())
            deadlines.put_back(taken)
    elif what == "sweep":
        deadlines.sweep(len(living))
    else:
        deadlines.load((at, each) for each, at in living.items())


def test_many_that_come_in_order_leave_nothing_behind() -> None:
    living: dict[int, int] = {}
    deadlines: Deadlines[int] = Deadlines(living.get)
    for each in range(20_000):
        living[each] = each
        deadlines.add(each, each)
        if each >= 10:
            assert list(deadlines.due(each - 10)) == [each - 10]
            del living[each - 10]
    assert len(deadlines) == 10
    assert len(deadlines._line) < 4 * module.STALE_MAX

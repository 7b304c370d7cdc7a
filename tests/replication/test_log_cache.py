"""The cache against a plain dict, and what readers of the file rely on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.types import LogIndex
from quorate.consensus.messages import Entry
from quorate.replication.log_cache import UNAPPLIED_FACTOR, LogCache
from tests import sharing
from tests.replication.driving import entry

SIZE_MAX = 40

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(-4, 1), st.lists(st.integers(0, 9), max_size=5)),
        st.tuples(st.just("trim"), st.integers(-8, 0), st.integers(-8, 0)),
        st.tuples(st.just("reset"), st.integers(0, 20), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=sharing.examples(150), deadline=None)
@given(start=st.integers(0, 3), plan=steps)
def test_a_window_of_the_log(start: int, plan: list[tuple[str, int, object]]) -> None:
    cache = LogCache(SIZE_MAX)
    cache.reset(LogIndex(start))
    log: dict[int, Entry] = {}
    last = start
    term = 1
    for what, at, more in plan:
        if what == "add":
            assert isinstance(more, list)
            term += 1
            first = max(last + at, 1)
            added = [entry(first + n, term, b"x" * size) for n, size in enumerate(more)]
            cache.add(added)
            if added:
                log = {index: each for index, each in log.items() if index < first}
                log.update({each.index: each for each in added})
                last = first + len(added) - 1
        elif what == "trim":
            assert isinstance(more, int)
            applied, durable = max(last + at, 0), max(last + more, 0)
            cache.trim(LogIndex(applied), LogIndex(durable))
            kept_from = cache.first_index
            assert all(index <= durable for index in log if index < kept_from)
            if cache.size_bytes <= SIZE_MAX * UNAPPLIED_FACTOR:
                beyond = [index for index in log if applied < index < kept_from]
                dropped = sum(len(log[index].payload) for index in beyond)
                assert not beyond or dropped + cache.size_bytes > SIZE_MAX * (UNAPPLIED_FACTOR - 1)
            log = {index: each for index, each in log.items() if index >= kept_from}
        else:
            cache.reset(LogIndex(at))
            log, last = {}, at
        assert cache.last_index == last
        assert cache.size_bytes == sum(len(each.payload) for each in log.values())
        for index in range(last + 3):
            assert cache.get(LogIndex(index)) == log.get(index)
        for first in range(max(last - 6, 1), last + 2):
            wanted = [log.get(index) for index in range(first, last + 1)]
            whole = cache.slice(LogIndex(first), LogIndex(last))
            assert whole == (None if None in wanted else tuple(wanted)) or not wanted


def test_an_overwrite_below_the_window_moves_it_down() -> None:
    cache = LogCache(100)
    cache.reset(LogIndex(10))
    cache.add([entry(11, 1), entry(12, 1)])
    cache.add([entry(5, 2)])
    assert (cache.first_index, cache.last_index) == (5, 5)
    assert cache.slice(LogIndex(4), LogIndex(5)) is None


def test_what_is_not_durable_stays_however_large() -> None:
    cache = LogCache(10)
    cache.add([entry(at, 1, b"x" * 10) for at in range(1, 100)])
    cache.trim(LogIndex(99), LogIndex(3))
    assert cache.first_index == 4

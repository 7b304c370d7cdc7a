"""The core's view of the log against a plain list of entries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.types import LogIndex, Term
from quorate.consensus.log_view import LogView
from quorate.consensus.messages import APPEND_ENTRIES_MAX, Entry, EntryId
from quorate.errors import InvariantViolationError
from tests import sharing


def view(terms: list[int], floor: tuple[int, int] = (0, 0), size: int = 10) -> LogView:
    at = EntryId(LogIndex(floor[0]), Term(floor[1]))
    return LogView(at, [Term(term) for term in terms], [size] * len(terms))


@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "truncate", "compact", "reset"]), st.integers(0, 9)),
        max_size=40,
    )
)
@settings(max_examples=sharing.examples(150))
def test_against_a_list(steps: list[tuple[str, int]]) -> None:
    log = view([])
    model: list[tuple[int, int]] = []  # (term, size)
    floor, floor_term, term = 0, 0, 1
    for kind, number in steps:
        last = floor + len(model)
        if kind == "append":
            term += number % 2
            log.append(Entry(LogIndex(last + 1), Term(term), 1, b"x" * number))
            model.append((term, number))
        elif kind == "truncate":
            keep = max(len(model) - number, 0)
            log.truncate(LogIndex(floor + keep))
            del model[keep:]
        elif kind == "compact":
            drop = min(number, len(model))
            floor_term = model[drop - 1][0] if drop else floor_term
            floor += drop
            del model[:drop]
            log.compact(EntryId(LogIndex(floor), Term(floor_term)))
        else:
            floor, floor_term, term = last + number, term + 1, term + 1
            model = []
            log.reset(EntryId(LogIndex(floor), Term(floor_term)))
        last = floor + len(model)
        assert (log.last_index, log.last_term) == (last, model[-1][0] if model else floor_term)
        expected = {floor: floor_term} | {floor + i: t for i, (t, _) in enumerate(model, 1)}
        for index in range(max(floor - 2, 0), last + 3):
            assert log.term_at(LogIndex(index)) == expected.get(index)
        for after in range(floor, last + 1):
            size = sum(size for _, size in model[after - floor :])
            assert log.size_between(LogIndex(after), log.last_index) == size


@given(
    terms=st.lists(st.integers(1, 5), max_size=12).map(sorted),
    floor=st.integers(0, 5),
    index=st.integers(0, 25),
    term=st.integers(0, 6),
)
@settings(max_examples=sharing.examples(200))
def test_hint_is_the_last_entry_that_can_match(
    terms: list[int], floor: int, index: int, term: int
) -> None:
    log = view(terms, (floor, 1 if floor else 0))
    found = log.last_with_term_at_most(LogIndex(index), Term(term))
    possible = [
        EntryId(LogIndex(floor + i), Term(t))
        for i, t in enumerate(terms, 1)
        if floor + i <= index and t <= term
    ]
    assert found == (possible[-1] if possible else log.floor)


def test_a_run_ends_before_its_bound_is_passed() -> None:
    log = view([1, 1, 1, 1, 1])
    assert log.end_of_run(LogIndex(1), 30) == (3, 30)
    assert log.end_of_run(LogIndex(1), 29) == (2, 20)
    assert log.end_of_run(LogIndex(2), 1) == (2, 10), "always one entry"
    assert log.end_of_run(LogIndex(4), 99) == (5, 20)
    assert log.end_of_run(LogIndex(6), 99) == (5, 0), "nothing there"


def test_a_run_is_bounded_in_entries() -> None:
    log = view([1] * (APPEND_ENTRIES_MAX + 5), size=0)
    assert log.end_of_run(LogIndex(3), 99) == (APPEND_ENTRIES_MAX + 2, 0)


def test_gaps_and_cuts_that_make_no_sense_crash() -> None:
    log = view([1, 1, 2], (5, 1))
    with pytest.raises(InvariantViolationError, match="no gaps"):
        log.append(Entry(LogIndex(10), Term(2), 1, b""))
    with pytest.raises(InvariantViolationError, match="below the floor"):
        log.truncate(LogIndex(4))
    with pytest.raises(InvariantViolationError, match="new floor"):
        log.compact(EntryId(LogIndex(7), Term(2)))
    with pytest.raises(InvariantViolationError, match="new floor"):
        log.compact(EntryId(LogIndex(9), Term(2)))
    with pytest.raises(InvariantViolationError, match="term and a size"):
        LogView(log.floor, [Term(1)], [])

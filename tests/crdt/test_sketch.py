"""Sketches tell in what two sets differ, or that they cannot; and never name what is in both."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.crdt.sketch import (
    CELL_BYTES,
    CELLS_MAX,
    FINGERPRINT_BYTES,
    Sketch,
    cells_for,
    fingerprint,
)
from quorate.errors import CrdtFormatError, InvariantViolationError

FINGERPRINTS = 2 ** (8 * FINGERPRINT_BYTES)
numbers = st.integers(0, FINGERPRINTS - 1)
few = settings(max_examples=30, deadline=None)


def sketch_of(elements: set[int], cells: int) -> Sketch:
    sketch = Sketch(cells)
    for each in sorted(elements):
        sketch.add(each)
    return sketch


def drawn(random: Random, count: int) -> set[int]:
    return {fingerprint(random.getrandbits(256)) for _ in range(count)}


@few
@given(
    both=st.sets(numbers, max_size=60),
    mine=st.sets(numbers, max_size=12),
    theirs=st.sets(numbers, max_size=12),
    room=st.integers(1, 20),
)
def test_what_is_told_is_right(both: set[int], mine: set[int], theirs: set[int], room: int) -> None:
    """Whatever the elements, and however small the sketch: it tells all of it, or nothing. (0 fills
    no cell, and no digest comes to it but one in 2**48: it is seen in the digest of the whole.)"""
    one, two = both | mine, both | theirs
    found = sketch_of(one, 3 * room).difference(sketch_of(two, 3 * room))
    assert found is None or found == (one ^ two) - {0}


@few
@given(elements=st.lists(numbers, max_size=30), seed=st.integers(0, 2**32))
def test_order_and_bytes_say_nothing(elements: list[int], seed: int) -> None:
    shuffled = list(elements)
    Random(seed).shuffle(shuffled)
    one, two = Sketch(30), Sketch(30)
    for each in elements:
        one.add(each)
    for each in shuffled:
        two.add(each)
    assert one.encode() == two.encode() == Sketch.decode(one.encode()).encode()
    assert len(one.encode()) == 30 * CELL_BYTES
    for each in shuffled:
        two.add(each)
    assert two.encode() == Sketch(30).encode(), "what is put in twice is out again"


@pytest.mark.parametrize(("count", "common"), [(0, 500), (1, 0), (12, 1000), (60, 300), (400, 100)])
def test_sketches_of_the_size_that_is_asked_for_nearly_always_tell(count: int, common: int) -> None:
    random, told = Random(count), 0
    for _ in range(20 if count < 100 else 6):
        both, differing = drawn(random, common), sorted(drawn(random, count))
        mine = both | set(differing[::2])
        theirs = both | set(differing[1::2])
        cells = cells_for(count)
        found = sketch_of(mine, cells).difference(sketch_of(theirs, cells))
        assert found in (None, set(differing))
        told += found is not None
    assert told >= (19 if count < 100 else 5)


def test_a_sketch_that_is_too_small_says_so() -> None:
    random = Random(1)
    for _ in range(20):
        mine, theirs = drawn(random, 100), drawn(random, 100)
        assert sketch_of(mine, 30).difference(sketch_of(theirs, 30)) is None


def test_sizes_grow_with_the_difference_up_to_a_bound() -> None:
    sizes = [cells_for(count) for count in range(0, 9000, 7)]
    assert sizes == sorted(sizes)
    assert all(size % 3 == 0 and size <= CELLS_MAX for size in sizes)
    assert sizes[-1] == CELLS_MAX
    assert cells_for(100) < 200, "less than two cells for each element"


@pytest.mark.parametrize("size", [0, 1, CELL_BYTES, 3 * CELL_BYTES - 1, 4 * CELL_BYTES])
def test_bytes_that_are_no_sketch_are_refused(size: int) -> None:
    with pytest.raises(CrdtFormatError, match="no sketch"):
        Sketch.decode(bytes(size))


def test_a_sketch_that_is_too_large_is_refused() -> None:
    with pytest.raises(CrdtFormatError):
        Sketch.decode(bytes((CELLS_MAX + 3) * CELL_BYTES))
    for cells in (0, 4, CELLS_MAX + 3):
        with pytest.raises(InvariantViolationError):
            Sketch(cells)
    with pytest.raises(InvariantViolationError):
        Sketch(3).difference(Sketch(6))


@few
@given(cells=st.lists(st.binary(min_size=CELL_BYTES, max_size=CELL_BYTES), min_size=9, max_size=9))
def test_garbage_that_looks_like_a_sketch_ends(cells: list[bytes]) -> None:
    """Whatever a peer sends: some answer, soon, and the sketch is not changed by asking."""
    garbage = Sketch.decode(b"".join(cells))
    before = garbage.encode()
    found = garbage.difference(sketch_of({1, 2, 3}, 9))
    assert found is None or len(found) <= 9 * 2
    assert garbage.encode() == before


def test_an_element_that_is_in_one_cell_alone_is_told_for_none() -> None:
    """As nobody makes it: taken out, it would be in the others, and so on for ever."""
    whole = sketch_of({5}, 9).encode()
    cells = [whole[at : at + CELL_BYTES] for at in range(0, len(whole), CELL_BYTES)]
    at = next(at for at, cell in enumerate(cells) if any(cell))
    lone = [cell if here == at else bytes(CELL_BYTES) for here, cell in enumerate(cells)]
    assert Sketch.decode(b"".join(lone)).difference(Sketch(9)) is None

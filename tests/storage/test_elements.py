"""One suite over the element store on disk, its twin in memory, and that on the simulated disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepsen_like.simulation.disk import SimulatedDisk
from jepsen_like.simulation.hosts import Host, HostClock
from jepsen_like.simulation.loop import VirtualLoop
from quorate.errors import (
    ClosedError,
    DirectoryInUseError,
    InvalidArgumentError,
    LimitExceededError,
)
from quorate.storage.element_tables import PIECE_BYTES
from quorate.storage.elements import (
    ELEMENT_KEY_BYTES_MAX,
    ELEMENT_TABLES_MAX,
    ELEMENT_VALUE_BYTES_MAX,
    ElementStore,
)
from quorate.storage.lmdb_elements import LmdbElementStore
from quorate.storage.memory_elements import ElementImage, MemoryElementStore

Opener = Callable[[], ElementStore]
Records = list[tuple[bytes, bytes]]
ALL_BYTES = 1 << 30


def simulated_disk() -> SimulatedDisk:
    loop = VirtualLoop()
    loop.close()  # only its clock is needed
    host = Host("h", 1, "127.0.0.1", HostClock(loop.true_time))
    return SimulatedDisk(loop, host, Random(1))


@pytest.fixture(params=["lmdb", "memory", "simulated"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    if request.param == "lmdb":
        return lambda: LmdbElementStore(tmp_path / "crdt", map_bytes=64 * 1024)
    if request.param == "memory":
        image = ElementImage()
        return lambda: MemoryElementStore(image)
    disk = simulated_disk()
    return lambda: disk.open_elements("/n1/crdt")


@pytest.fixture
def store(opener: Opener) -> Iterator[ElementStore]:
    opened = opener()
    yield opened
    opened.close()


def everything(store: ElementStore, table: str = "t") -> Records:
    return store.page(table, b"", None, 1_000_000, ALL_BYTES)


PIECE = b"P" * PIECE_BYTES
#: In order. Whole pieces, what is around them, and keys that share one, two and many pieces.
KEYS = [
    b"\0",
    b"A",
    PIECE[:-1],
    PIECE[:-1] + b"O",
    PIECE,
    PIECE + b"\0",
    PIECE + b"\0" + PIECE,
    PIECE + b"O" * 5000,
    PIECE + PIECE,
    PIECE + PIECE + b"\0\0",
    PIECE + PIECE + b"\1",
    PIECE + PIECE + b"\xff" * PIECE_BYTES,
    PIECE + PIECE + b"\xff" * PIECE_BYTES + b"\0",
    PIECE + b"P" * (PIECE_BYTES - 1) + b"Q",
    PIECE + b"\xff",
    PIECE[:-1] + b"Q",
    b"Q",
    b"\xff" * PIECE_BYTES,
    b"\xff" * ELEMENT_KEY_BYTES_MAX,
]
RECORDS = [(key, b"%d" % number) for number, key in enumerate(KEYS)]


def test_a_fresh_store_is_empty(store: ElementStore) -> None:
    assert store.get("t", b"k") is None
    assert store.get("t", b"") is None
    assert everything(store) == []
    assert store.last("t") is None
    assert store.size_bytes() >= 0


def test_what_was_written_is_read_in_byte_order_also_after_reopening(opener: Opener) -> None:
    store = opener()
    assert sorted(KEYS) == KEYS
    store.write({"t": [*reversed(RECORDS)], "u": [(b"k", b"other table")]})
    for _ in range(2):
        assert everything(store) == RECORDS
        assert [store.get("t", key) for key in KEYS] == [value for _, value in RECORDS]
        assert everything(store, "u") == [(b"k", b"other table")]
        store.close()
        store = opener()
    store.close()


def test_every_range_of_awkward_keys(store: ElementStore) -> None:
    store.write({"t": RECORDS})
    edges = [b"", *KEYS, PIECE + b"P", PIECE + PIECE + b"\xff", b"\xff" * 700]
    for start in edges:
        for end in [*edges, None]:
            wanted = [
                each for each in RECORDS if each[0] >= start and (end is None or each[0] < end)
            ]
            assert store.page("t", start, end, 100, ALL_BYTES) == wanted, (start, end)
    for end in [*edges, None]:
        before = [each for each in RECORDS if end is None or each[0] < end]
        assert store.last("t", end) == (before[-1] if before else None), end


def test_pages_have_two_bounds_and_lead_on(store: ElementStore) -> None:
    store.write({"t": RECORDS})
    for limit, bytes_max in ((1, ALL_BYTES), (3, ALL_BYTES), (1000, 1), (1000, 2500), (4, 9000)):
        found: Records = []
        start = b""
        while page := store.page("t", start, None, limit, bytes_max):
            size = sum(len(key) + len(value) for key, value in page)
            assert len(page) <= limit
            assert size <= bytes_max or len(page) == 1
            found += page
            start = page[-1][0] + b"\0"
        assert found == RECORDS
    with pytest.raises(InvalidArgumentError, match="a page of 0 records"):
        store.page("t", b"", None, 0)


def test_records_are_replaced_and_removed_and_the_last_change_counts(store: ElementStore) -> None:
    store.write({"t": RECORDS})
    replaced = [(key, value + b"'") for key, value in RECORDS]
    store.write({"t": replaced})
    assert everything(store) == replaced
    store.write({"t": [(key, None) for key in KEYS[::2]] * 2})
    assert everything(store) == replaced[1::2]
    assert store.get("t", KEYS[6]) is None
    store.write({"t": iter([(b"k", b"1"), (b"k", None), (b"k", b"2"), (PIECE * 3, b"3")])})
    assert store.get("t", b"k") == b"2"
    store.write({"t": [(key, None) for key in [*KEYS, b"k", PIECE * 3, b"never"]], "u": []})
    assert everything(store) == []
    assert store.last("t") is None


def test_refused_changes_change_nothing(store: ElementStore) -> None:
    store.write({"t": [(b"k", b"v")]})
    refused = [
        ({"t": [(b"a", b"1"), (b"", b"v")]}, InvalidArgumentError, "an empty key"),
        (
            {"t": [(b"a", b"1")], "u": [(b"k" * (ELEMENT_KEY_BYTES_MAX + 1), b"v")]},
            LimitExceededError,
            "a key of table 'u' has 131073 bytes",
        ),
        (
            {"t": [(b"a", b"1"), (b"k", bytes(ELEMENT_VALUE_BYTES_MAX + 1))]},
            LimitExceededError,
            "a value of table 't'",
        ),
        ({"t": [(b"a", b"1")], "": [(b"k", b"v")]}, InvalidArgumentError, "table's name"),
        (
            {f"t{number}": [(b"a", b"1")] for number in range(ELEMENT_TABLES_MAX)},
            LimitExceededError,
            "more than 16 tables",
        ),
    ]
    for changes, error, match in refused:
        with pytest.raises(error, match=match):
            store.write(changes)  # type: ignore[arg-type]
    assert everything(store) == [(b"k", b"v")]
    assert store.get("t0", b"a") is None
    store.write({"t": [(b"k", None)]})
    assert everything(store) == []


def test_a_store_has_one_user_and_ends(opener: Opener) -> None:
    store = opener()
    store.write({"t": [(b"k", b"v")]})
    with pytest.raises(DirectoryInUseError):
        opener()
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.get("t", b"k"),
        lambda: store.page("t", b"", None, 1),
        lambda: store.last("t"),
        lambda: store.write({}),
        store.size_bytes,
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    opener().close()


def test_readers_beside_a_writer_see_whole_writes(store: ElementStore) -> None:
    keys = [b"a", b"b", PIECE + b"c", PIECE + PIECE + b"d"]
    store.write({"t": [(key, b"0") for key in keys]})
    findings: list[object] = []
    seen: list[int] = []
    done = threading.Event()

    def write() -> None:
        number = 0
        while number < 40 or len(seen) < 20:
            number += 1
            store.write({"t": [(key, b"%d" % number) for key in keys], f"t{number % 9}": []})
            if store.get("t", b"a") != b"%d" % number:
                findings.append(f"{number} was written and is not read")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        values = {value for _, value in everything(store)}
        number = int(min(values))
        if len(values) != 1 or (seen and number < seen[-1]):
            findings.append((values, seen[-1:]))
        seen.append(number)
    writer.join()
    assert findings == []


# --- against a model ------------------------------------------------------------------------------

_pieces = st.sampled_from([b"\0", b"A", PIECE, PIECE[1:], b"\xff" * PIECE_BYTES, b"", b"\xff"])
_keys = st.builds(lambda parts: b"".join(parts) or b"k", st.lists(_pieces, max_size=5))
_changes = st.lists(
    st.tuples(_keys, st.one_of(st.none(), st.binary(max_size=3))), min_size=1, max_size=8
)
_steps = st.lists(
    st.tuples(_changes, _keys, st.one_of(st.none(), _keys), st.integers(1, 6)), max_size=12
)


def compare_with_a_model(
    store: ElementStore,
    steps: list[tuple[list[tuple[bytes, bytes | None]], bytes, bytes | None, int]],
) -> None:
    store.write({"t": [(key, None) for key, _ in everything(store)]})
    model: dict[bytes, bytes] = {}
    for changes, start, end, limit in steps:
        store.write({"t": changes})
        for key, value in changes:
            model.pop(key, None)
            if value is not None:
                model[key] = value
        ordered = sorted(model.items())
        ranged = [each for each in ordered if each[0] >= start and (end is None or each[0] < end)]
        assert everything(store) == ordered
        assert store.page("t", start, end, limit, ALL_BYTES) == ranged[:limit]
        below = [each for each in ordered if end is None or each[0] < end]
        assert store.last("t", end) == (below[-1] if below else None)
        assert store.get("t", start) == model.get(start)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps)
def test_a_store_equals_a_model(
    store: ElementStore, steps: list[tuple[list[tuple[bytes, bytes | None]], bytes, None, int]]
) -> None:
    compare_with_a_model(store, steps)  # type: ignore[arg-type]


@pytest.mark.deep
@settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps)
def test_a_store_equals_a_model_at_length(
    store: ElementStore, steps: list[tuple[list[tuple[bytes, bytes | None]], bytes, None, int]]
) -> None:
    compare_with_a_model(store, steps)  # type: ignore[arg-type]

"""What only the element store on disk does: maps that grow, damage, crashes, full disks."""

from __future__ import annotations

import errno
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from quorate.errors import (
    DiskFullError,
    FormatVersionError,
    StorageError,
    StoreCorruptionError,
)
from quorate.storage import element_environment, lmdb_elements
from quorate.storage.durable import REJOIN
from quorate.storage.element_environment import ElementEnvironment
from quorate.storage.element_tables import PIECE_BYTES
from quorate.storage.interfaces import Change
from quorate.storage.lmdb_elements import LmdbElementStore

MAP_BYTES = 64 * 1024
ALL_BYTES = 1 << 30
Changes = dict[str, list[Change]]


def some(count: int, *, table: str = "t", size: int = 100) -> Changes:
    return {table: [(b"%06d" % number, b"v" * size) for number in range(count)]}


def everything(store: LmdbElementStore, table: str = "t") -> list[tuple[bytes, bytes]]:
    return store.page(table, b"", None, 1_000_000, ALL_BYTES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "crdt"


@pytest.fixture
def store(folder: Path) -> Iterator[LmdbElementStore]:
    opened = LmdbElementStore(folder, map_bytes=MAP_BYTES)
    yield opened
    opened.close()


def data_file(folder: Path) -> Path:
    return folder / "elements" / "data.mdb"


# --- growth and memory ----------------------------------------------------------------------------


def test_the_map_grows_beside_readers(folder: Path, store: LmdbElementStore) -> None:
    store.write(some(10))
    before = everything(store)
    findings: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if everything(store)[:10] != before or store.get("t", b"000003") != b"v" * 100:
                findings.append("a reader saw something else")

    reader = threading.Thread(target=read)
    reader.start()
    store.write(some(5000, table="u"))
    store.write({"u": [(b"large", bytes(3_000_000))]})
    done.set()
    reader.join()
    assert findings == []
    assert store.statistics().map_growths >= 5
    assert store.statistics().records == 5011
    store.close()
    again = LmdbElementStore(folder, map_bytes=MAP_BYTES)
    again.write(some(6000, table="u"))
    assert len(everything(again, "u")) == 6001
    again.close()


def test_paging_gives_the_memory_of_the_files_pages_back(
    store: LmdbElementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_elements, "PAGED_BYTES", 5000)
    monkeypatch.setattr(lmdb_elements, "MAPPED_BYTES_MAX", -(1 << 40))
    renewed = 0
    renew = ElementEnvironment.renew

    def counted(self: ElementEnvironment) -> None:
        nonlocal renewed
        renewed += 1
        renew(self)

    monkeypatch.setattr(ElementEnvironment, "renew", counted)
    store.write({**some(500), "u": [(b"k" * 2000, b"deep")]})
    start, found = b"", 0
    while page := store.page("t", start, None, 10):
        start, found = page[-1][0] + b"\0", found + len(page)
        assert store.get("u", b"k" * 2000) == b"deep"
    assert found == 500
    assert renewed == 10
    with store._writing:
        for _ in range(10):
            store.page("t", b"", None, 10)
        assert renewed == 10, "not while a write is under way"
    store.page("t", b"", None, 10)
    assert renewed == 11
    monkeypatch.setattr(lmdb_elements, "MAPPED_BYTES_MAX", 1 << 40)
    for _ in range(10):
        store.page("t", b"", None, 10)
    assert renewed == 11, "not as long as they take little"
    store.write({"t": [(b"k", b"v")]})
    assert store.last("t") == (b"k", b"v")


def test_a_reader_that_idles_pins_no_pages(store: LmdbElementStore) -> None:
    store.write(some(500))
    sizes = []
    for number in range(40):
        if number == 10:
            store.get("t", b"000001")  # and then only writes
        store.write({"t": [(b"%06d" % (number * 11), b"w" * 100)]})
        sizes.append(store.size_bytes())
    assert sizes[-1] <= sizes[9] + MAP_BYTES


# --- full and failing disks -----------------------------------------------------------------------


def test_a_store_that_may_not_grow_is_full_and_deletes_still_work(folder: Path) -> None:
    store = LmdbElementStore(folder, size_bytes_max=10 * MAP_BYTES)
    store.write(some(1000))
    with pytest.raises(DiskFullError, match="delete records or allow more"):
        store.write(some(9000, table="u"))
    assert everything(store, "u") == []
    assert len(everything(store)) == 1000
    store.write({"t": [(b"%06d" % number, None) for number in range(900)]})
    store.write(some(500, table="u"))
    assert len(everything(store, "u")) == 500
    assert store.size_bytes() <= 10 * MAP_BYTES
    store.close()


@pytest.fixture
def limited() -> Iterator[object]:
    """Files may not grow beyond a size, as on a full disk: ``EFBIG`` and short writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("beyond", [0, 1, 4096, 50_000])
def test_a_full_disk_changes_nothing_and_is_survived(
    store: LmdbElementStore, limited: object, beyond: int
) -> None:
    store.write(some(50))
    limited(store.size_bytes() + beyond)  # type: ignore[operator]
    for _ in range(2):
        with pytest.raises(DiskFullError, match=r"no space while .* nothing was changed"):
            store.write({**some(900, table="more"), "t": [(b"000001", None)]})
        assert len(everything(store)) == 50
        assert everything(store, "more") == []
    limited(None)  # type: ignore[operator]
    store.write({**some(900, table="more"), "t": [(b"000001", None)]})
    assert len(everything(store, "more")) == 900
    assert len(everything(store)) == 49


def test_a_failed_write_ends_the_store_for_good(
    store: LmdbElementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        error = lmdb.Error("mdb_txn_commit: Input/output error")
        error.code = errno.EIO  # type: ignore[attr-defined]
        raise error

    store.write(some(5))
    assert store.get("t", b"000001")
    monkeypatch.setattr(ElementEnvironment, "_put_own", fail)
    with pytest.raises(StorageError) as caught:
        store.write(some(9))
    assert not isinstance(caught.value, DiskFullError)
    monkeypatch.undo()
    for call in (
        lambda: store.write(some(9)),
        lambda: store.get("t", b"000001"),
        lambda: store.page("t", b"", None, 1),
        lambda: store.last("t"),
    ):
        with pytest.raises(StorageError, match="failed before and is not used again until"):
            call()


def test_a_store_is_refused_in_a_forked_child(store: LmdbElementStore) -> None:
    store._pid += 1
    with pytest.raises(StorageError, match="used across fork"):
        store.get("t", b"k")
    with pytest.raises(StorageError, match="used across fork"):
        store.write({})


# --- damage ---------------------------------------------------------------------------------------


def flip(path: Path, needle: bytes) -> None:
    """In every place: pages that are no longer in use still hold what was there."""
    content = path.read_bytes()
    assert needle in content
    with path.open("r+b") as file:  # in place: an open store has the file mapped
        file.write(content.replace(needle, bytes([needle[0] ^ 1]) + needle[1:]))


DEEP = b"D" * (2 * PIECE_BYTES) + b"deep-end"
RECORDS: Changes = {"t": [(b"k%d" % n, b"value-of-%d" % n) for n in range(9)] + [(DEEP, b"deep-v")]}


@pytest.mark.parametrize(
    ("needle", "key"),
    [(b"value-of-3", b"k3"), (b"deep-v", DEEP), (b"D" * PIECE_BYTES + b"\0", DEEP)],
)
def test_one_flipped_bit_is_found_when_it_is_read(
    store: LmdbElementStore, folder: Path, needle: bytes, key: bytes
) -> None:
    store.write(RECORDS)
    flip(data_file(folder), needle)
    calls = [lambda: everything(store)]
    if needle[:1] != b"D":  # a damaged key is not found by itself: reading all of them finds it
        calls += [lambda: [(key, store.get("t", key) or b"")]]
        calls += [lambda: [store.last("t", key + b"\0") or (b"", b"")]]
    for call in calls:
        with pytest.raises(StoreCorruptionError, match=r"table 't', key .* checksum") as caught:
            call()
        assert REJOIN in str(caught.value)
    store.close()
    with pytest.raises(StoreCorruptionError, match="table 't'"):
        LmdbElementStore(folder)


@pytest.mark.parametrize("needle", [b"elements", b"ledger", b"r/t", b"i/t"])
def test_a_name_that_went_missing_is_damage_and_no_empty_store(
    folder: Path, store: LmdbElementStore, needle: bytes
) -> None:
    store.write(RECORDS)
    store.close()
    flip(data_file(folder), needle)
    with pytest.raises(StoreCorruptionError, match="is damaged: ") as caught:
        LmdbElementStore(folder)
    assert REJOIN in str(caught.value)


def test_a_record_that_came_back_is_found_by_the_seal(
    folder: Path, store: LmdbElementStore
) -> None:
    """Every record is sound, but one of them is of an earlier write: a lost page write."""
    store.write({"t": [(b"k", b"old-value")]})
    store.write({"t": [(b"k", b"new-value")]})
    store.close()
    path = data_file(folder)
    content = path.read_bytes()
    old, new = content.index(b"kold-value"), content.index(b"knew-value")
    changed = bytearray(content)
    changed[new : new + 14] = content[old : old + 14]  # key, value and checksum
    path.write_bytes(changed)
    with pytest.raises(StoreCorruptionError, match="pages were lost or came back"):
        LmdbElementStore(folder)


@pytest.mark.parametrize("damage", ["empty", "missing", "text", "half"])
def test_a_data_file_that_is_none_is_refused(
    folder: Path, store: LmdbElementStore, damage: str
) -> None:
    store.write(RECORDS)
    store.close()
    path = data_file(folder)
    content = {"empty": b"", "text": b"hello " * 5000, "half": path.read_bytes()[:6000]}
    path.unlink() if damage == "missing" else path.write_bytes(content[damage])
    with pytest.raises(StoreCorruptionError, match=r"data\.mdb is damaged"):
        LmdbElementStore(folder)


def test_a_store_of_a_newer_layout_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(element_environment, "LAYOUT_VERSION", 2)
    LmdbElementStore(folder).close()
    monkeypatch.undo()
    with pytest.raises(FormatVersionError, match=r"has format 2, .* start the newer quorate"):
        LmdbElementStore(folder)


def test_leftovers_of_a_crash_in_the_first_opening_are_removed(
    folder: Path, store: LmdbElementStore
) -> None:
    store.write(RECORDS)
    store.close()
    shutil.copytree(folder / "elements", folder / "elements.partial")
    again = LmdbElementStore(folder)
    assert len(everything(again)) == 10
    again.close()
    assert sorted(path.name for path in folder.iterdir()) == ["LOCK", "elements"]


def test_a_space_is_removed_with_its_last_key(store: LmdbElementStore) -> None:
    store.write({"t": [(DEEP, b"1"), (DEEP + b"x", b"2"), (DEEP + b"y" * 600, b"3")]})
    assert store.statistics().records == 6, "three that lead to spaces"
    store.write({"t": [(DEEP + b"y" * 600, None)]})
    assert store.statistics().records == 4
    store.write({"t": [(DEEP, None), (DEEP + b"x", None)]})
    assert store.statistics().records == 0

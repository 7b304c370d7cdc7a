"""What only the store on disk does: maps that grow, damage, generations, full and failing disks."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from quorate.base.types import LogIndex, Term
from quorate.consensus.messages import EntryId
from quorate.errors import (
    ClosedError,
    DirectoryInUseError,
    DiskFullError,
    FormatVersionError,
    LimitExceededError,
    StorageError,
    StoreCorruptionError,
)
from quorate.storage import environment as environment_module
from quorate.storage import store_format as form
from quorate.storage.durable import REJOIN
from quorate.storage.interfaces import Change, SnapshotChunk, StoreMeta
from quorate.storage.lmdb_pages import check_data_file
from quorate.storage.store import LmdbStateStore

MAP_BYTES = 64 * 1024
Changes = dict[str, list[Change]]


def meta_at(index: int) -> StoreMeta:
    applied = EntryId(LogIndex(index), Term(1))
    return StoreMeta(applied=applied, time_ms=1, membership=b"m", state_hash=b"12345678")


def records(count: int, size: int = 100, table: str = "t") -> Changes:
    return {table: [(b"%06d" % number, b"v" * size) for number in range(count)]}


def data_file(store_directory: Path, generation: int = 1) -> Path:
    return store_directory / f"store-{generation:08d}" / "data.mdb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(folder: Path) -> Iterator[LmdbStateStore]:
    opened = LmdbStateStore(folder, map_bytes=MAP_BYTES)
    yield opened
    opened.close()


# --- growth ---


def test_the_map_grows_as_often_as_a_checkpoint_needs(store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), records(20_000))
    figures = store.statistics()
    assert figures.map_growths >= 4
    assert figures.map_bytes > 2_000_000 > MAP_BYTES
    assert sum(1 for _ in store.load("t")) == 20_000


def test_a_map_that_grew_is_found_grown(folder: Path, store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), records(5000))
    store.close()
    again = LmdbStateStore(folder, map_bytes=MAP_BYTES)
    assert sum(1 for _ in again.load("t")) == 5000
    assert again.release_pages()
    again.checkpoint(meta_at(2), records(9000))
    assert sum(1 for _ in again.load("t")) == 9000
    again.close()


def test_changes_are_written_once_although_the_map_grows_in_between(store: LmdbStateStore) -> None:
    taken = 0

    def lazily() -> Iterator[Change]:
        nonlocal taken
        for number in range(5000):
            taken += 1
            yield b"%06d" % number, b"v" * 100

    store.checkpoint(meta_at(1), {"t": lazily()})
    assert taken == 5000
    assert store.statistics().map_growths > 0
    assert len(dict(store.load("t"))) == 5000


def test_changes_that_were_not_kept_are_asked_for_again(
    store: LmdbStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.storage.store.REPLAY_BELOW_BYTES", 0)
    with pytest.raises(DiskFullError, match="write the checkpoint again"):
        store.checkpoint(meta_at(1), records(500))
    assert store.meta() is None
    store.checkpoint(meta_at(1), records(500))
    assert len(dict(store.load("t"))) == 500


def test_the_map_does_not_grow_under_a_reader(store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), records(10))
    reader = store.snapshot()
    with pytest.raises(DiskFullError, match=r"while 1 snapshots are being read; .* try again"):
        store.checkpoint(meta_at(2), records(5000))
    assert len(dict(store.load("t"))) == 10
    reader.close()
    store.checkpoint(meta_at(2), records(5000))
    assert len(dict(store.load("t"))) == 5000


def test_a_store_that_may_not_grow_is_full_and_deletes_still_work(folder: Path) -> None:
    store = LmdbStateStore(folder, size_bytes_max=20 * MAP_BYTES)
    index = 0
    with pytest.raises(DiskFullError, match="delete records or allow more"):
        for index in range(1, 100):
            store.checkpoint(meta_at(index), records(500, table=f"t{index}"))
    assert len(store.tables()) == index - 1
    store.checkpoint(meta_at(index), {"t1": [(b"%06d" % number, None) for number in range(400)]})
    assert len(dict(store.load("t1"))) == 100
    store.checkpoint(meta_at(index + 1), records(100, table="again"))
    assert store.size_bytes() <= 20 * MAP_BYTES
    store.close()


# --- a full disk ---


@pytest.fixture
def limited() -> Iterator[object]:
    """Files may not grow beyond a size, as on a full disk: ``EFBIG`` and short writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("beyond", [0, 1, 4096, 5000])
def test_a_full_disk_changes_nothing_and_is_survived(
    store: LmdbStateStore, limited: object, beyond: int
) -> None:
    store.checkpoint(meta_at(1), records(50))
    size = store.size_bytes()
    limited(size + beyond)  # type: ignore[operator]
    for _ in range(3):
        with pytest.raises(DiskFullError, match=r"no space while .* nothing was changed"):
            store.checkpoint(meta_at(2), records(900, table="more"))
    limited(None)  # type: ignore[operator]
    assert store.meta() == meta_at(1)
    assert store.tables() == ["t"]
    store.checkpoint(meta_at(2), records(900, table="more"))
    assert len(dict(store.load("more"))) == 900


def test_a_failed_write_on_a_disk_with_room_is_no_full_disk(
    store: LmdbStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        error = lmdb.Error("mdb_txn_commit: Input/output error")
        error.code = errno.EIO  # type: ignore[attr-defined]
        raise error

    store.checkpoint(meta_at(1), records(5))
    monkeypatch.setattr(environment_module.Environment, "put_meta", fail)
    with pytest.raises(StorageError) as caught:
        store.checkpoint(meta_at(2), records(9))
    assert not isinstance(caught.value, DiskFullError)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="failed before and is not used again until"):
        store.checkpoint(meta_at(2), records(9))
    with pytest.raises(StorageError, match="failed before"):
        store.snapshot()


# --- damage ---


def flip(path: Path, needle: bytes, bit: int = 1) -> None:
    """In every place: pages that are no longer in use still hold what was there."""
    damaged = bytes([needle[0] ^ bit]) + needle[1:]
    content = path.read_bytes()
    assert needle in content
    path.write_bytes(content.replace(needle, damaged))


def test_one_flipped_bit_of_a_value_is_found_when_it_is_read(
    folder: Path, store: LmdbStateStore
) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"key%d" % n, b"value-of-%d" % n) for n in range(20)]})
    store.close()
    flip(data_file(folder), b"value-of-7")
    again = LmdbStateStore(folder)
    with pytest.raises(
        StoreCorruptionError, match=r"table 't', key b'key7': .* checksum"
    ) as caught:
        list(again.load("t"))
    assert REJOIN in str(caught.value)
    reader = again.snapshot()
    with pytest.raises(StoreCorruptionError, match="key7"):
        list(reader.chunks(b"", 50))
    again.close()


def test_one_flipped_bit_of_a_long_key_is_found(folder: Path, store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"K" * 1000, b"long-value")]})
    store.close()
    flip(data_file(folder), b"K" * 600)
    again = LmdbStateStore(folder)
    with pytest.raises(StoreCorruptionError, match="table 't'"):
        list(again.load("t"))
    again.close()


def test_a_key_longer_than_lmdb_can_hold_is_damage(folder: Path, store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"K" * 1000, b"long-value")]})
    store.close()
    stored_size = b"\xff\x01"  # 511, in the node's header just before the key
    path = data_file(folder)
    content = path.read_bytes()
    assert stored_size + b"K" * 100 in content
    path.write_bytes(content.replace(stored_size + b"K" * 100, b"\xff\x03" + b"K" * 100))
    with pytest.raises(StoreCorruptionError, match="a key has 1023 bytes"):
        LmdbStateStore(folder)


@pytest.mark.parametrize("name", [b"format", b"meta", b"seal/t"])
def test_a_name_that_went_missing_is_damage_and_no_empty_store(
    folder: Path, store: LmdbStateStore, name: bytes
) -> None:
    store.checkpoint(meta_at(1), records(3))
    store.close()
    flip(data_file(folder), name)
    with pytest.raises(StoreCorruptionError, match="is damaged: ") as caught:
        LmdbStateStore(folder)
    assert REJOIN in str(caught.value)


def test_a_table_that_went_missing_is_damage(folder: Path, store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), records(3, table="table"))
    store.close()
    flip(data_file(folder), b"r/table")
    with pytest.raises(StoreCorruptionError, match="its databases are"):
        LmdbStateStore(folder)


def test_a_record_that_came_back_is_found_by_the_seal(folder: Path, store: LmdbStateStore) -> None:
    """Every record is sound, but one of them is of an earlier checkpoint: a lost page write."""
    store.checkpoint(meta_at(1), {"t": [(b"k", b"old-value")]})
    store.checkpoint(meta_at(2), {"t": [(b"k", b"new-value")]})
    store.close()
    path = data_file(folder)
    content = path.read_bytes()
    old, new = content.index(b"kold-value"), content.index(b"knew-value")
    changed = bytearray(content)
    changed[new : new + 14] = content[old : old + 14]  # key, value and checksum
    path.write_bytes(changed)
    again = LmdbStateStore(folder)
    with pytest.raises(StoreCorruptionError, match="pages were lost or came back"):
        list(again.load("t"))
    again.close()


def test_a_value_replaced_by_a_shorter_one_in_one_checkpoint_is_no_damage(
    folder: Path, store: LmdbStateStore
) -> None:
    """LMDB keeps the larger run of overflow pages."""
    store.checkpoint(meta_at(1), {"t": [(b"k", b"a" * 20_000), (b"k", b"b" * 5000)]})
    store.close()
    check_data_file(str(data_file(folder)))
    again = LmdbStateStore(folder)
    assert list(again.load("t")) == [(b"k", b"b" * 5000)]
    again.close()


@pytest.mark.parametrize("damage", ["empty", "missing", "text", "half"])
def test_a_data_file_that_is_none_is_refused(
    folder: Path, store: LmdbStateStore, damage: str
) -> None:
    store.checkpoint(meta_at(1), records(30))
    store.close()
    path = data_file(folder)
    content = {"empty": b"", "text": b"hello " * 5000, "half": path.read_bytes()[:6000]}
    path.unlink() if damage == "missing" else path.write_bytes(content[damage])
    with pytest.raises(StoreCorruptionError, match=r"data\.mdb is damaged"):
        LmdbStateStore(folder)


# --- keys and tables ---


def test_long_keys_keep_their_order_and_their_limit(store: LmdbStateStore) -> None:
    longest = form.STORED_KEY_BYTES_MAX
    keys = [b"", b"a" * 510, b"a" * 511, b"a" * 512, b"a" * longest, b"a" * 511 + b"b", b"b"]
    store.checkpoint(meta_at(1), {"t": [(key, b"%d" % len(key)) for key in keys]})
    assert [key for key, _ in store.load("t")] == sorted(keys)
    with pytest.raises(LimitExceededError, match=f"the most is {longest}"):
        store.checkpoint(meta_at(2), {"t": [(b"a" * (longest + 1), b"")]})
    with pytest.raises(LimitExceededError, match="more than 256 tables"):
        store.checkpoint(meta_at(2), {f"t{number}": [(b"k", b"v")] for number in range(300)})
    assert store.meta() == meta_at(1)


# --- versions ---


def test_a_store_of_a_newer_layout_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(form, "LAYOUT_VERSION", 2)
        LmdbStateStore(folder).close()
    with pytest.raises(FormatVersionError, match=r"has format 2, .* start the newer quorate"):
        LmdbStateStore(folder)


def test_a_checkpoint_of_a_newer_version_is_refused(
    folder: Path, store: LmdbStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "encode_meta", lambda _: b"\x81\xaeformat_version\x02")
    store.checkpoint(meta_at(1), {})
    store.close()
    with pytest.raises(FormatVersionError, match="format 2"):
        LmdbStateStore(folder)


def test_a_pointer_of_a_newer_version_is_refused(folder: Path, store: LmdbStateStore) -> None:
    store.close()
    line = b"quorate-state 2 1 and more"
    (folder / "CURRENT").write_bytes(b"%s %08x\n" % (line, form.crc32(line)))
    with pytest.raises(FormatVersionError, match=r"CURRENT has format 2"):
        LmdbStateStore(folder)


def test_an_lmdb_of_another_version_is_refused(folder: Path, store: LmdbStateStore) -> None:
    store.close()
    path = data_file(folder)
    content = bytearray(path.read_bytes())
    for page in (0, 4096):
        content[page + 20] = 9
    path.write_bytes(content)
    with pytest.raises(FormatVersionError, match="LMDB data format 9"):
        LmdbStateStore(folder)


# --- generations ---


def install(store: LmdbStateStore, index: int, changes: Changes) -> None:
    installer = store.installer()
    for table, of_table in changes.items():
        pairs = tuple((key, value or b"") for key, value in of_table)
        installer.add(SnapshotChunk(table, pairs, b""))
    installer.finish(meta_at(index), sum(map(len, changes.values())))


def test_every_bit_of_the_pointer_matters(folder: Path, store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), records(3))
    store.close()
    pointer = folder / "CURRENT"
    content = pointer.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        pointer.write_bytes(damaged)
        with pytest.raises(StoreCorruptionError, match="CURRENT is damaged"):
            LmdbStateStore(folder)
    pointer.write_bytes(content)
    LmdbStateStore(folder).close()


def test_a_pointer_to_nothing_and_two_stores_without_one_are_refused(
    folder: Path, store: LmdbStateStore
) -> None:
    store.checkpoint(meta_at(1), records(3))
    store.close()
    (folder / "store-00000001").rename(folder / "store-00000002")
    with pytest.raises(StoreCorruptionError, match=r"names .*store-00000001, which is not there"):
        LmdbStateStore(folder)
    shutil.copytree(folder / "store-00000002", folder / "store-00000001")
    (folder / "CURRENT").unlink()
    with pytest.raises(StoreCorruptionError, match="is missing and there are 2 stores"):
        LmdbStateStore(folder)
    assert data_file(folder).exists(), "a refusal removes nothing"


def test_an_install_leaves_one_store_and_its_readers_keep_the_old_one(
    folder: Path, store: LmdbStateStore
) -> None:
    store.checkpoint(meta_at(1), records(3))
    reader = store.snapshot()
    install(store, 5, records(9))
    assert not store.release_pages(), "a snapshot is open, be it of the store before"
    assert sorted(path.name for path in folder.glob("store-*")) == [
        "store-00000001",
        "store-00000002",
    ]
    assert sum(len(chunk.records) for chunk in reader.chunks(b"", 1000)) == 3
    reader.close()
    assert [path.name for path in folder.glob("store-*")] == ["store-00000002"]
    assert store.release_pages()
    assert len(dict(store.load("t"))) == 9


def test_an_install_that_failed_late_can_be_tried_again(
    store: LmdbStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.checkpoint(meta_at(1), records(3))

    def full(*_: object) -> None:
        raise DiskFullError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(LmdbStateStore, "_open_generation", full)
        with pytest.raises(DiskFullError):
            install(store, 5, records(9))
    assert len(dict(store.load("t"))) == 3
    install(store, 5, records(9))
    assert len(dict(store.load("t"))) == 9


def test_leftovers_of_a_crash_are_removed(folder: Path, store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), records(3))
    store.close()
    shutil.copytree(folder / "store-00000001", folder / "store-00000007")
    shutil.copytree(folder / "store-00000001", folder / "store-00000008.partial")
    (folder / "CURRENT.tmp").write_bytes(b"half")
    again = LmdbStateStore(folder)
    assert len(dict(again.load("t"))) == 3
    again.close()
    assert sorted(path.name for path in folder.iterdir()) == ["CURRENT", "LOCK", "store-00000001"]


# --- users ---


def test_a_store_that_another_process_has_open_is_refused(folder: Path) -> None:
    code = (
        "import sys; from quorate.storage.store import LmdbStateStore\n"
        f"held = LmdbStateStore({str(folder)!r}); print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUseError, match=f"in use by process {other.pid}"):
            LmdbStateStore(folder)
        other.kill()
    LmdbStateStore(folder).close()


def test_a_store_is_refused_in_a_forked_child(store: LmdbStateStore) -> None:
    store._pid += 1
    with pytest.raises(StorageError, match="used across fork"):
        store.checkpoint(meta_at(1), {})
    store._pid -= 1


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles in /proc")
def test_nothing_stays_open_when_opening_fails(folder: Path, store: LmdbStateStore) -> None:
    store.checkpoint(meta_at(1), records(30))
    store.close()
    before = handles()
    content = data_file(folder).read_bytes()
    for damage in (content[:100], content[:9000], content.replace(b"seal/t", b"seal/u")):
        data_file(folder).write_bytes(damage)
        with pytest.raises(StoreCorruptionError):
            LmdbStateStore(folder)
        assert handles() == before
    data_file(folder).write_bytes(content)
    LmdbStateStore(folder).close()
    assert handles() == before


def test_readers_in_threads_beside_checkpoints_each_see_one_checkpoint(folder: Path) -> None:
    store = LmdbStateStore(folder)
    store.checkpoint(meta_at(1), {"t": [(b"%03d" % n, b"1") for n in range(200)]})
    findings: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            reader = store.snapshot()
            try:
                found = {value for chunk in reader.chunks(b"", 100) for _, value in chunk.records}
                if found != {b"%d" % reader.meta.applied.index}:
                    findings.append(f"{reader.meta.applied.index}: {found}")
            except ClosedError:
                return
            finally:
                reader.close()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for index in range(2, 40):
        store.checkpoint(meta_at(index), {"t": [(b"%03d" % n, b"%d" % index) for n in range(200)]})
    done.set()
    for thread in threads:
        thread.join()
    store.close()
    assert findings == []


@pytest.mark.deep
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_lmdb_syncs_pages_before_the_meta_page_that_leads_to_them(tmp_path: Path) -> None:
    """The order that ``tools/torture_store.py`` takes for granted."""
    code = (
        "from quorate.storage.store import LmdbStateStore; from tests_meta import meta_at\n"
        f"store = LmdbStateStore({str(tmp_path / 'state')!r})\n"
        "store.checkpoint(meta_at(1), {'t': [(b'k', b'v')]})\n"
        "print('now', flush=True)\n"
        "store.checkpoint(meta_at(2), {'t': [(b'k', b'w' * 9000)]})\n"
        "print('end', flush=True)\n"
    )
    (tmp_path / "tests_meta.py").write_text(
        "from quorate.storage.interfaces import StoreMeta\n"
        "from quorate.consensus.messages import EntryId\n"
        "def meta_at(index):\n"
        "    return StoreMeta(applied=EntryId(index, 1), time_ms=1, membership=b'm',"
        " state_hash=b'12345678')\n",
        "utf-8",
    )
    trace = tmp_path / "trace"
    calls = "trace=write,pwrite64,writev,pwritev,fdatasync,fsync,msync"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run(
        ["strace", "-y", "-o", str(trace), "-e", calls, sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    lines = trace.read_text("utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if '"now' in line)
    names = [line.partition("(")[0] for line in lines[start:] if "data.mdb" in line]
    at = names.index("fdatasync")
    assert at > 0
    assert set(names[:at]) <= {"pwrite64", "writev", "pwritev"}
    assert names[at + 1] == "pwrite64", "the meta page, through a handle that syncs by itself"

"""What only the write-ahead log promises: its format, its refusals, its cost in system calls."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import DiskFullError, FormatVersionError, LogCorruptionError, StorageError
from quorate.storage import wal as wal_module
from quorate.storage import wal_format as fmt
from quorate.storage.durable import REJOIN
from quorate.storage.files import SECTOR_BYTES
from quorate.storage.memory_files import CHANGING, MemoryFileSystem, Operation, fail_once
from quorate.storage.wal import WriteAheadLog

SEGMENT_BYTES = 4096
READ_ALL = 1 << 30


def open_log(
    disk: MemoryFileSystem,
    identity: int = 7,
    spawn: Callable[[Callable[[], None]], object] | None = None,
) -> WriteAheadLog:
    return WriteAheadLog(
        "log", files=disk, segment_bytes=SEGMENT_BYTES, identity=identity, spawn=spawn
    )


def started(disk: MemoryFileSystem) -> WriteAheadLog:
    log = open_log(disk)
    log.recover()
    return log


def entry(index: int, size: int = 20, term: int = 1) -> Entry:
    return Entry(LogIndex(index), Term(term), 1, bytes(index % 251 for _ in range(size)))


def hard(term: int, commit: int = 0) -> HardState:
    return HardState(Term(term), NodeId(1), LogIndex(commit))


def read(log: WriteAheadLog, first: int, last: int) -> list[Entry]:
    return log.read(LogIndex(first), LogIndex(last), READ_ALL)


def fill(log: WriteAheadLog, first: int, last: int, size: int = 400) -> None:
    for index in range(first, last + 1):
        log.append([entry(index, size)], None)


def changes(disk: MemoryFileSystem) -> list[str]:
    assert disk.trace is not None
    return [operation.kind for operation in disk.trace]


# --- cost ---


def test_an_append_is_one_write_and_one_sync() -> None:
    disk = MemoryFileSystem(record=True)
    log = started(disk)
    assert disk.trace is not None
    disk.trace.clear()
    log.append([entry(1), entry(2)], hard(1))
    log.append([entry(2), entry(3)], hard(2))
    log.append((), hard(3))
    assert changes(disk) == ["pwrite", "fdatasync"] * 3
    offsets = [(o.offset, o.size) for o in disk.trace if o.kind == "pwrite"]
    assert offsets == [(512, 512), (1024, 512), (1536, 512)], "no sector is written twice"


def test_a_prepared_segment_is_not_filled_again() -> None:
    disk = MemoryFileSystem(record=True)
    log = started(disk)
    fill(log, 1, 7)
    log.prepare()
    log.prepare()
    assert log.statistics().spare
    assert disk.trace is not None
    disk.trace.clear()
    fill(log, 8, 8)
    assert changes(disk) == ["pwrite", "fdatasync", "rename", "fsync_dir", "pwrite", "fdatasync"]
    assert log.statistics().segment_count == 2
    assert not log.statistics().spare


def test_the_spare_is_asked_for_once_when_the_segment_is_half_full() -> None:
    asked: list[Callable[[], None]] = []
    log = open_log(MemoryFileSystem(), spawn=asked.append)
    log.recover()
    fill(log, 1, 3)
    assert not asked
    fill(log, 4, 7)
    assert len(asked) == 1
    asked[0]()
    assert log.statistics().spare
    fill(log, 8, 12)
    assert len(asked) == 2


def test_an_entry_larger_than_a_segment_gets_one_of_its_own() -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 1)
    log.append([entry(2, 50_000)], None)
    fill(log, 3, 3)
    log = started(disk.after_crash([0] * len(disk.uncertain())))
    assert read(log, 1, 3) == [entry(1, 400), entry(2, 50_000), entry(3, 400)]
    assert log.statistics().disk_bytes > 50_000


def test_handles_are_released() -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 30)
    log.prepare()
    read(log, 1, 30)
    log.cut(EntryId(LogIndex(20), Term(1)))
    log.reset(EntryId(LogIndex(99), Term(1)), hard(1))
    log.close()
    assert disk.opened == 0
    path = f"log/{disk.listdir('log')[0]}"
    disk.damage(path, bytes(SEGMENT_BYTES))
    with pytest.raises(LogCorruptionError):
        started(disk)
    assert disk.opened == 0


# --- refusals ---


def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for started_new in (True, False):
        disk = MemoryFileSystem()
        with monkeypatch.context() as patch:
            if started_new:
                patch.setattr(fmt, "FORMAT_VERSION", 2)
            log = started(disk)
            patch.setattr(fmt, "FORMAT_VERSION", 2)
            log.append([entry(1)], None)
        with pytest.raises(FormatVersionError, match=r"00000001\.wal: byte (0|512) has format.* 2"):
            started(disk)


def test_another_logs_segments_are_refused() -> None:
    disk = MemoryFileSystem()
    fill(started(disk), 1, 2)
    with pytest.raises(LogCorruptionError, match="of another log"):
        open_log(disk, identity=8).recover()


def test_a_log_that_ends_before_its_commit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(wal_module, "check_append", lambda *_: None)
        log.append((), hard(1, commit=5))
    with pytest.raises(LogCorruptionError, match=r"log index 3: .* up to 5 were committed"):
        started(disk)


@pytest.mark.parametrize(
    "record",
    [
        fmt.AppendRecord(EntryId(LogIndex(2), Term(9)), [entry(3)], None),
        fmt.AppendRecord(EntryId(LogIndex(2), Term(1)), [entry(4)], None),
        fmt.AppendRecord(EntryId(LogIndex(5), Term(1)), [entry(6)], None),
        fmt.AppendRecord(EntryId(LogIndex(1), Term(1)), (), hard(1)),
        fmt.SegmentRecord(7, 1, 4096, fmt.BEFORE_ALL, hard(1), reset=False),
    ],
    ids=["previous term", "not contiguous", "gap", "ends elsewhere", "not an append"],
)
def test_sound_checksums_over_senseless_content_are_refused(record: fmt.Record) -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    log.append([entry(1), entry(2)], None)
    frame = fmt.FrameEncoder().encode(record)
    fmt.seal(frame, fmt.Place(7, 1, 1024), log._sequence, log._chain)
    disk.open("log/00000001.wal").pwrite(frame.buffer, 1024)
    with pytest.raises(LogCorruptionError, match=r"byte 1024, .* does not continue the log"):
        started(disk)


def test_a_refusal_names_the_place_and_the_way_back_and_changes_nothing() -> None:
    disk = MemoryFileSystem(record=True)
    log = started(disk)
    fill(log, 1, 20)
    content = bytearray(disk.content("log/00000002.wal"))
    content[2 * SECTOR_BYTES + 100] ^= 1
    disk.damage("log/00000002.wal", content)
    disk.create("log/spare.tmp").close()
    assert disk.trace is not None
    disk.trace.clear()
    with pytest.raises(LogCorruptionError) as caught:
        started(disk)
    text = str(caught.value)
    assert "log/00000002.wal: byte 1024, log index 9: a record is damaged" in text
    assert REJOIN in text
    assert changes(disk) == ["fdatasync"], "which changes nothing that can be read"


def test_a_damaged_record_is_never_cut_off_as_a_tail_while_a_later_one_is_whole() -> None:
    """The trap of FAST '18 "Protocol-Aware Recovery": committed entries truncated as a tail."""
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 5)
    content = bytearray(disk.content("log/00000001.wal"))
    content[1024:1536] = bytes(SECTOR_BYTES)
    disk.damage("log/00000001.wal", content)
    with pytest.raises(LogCorruptionError, match=r"byte 1024, log index 2: .* whole at byte 1536"):
        started(disk)


def test_a_torn_tail_is_blanked_durably() -> None:
    """Else the rest of an old frame could stand behind a new one after the next crash."""
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 1)
    disk.hook = fail_once("fdatasync", 0, errno.EIO)
    with pytest.raises(StorageError):
        log.append([entry(2, 1200)], None)
    sectors = len(disk.uncertain())
    torn = disk.after_crash([0, *[1] * (sectors - 1)])
    started(torn)
    assert torn.uncertain() == []
    assert torn.content("log/00000001.wal")[1024:].count(0) == SEGMENT_BYTES - 1024


# --- reading ---


def test_what_is_read_back_is_verified() -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 4)
    content = bytearray(disk.content("log/00000001.wal"))
    for offset in (1024 + 300, 1024 + 2):
        damaged = bytearray(content)
        damaged[offset] ^= 8
        disk.damage("log/00000001.wal", damaged)
        with pytest.raises(LogCorruptionError, match=r"byte 1024, log index 2"):
            read(log, 1, 4)
        assert read(log, 3, 4) == [entry(3, 400), entry(4, 400)]


def test_a_frame_of_other_entries_is_not_mistaken() -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    log.append([entry(1), entry(2)], None)
    frame = fmt.FrameEncoder().encode(fmt.AppendRecord(fmt.BEFORE_ALL, [entry(1)], None))
    fmt.seal(frame, fmt.Place(7, 1, 512), 2, 0)
    disk.open("log/00000001.wal").pwrite(frame.buffer, 512)
    with pytest.raises(LogCorruptionError, match="other entries"):
        read(log, 1, 2)


def test_a_failed_read_is_an_error_and_the_log_lives_on() -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 4)
    disk.hook = fail_once("pread", 0, errno.EIO)
    with pytest.raises(StorageError, match=r"reading log/00000001.wal at byte 512"):
        read(log, 1, 4)
    assert len(read(log, 1, 4)) == 4
    fill(log, 5, 5)


@pytest.mark.parametrize("how", ["cut", "reset", "close", "truncate"])
def test_a_reader_under_way_finishes(how: str) -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 20)
    opened = disk.opened
    calls: dict[str, Callable[[], object]] = {
        "cut": lambda: log.cut(EntryId(LogIndex(19), Term(1))),
        "reset": lambda: log.reset(EntryId(LogIndex(50), Term(1)), hard(1)),
        "close": log.close,
        "truncate": lambda: log.append([entry(3, term=2)], None),
    }

    def hook(operation: Operation) -> None:
        if operation.kind == "pread":
            disk.hook = None
            calls[how]()

    disk.hook = hook
    assert read(log, 1, 20) == [entry(index, 400) for index in range(1, 21)]
    expected = {"cut": opened - 2, "reset": 1, "close": 0, "truncate": opened}
    assert disk.opened == expected[how]


def test_readers_beside_a_writer_see_only_what_was_written(tmp_path: Path) -> None:
    ran = threading.Event()
    background: list[threading.Thread] = []

    def spawn(job: Callable[[], None]) -> None:
        background.append(threading.Thread(target=job))
        background[-1].start()

    log = WriteAheadLog(str(tmp_path / "log"), segment_bytes=SEGMENT_BYTES, spawn=spawn)
    log.recover()
    findings: list[str] = []
    reads = 0

    def reader() -> None:
        nonlocal reads
        while not ran.is_set():
            first = low
            try:
                found = log.read(LogIndex(first), LogIndex(first + 9), 5000)
            except KeyError:
                continue
            except Exception as error:  # noqa: BLE001
                findings.append(repr(error))
                return
            reads += 1
            for number, got in enumerate(found):
                if got != entry(first + number, 300, got.term):
                    findings.append(repr(got))

    low = 1
    thread = threading.Thread(target=reader)
    thread.start()
    index = 0
    for number in range(1, 200):
        index = index - 3 if number % 50 == 0 else index + 1
        log.append([entry(index, 300, number // 50)], None)
        low = max(1, index - 9)
        if number % 70 == 0:
            log.cut(EntryId(LogIndex(index), Term(number // 50)))
    ran.set()
    thread.join()
    for job in background:
        job.join()
    log.close()
    assert findings == []
    assert reads > 0
    assert background


# --- full and failing disks ---


@pytest.mark.parametrize("kind", ["create", "pwrite", "fsync", "fdatasync", "rename"])
def test_a_full_disk_stops_a_new_segment_and_nothing_else(kind: str) -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 7)
    disk.hook = fail_once(kind, 0, errno.ENOSPC)
    with pytest.raises(DiskFullError, match="free some space"):
        fill(log, 8, 8)
    assert disk.listdir("log") == ["00000001.wal"], "no half-made file stays"
    assert len(read(log, 1, 7)) == 7
    fill(log, 8, 9)
    log = started(disk.after_crash([0] * len(disk.uncertain())))
    assert read(log, 1, 9) == [entry(index, 400) for index in range(1, 10)]


def test_a_full_disk_stops_a_reset_and_nothing_else() -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 3)
    disk.hook = fail_once("create", 0, errno.ENOSPC)
    with pytest.raises(DiskFullError):
        log.reset(EntryId(LogIndex(9), Term(1)), hard(1))
    fill(log, 4, 4)
    assert len(read(log, 1, 4)) == 4


def test_a_spare_that_finds_no_space_harms_nothing() -> None:
    disk = MemoryFileSystem()
    log = started(disk)
    disk.hook = fail_once("pwrite", 0, errno.ENOSPC)
    with pytest.raises(DiskFullError):
        log.prepare()
    fill(log, 1, 20)
    assert len(read(log, 1, 20)) == 20


def test_a_spare_on_a_failing_disk_poisons_the_log() -> None:
    disk = MemoryFileSystem()
    log = open_log(disk, spawn=lambda job: job())
    log.recover()
    fill(log, 1, 3)
    disk.hook = fail_once("fsync", 0, errno.EIO)
    fill(log, 4, 4)
    with pytest.raises(StorageError, match="must be opened anew"):
        fill(log, 5, 5)


def test_a_failed_sync_is_never_asked_again() -> None:
    """After an fsync that failed, one that succeeds proves nothing (PostgreSQL, 2018)."""
    disk = MemoryFileSystem(record=True)
    log = started(disk)
    fill(log, 1, 1)
    disk.hook = fail_once("fdatasync", 0, errno.EIO)
    with pytest.raises(StorageError):
        fill(log, 2, 2)
    disk.hook = None
    assert disk.trace is not None
    disk.trace.clear()
    with pytest.raises(StorageError, match="an append at byte 1024"):
        fill(log, 2, 2)
    log.prepare()
    assert changes(disk) == []


# --- format ---


def sparse_sectors(frame: fmt.Frame) -> int:
    data = bytes(frame.buffer)
    starts = range(0, len(data), SECTOR_BYTES)
    return sum(
        data.count(0, start, start + SECTOR_BYTES) >= SECTOR_BYTES - fmt.SPARSE_BYTES
        for start in starts
    )


AWKWARD = st.one_of(
    st.binary(max_size=2000),
    st.builds(bytes, st.integers(0, 5000)),
    st.builds(
        lambda size, where: bytes(where) + b"\x01" + bytes(size),
        st.integers(0, 3000),
        st.integers(0, 3000),
    ),
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(payloads=st.lists(AWKWARD, max_size=3), term=st.integers(0, 2**64 - 1))
def test_no_written_sector_looks_unwritten_and_frames_come_back(
    payloads: list[bytes], term: int
) -> None:
    entries = [Entry(LogIndex(i), Term(term), 1, p) for i, p in enumerate(payloads, 1)]
    record = fmt.AppendRecord(fmt.BEFORE_ALL, entries, None)
    frame = fmt.FrameEncoder().encode(record)
    place = fmt.Place(1, 2, 512)
    crc = fmt.seal(frame, place, 3, 4)
    assert sparse_sectors(frame) == 0
    data = bytes(frame.buffer)
    header = fmt.read_header(data, 0, place)
    assert header is not None
    assert (header.crc, header.sequence, header.previous_crc) == (crc, 3, 4)
    assert header.frame_bytes == len(data)
    assert fmt.body_valid(header, data, 0)
    assert fmt.read_record(header, data, 0) == record


def test_a_mask_that_does_not_do_is_passed_over() -> None:
    """A payload made of the first mask becomes blank under it; the second is taken."""
    frame = fmt.FrameEncoder().encode(fmt.AppendRecord(fmt.BEFORE_ALL, [entry(1, 0)], None))
    stream = fmt._mask_stream(1)
    shift = (SECTOR_BYTES - fmt.HEADER_BYTES) % SECTOR_BYTES
    assert frame.mask == 0
    for start in range(SECTOR_BYTES):
        payload = bytes(2000) + (stream * 5)[start:]
        record = fmt.AppendRecord(fmt.BEFORE_ALL, [Entry(LogIndex(1), Term(1), 1, payload)], None)
        frame = fmt.FrameEncoder().encode(record)
        assert sparse_sectors(frame) == 0
        if frame.mask == 2:
            break
    else:
        pytest.fail(f"no alignment met the first mask (shift {shift})")


def test_a_header_is_valid_only_in_its_place() -> None:
    frame = fmt.FrameEncoder().encode(fmt.AppendRecord(fmt.BEFORE_ALL, [entry(1)], None))
    fmt.seal(frame, fmt.Place(1, 2, 512), 3, 4)
    data = bytes(frame.buffer)
    assert fmt.read_header(data, 0, fmt.Place(1, 2, 512)) is not None
    for place in (fmt.Place(2, 2, 512), fmt.Place(1, 3, 512), fmt.Place(1, 2, 1024)):
        assert fmt.read_header(data, 0, place) is None


def test_a_torn_payload_that_quotes_a_log_is_no_reason_to_refuse() -> None:
    """Somebody stores a copy of a log in the log, and the power fails during that append."""
    disk = MemoryFileSystem()
    log = started(disk)
    fill(log, 1, 2)
    quoted = disk.content("log/00000001.wal")[: 3 * SECTOR_BYTES]
    disk_now = disk.after_kill()
    # Padded so that the quoted frames begin at sectors of the file they are torn in.
    probe = fmt.FrameEncoder().encode(
        fmt.AppendRecord(
            EntryId(LogIndex(2), Term(1)), [Entry(LogIndex(3), Term(1), 1, quoted)], None
        )
    )
    shift = -bytes(probe.buffer).find(quoted[:40]) % SECTOR_BYTES
    log.append([Entry(LogIndex(3), Term(1), 1, bytes([7]) * shift + quoted)], None)
    written = disk.content("log/00000001.wal")
    begin = 3 * SECTOR_BYTES
    assert any(
        written.startswith(fmt.MAGIC, offset)
        for offset in range(begin + SECTOR_BYTES, len(written), SECTOR_BYTES)
    )
    torn = written[:begin] + bytes(SECTOR_BYTES) + written[begin + SECTOR_BYTES :]
    disk_now.damage("log/00000001.wal", torn)
    log = open_log(disk_now)
    assert len(log.recover().metas) == 2
    assert not any(disk_now.content("log/00000001.wal")[begin:]), "the torn tail is blanked"
    assert disk_now.uncertain() == [], "durably"


def test_the_operations_that_change_something_are_all_counted() -> None:
    disk = MemoryFileSystem(record=True)
    log = started(disk)
    fill(log, 1, 20)
    log.cut(EntryId(LogIndex(19), Term(1)))
    kinds = {"create", "pwrite", "fdatasync", "fsync", "rename", "unlink", "fsync_dir"}
    assert set(changes(disk)) == kinds
    assert kinds <= CHANGING

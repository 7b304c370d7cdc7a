from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepsen_like.processes.fault_file import FSYNC_ERROR, FULL, STALL, WRITE_ERROR, FaultFile
from jepsen_like.processes.serve import BentFileSystem, BentPlatform, bent_clock
from jepsen_like.systems import etcd_wire as wire


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[FaultFile]:
    made = FaultFile(tmp_path / "faults")
    yield made
    made.close()


def test_a_full_disk_takes_what_has_its_place_and_nothing_new(
    tmp_path: Path, faults: FaultFile
) -> None:
    file = BentFileSystem(faults).create(str(tmp_path / "file"))
    file.pwrite(bytes(1000), 0)
    faults.set_disk(FULL)
    file.pwrite(b"x" * 1000, 0)
    for grow in (lambda: file.pwrite(b"x", 1000), lambda: file.allocate(2000)):
        with pytest.raises(OSError) as caught:
            grow()
        assert caught.value.errno == errno.ENOSPC
    assert faults.hits("full") == 2
    assert BentPlatform(faults).free_bytes(str(tmp_path)) == 0
    faults.set_disk(0)
    file.pwrite(b"x", 1000)
    assert BentPlatform(faults).free_bytes(str(tmp_path)) > 0
    file.close()


def test_failing_writes_and_syncs_are_io_errors(tmp_path: Path, faults: FaultFile) -> None:
    file = BentFileSystem(faults).create(str(tmp_path / "file"))
    faults.set_disk(WRITE_ERROR)
    with pytest.raises(OSError, match="Input/output"):
        file.pwrite(b"x", 0)
    faults.set_disk(FSYNC_ERROR)
    file.pwrite(b"x", 0)
    for sync in (file.fsync, file.fdatasync):
        with pytest.raises(OSError, match="Input/output"):
            sync()
    assert (faults.hits("write_error"), faults.hits("fsync_error")) == (1, 2)
    file.close()


def test_a_stalled_sync_ends_with_the_fault(tmp_path: Path, faults: FaultFile) -> None:
    file = BentFileSystem(faults).create(str(tmp_path / "file"))
    faults.set_disk(STALL)
    thread = threading.Thread(target=file.fdatasync)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    faults.set_disk(0)
    thread.join(30)
    assert not thread.is_alive()
    file.close()


def test_a_node_sees_the_bent_clock(faults: FaultFile) -> None:
    clock = bent_clock(faults)
    before_s, before_ms = clock.monotonic_s(), clock.wall_ms()
    faults.jump(100.0)
    faults.set_wall_offset(-3600.0)
    assert clock.monotonic_s() - before_s >= 100.0
    assert clock.wall_ms() - before_ms < -3_000_000


# --- what etcd is told ----------------------------------------------------------------------------


def test_an_etcd_transaction_names_revisions_values_writes_and_reads() -> None:
    request = wire.txn_request({b"a": 0}, [b"r"], {b"w": b"2"}, {b"v": b"1"})
    parts = list(wire.fields(request))
    assert [number for number, _ in parts] == [1, 1, 2, 2]
    contents = [content for _, content in parts if isinstance(content, bytes)]
    assert list(wire.fields(contents[0])) == [(2, 2), (3, b"a"), (6, 0)]
    assert list(wire.fields(contents[1])) == [(2, 3), (3, b"v"), (7, b"1")]
    assert list(wire.fields(contents[2])) == [(2, wire.put_request(b"w", b"2"))]
    assert list(wire.fields(contents[3])) == [(1, wire.range_request(b"r"))]


def test_the_answers_of_an_etcd_transaction_are_read() -> None:
    pair = wire.bytes_field(1, b"k") + wire.varint(3 << 3) + wire.varint(300)
    found = wire.bytes_field(2, pair + wire.bytes_field(5, b"v"))
    put = wire.bytes_field(3, wire.bytes_field(2, b""))
    read = wire.bytes_field(3, wire.bytes_field(1, found))
    missing = wire.bytes_field(3, wire.bytes_field(1, b""))
    held = wire.varint(2 << 3) + wire.varint(1)
    assert wire.txn_response(held + put + read + missing) == (True, [(b"v", 300), (None, 0)])
    assert wire.txn_response(b"") == (False, [])

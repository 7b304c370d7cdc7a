"""The write-ahead log: entries and hard state, durable after one write and one fdatasync.

``wal_format`` says how it lies on disk, ``wal_recovery`` how it is read back. Here are the rules
of writing:

* A segment gets its name only when it is filled with zeros to its full length and holds its first
  frame, all fsynced; the name is fsynced before a frame is appended. So an append overwrites
  bytes that have their place on disk, and its fdatasync has no metadata to write.
* An append is one frame. It never rewrites a sector that an earlier frame uses.
* At most one frame is not yet durable at any time: what recovery may find unfinished is the last.
* Segments are removed oldest first, each removal durable before the next, so that what a crash
  leaves is always an unbroken run up to the newest.
* After a failed write or fsync nobody knows what is on disk, and asking again proves nothing (the
  kernel drops the dirty pages it could not write). The log is *poisoned*: every later call raises.
"""

from __future__ import annotations

import contextlib
import posixpath
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn

from quorate.base.invariants import must
from quorate.base.limits import MIB
from quorate.base.types import LogIndex
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import DiskFullError, StorageError
from quorate.storage import wal_format as fmt
from quorate.storage.durable import NO_SPACE_CODES, disk_errors
from quorate.storage.entry_table import EntryTable, Run, check_append
from quorate.storage.files import SECTOR_BYTES, File, FileSystem, OsFileSystem
from quorate.storage.interfaces import RecoveredLog
from quorate.storage.wal_recovery import TEMPORARY_SUFFIX, Recovery, Segment, corruption

#: Some 30,000 smallest appends, and 50 ms to fill with zeros on a middling disk.
SEGMENT_BYTES_DEFAULT = 16 * MIB
ZEROS = bytes(MIB)
#: What a frame takes besides payload: its header, and generous 32 bytes for each entry.
ENTRY_OVERHEAD_BYTES = 32

_NOT_RECOVERED = "recover was not called yet"

#: Runs a job soon on another thread, as ``Executor.submit`` does.
Spawn = Callable[[Callable[[], None]], object]


class WalStatistics(NamedTuple):
    """A photo of the log for metrics; *spare*: whether the next segment is prepared."""

    segment_count: int
    disk_bytes: int
    entry_count: int
    payload_bytes: int
    frame_count: int
    spare: bool


class WriteAheadLog:
    """A ``LogStore`` in files; see the module text for its rules.

    *identity* is any number below 2**64 that tells this log from others (the node's incarnation):
    segments of another log are refused. *spawn* is where the next segment is prepared once the
    present one is half full; without it, call ``prepare`` when idle, or appends that begin a
    segment take as long as filling one with zeros.
    """

    def __init__(
        self,
        directory: str,
        *,
        files: FileSystem | None = None,
        segment_bytes: int = SEGMENT_BYTES_DEFAULT,
        identity: int = 0,
        spawn: Spawn | None = None,
    ) -> None:
        must(segment_bytes >= 2 * SECTOR_BYTES, "a segment holds two frames", size=segment_bytes)
        must(segment_bytes % SECTOR_BYTES == 0, "a segment is whole sectors", size=segment_bytes)
        must(0 <= identity < 1 << 64, "an identity is 64 bits", identity=identity)
        self._directory = directory
        self._files = OsFileSystem() if files is None else files
        self._segment_bytes = segment_bytes
        self._identity = identity
        self._spawn = spawn
        self._encoder = fmt.FrameEncoder()
        #: Why nothing works any more, or None.
        self._failure: str | None = _NOT_RECOVERED
        self._recovered = False
        #: Guards the table, the segments and their reader counts against reading threads.
        self._lock = threading.Lock()
        self._table = EntryTable(fmt.BEFORE_ALL)
        self._segments: list[Segment] = []
        self._hard_state = fmt.EMPTY_HARD_STATE
        #: Where the next frame goes in the last segment, and what its header will say.
        self._end = 0
        self._sequence = 1
        self._chain = 0
        #: Held while a spare is filled, which may be on another thread.
        self._spare_lock = threading.Lock()
        self._spare: File | None = None
        self._spare_asked = False

    # --- LogStore ---

    def recover(self) -> RecoveredLog:
        """What survived, made durable again; creates the directory and first segment if need be.

        Raises:
            LogCorruptionError: acknowledged data is damaged or missing; says where and what to do.
            FormatVersionError: written by a newer version.
            DiskFullError: no space for the first segment; may be called again.
        """
        must(not self._recovered, "recover is called once, first")
        if self._failure != _NOT_RECOVERED:
            self._refuse()
        with disk_errors(f"creating the log's directory {self._directory}"):
            self._files.makedirs(self._directory)
        found = Recovery(self._files, self._directory, self._identity).run()
        if found is None:
            self._begin_segment(0, fmt.BEFORE_ALL, self._hard_state, reset=True)
        else:
            self._segments, self._end = found.segments, found.end
            self._sequence, self._chain = found.sequence + 1, found.chain
            self._hard_state, self._table = found.hard_state, found.table
        self._recovered, self._failure = True, None
        table = self._table
        return RecoveredLog(hard_state=self._hard_state, floor=table.floor, metas=table.metas())

    def append(self, entries: Sequence[Entry], hard_state: HardState | None) -> None:
        """As ``LogStore.append``: one frame, one write, one fdatasync."""
        if self._failure is not None:
            self._refuse()
        if not entries and hard_state is None:
            return
        table = self._table
        check_append(table.floor, table.last, entries, self._hard_state, hard_state)
        previous = table.last
        if entries:
            index = LogIndex(entries[0].index - 1)
            previous = EntryId(index, table.term(index))
        frame = self._encoder.encode(fmt.AppendRecord(previous, entries, hard_state))
        if self._end + len(frame.buffer) > self._segments[-1].size_bytes:
            self._begin_segment(len(frame.buffer), table.last, self._hard_state, reset=False)
        segment, offset = self._segments[-1], self._end
        place = fmt.Place(self._identity, segment.number, offset)
        crc = fmt.seal(frame, place, self._sequence, self._chain)
        try:
            segment.file.pwrite(frame.buffer, offset)
        except OSError as error:
            self._undo_write(segment, len(frame.buffer), error)
        try:
            segment.file.fdatasync()
        except OSError as error:
            self._poison(f"syncing an append at byte {offset} of {segment.path}", error)
        self._end = offset + len(frame.buffer)
        self._sequence += 1
        self._chain = crc
        if hard_state is not None:
            self._hard_state = hard_state
        if entries:
            with self._lock:
                self._table.replace(entries, segment.number, offset)
        if self._spawn is not None and not self._spare_asked:
            self._ask_for_spare()

    def read(self, first: LogIndex, last: LogIndex, size_bytes_max: int) -> list[Entry]:
        """As ``LogStore.read``; safe on any thread. Every frame is verified again."""
        if self._failure is not None:
            self._refuse()
        must(first <= last, "a read has a first and a last", first=first, last=last)
        with self._pinned(first, last, size_bytes_max) as runs:
            found: list[Entry] = []
            for segment, run in runs:
                found.extend(self._read_run(segment, run))
            return found

    def cut(self, floor: EntryId) -> EntryId:
        """As ``LogStore.cut``: removes the segments whose live entries all are at or below
        ``floor.index``. The caller has made a checkpoint at *floor* durable before."""
        if self._failure is not None:
            self._refuse()
        table = self._table
        must(
            floor.index <= table.last.index, "a cut stays in the log", floor=floor, last=table.last
        )
        if floor.index <= table.floor.index:
            return table.floor
        held = table.term(floor.index)
        must(held == floor.term, "the log agrees with the floor", floor=floor, held=held)
        keep = self._segments[-1].number
        if floor.index < table.last.index:
            keep = table.segment(floor.index + 1)
        kept_floor = table.first_in(keep)
        with self._lock:
            gone = [segment for segment in self._segments if segment.number < keep]
            self._segments = self._segments[len(gone) :]
            table.raise_floor(kept_floor)
        for segment in gone:
            # One by one: were two removals under way, a crash might keep the older file and lose
            # the newer, and the gap would look like damage.
            self._remove(segment)
            self._sync_names()
        return kept_floor

    def reset(self, floor: EntryId, hard_state: HardState) -> None:
        """As ``LogStore.reset``: a segment that says so replaces all others, atomically."""
        if self._failure is not None:
            self._refuse()
        check_append(floor, floor, (), self._hard_state, hard_state)
        self._begin_segment(0, floor, hard_state, reset=True)
        with self._lock:
            gone, self._segments = self._segments[:-1], self._segments[-1:]
            self._table = EntryTable(floor)
        self._hard_state = hard_state
        for segment in gone:
            self._remove(segment)
        self._sync_names()

    def size_bytes(self) -> int:
        """Bytes of payload of the entries kept."""
        if self._failure is not None:
            self._refuse()
        return self._table.payload_bytes

    def close(self) -> None:
        """Release files. Idempotent; readers that are under way finish first."""
        if self._failure in (None, _NOT_RECOVERED):
            self._failure = "the log is closed"
        with self._lock:
            segments, self._segments = self._segments, []
        for segment in segments:
            self._drop(segment)
        with self._spare_lock:
            spare, self._spare = self._spare, None
            if spare is not None:
                spare.close()

    # --- more for the node ---

    def prepare(self) -> None:
        """Fill the next segment with zeros ahead of need; on any thread, while appends go on.

        Raises:
            DiskFullError: no space for it; the log itself still works until it needs one.
        """
        with self._spare_lock:
            if self._failure is None and self._spare is None:
                self._spare = self._allocate("spare", self._segment_bytes)

    def statistics(self) -> WalStatistics:
        """Counts as of now."""
        with self._lock:
            return WalStatistics(
                segment_count=len(self._segments),
                disk_bytes=sum(segment.size_bytes for segment in self._segments),
                entry_count=len(self._table),
                payload_bytes=self._table.payload_bytes,
                frame_count=self._sequence - 1,
                spare=self._spare is not None,
            )

    # --- segments ---

    def _begin_segment(
        self, frame_bytes: int, last: EntryId, hard_state: HardState, *, reset: bool
    ) -> None:
        """Make a segment with room for *frame_bytes* after its first frame the last one, durably.

        Raises:
            DiskFullError: no space; the log is as it was.
            StorageError: the disk failed; the log is poisoned.
        """
        number = self._segments[-1].number + 1 if self._segments else 1
        size = max(self._segment_bytes, SECTOR_BYTES + frame_bytes)
        record = fmt.SegmentRecord(self._identity, number, size, last, hard_state, reset)
        frame = fmt.FrameEncoder().encode(record)
        must(len(frame.buffer) == SECTOR_BYTES, "a segment header is one sector", record=record)
        crc = fmt.seal(frame, fmt.Place(self._identity, number, 0), self._sequence, self._chain)
        temporary, file = self._take_blank(size)
        path = self._path(fmt.segment_name(number))
        try:
            file.pwrite(frame.buffer, 0)
            file.fdatasync()
            self._files.rename(temporary, path)
        except OSError as error:
            self._give_up(temporary, file, f"writing the header of {path}", error)
        try:
            self._files.fsync_dir(self._directory)
        except OSError as error:
            file.close()
            self._poison(f"making the name {path} durable", error)
        with self._lock:
            self._segments.append(Segment(file, path, number, size))
        self._end = SECTOR_BYTES
        self._sequence += 1
        self._chain = crc
        self._spare_asked = False

    def _take_blank(self, size: int) -> tuple[str, File]:
        """A file of zeros under a temporary name: the spare if it fits, else one made now."""
        if size == self._segment_bytes:
            with self._spare_lock:  # waits for a spare that is being filled: that is no slower
                spare, self._spare = self._spare, None
            if spare is not None:
                return self._path("spare" + TEMPORARY_SUFFIX), spare
        return self._path("segment" + TEMPORARY_SUFFIX), self._allocate("segment", size)

    def _allocate(self, name: str, size: int) -> File:
        """Fill a new file with zeros, durably but for its name."""
        path = self._path(name + TEMPORARY_SUFFIX)
        try:
            file = self._files.create(path)
        except OSError as error:
            self._give_up(path, None, f"creating {path}", error)
        try:
            for offset in range(0, size, len(ZEROS)):
                file.pwrite(ZEROS[: size - offset], offset)
            file.fsync()
        except OSError as error:
            self._give_up(path, file, f"filling {path} with {size} bytes", error)
        return file

    def _give_up(self, path: str, file: File | None, doing: str, error: OSError) -> NoReturn:
        """Drop a file that has no segment's name yet. Nothing of the log was touched, so a full
        disk leaves it usable; any other failure means that the disk is not to be trusted."""
        with contextlib.suppress(OSError):
            if file is not None:
                file.close()
            self._files.unlink(path)
        if error.errno in NO_SPACE_CODES:
            message = f"{doing}: {error}. Nothing was written; free some space."
            raise DiskFullError(message) from error
        self._poison(doing, error)

    def _ask_for_spare(self) -> None:
        if self._spawn is not None and self._end * 2 > self._segments[-1].size_bytes:
            self._spare_asked = True
            self._spawn(self._prepare_quietly)

    def _prepare_quietly(self) -> None:
        """The append that needs the segment will meet the error itself, or the log is poisoned."""
        with contextlib.suppress(StorageError):
            self.prepare()

    def _remove(self, segment: Segment) -> None:
        self._drop(segment)
        try:
            self._files.unlink(segment.path)
        except OSError as error:
            self._poison(f"removing {segment.path}", error)

    def _sync_names(self) -> None:
        try:
            self._files.fsync_dir(self._directory)
        except OSError as error:
            self._poison(f"making removals in {self._directory} durable", error)

    def _path(self, name: str) -> str:
        return posixpath.join(self._directory, name)

    # --- reading ---

    @contextlib.contextmanager
    def _pinned(self, first: int, last: int, size_max: int) -> Iterator[list[tuple[Segment, Run]]]:
        """Look up where entries lie, and keep those files open until done."""
        with self._lock:
            table = self._table
            if not self._segments:
                self._refuse()
            if not table.floor.index < first <= table.last.index:
                raise KeyError(first)
            base = self._segments[0].number
            runs = [
                (self._segments[run.segment - base], run)
                for run in table.runs(first, min(last, table.last.index), size_max)
            ]
            for segment, _ in runs:
                segment.readers += 1
        try:
            yield runs
        finally:
            with self._lock:
                for segment, _ in runs:
                    segment.readers -= 1
                    if segment.dropped and not segment.readers:
                        segment.file.close()

    def _drop(self, segment: Segment) -> None:
        with self._lock:
            segment.dropped = True
            if not segment.readers:
                segment.file.close()

    def _read_run(self, segment: Segment, run: Run) -> Sequence[Entry]:
        """The entries of one frame that *run* names, verified."""
        count = run.last - run.first + 1
        guess = fmt.sectors_up(fmt.HEADER_BYTES + run.size_bytes + count * ENTRY_OVERHEAD_BYTES)
        place = fmt.Place(self._identity, segment.number, run.offset)
        try:
            data = segment.file.pread(guess, run.offset)
            header = fmt.read_header(data, 0, place)
            if header is not None and header.frame_bytes > len(data):
                data = segment.file.pread(header.frame_bytes, run.offset)
                header = fmt.read_header(data, 0, place)
        except OSError as error:
            message = f"reading {segment.path} at byte {run.offset}: {error}"
            raise StorageError(message) from error
        if header is None or not fmt.body_valid(header, data, 0):
            what = "the record read back is not the one written"
            raise corruption(segment.path, run.offset, run.first, what)
        record = fmt.read_record(header, data, 0)
        entries: Sequence[Entry] = ()
        if isinstance(record, fmt.AppendRecord):
            skip = run.first - record.previous.index - 1
            entries = record.entries[skip : skip + count] if skip >= 0 else ()
        if len(entries) != count or entries[0].index != run.first:
            what = "the record holds other entries than were written"
            raise corruption(segment.path, run.offset, run.first, what)
        return entries

    # --- failing ---

    def _undo_write(self, segment: Segment, size: int, error: OSError) -> NoReturn:
        """Some of an append may be written. File systems that never write in place can be full
        although the segment has its length: then blank what was written, durably, so that the next
        append starts on zeros as this one did."""
        doing = f"appending {size} bytes at byte {self._end} of {segment.path}"
        if error.errno not in NO_SPACE_CODES:
            self._poison(doing, error)
        try:
            data = segment.file.pread(size, self._end)
            for offset in fmt.written_sectors(data, 0):
                segment.file.pwrite(bytes(SECTOR_BYTES), self._end + offset)
            segment.file.fdatasync()
        except OSError as second:
            self._poison(f"{doing}, and undoing it", second)
        message = f"{doing}: {error}. The log is as it was; free some space."
        raise DiskFullError(message) from error

    def _poison(self, doing: str, error: OSError) -> NoReturn:
        self._failure = f"{doing}: {error}. The log must be opened anew to learn what is on disk"
        raise StorageError(f"{self._failure}.") from error

    def _refuse(self) -> NoReturn:
        raise StorageError(f"the log is not usable: {self._failure}.")

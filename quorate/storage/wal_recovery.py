"""Reading a write-ahead log back after a stop of any kind, and refusing to guess.

A crash can leave exactly these traces, each of which is mended silently:

* leftovers: files under temporary names, segments before one that resets the log;
* one unfinished frame at the end of the last segment, never acknowledged: the *torn tail*.

Everything else is damage to acknowledged data and raises ``LogCorruptionError``. A bad frame is
taken for the torn tail only if it stands in the last segment, no valid frame header follows it
anywhere, and it lacks at least one sector (``wal_format.looks_unfinished``). A log that ends
before its own hard state's commit index has lost entries, however sound the rest looks.

First everything is read and judged, only then is anything changed: a refusal leaves the directory
as it was found.
"""

from __future__ import annotations

import contextlib
import posixpath
from typing import NamedTuple

from quorate.base.invariants import must
from quorate.consensus.messages import HardState
from quorate.errors import FormatVersionError, LogCorruptionError, StorageError
from quorate.storage import wal_format as fmt
from quorate.storage.durable import REJOIN
from quorate.storage.entry_table import KIND_MAX, EntryTable
from quorate.storage.files import SECTOR_BYTES, File, FileSystem

TEMPORARY_SUFFIX = ".tmp"


def corruption(path: str, offset: int, index: int, what: str) -> LogCorruptionError:
    """The error for damage at byte *offset* of *path*, where log entry *index* was expected."""
    return LogCorruptionError(
        f"{path}: byte {offset}, log index {index}: {what}. Nothing was changed. {REJOIN}"
    )


class Segment:
    """An open segment file. *readers* count under the log's lock; the last one out closes."""

    __slots__ = ("dropped", "file", "number", "path", "readers", "size_bytes")

    def __init__(self, file: File, path: str, number: int, size_bytes: int) -> None:
        self.file = file
        self.path = path
        self.number = number
        self.size_bytes = size_bytes
        self.readers = 0
        self.dropped = False


class Opening(NamedTuple):
    """The verified first frame of a segment."""

    record: fmt.SegmentRecord
    header: fmt.Header


class Recovered(NamedTuple):
    """A sound log, ready for the next frame at *end* of the last of *segments*."""

    segments: list[Segment]
    end: int
    sequence: int
    chain: int
    hard_state: HardState
    table: EntryTable


class Recovery:
    """One reading of one directory; ``run`` does it all."""

    def __init__(self, files: FileSystem, directory: str, identity: int) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._segments: list[Segment] = []
        self._table = EntryTable(fmt.BEFORE_ALL)
        self._hard_state = fmt.EMPTY_HARD_STATE
        #: Sequence number of the last good frame, and its header's CRC.
        self._sequence = 0
        self._chain = 0
        #: Whether the first segment resets the log, so that no frame may reach below its floor.
        self._whole = True

    def run(self) -> Recovered | None:
        """The log in the directory, mended and durable; None if there is none yet.

        Raises:
            LogCorruptionError: acknowledged data is damaged or missing.
            FormatVersionError: a newer version wrote here.
            StorageError: the disk failed.
        """
        try:
            return self._run()
        except OSError as error:
            self._close()
            raise StorageError(f"reading the log in {self._directory}: {error}") from error
        except BaseException:
            self._close()
            raise

    def _run(self) -> Recovered | None:
        names = self._files.listdir(self._directory)
        numbers = sorted(n for n in map(fmt.segment_number, names) if n is not None)
        openings = self._open_segments(numbers)
        if self._segments:
            self._trust_only_the_disk(self._segments[-1].file)
        end, torn = 0, list[int]()
        for position, opening in enumerate(openings):
            following = openings[position + 1] if position + 1 < len(openings) else None
            end, torn = self._replay(self._segments[position], opening, following)
        commit, last = self._hard_state.commit, self._table.last
        if last.index < commit:
            what = f"the log ends here, but entries up to {commit} were committed"
            raise corruption(self._segments[-1].path, end, last.index + 1, what)
        self._mend(names, numbers, torn)
        if not openings:
            return None
        return Recovered(
            self._segments, end, self._sequence, self._chain, self._hard_state, self._table
        )

    # --- opening ---

    def _trust_only_the_disk(self, file: File) -> None:
        """What an earlier process wrote and did not sync becomes durable before it is believed.
        If its sync had failed, the cache shows what the disk never got, and no sync will tell: so
        look behind the cache. Only the last segment can hold a frame that is not yet durable."""
        file.fdatasync()
        file.drop_cache()

    def _open_segments(self, numbers: list[int]) -> list[Opening]:
        """Open the segments that matter, oldest first: from the last that resets the log on."""
        openings: list[Opening] = []
        for number in reversed(numbers):
            path = posixpath.join(self._directory, fmt.segment_name(number))
            if openings and number != self._segments[0].number - 1:
                missing = posixpath.join(self._directory, fmt.segment_name(number + 1))
                raise corruption(missing, 0, openings[0].record.last.index, "the file is missing")
            segment = Segment(self._files.open(path), path, number, 0)
            self._segments.insert(0, segment)
            openings.insert(0, self._read_opening(segment))
            if openings[0].record.reset:
                break
        if openings:
            self._whole = openings[0].record.reset
        return openings

    def _read_opening(self, segment: Segment) -> Opening:
        """The first frame. It was durable before the file got its name, so no crash explains it
        to be bad, nor the file to have another length than it says."""
        data = segment.file.pread(SECTOR_BYTES, 0)
        header = fmt.read_header(data, 0, fmt.Place(self._identity, segment.number, 0))
        if header is None:
            what = "no valid segment header; the file is damaged, misplaced, or of another log"
            raise corruption(segment.path, 0, 0, what)
        self._check_version(segment, header, 0)
        record = None
        if fmt.body_valid(header, data, 0):
            record = fmt.read_record(header, data, 0)
        if not isinstance(record, fmt.SegmentRecord):
            raise corruption(segment.path, 0, 0, "the segment header's body is damaged")
        size = segment.file.size_bytes()
        if size != record.size_bytes:
            what = f"the file is {size} bytes long and should be {record.size_bytes}"
            where = min(size, record.size_bytes)
            raise corruption(segment.path, where, record.last.index + 1, what)
        segment.size_bytes = size
        return Opening(record, header)

    def _check_version(self, segment: Segment, header: fmt.Header, offset: int) -> None:
        if header.version > fmt.FORMAT_VERSION:
            raise FormatVersionError(
                f"{segment.path}: byte {offset} has format version {header.version}, this quorate "
                f"knows up to {fmt.FORMAT_VERSION}. Start the newer quorate that wrote it."
            )

    # --- replaying ---

    def _replay(
        self, segment: Segment, opening: Opening, following: Opening | None
    ) -> tuple[int, list[int]]:
        """Take in one segment; returns where its frames end and the sectors of a torn tail."""
        self._enter(segment, opening)
        data = segment.file.pread(segment.size_bytes, 0)
        offset = opening.header.frame_bytes
        while offset < len(data):
            place = fmt.Place(self._identity, segment.number, offset)
            header = fmt.read_header(data, offset, place)
            if header is None:
                break
            self._check_version(segment, header, offset)
            if not self._follows(header) or not fmt.body_valid(header, data, offset):
                return offset, self._judge_end(segment, data, offset, header, following)
            self._take(segment, offset, header, fmt.read_record(header, data, offset))
            offset += header.frame_bytes
        return offset, self._judge_end(segment, data, offset, None, following)

    def _follows(self, header: fmt.Header) -> bool:
        return header.sequence == self._sequence + 1 and header.previous_crc == self._chain

    def _enter(self, segment: Segment, opening: Opening) -> None:
        record, header = opening
        if segment is self._segments[0]:
            self._table = EntryTable(record.last)
        else:
            # ``_judge_end`` of the segment before has compared the chain.
            must(self._follows(header), "segments are chained", segment=segment.path)
            if record.last != self._table.last or record.hard_state != self._hard_state:
                what = f"the segment begins after {record.last}, the log before it ends at "
                raise corruption(segment.path, 0, record.last.index, f"{what}{self._table.last}")
        self._hard_state = record.hard_state
        self._sequence, self._chain = header.sequence, header.crc

    def _take(
        self, segment: Segment, offset: int, header: fmt.Header, record: fmt.Record | None
    ) -> None:
        """Apply one append whose checksums are right."""
        if not isinstance(record, fmt.AppendRecord) or not self._consistent(record):
            what = "the checksums are right, the content is not: it does not continue the log"
            raise corruption(segment.path, offset, header.first_index, what)
        if record.entries:
            if record.previous.index < self._table.floor.index:
                # The first kept segment replaces entries of segments that are gone.
                self._table = EntryTable(record.previous)
            self._table.replace(record.entries, segment.number, offset)
        if record.hard_state is not None:
            self._hard_state = record.hard_state
        self._sequence, self._chain = header.sequence, header.crc

    def _consistent(self, record: fmt.AppendRecord) -> bool:
        previous, last, floor = record.previous, self._table.last, self._table.floor
        if not record.entries:
            return previous == last
        if previous.index < floor.index:
            known = not self._whole
        else:
            known = (
                previous.index <= last.index and self._table.term(previous.index) == previous.term
            )
        return known and all(
            entry.index == previous.index + number and 0 <= entry.kind <= KIND_MAX
            for number, entry in enumerate(record.entries, 1)
        )

    # --- the end of a segment ---

    def _judge_end(
        self,
        segment: Segment,
        data: bytes,
        offset: int,
        header: fmt.Header | None,
        following: Opening | None,
    ) -> list[int]:
        """The frames end at *offset*, where *header* was found: is that as it should be?

        Returns the offsets of the sectors that a torn tail left, to be blanked before use.
        """
        index = header.first_index if header and header.first_index else self._table.last.index + 1
        if following is not None:
            if not self._follows(following.header):
                raise corruption(segment.path, offset, index, "a record is damaged or missing")
            return []
        written = fmt.written_sectors(data, offset)
        if not written:
            return []
        if header is not None and not self._follows(header):
            raise corruption(segment.path, offset, index, "a record does not follow the one before")
        start = offset + (header.frame_bytes if header else SECTOR_BYTES)
        valid = fmt.find_frame(data, offset + SECTOR_BYTES, self._identity, segment.number)
        if valid is not None:
            what = f"a record is damaged; a later one is whole at byte {valid}"
            raise corruption(segment.path, offset, index, what)
        if not fmt.looks_unfinished(header, data, offset) or (header and start > len(data)):
            what = "the last record was written whole and is damaged"
            raise corruption(segment.path, offset, index, what)
        return written

    # --- mending ---

    def _mend(self, names: list[str], numbers: list[int], torn: list[int]) -> None:
        """Blank a torn tail, make the names durable, then remove what a crash left over."""
        if torn:
            last = self._segments[-1].file
            for offset in torn:
                last.pwrite(bytes(SECTOR_BYTES), offset)
            last.fdatasync()
        # Names first: a leftover may go only when the segment that replaces it surely stays.
        self._files.fsync_dir(self._directory)
        first = self._segments[0].number if self._segments else 0
        leftovers = [name for name in names if name.endswith(TEMPORARY_SUFFIX)]
        leftovers += [fmt.segment_name(number) for number in numbers if number < first]
        for name in leftovers:
            self._files.unlink(posixpath.join(self._directory, name))
        if leftovers:
            self._files.fsync_dir(self._directory)

    def _close(self) -> None:
        for segment in self._segments:
            with contextlib.suppress(OSError):
                segment.file.close()

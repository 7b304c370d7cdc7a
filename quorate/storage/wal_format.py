"""How the write-ahead log lies on disk. Pure: bytes in, bytes out, no file is touched here.

A segment is a file ``NNNNNNNN.wal`` of fixed length, zeros where nothing was written yet. It is a
run of *frames*, each beginning at a multiple of 512 bytes. The first frame of a segment holds a
``SegmentRecord``, every other an ``AppendRecord``: all that one ``append`` made durable.

Frame, little-endian::

    offset  bytes  field
         0      4  magic "QWAL"
         4      2  format version
         6      2  mask: 0, or which mask the body is XORed with
         8      8  sequence number: of the frame, from 1, growing by one through all segments
        16      8  log index of the first entry (0: none); only for error texts
        24      4  length of the body in bytes
        28      4  CRC-32 of body and padding as they stand on disk
        32      4  CRC-32 of the header of the frame before (0 for the very first): the chain
        36      4  CRC-32 of these 36 bytes, seeded with log identity, segment and offset
        40      n  body: one msgpack record
      40+n      p  padding 0xA5 up to the next multiple of 512

Three properties that recovery stands on:

* *Every bit of a frame is under a checksum*, and a header is valid only at its own place in its
  own log: neither a payload that quotes a log nor a misdirected write can pass for a frame.
* *An unwritten sector is all zeros, a written one never is, nor nearly*: each holds more than
  ``SPARSE_BYTES`` bytes that are not zero. Were a body to break this (a payload of zeros), it is
  XORed with a mask under which it does not. So an unfinished write is told from a damaged one:
  damage of up to ``SPARSE_BYTES`` bytes in a sector cannot make it look unwritten.
* *Frames never share a sector*, so writing one never rewrites a sector that holds another's
  acknowledged bytes.

The layout of the header is frozen for all versions; ``FORMAT_VERSION`` speaks of the rest.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import msgspec

from quorate.base.invariants import must
from quorate.base.types import BEFORE_FIRST, NO_NODE, NO_TERM
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.storage.files import SECTOR_BYTES

FORMAT_VERSION = 1
MAGIC = b"QWAL"
HEADER_BYTES = 40
#: A sector with at most so many bytes that are not zero could be damaged into a blank one.
SPARSE_BYTES = 8
#: Largest body; far above what one append holds, and what the length field could say twice over.
BODY_BYTES_MAX = 1 << 31
#: The buffer of an encoder is given back to the allocator beyond this; usual frames are smaller.
BUFFER_BYTES_MAX = 1 << 20

EMPTY_HARD_STATE = HardState(term=NO_TERM, vote=NO_NODE, commit=BEFORE_FIRST)
BEFORE_ALL = EntryId(BEFORE_FIRST, NO_TERM)

_HEADER = struct.Struct("<4sHHQQIII")
_CRC = struct.Struct("<I")
_PLACE = struct.Struct("<QQQ")
_PADDING = b"\xa5" * SECTOR_BYTES
_BLANK = bytes(SECTOR_BYTES)
#: Among 512 bytes with at most 8 others there is a run of this many zeros: a fast first look.
_SPARSE_RUN = bytes((SECTOR_BYTES - SPARSE_BYTES) // (SPARSE_BYTES + 1))
_SEGMENT_NAME = re.compile(r"([0-9]{8,})\.wal")

must(_HEADER.size + _CRC.size == HEADER_BYTES, "the header is as long as documented")


class SegmentRecord(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The first frame of a segment: all that is needed of the segments before it.

    *last* is the last entry before this segment. With *reset* the log holds no entries before it,
    and earlier segments are leftovers.
    """

    identity: int
    number: int
    size_bytes: int
    last: EntryId
    hard_state: HardState
    reset: bool


class AppendRecord(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """One ``append``. *previous* is the entry just before ``entries[0]``: entries after it are
    replaced. Without entries it is the last one."""

    previous: EntryId
    entries: Sequence[Entry]
    hard_state: HardState | None


Record = SegmentRecord | AppendRecord


class Place(NamedTuple):
    """Where a frame begins: log identity, segment number, byte offset in the segment."""

    identity: int
    segment: int
    offset: int


class Header(NamedTuple):
    """The decoded first 40 bytes of a frame; *crc* is the header's own checksum."""

    version: int
    mask: int
    sequence: int
    first_index: int
    body_bytes: int
    body_crc: int
    previous_crc: int
    crc: int

    @property
    def frame_bytes(self) -> int:
        """Length of the whole frame: header, body and padding."""
        return sectors_up(HEADER_BYTES + self.body_bytes)


class Frame(NamedTuple):
    """An encoded frame but for its header, which depends on where it will stand."""

    buffer: bytearray
    mask: int
    first_index: int
    body_bytes: int
    body_crc: int


def sectors_up(size_bytes: int) -> int:
    """*size_bytes* rounded up to whole sectors."""
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def segment_name(number: int) -> str:
    """File name of a segment."""
    return f"{number:08d}.wal"


def segment_number(name: str) -> int | None:
    """The inverse of ``segment_name``; None for other files."""
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match else None


class FrameEncoder:
    """Encodes frames into one buffer that is used again: a frame is valid until the next."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def encode(self, record: Record) -> Frame:
        """Body, mask, padding and their checksum; ``seal`` completes the frame."""
        if len(self._buffer) > BUFFER_BYTES_MAX:
            self._buffer = bytearray()
        buffer = self._buffer
        self._encoder.encode_into(record, buffer, HEADER_BYTES)
        body_bytes = len(buffer) - HEADER_BYTES
        must(0 < body_bytes <= BODY_BYTES_MAX, "the body fits into a frame", size=body_bytes)
        buffer += _PADDING[: -len(buffer) % SECTOR_BYTES]
        mask = 0
        if buffer.find(_SPARSE_RUN, HEADER_BYTES) >= 0:
            mask = _mask_sparse(buffer)
        with memoryview(buffer) as view:
            body_crc = crc32(view[HEADER_BYTES:])
        first = 0
        if type(record) is AppendRecord and record.entries:
            first = record.entries[0].index
        return Frame(buffer, mask, first, body_bytes, body_crc)


def seal(frame: Frame, place: Place, sequence: int, previous_crc: int) -> int:
    """Write the header into the frame's buffer, ready for *place*; returns the header's CRC."""
    head = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        frame.mask,
        sequence,
        frame.first_index,
        frame.body_bytes,
        frame.body_crc,
        previous_crc,
    )
    crc = crc32(head, crc32(_PLACE.pack(*place)))
    frame.buffer[: _HEADER.size] = head
    _CRC.pack_into(frame.buffer, _HEADER.size, crc)
    return crc


def read_header(data: bytes, offset: int, place: Place) -> Header | None:
    """The header at *offset* of *data*, or None unless a valid one was written at *place*."""
    if data[offset : offset + 4] != MAGIC or len(data) < offset + HEADER_BYTES:
        return None
    (crc,) = _CRC.unpack_from(data, offset + _HEADER.size)
    if crc32(data[offset : offset + _HEADER.size], crc32(_PLACE.pack(*place))) != crc:
        return None
    fields: tuple[int, ...] = _HEADER.unpack_from(data, offset)[1:]
    return Header._make((*fields, crc))


def body_valid(header: Header, data: bytes, offset: int) -> bool:
    """Whether the frame at *offset* of *data* is whole and undamaged behind its valid header."""
    end = offset + header.frame_bytes
    if len(data) < end:
        return False
    with memoryview(data) as view:
        return crc32(view[offset + HEADER_BYTES : end]) == header.body_crc


def read_record(header: Header, data: bytes, offset: int) -> Record | None:
    """The record of a frame whose body is valid; None if it is none that this version knows."""
    start = offset + HEADER_BYTES
    body: bytes | memoryview = memoryview(data)[start : start + header.body_bytes]
    if header.mask:
        body = _masked(body, header.mask)
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError:
        return None


_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def looks_unfinished(header: Header | None, data: bytes, offset: int) -> bool:
    """Whether the bad frame at *offset* can be what a crash left of a write that never ended.

    With the header's sector unwritten nothing else is known, and anything may follow. With it
    written some other sector must be missing, that is blank.
    """
    if header is None:
        return is_blank(data, offset, offset + SECTOR_BYTES)
    end = min(offset + header.frame_bytes, len(data))
    starts = range(offset + SECTOR_BYTES, end, SECTOR_BYTES)
    return any(data.startswith(_BLANK, start) for start in starts)


def is_blank(data: bytes, start: int, end: int) -> bool:
    """Whether ``data[start:end]`` holds nothing but zeros."""
    return data.count(0, start, end) == max(0, min(end, len(data)) - start)


def find_frame(data: bytes, start: int, identity: int, segment: int) -> int | None:
    """Offset of the first valid frame header at or after *start*, a multiple of a sector."""
    offset = data.find(MAGIC, start)
    while offset >= 0:
        place = Place(identity, segment, offset)
        if offset % SECTOR_BYTES == 0 and read_header(data, offset, place) is not None:
            return offset
        offset = data.find(MAGIC, offset + 1)
    return None


def written_sectors(data: bytes, start: int) -> list[int]:
    """Offsets at or after *start*, a multiple of a sector, of the sectors that are not blank."""
    if is_blank(data, start, len(data)):
        return []
    offsets = range(start, len(data), SECTOR_BYTES)
    return [offset for offset in offsets if not is_blank(data, offset, offset + SECTOR_BYTES)]


# --- masks ---


def _has_sparse(buffer: bytes | bytearray) -> bool:
    """Whether a sector after the first is blank or nearly. The first never is: magic, version,
    sequence, length, and the first two bytes of any record are nine that are not zero."""
    least = SECTOR_BYTES - SPARSE_BYTES
    starts = range(SECTOR_BYTES, len(buffer), SECTOR_BYTES)
    return any(buffer.count(0, start, start + SECTOR_BYTES) >= least for start in starts)


def _mask_sparse(buffer: bytearray) -> int:
    """XOR everything behind the header with the first mask that leaves no sector sparse; returns
    which. Each sector rules out a fraction of masks so small (those that agree with it in 504
    bytes of 512) that hardly ever a second is needed, whatever the payload."""
    if not _has_sparse(buffer):
        return 0
    plain = bytes(buffer[HEADER_BYTES:])
    for mask in range(1, 1 << 16):
        buffer[HEADER_BYTES:] = _masked(plain, mask)
        if not _has_sparse(buffer):
            return mask
    must(condition=False, claim="one of 65535 masks fits", size=len(buffer))
    return 0


def _masked(body: bytes | memoryview, mask: int) -> bytes:
    size = len(body)
    stream = (_mask_stream(mask) * (size // SECTOR_BYTES + 1))[:size]
    number = int.from_bytes(body, "little") ^ int.from_bytes(stream, "little")
    return number.to_bytes(size, "little")


@functools.lru_cache(maxsize=16)
def _mask_stream(mask: int) -> bytes:
    """One sector of the mask: fixed by the format, so by a named function and not by ``random``."""
    return hashlib.shake_128(b"quorate wal mask %d" % mask).digest(SECTOR_BYTES)

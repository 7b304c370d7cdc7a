"""The few etcd v3 messages that the benchmark sends and reads, as protobuf by hand.

Hand-written because it is the fastest thing that Python can do here: a generated class would make
etcd look slower. Field numbers are those of etcd's ``rpc.proto`` and ``kv.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
STATUS = "/etcdserverpb.Maintenance/Status"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """Base-128, low groups first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def bytes_field(field: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(field << 3 | _BYTES) + varint(len(content)) + content


def put_request(key: bytes, value: bytes) -> bytes:
    """``PutRequest {key = 1, value = 2}``."""
    if len(key) < 0x80 and len(value) < 0x80:  # the benchmark's own sizes: one-byte lengths
        return b"\x0a%c%b\x12%c%b" % (len(key), key, len(value), value)
    return bytes_field(1, key) + bytes_field(2, value)


def range_request(key: bytes) -> bytes:
    """``RangeRequest {key = 1}``: one key, linearizable because ``serializable`` is not set."""
    return bytes_field(1, key)


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of every field: an integer, or bytes.

    Raises:
        ValueError: not a protobuf message.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _read_varint(message, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"field {tag >> 3} ends after the message does")
        yield tag >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("a number ends after the message does")
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def is_leader(status: bytes) -> bool:
    """Whether the member that sent this ``StatusResponse {header = 1, leader = 4}`` leads."""
    member = leader = 0
    for number, content in fields(status):
        if number == 1 and isinstance(content, bytes):
            member = _integer(content, 2)  # ResponseHeader.member_id
        elif number == 4 and isinstance(content, int):
            leader = content
    return leader != 0 and leader == member


def range_value(response: bytes) -> bytes | None:
    """Value of the first pair of a ``RangeResponse {kvs = 2 {value = 5}}``."""
    for number, content in fields(response):
        if number == 2 and isinstance(content, bytes):
            for inner, value in fields(content):
                if inner == 5 and isinstance(value, bytes):
                    return value
    return None


def _integer(message: bytes, wanted: int) -> int:
    for number, content in fields(message):
        if number == wanted and isinstance(content, int):
            return content
    return 0

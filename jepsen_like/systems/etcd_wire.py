"""The few etcd v3 messages that measurements and fault injection need, as protobuf by hand.

Hand-written because it is the fastest thing that Python can do here: a generated class would make
etcd look slower. Field numbers are those of etcd's ``rpc.proto`` and ``kv.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
TXN = "/etcdserverpb.KV/Txn"
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


def txn_request(
    revisions: Mapping[bytes, int],
    reads: Sequence[bytes],
    writes: Mapping[bytes, bytes],
    values: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """``TxnRequest {compare = 1, success = 2}``: if every key of *revisions* was last modified at
    that revision (0: is not there) and every key of *values* holds that value, put *writes* and
    then read *reads*."""
    parts = []
    for key, revision in revisions.items():
        # Compare {target = 2: MOD (2), key = 3, mod_revision = 6}; result 0 is EQUAL.
        target = varint(2 << 3) + varint(2) + bytes_field(3, key)
        parts.append(bytes_field(1, target + varint(6 << 3) + varint(revision)))
    for key, value in (values or {}).items():
        target = varint(2 << 3) + varint(3) + bytes_field(3, key)  # VALUE (3), value = 7
        parts.append(bytes_field(1, target + bytes_field(7, value)))
    for key, value in writes.items():
        put = bytes_field(1, key) + bytes_field(2, value)
        parts.append(bytes_field(2, bytes_field(2, put)))  # RequestOp {request_put = 2}
    parts.extend(bytes_field(2, bytes_field(1, bytes_field(1, key))) for key in reads)
    return b"".join(parts)


def range_pair(response: bytes) -> tuple[bytes | None, int]:
    """(value, mod revision) of the first pair of a ``RangeResponse``; (None, 0) without one."""
    for number, content in fields(response):
        if number == 2 and isinstance(content, bytes):
            value = b""
            for inner, found in fields(content):
                if inner == 5 and isinstance(found, bytes):
                    value = found
            return value, _integer(content, 3)
    return None, 0


def txn_response(response: bytes) -> tuple[bool, list[tuple[bytes | None, int]]]:
    """Whether the comparisons held, and the answers to the reads, of a ``TxnResponse {succeeded =
    2, responses = 3 {response_range = 1}}``."""
    pairs = []
    for number, content in fields(response):
        if number == 3 and isinstance(content, bytes):
            pairs += [
                range_pair(inner)
                for kind, inner in fields(content)
                if kind == 1 and isinstance(inner, bytes)
            ]
    return _integer(response, 2) == 1, pairs


def _integer(message: bytes, wanted: int) -> int:
    for number, content in fields(message):
        if number == wanted and isinstance(content, int):
            return content
    return 0

"""What a client of the kit and a node process say to each other: JSON, one line each way.

The library has no protocol for clients of its own; its users call it from within their process. So
the node (``node``) listens on a port for the kit, and answers one request at a time on each
connection, after a greeting: a proxy takes connections for a node that is not there, and what is
sent only after the greeting was sent to somebody. Bytes travel as base64.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

#: Of one line, its end included; a longer one ends its connection.
LINE_BYTES_MAX: Final = 1024 * 1024
#: The first line of every connection, from the node.
GREETING: Final = b"ready\n"

#: A value and its version.
Pair = tuple[bytes | None, int]


class Get(msgspec.Struct, tag="get", frozen=True):
    """*local*: of the node's own copy, as the library documents; else a command. ``Pair``."""

    key: str
    local: bool


class Put(msgspec.Struct, tag="put", frozen=True):
    """Answered with None."""

    key: str
    value: bytes


class CompareAndSet(msgspec.Struct, tag="compare_and_set", frozen=True):
    """Answered with whether it did."""

    key: str
    expected: bytes | None
    value: bytes


class Add(msgspec.Struct, tag="add", frozen=True):
    """Answered with the new number."""

    key: str
    number: int


class Transact(msgspec.Struct, tag="transact", frozen=True):
    """Answered with whether the versions held, and a ``Pair`` for each key that is read."""

    expected: dict[str, int]
    reads: list[str]
    writes: dict[str, bytes]


class Look(msgspec.Struct, tag="look", frozen=True):
    """Answered with a ``Status``, by the node alone."""


Request = Get | Put | CompareAndSet | Add | Transact | Look


class Status(msgspec.Struct, frozen=True):
    """*leads*: as the node itself believes. *digest*: of all keys, values and versions; *keys*:
    how many there are."""

    leads: bool
    term: int
    applied: int
    digest: str
    keys: int


class Answer(msgspec.Struct, frozen=True):
    """*result*: see the request; means something if *error* is "". *definite*: the request surely
    had no effect."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    definite: bool = False


_REQUEST: Final = msgspec.json.Decoder(Request)
_ANSWER: Final = msgspec.json.Decoder(Answer)


def line(message: Request | Answer) -> bytes:
    """As it is sent."""
    return msgspec.json.encode(message) + b"\n"


def read_request(text: bytes) -> Request:
    """Raises ``msgspec.MsgspecError`` if it is none."""
    found: Request = _REQUEST.decode(text)
    return found


def read_answer(text: bytes) -> Answer:
    """Raises ``msgspec.MsgspecError`` if it is none."""
    return _ANSWER.decode(text)


def success(result: Any) -> Answer:  # noqa: ANN401  what a request is answered with
    """The answer to a request that was carried out."""
    return Answer(msgspec.Raw(msgspec.json.encode(result)))

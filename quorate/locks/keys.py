"""Keys of records that belong to a name, to a lease, or to both, and topics of events."""

from __future__ import annotations

from typing import Any

import msgspec

from quorate.base.results import Failure
from quorate.errors import CommandError, OverloadedError


class CountRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A number."""

    count: int


#: The only key of a table that holds the highest number given out.
LAST_KEY = b"last"


def lease_key(lease: int) -> bytes:
    """Begins the keys of what is bound to *lease*."""
    return lease.to_bytes(8, "big")


def scope(name: bytes) -> bytes:
    """Begins the keys of what belongs to *name*, and of nothing else: its length comes first."""
    return len(name).to_bytes(2, "big") + name


def numbered(name: bytes, number: int) -> bytes:
    """Key of what has a number within *name*; in the order of the numbers."""
    return scope(name) + number.to_bytes(8, "big")


def number_of(key: bytes) -> int:
    """The last number in a key."""
    return int.from_bytes(key[-8:], "big")


def bound_key(lease: int, name: bytes, owner: int) -> bytes:
    """Key of what *owner* of a lease has of *name*."""
    return lease.to_bytes(8, "big") + scope(name) + owner.to_bytes(8, "big")


def name_of(key: bytes) -> bytes:
    """The name in a ``bound_key``."""
    return key[10:-8]


def lease_topic(lease: int) -> bytes:
    """Key of the events for whoever holds *lease*."""
    return b"l" + lease.to_bytes(8, "big")


def whole(key: bytes, event: Any) -> Any:  # noqa: ANN401, ARG001
    """Send an event as it is."""
    return event


def refused(error: type[CommandError | OverloadedError], message: str) -> Failure:
    """A refusal that costs no exception."""
    return Failure(error.code, message)

"""Ready-made machines: counter, dict, list, set, queue and priority queue.

Each item is a record of its own, so a command costs what it touches, not what there is; where it
could touch much, it is bounded (``SHIFT_MAX``, ``SCAN_MAX``), and refused beyond. ``clear`` takes
as long for a million items as for one: it starts a new *epoch*, and every later entry sweeps some
of what belongs to old ones.

Keys and members of sets are ``str``, ``int`` or ``bytes``; values and items anything that msgpack
carries, so a tuple comes back as a list.
"""

# ruff: noqa: ANN401  values are of any type

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from quorate.base.declaring import query
from quorate.base.tables import OrderedTable, value
from quorate.errors import CommandError
from quorate.replication.machine import Context
from quorate.replication.replicated import Replicated, replicated

Scalar = Any  # str, int or bytes: a union that msgspec does not have, so ``_key_of`` checks

#: Items that one command may move, or sort: about 15 ms.
SHIFT_MAX: Final = 10_000
#: Items that one command or query may look at.
SCAN_MAX: Final = 100_000
#: Items of one page.
PAGE_MAX: Final = 10_000
#: Items of old epochs that one entry deletes: less than a millisecond.
SWEEP_MAX: Final = 500
#: Bytes of a key of a dict, a member of a set, a priority.
KEY_BYTES_MAX: Final = 4000
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1


class MissingError(CommandError, LookupError):
    """There is no such key, member, item or position."""

    code = "missing"


class RefusedItemError(CommandError, ValueError):
    """A value cannot be taken: too long, not comparable, out of range, or too much at once."""

    code = "refused-item"


class ReplCounter(Replicated):
    """A 64-bit number. Version history: 1, first release."""

    errors = (RefusedItemError,)
    number: int = value(0)

    @replicated
    def set(self, new: int) -> int:
        """Returns the new number, as all commands do."""
        if not _INT_MIN <= new <= _INT_MAX:
            raise RefusedItemError("a counter has 64 bits")
        self.number = new
        return new

    @replicated
    def add(self, amount: int) -> int:
        return self.set(self.number + amount)

    @replicated
    def sub(self, amount: int) -> int:
        return self.set(self.number - amount)

    @replicated
    def inc(self) -> int:
        return self.set(self.number + 1)

    @query
    def get(self) -> int:
        return self.number


class _Collection(Replicated):
    """Items under keys that begin with an epoch, so that all can be forgotten at once."""

    errors = (MissingError, RefusedItemError)
    epoch: int = value(0)
    stale: int = value(0)
    entries: Any

    def __len__(self) -> int:
        return len(self.entries) - self.stale

    def __bool__(self) -> bool:
        return True  # a machine is there even while it is empty

    def _forget_all(self) -> None:
        self.stale = len(self.entries)
        self.epoch += 1

    def next_deadline_ms(self) -> int | None:
        """At once, while there is something to sweep."""
        return 0 if self.stale else None

    def expire(self, context: Context) -> None:  # noqa: ARG002
        """Sweep: old epochs have the least keys."""
        stale = self.stale
        if stale:
            keys = list(islice(self.entries.keys(), min(stale, SWEEP_MAX)))
            for key in keys:
                self.entries.delete(key)
            self.stale = stale - len(keys)


def _key_of(key: Scalar) -> bytes:
    """As bytes, in order: integers, then texts, then bytes."""
    if key.__class__ is int:
        if not _INT_MIN <= key <= _INT_MAX:
            raise RefusedItemError("an integer has 64 bits")
        return b"\x01" + (key - _INT_MIN).to_bytes(8, "big")
    if key.__class__ is str:
        found = b"\x02" + key.encode()
    elif key.__class__ is bytes:
        found = b"\x03" + key
    else:
        raise RefusedItemError(f"a key or member is a str, int or bytes, not {type(key).__name__}")
    if len(found) > KEY_BYTES_MAX:
        raise RefusedItemError(f"a key or member has at most {KEY_BYTES_MAX - 1} bytes")
    return found


def _page(limit: int) -> int:
    if not 0 <= limit <= PAGE_MAX:
        raise RefusedItemError(f"a page has 0 to {PAGE_MAX} items")
    return limit


class _Keyed(_Collection):
    """What dict and set share: items under scalars, in their order."""

    entries: OrderedTable[tuple[int, bytes], tuple[Scalar, Any]]

    def _place(self, key: Scalar) -> tuple[int, bytes]:
        return self.epoch, _key_of(key)

    def _pages(self, after: Scalar | None, limit: int) -> Iterator[tuple[Scalar, Any]]:
        start = (self.epoch, b"" if after is None else _key_of(after) + b"\x00")
        for _place, item in self.entries.items(start, limit=_page(limit)):
            yield item


class ReplDict(_Keyed):
    """A dict, in the order of its keys. Version history: 1, first release."""

    @replicated
    def set(self, key: Scalar, value: Any) -> None:
        self.entries.put(self._place(key), (key, value))

    @replicated
    def setdefault(self, key: Scalar, default: Any = None) -> Any:
        """What is there afterwards."""
        place = self._place(key)
        known = self.entries.get(place)
        if known is not None:
            return known[1]
        self.entries.put(place, (key, default))
        return default

    @replicated
    def update(self, other: dict[Scalar, Any]) -> None:
        for key, item in other.items():
            self.entries.put(self._place(key), (key, item))

    @replicated
    def pop(self, key: Scalar, default: Any = None) -> Any:
        """What was there, or *default*."""
        known = self.entries.delete(self._place(key))
        return default if known is None else known[1]

    @replicated(frees_space=True)
    def delete(self, key: Scalar) -> bool:
        """Whether it was there."""
        return self.entries.delete(self._place(key)) is not None

    @replicated
    def clear(self) -> None:
        self._forget_all()

    @replicated
    def reset(self, new: dict[Scalar, Any]) -> None:
        """Replace everything."""
        self._forget_all()
        self.update(new)

    @query
    def get(self, key: Scalar, default: Any = None) -> Any:
        known = self.entries.get(self._place(key))
        return default if known is None else known[1]

    @query
    def contains(self, key: Scalar) -> bool:
        return self._place(key) in self.entries

    @query
    def size(self) -> int:
        return len(self)

    @query
    def keys(self, after: Scalar | None = None, limit: int = 1000) -> list[Scalar]:
        """At most *limit* keys behind *after*: page by page."""
        return [key for key, _item in self._pages(after, limit)]

    @query
    def values(self, after: Scalar | None = None, limit: int = 1000) -> list[Any]:
        """Values of those keys."""
        return [item for _key, item in self._pages(after, limit)]

    @query
    def items(self, after: Scalar | None = None, limit: int = 1000) -> list[tuple[Scalar, Any]]:
        """Both."""
        return list(self._pages(after, limit))


class ReplSet(_Keyed):
    """A set, in the order of its members. Version history: 1, first release."""

    @replicated
    def add(self, item: Scalar) -> bool:
        """Whether it is new."""
        place = self._place(item)
        if place in self.entries:
            return False
        self.entries.put(place, (item, None))
        return True

    @replicated(frees_space=True)
    def remove(self, item: Scalar) -> None:
        if self.entries.delete(self._place(item)) is None:
            raise MissingError(f"{item!r} is no member")

    @replicated(frees_space=True)
    def discard(self, item: Scalar) -> bool:
        """Whether it was there."""
        return self.entries.delete(self._place(item)) is not None

    @replicated(frees_space=True)
    def pop(self) -> Scalar:
        """Take the least one out."""
        for item, _none in self._pages(None, 1):
            self.entries.delete(self._place(item))
            return item
        raise MissingError("the set is empty")

    @replicated
    def update(self, other: list[Scalar]) -> int:
        """How many are new."""
        return sum(self.add(item) for item in other)

    @replicated
    def clear(self) -> None:
        self._forget_all()

    @replicated
    def reset(self, new: list[Scalar]) -> None:
        """Replace everything."""
        self._forget_all()
        self.update(new)

    @query
    def contains(self, item: Scalar) -> bool:
        return self._place(item) in self.entries

    @query
    def size(self) -> int:
        return len(self)

    @query
    def items(self, after: Scalar | None = None, limit: int = 1000) -> list[Scalar]:
        """At most *limit* members behind *after*: page by page."""
        return [item for item, _none in self._pages(after, limit)]


class _Row(_Collection):
    """What list and queue share: items at consecutive places, from *head* up to *tail*."""

    entries: OrderedTable[tuple[int, int], Any]
    head: int = value(0)
    tail: int = value(0)

    def __len__(self) -> int:
        return self.tail - self.head

    def _put(self, place: int, item: Any) -> None:
        self.entries.put((self.epoch, place), item)

    def _read(self, place: int) -> Any:
        return self.entries[self.epoch, place]

    def _take(self, place: int) -> Any:
        return self.entries.delete((self.epoch, place))

    def _push(self, item: Any) -> None:
        self._put(self.tail, item)
        self.tail += 1

    def _empty(self) -> None:
        self._forget_all()
        self.head = self.tail = 0

    def _slice(self, start: int, limit: int) -> Iterator[Any]:
        first = (self.epoch, self.head + max(0, start))
        for _place, item in self.entries.items(first, limit=limit):
            yield item


class ReplList(_Row):
    """A list. At both ends everything is cheap; ``insert`` and ``pop`` elsewhere move what lies
    between there and the nearer end, ``SHIFT_MAX`` items at most. Version history: 1, first
    release."""

    @replicated
    def append(self, item: Any) -> None:
        self._push(item)

    @replicated
    def extend(self, other: list[Any]) -> None:
        for item in other:
            self._push(item)

    @replicated
    def set(self, position: int, item: Any) -> None:
        self._put(self._at(position), item)

    @replicated
    def insert(self, position: int, item: Any) -> None:
        """Before *position*; as a list's, it never is out of range."""
        size = len(self)
        position = max(0, position + size) if position < 0 else min(position, size)
        if position <= size - position:
            self._move(range(self.head, self.head + position), -1)
            self.head -= 1
        else:
            self._move(range(self.tail - 1, self.head + position - 1, -1), 1)
            self.tail += 1
        self._put(self.head + position, item)

    @replicated
    def pop(self, position: int = -1) -> Any:
        place = self._at(position)
        found = self._take(place)
        if place - self.head < self.tail - place - 1:
            self._move(range(place - 1, self.head - 1, -1), 1)
            self.head += 1
        else:
            self._move(range(place + 1, self.tail), -1)
            self.tail -= 1
        return found

    @replicated
    def remove(self, item: Any) -> None:
        """The first that equals *item*."""
        self.pop(self._find(item, 0))

    @replicated
    def sort(self, reverse: bool = False) -> None:  # noqa: FBT001, FBT002  as a list's
        """Stable; of at most ``SHIFT_MAX`` items that compare with each other."""
        if len(self) > SHIFT_MAX:
            raise RefusedItemError(f"no more than {SHIFT_MAX} items are sorted in one command")
        try:
            ordered = sorted(self._slice(0, SHIFT_MAX), reverse=reverse)
        except TypeError as error:
            raise RefusedItemError("the items do not compare with each other") from error
        for place, item in enumerate(ordered, self.head):
            self._put(place, item)

    @replicated
    def clear(self) -> None:
        self._empty()

    @replicated
    def reset(self, new: list[Any]) -> None:
        """Replace everything."""
        self._empty()
        self.extend(new)

    @query
    def get(self, position: int) -> Any:
        return self._read(self._at(position))

    @query
    def index(self, item: Any, start: int = 0) -> int:
        """The first position, not before *start*, of what equals *item*, among ``SCAN_MAX``."""
        return self._find(item, start)

    @query
    def count(self, item: Any) -> int:
        """How many of the first ``SCAN_MAX`` equal *item*."""
        return sum(each == item for each in self._slice(0, SCAN_MAX))

    @query
    def size(self) -> int:
        return len(self)

    @query
    def items(self, start: int = 0, limit: int = 1000) -> list[Any]:
        """At most *limit* items from position *start* on: page by page."""
        return list(self._slice(start, _page(limit)))

    def _at(self, position: int) -> int:
        size = len(self)
        if not -size <= position < size:
            raise MissingError(f"no position {position} in a list of {size}")
        return (self.head if position >= 0 else self.tail) + position

    def _find(self, item: Any, start: int) -> int:
        start = max(0, start)
        for position, each in enumerate(self._slice(start, SCAN_MAX), start):
            if each == item:
                return position
        raise MissingError("no such item in the list")

    def _move(self, places: range, by: int) -> None:
        if len(places) > SHIFT_MAX:
            raise RefusedItemError(
                f"{len(places)} items would have to move, and a command moves at most {SHIFT_MAX}"
            )
        for place in places:
            self._put(place + by, self._take(place))


class ReplQueue(_Row):
    """A queue: first in, first out. Version history: 1, first release."""

    maxsize_value: int = value(0)

    @replicated
    def put(self, item: Any) -> bool:
        """False: it is full, and the item is not in it."""
        if 0 < self.maxsize_value <= len(self):
            return False
        self._push(item)
        return True

    @replicated(frees_space=True)
    def get(self, default: Any = None) -> Any:
        """Take the oldest item out; *default* if there is none."""
        if self.head == self.tail:
            return default
        found = self._take(self.head)
        self.head += 1
        return found

    @replicated
    def clear(self) -> None:
        self._empty()

    @replicated
    def set_maxsize(self, maxsize: int) -> None:
        """From now on ``put`` refuses what would make it longer; 0: nothing. State, not an argument
        of the constructor: replicas must agree on it."""
        self.maxsize_value = max(0, maxsize)

    @query
    def peek(self, default: Any = None) -> Any:
        """What ``get`` would take out."""
        return default if self.head == self.tail else self._read(self.head)

    @query
    def size(self) -> int:
        return len(self)

    @query
    def empty(self) -> bool:
        return len(self) == 0

    @query
    def full(self) -> bool:
        return 0 < self.maxsize_value <= len(self)

    @query
    def maxsize(self) -> int:
        return self.maxsize_value


class ReplPriorityQueue(_Collection):
    """A queue in the order of priorities; first in, first out among equal ones. Version history: 1,
    first release."""

    entries: OrderedTable[tuple[int, bytes, int], Any]
    counter: int = value(0)
    maxsize_value: int = value(0)

    @replicated
    def put(self, item: Any, priority: Any = None) -> bool:
        """The least *priority* comes first: a number, a text, bytes, or a list or tuple of such,
        which compare as in Python, and numbers before texts before bytes before lists. None: the
        item is its own priority. False: the queue is full."""
        if 0 < self.maxsize_value <= len(self):
            return False
        key = b"".join(_order_of(item if priority is None else priority))
        if len(key) > KEY_BYTES_MAX:
            raise RefusedItemError(f"a priority has at most {KEY_BYTES_MAX} bytes")
        self.counter += 1
        self.entries.put((self.epoch, key, self.counter), item)
        return True

    @replicated(frees_space=True)
    def get(self, default: Any = None) -> Any:
        """Take the item of the least priority out; *default* if there is none."""
        for key, item in self.entries.items((self.epoch, b"", 0), limit=1):
            self.entries.delete(key)
            return item
        return default

    @replicated
    def clear(self) -> None:
        self._forget_all()

    @replicated
    def set_maxsize(self, maxsize: int) -> None:
        """As ``ReplQueue.set_maxsize``."""
        self.maxsize_value = max(0, maxsize)

    @query
    def peek(self, default: Any = None) -> Any:
        """What ``get`` would take out."""
        for _key, item in self.entries.items((self.epoch, b"", 0), limit=1):
            return item
        return default

    @query
    def size(self) -> int:
        return len(self)

    @query
    def empty(self) -> bool:
        return len(self) == 0

    @query
    def full(self) -> bool:
        return 0 < self.maxsize_value <= len(self)

    @query
    def maxsize(self) -> int:
        return self.maxsize_value


def _order_of(priority: Any) -> Iterator[bytes]:
    """Bytes that sort as priorities compare."""
    if isinstance(priority, int | float):
        yield b"\x02" + _number(priority)
    elif isinstance(priority, str | bytes):
        kind, found = (
            (b"\x03", priority.encode()) if isinstance(priority, str) else (b"\x04", priority)
        )
        yield kind + found.replace(b"\x00", b"\x00\xff") + b"\x00\x01"
    elif isinstance(priority, list | tuple):
        yield b"\x05"
        for each in priority:
            yield from _order_of(each)
        yield b"\x00"
    else:
        raise RefusedItemError("a priority is a number, a text, bytes, or a list of such")


def _number(number: Any) -> bytes:
    """The nearest float in an order of bits, and how far an integer is from it: exact for both."""
    if isinstance(number, float) and math.isnan(number):
        raise RefusedItemError("NaN is no priority")
    near = float(number) + 0.0  # one zero only
    rest = 0 if isinstance(number, float) else number - int(near)
    (bits,) = struct.unpack(">Q", struct.pack(">d", near))
    bits = bits ^ ((1 << 64) - 1) if bits >> 63 else bits | 1 << 63
    return struct.pack(">QH", bits, rest + (1 << 15))

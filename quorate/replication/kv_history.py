"""What the key-value store did of late, for watchers: a window of revisions, part of the state.

One record for each log entry that changed something, so that a put costs a list ``+=`` (60 ns) and
its share of one record. The window is replicated: it survives restarts, snapshots and failovers,
and every node can serve a watcher from where another left off. Its table is derived: each change
follows from one of ``kv.records``, which is hashed.

It is packed, too: encoding 1000 events is one call and leaves one object (80 ns per event). Keeping
their keys and records as they are would cost twice that, in memory that is cold when it is freed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from quorate.base.invariants import must
from quorate.base.kv_commands import KeyValue
from quorate.base.kv_watch import KeyEvent, KeyEvents, WatchKeys
from quorate.base.limits import MIB
from quorate.replication.machine import Encoded
from quorate.replication.tables import Table, Tables

#: The window: it holds the newest whole entries that are no more than this together.
HISTORY_REVISIONS_MAX: Final = 20_000
HISTORY_BYTES_MAX: Final = 32 * MIB
#: Events that are looked at, and bytes that are found, when a watch begins in the past: some 20 ms.
#: What is left comes when it is begun anew.
BACKLOG_EVENTS_MAX: Final = 20_000
BACKLOG_BYTES_MAX: Final = 4 * MIB

NOTHING: Final = b""  #: in place of a record: there is none
OMITTED: Final = b"\xc0"  #: in place of a record before: there was one, too large to keep

_encode: Final = msgspec.msgpack.Encoder().encode


class KvRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stored value. *mod*: the revision that last modified it. *age*: revisions between its
    creation and that; as a small number it is shared, where a second revision would cost every
    record 32 bytes more. *lease*: that it goes with; 0: none."""

    value: bytes
    mod: int
    version: int
    age: int
    lease: int = 0


class HistoryRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one entry did. *changes*: of each event in order its key, the record now and the record
    before, encoded; or ``NOTHING`` or ``OMITTED``. *many*: (revision, number of events) of
    revisions that have more than one."""

    changes: list[bytes]
    many: list[tuple[int, int]] = []

    @property
    def revision_count(self) -> int:
        return len(self.changes) // 3 - sum(count - 1 for _, count in self.many)


class Revision:
    """What one revision did: a part of a ``HistoryRecord``. *told*: its events as they were encoded
    for those who want all of them, by whether with the values before."""

    __slots__ = ("at", "changes", "end", "number", "told")

    def __init__(self, number: int, changes: list[bytes], at: int, end: int) -> None:
        self.number = number
        self.changes = changes
        self.at = at
        self.end = end
        self.told: dict[bool, Encoded] = {}

    @property
    def keys(self) -> list[bytes]:
        """Of its events."""
        return self.changes[self.at : self.end : 3]


def shown(key: bytes, record: KvRecord, *, keys_only: bool = False) -> KeyValue:
    """A record as it is shown to clients."""
    value = NOTHING if keys_only else record.value
    age, mod = record.age, record.mod
    return KeyValue(key, value, mod - age, mod, record.version, record.lease)


def revisions(first: int, record: HistoryRecord) -> Iterator[Revision]:
    """The revisions of an entry, the first of which is *first*."""
    changes, at, number = record.changes, 0, first
    sizes = dict(record.many)
    while at < len(changes):
        end = at + 3 * sizes.get(number, 1)
        yield Revision(number, changes, at, end)
        at, number = end, number + 1


def unfolded(first: int, record: HistoryRecord) -> Iterator[tuple[list[bytes], Revision]]:
    """What an entry did, for ``Context.effects``: (keys, event), by revision."""
    for revision in revisions(first, record):
        yield revision.keys, revision


class Selector:
    """Makes of a revision what a watch is told of it; ``Interest.select``."""

    __slots__ = ("_all", "_decode", "_request", "_start")

    def __init__(
        self, request: WatchKeys, start_revision: int, decode: Callable[[bytes], KvRecord]
    ) -> None:
        self._request = request
        self._start = start_revision
        self._decode = decode
        self._all = request.puts and request.deletes

    def __call__(self, _key: bytes, revision: Revision) -> Encoded | None:
        if revision.number < self._start:
            return None
        request, changes = self._request, revision.changes
        wanted = [at for at in range(revision.at, revision.end, 3) if self._wants(changes, at)]
        if not wanted:
            return None
        whole = 3 * len(wanted) == revision.end - revision.at
        if whole and request.previous in revision.told:
            return revision.told[request.previous]
        events = tuple(self._event(revision.number, changes, at) for at in wanted)
        told = Encoded(_encode(KeyEvents(revision.number, events)))
        if whole:
            revision.told[request.previous] = told
        return told

    def _wants(self, changes: list[bytes], at: int) -> bool:
        request, key = self._request, changes[at]
        if request.prefix:
            named = key.startswith(request.start)
        else:
            named = request.start <= key and (request.end is None or key < request.end)
        if self._all or not named:
            return named
        return request.puts if changes[at + 1] else request.deletes

    def _event(self, number: int, changes: list[bytes], at: int) -> KeyEvent:
        key, now, before = changes[at : at + 3]
        previous, omitted = None, False
        if before and self._request.previous:
            omitted = before == OMITTED
            previous = None if omitted else shown(key, self._decode(before))
        if not now:
            return KeyEvent("delete", key, NOTHING, 0, number, 0, 0, previous, omitted)
        record = self._decode(now)
        created = record.mod - record.age
        return KeyEvent(
            "put", key, record.value, created, number, record.version, record.lease, previous,
            omitted,
        )  # fmt: skip


class History:
    """The window, on table "kv.history": key is the first revision of an entry."""

    def __init__(self) -> None:
        self._table: Table[HistoryRecord]
        #: First revision, number of revisions and bytes of each record, oldest first.
        self._spans: deque[tuple[int, int, int]] = deque()
        self._revision_count = 0
        self._size_bytes = 0
        self._next = 1

    def attach(self, tables: Tables) -> None:
        """Declare the table."""
        self._table = tables.table(
            "kv.history", HistoryRecord, ordered=True, trusted=True, packed=True, derived=True
        )

    def loaded(self, revision: int) -> None:
        """The table was loaded; the store is at *revision*."""
        self._spans.clear()
        self._revision_count = self._size_bytes = 0
        for key, record in self._table.items():
            size_bytes = len(self._table.get_stored(key))
            self._count((int.from_bytes(key, "big"), record.revision_count, size_bytes))
        self._next = revision + 1
        if self._spans:
            first, count, _ = self._spans[-1]
            must(first + count == self._next, "the history ends where the store is", first=first)

    @property
    def oldest(self) -> int:
        """The first revision that can be watched from."""
        return self._spans[0][0] if self._spans else self._next

    @property
    def last(self) -> int:
        """The last revision of the last entry."""
        return self._next - 1

    @property
    def revision_count(self) -> int:
        """Revisions in the window."""
        return self._revision_count

    @property
    def size_bytes(self) -> int:
        """What the window holds."""
        return self._size_bytes

    def add(self, record: HistoryRecord, revision: int) -> int:
        """An entry did *record*, and the store is at *revision* now. Returns its first revision.
        At the end of an entry, when nothing can be undone any more."""
        first = self._next
        count = revision + 1 - first
        must(count == record.revision_count, "a revision has events", first=first, last=revision)
        self._next = revision + 1
        size_bytes = len(self._table.put(_key(first), record))
        self._count((first, count, size_bytes))
        while (
            self._revision_count > HISTORY_REVISIONS_MAX or self._size_bytes > HISTORY_BYTES_MAX
        ) and self._spans:
            first_gone, count, size_bytes = self._spans.popleft()
            self._revision_count -= count
            self._size_bytes -= size_bytes
            self._table.delete(_key(first_gone))
        return first

    def _count(self, span: tuple[int, int, int]) -> None:
        self._spans.append(span)
        self._revision_count += span[1]
        self._size_bytes += span[2]

    def read(self, select: Selector, start_revision: int) -> tuple[list[Encoded], int]:
        """What *select* wants of the revisions from *start_revision* on, which is in the window or
        behind it, and the revision up to which that is: not the last if there is too much."""
        found: list[Encoded] = []
        seen = size_bytes = 0
        for revision in self._since(start_revision):
            if seen >= BACKLOG_EVENTS_MAX or size_bytes >= BACKLOG_BYTES_MAX:
                return found, revision.number - 1
            seen += (revision.end - revision.at) // 3
            told = select(NOTHING, revision)
            if told is not None:
                found.append(told)
                size_bytes += len(told)
        return found, self.last

    def _since(self, start_revision: int) -> Iterator[Revision]:
        if start_revision >= self._next:
            return
        holder = next(self._table.keys(b"", _key(start_revision + 1), reverse=True))
        for key, record in self._table.range(holder):
            for revision in revisions(int.from_bytes(key, "big"), record):
                if revision.number >= start_revision:
                    yield revision


def _key(revision: int) -> bytes:
    return revision.to_bytes(8, "big")

"""The log in memory: twin of ``wal.WriteAheadLog`` for tests and simulations without disks.

Keeps its promises but durability: what it holds lives as long as the object, and ``recover`` may
be called again after ``close``, as a restarted node would open its files.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from quorate.base.invariants import must
from quorate.base.types import BEFORE_FIRST, NO_NODE, NO_TERM, LogIndex
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import StorageError
from quorate.storage.entry_table import check_append
from quorate.storage.interfaces import EntryMeta, RecoveredLog


class MemoryLogStore:
    """A ``LogStore`` without files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._floor = EntryId(BEFORE_FIRST, NO_TERM)
        self._entries: list[Entry] = []
        self._hard_state = HardState(term=NO_TERM, vote=NO_NODE, commit=BEFORE_FIRST)

    @property
    def _last(self) -> EntryId:
        if not self._entries:
            return self._floor
        return EntryId(self._entries[-1].index, self._entries[-1].term)

    def recover(self) -> RecoveredLog:
        must(not self._open, "recover is called once, first")
        self._open = True
        metas = [EntryMeta(e.term, e.kind, len(e.payload)) for e in self._entries]
        return RecoveredLog(hard_state=self._hard_state, floor=self._floor, metas=metas)

    def append(self, entries: Sequence[Entry], hard_state: HardState | None) -> None:
        self._check_usable()
        check_append(self._floor, self._last, entries, self._hard_state, hard_state)
        with self._lock:
            if entries:
                del self._entries[entries[0].index - self._floor.index - 1 :]
                self._entries.extend(entries)
            if hard_state is not None:
                self._hard_state = hard_state

    def read(self, first: LogIndex, last: LogIndex, size_bytes_max: int) -> list[Entry]:
        self._check_usable()
        must(first <= last, "a read has a first and a last", first=first, last=last)
        found: list[Entry] = []
        with self._lock:
            if not self._floor.index < first <= self._last.index:
                raise KeyError(first)
            left = size_bytes_max
            for entry in self._entries[first - self._floor.index - 1 : last - self._floor.index]:
                left -= len(entry.payload)
                if left < 0 and found:
                    break
                found.append(entry)
        return found

    def cut(self, floor: EntryId) -> EntryId:
        self._check_usable()
        must(
            floor.index <= self._last.index, "a cut stays in the log", floor=floor, last=self._last
        )
        with self._lock:
            if floor.index > self._floor.index:
                held = self._entries[floor.index - self._floor.index - 1]
                must(held.term == floor.term, "the log agrees with the floor", held=held.term)
                del self._entries[: floor.index - self._floor.index]
                self._floor = floor
            return self._floor

    def reset(self, floor: EntryId, hard_state: HardState) -> None:
        self._check_usable()
        check_append(floor, floor, (), self._hard_state, hard_state)
        with self._lock:
            self._floor, self._entries, self._hard_state = floor, [], hard_state

    def size_bytes(self) -> int:
        self._check_usable()
        return sum(len(entry.payload) for entry in self._entries)

    def close(self) -> None:
        self._open = False

    def _check_usable(self) -> None:
        if not self._open:
            raise StorageError("the log is not open")

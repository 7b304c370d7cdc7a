"""Rescue: what one node's store alone has comes back to the cluster, by an operator's order.

A node that was removed while it was cut off may hold writes that it acknowledged and that nobody
else has. The log gives none of its lives any more, and once those that it knows are folded their
records are refused wherever they turn up: what is lost must not come back by itself, half of it, or
after somebody has made up for it. If it is to come back, the operator says so, with the store of
that node, which is not in use.

**Two ways were open.** To admit such a life whole and let its records be joined as they are would
be the simplest, and is what becomes of a life that was only begun without the log, as long as no
fold has passed it by (``living``, ``LivesMachine.admits``). Of one that was folded it would be
wrong: all others count its dots as seen, so none of its elements would be joined, and what it left
in counters stands in the common cell, where nothing can be added to it. To carry the writes out
once more as a client's operations would be wrong, too: only the node that carries them out
remembers that it did, and a removal would take what its author never saw. So the records are taken
in under *another name* (``crdt.renaming``): as deltas, which say what was added and what of others
was removed, and whose dots are new and follow from the old ones. That is exact for all kinds but
for what docs/crdts.md says of counters, and it may be done again and again, by one or by many, on
this node or that, and be cut off at any moment.

**What is to be rescued** of a life are its records behind the last one that the members had when it
was folded, which the log remembers, or all of them if the log never knew the life. They stand in
the journal of the node's store, which keeps whatever not every member has. Each is taken in by the
leader as if it had done it itself, so it spreads, is confirmed and stays causal like everything
else. The estate is known to the log, and is not folded before all is there (``Rescued``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from quorate.base.limits import MIB
from quorate.crdt.cells import numbers_of
from quorate.crdt.codec import decode_delta
from quorate.crdt.counters import NUMBERS
from quorate.crdt.delta import Delta, split
from quorate.crdt.dots import Path, epoch_of, member_of
from quorate.crdt.kind import Kind
from quorate.crdt.kinds import ORMap
from quorate.crdt.renaming import Names, Short, renamed
from quorate.crdt.values import decode_key
from quorate.errors import (
    CrdtError,
    CrdtFormatError,
    QuorateError,
    StoreCorruptionError,
    UnavailableError,
)
from quorate.replication.converging.committing import Commit
from quorate.replication.converging.disseminating import Disseminating
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.life_records import Marks
from quorate.replication.converging.records import (
    JOURNAL,
    META,
    META_KEY,
    RECORD_BYTES_MAX,
    Record,
    decode_own,
    decode_record,
    journal_key,
    pairs,
    parse_journal_key,
)
from quorate.storage.elements import ElementStore

#: Deltas that are taken in at once; a single element may be larger.
CHUNK_BYTES: Final = 1 * MIB
PAGE_ROWS: Final = 64
#: How long the leader may take to begin a life, and to make something durable.
PATIENCE_S: Final = 10.0
POLL_S: Final = 0.02
#: Names of which the account says what is done under them.
NAMES_MAX: Final = 10_000


# --- the store that is rescued --------------------------------------------------------------------


class Left(NamedTuple):
    """What one life left: its records behind *since*, which go by the name *estate*."""

    actor: int
    since: int
    last: int
    estate: int


class Source:
    """The store of *member*, which nobody writes to."""

    def __init__(self, member: int, store: ElementStore) -> None:
        self._member = member
        self._store = store
        self.own, _ = decode_own(store.get(META, META_KEY))

    def lives(self) -> dict[int, int]:
        """The lives of the node itself, in order, and the last record of each."""
        frontier = sorted(self.own.frontier.items())
        return {actor: last for actor, last in frontier if member_of(actor) == self._member}

    def count(self, left: Left) -> int:
        """How many of the records to be rescued the store keeps."""
        return sum(1 for _ in self._rows(left))

    def deltas(self, lefts: list[Left]) -> Iterator[tuple[Left, Delta]]:
        """What the records say, by the new names, in order, in pieces of ``CHUNK_BYTES``. What is
        remembered meanwhile is a few numbers for each counter, of a journal that is bounded.

        Raises:
            StoreCorruptionError: one cannot be read.
        """
        names = Names()
        for left in lefts:
            first = next((record.first for _, record in self._rows(left)), 1)
            names.add(left.actor, left.estate, first - 1)
        for left in lefts:
            for sequence, record in self._rows(left):
                for key, numbers in record.before:
                    names.note(key, left.actor, numbers)
                try:
                    delta = decode_delta(record.delta, bytes_max=2 * RECORD_BYTES_MAX)
                    named = renamed(delta, names, left.actor)
                except CrdtError as error:
                    raise StoreCorruptionError(
                        f"record {sequence} of life {epoch_of(left.actor)} cannot be read: {error}"
                    ) from error
                for piece in split(named, CHUNK_BYTES):
                    yield left, piece

    def _rows(self, left: Left) -> Iterator[tuple[int, Record]]:
        at, end = journal_key(left.actor, left.since + 1), journal_key(left.actor, left.last + 1)
        while True:
            page = self._store.page(JOURNAL, at, end, PAGE_ROWS, MIB)
            for key, row in page:
                record = decode_record(row)
                if record.first:
                    yield parse_journal_key(key)[1], record
            if not page:
                return
            at = page[-1][0] + b"\0"


class Change(NamedTuple):
    """What is done under one name: elements that are put in, or taken out, and by how much counters
    go up and down."""

    name: Any
    kind: str
    added: int
    removed: int
    raised: int
    lowered: int


class Tally:
    """Adds up what deltas do, by name and kind. *left_out*: elements under names beyond
    ``NAMES_MAX``."""

    def __init__(self) -> None:
        self.left_out = 0
        self._counts: dict[tuple[bytes, str], list[int]] = {}
        self._cells: dict[tuple[Path, int], tuple[int, int]] = {}

    def add(self, left: Left, delta: Delta) -> None:
        """Count *delta* of one of the lives."""
        for path, (leaf, gone) in delta.elements.items():
            owner, depth = ORMap.locate(path)
            counts = self._of(path, owner)
            if owner.cells:
                for entry in leaf:
                    if entry[0] == left.estate:
                        self._count(counts, path, depth, entry[1], numbers_of(entry))
            elif leaf:
                counts[0] += 1
            elif gone:
                counts[1] += 1

    def _of(self, path: Path, owner: type[Kind]) -> list[int]:
        key = (path[0], owner.name)
        if key not in self._counts and len(self._counts) >= NAMES_MAX:
            self.left_out += 1
            return [0, 0, 0, 0]
        return self._counts.setdefault(key, [0, 0, 0, 0])

    def _count(
        self, counts: list[int], path: Path, depth: int, begun: int, numbers: tuple[int, ...]
    ) -> None:
        """A cell says how much it came to so far."""
        if len(numbers) != NUMBERS and path[depth:][0] != path[-1]:
            return  # rights that were given away
        before = self._cells.get((path, begun), (0, 0))
        counts[2] += max(0, numbers[0] - before[0])
        counts[3] += max(0, numbers[1] - before[1])
        self._cells[path, begun] = (max(numbers[0], before[0]), max(numbers[1], before[1]))

    def changes(self) -> list[Change]:
        """By name, in order."""
        found = sorted(self._counts.items())
        return [Change(decode_key(name), kind, *each) for (name, kind), each in found if any(each)]


# --- the node that takes it in --------------------------------------------------------------------


class Rescuing:
    """Takes in, at one node, what was rescued."""

    def __init__(self, engine: Engine, disseminating: Disseminating) -> None:
        self._engine = engine
        self._disseminating = disseminating

    async def take(self, estate: int, encoded: bytes) -> list[Short]:
        """Join a delta in which a life goes by the name *estate*, as this node's own doing, and
        make it durable. Returns what of it cannot be had.

        Raises:
            CrdtFormatError: it is no such delta.
            UnavailableError: not now, and nothing was done.
        """
        delta = self._checked(encoded)
        engine = self._engine
        await self._alive()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        short: list[Short] = []

        def ended(error: QuorateError | None) -> None:
            if not done.done():
                done.set_exception(error) if error is not None else done.set_result(None)

        def work(engine: Engine) -> Commit | None:
            if done.done():
                return None
            if self._disseminating.deaf or engine.own.ahead or not engine.own.actor:
                ended(UnavailableError("this node is taking over data from another one: try again"))
                return None
            commit = engine.open()
            try:
                short.extend(commit.take_over(delta, estate))
            except QuorateError as error:
                ended(error)
                return None
            if commit.stands_still:
                ended(None)
                return None
            commit.ended = ended
            return commit

        engine.alone(work)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await done
        except TimeoutError:
            raise UnavailableError("this node's disk does not answer") from None
        return short

    def _checked(self, encoded: bytes) -> Delta:
        delta = decode_delta(encoded, bytes_max=2 * RECORD_BYTES_MAX)
        if not delta.closed or delta.tag != ORMap.tag:
            raise CrdtFormatError("what is rescued is a closed delta of all CRDT data")
        for actor in delta.context().actors():
            if not self._engine.may_take(actor):
                raise CrdtFormatError(
                    f"it speaks of life {epoch_of(actor)} of member {member_of(actor)}, which the "
                    f"log never admitted"
                )
        return delta

    async def _alive(self) -> None:
        """Until this node has a life to write as."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + PATIENCE_S
        while not self._engine.own.actor:
            if loop.time() > end_s or self._engine.stopped:
                raise UnavailableError("this node has not got a life from the log yet")
            self._engine.living.needed()
            await asyncio.sleep(POLL_S)

    def after(self) -> Marks:
        """The records that this node has."""
        return pairs(self._engine.frontier, self._engine.frontier)

"""The side of a repair that lacks something: one session in which it takes over, range by range,
what another replica holds. ``reconciling`` says when that is done, and why it is right.

    CrdtBegin ->                    <- CrdtBegun: frontier and context of the other
    CrdtCompare, from some key ->   <- CrdtRanges: digests of the next 16 ranges
      of each that differs:
      CrdtFetch, a sketch ->        <- CrdtSketch: tells in what elements the range differs
      CrdtFetch, fingerprints ->    <- CrdtElements: those that the other has, or has otherwise
      or, where much differs:
      CrdtFetch, all ->             <- CrdtElements: 256 of the range, and so on
    CrdtEnd ->

A node that holds nothing asks for everything at once. Some ranges are worked at side by side, and
of each at most one answer is on its way while another is joined, so neither side holds more than a
few answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import msgspec

from quorate.base.types import NodeId
from quorate.crdt.codec import decode_context, decode_element
from quorate.crdt.context import CausalContext
from quorate.crdt.delta import path_of
from quorate.crdt.digest import MODULUS, stored_digest
from quorate.crdt.dots import Leaf, Path, epoch_of, member_of
from quorate.crdt.folding import generation_of, is_whole
from quorate.crdt.kinds import ORMap
from quorate.crdt.sketch import (
    CELL_BYTES,
    CELLS_MAX,
    FINGERPRINT_BYTES,
    Sketch,
    cells_for,
    fingerprint,
)
from quorate.errors import CrdtFormatError, QuorateError, UnavailableError
from quorate.replication.converging.committing import Commit
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.records import Frontier, raise_to
from quorate.replication.converging.scanning import Scanned, scan
from quorate.replication.converging.serving import (
    ELEMENTS_BYTES_MAX,
    ELEMENTS_MAX,
    FINGERPRINTS_MAX,
    RANGE_BYTES,
)
from quorate.replication.converging.view import ELEMENTS
from quorate.replication.transport import (
    CrdtBegin,
    CrdtBegun,
    CrdtCompare,
    CrdtElements,
    CrdtEnd,
    CrdtFetch,
    CrdtFrame,
    CrdtRange,
    CrdtRanges,
    CrdtServed,
    CrdtSketch,
)

T = TypeVar("T")

#: What is not answered is asked again, and given up when nothing at all came for so long.
ASK_AGAIN_S: Final = 1.0
PATIENCE_S: Final = 5.0
#: Ranges that are worked at side by side.
LANES: Final = 3
#: A difference of which nothing is known is first taken for so large.
GUESS: Final = 12
#: A sketch was too small: the next one is so many times larger.
LARGER: Final = 3
#: Sketches of one range; then all of it is asked for.
TRIES: Final = 4
#: Ranges with no more elements are not worth a sketch.
FEW: Final = 24

#: An element as the other has it: its bytes, its path, its leaf.
Theirs = dict[bytes, tuple[bytes, Path, Leaf]]


class Counts(msgspec.Struct):
    """What all sessions of a node came to. *joined*: elements that changed here."""

    ranges: int = 0
    divergent: int = 0
    fetched: int = 0
    joined: int = 0


class _Own:
    """The elements of a range here, by fingerprint."""

    def __init__(self) -> None:
        self.elements: dict[int, tuple[int, bytes]] = {}  # digest, key
        self.scanned = Scanned()

    def note(self, digest: int, key: bytes, _leaf: bytes) -> None:
        self.elements[fingerprint(digest)] = (digest, key)

    def suits(self, cells: int) -> bool:
        """Whether a sketch is likely to cost less than all elements."""
        scanned = self.scanned
        all_of_them = scanned.end is None and len(self.elements) == scanned.count
        return all_of_them and 2 * cells * CELL_BYTES < scanned.size_bytes

    def difference(self, sketch: CrdtSketch, cells: int) -> set[int] | None:
        """In which elements the range differs from another's *sketch*, if that is large enough."""
        if not sketch.cells:
            return None
        mine = Sketch(cells)
        for each in self.elements:
            mine.add(each)
        return mine.difference(Sketch.decode(sketch.cells))


class Pull:
    """One session with *node*, under the number *session*. *full*: even if it has no record that
    is not here; *folded*: even if it has folded lives that this node cannot fold any more. While it
    runs, no records may be joined here."""

    def __init__(
        self,
        engine: Engine,
        send: Callable[[NodeId, CrdtFrame], None],
        node: NodeId,
        session: int,
        counts: Counts,
        *,
        full: bool,
        folded: bool = False,
    ) -> None:
        self.node = node
        self.session = session
        self._engine = engine
        self._send = send
        self._counts = counts
        self._full = full
        self._folded = folded
        self._theirs = 0  # how many folds the other has behind it
        self._me = NodeId(engine.member)
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[CrdtServed | None]] = {}
        self._ended: QuorateError | None = None
        self._progress_s = engine.clock.monotonic_s()
        self._density = 0.0  # differing elements to all, in the ranges so far
        self._stage = engine.own.generation
        self._behind = False  # the other has folded what this node cannot fold any more
        self._context = CausalContext()
        self._frontier: Frontier = {}
        self._retired: dict[int, int] = {}
        self._known: dict[int, None] = {}

    # --- what the other says ------------------------------------------------------------------

    def receive(self, frame: CrdtServed) -> None:
        """An answer, or the end."""
        if frame.sender != self.node or frame.session != self.session:
            return
        if isinstance(frame, CrdtEnd):
            self.end(UnavailableError(f"node {self.node} ended the session: {frame.why}"))
            return
        number = 0 if isinstance(frame, CrdtBegun) else frame.number
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(frame)

    def end(self, why: QuorateError) -> None:
        """Give the session up."""
        self._ended = self._ended or why
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)

    async def _ask(self, kind: type[T], question: Callable[[int], CrdtFrame]) -> T:
        """The answer to a question, which is sent until there is one.

        Raises:
            UnavailableError: there is none, or the session ended.
            CrdtFormatError: it is an answer to something else.
        """
        number, self._number = self._number, self._number + 1
        future: asyncio.Future[CrdtServed | None] = self._loop.create_future()
        self._waiting[number] = future
        try:
            while not future.done():
                if self._ended is not None:
                    raise self._ended
                if self._engine.clock.monotonic_s() - self._progress_s > PATIENCE_S:
                    raise UnavailableError(f"node {self.node} did not answer for {PATIENCE_S} s")
                self._send(self.node, question(number))
                await asyncio.wait((future,), timeout=ASK_AGAIN_S)
        finally:
            del self._waiting[number]
        if self._ended is not None:
            raise self._ended
        answer = future.result()
        if not isinstance(answer, kind):
            raise CrdtFormatError(
                f"node {self.node} answered a {kind.__name__} with {answer!r:.80}"
            )
        self._progress_s = self._engine.clock.monotonic_s()
        return answer

    # --- the session --------------------------------------------------------------------------

    async def run(self) -> bool:
        """All of it. False: there was nothing to be had.

        Raises:
            QuorateError: it was given up; what was joined so far is good, and stays.
        """
        await self._idle()
        begun = await self._ask(CrdtBegun, lambda _: CrdtBegin(self._me, self.session))
        blank = is_blank(self._engine)
        self._take(begun, blank=blank)
        try:
            if not self._full and self._engine.covers(self._frontier):
                return False
            if blank:
                await self._commit(lambda commit: commit.begin_at(self._stage))
                await self._stream(b"", None)
            else:
                await self._compare()
            await self._commit(self._complete)
        finally:
            self._send(self.node, CrdtEnd(self._me, self.session))
        return True

    async def _idle(self) -> None:
        """Until records are on the disk that were on their way there when others began to be
        dropped: one that is joined behind the comparison could bring back what was removed."""
        idle: asyncio.Future[None] = self._loop.create_future()
        self._engine.when_idle(lambda: None if idle.done() else idle.set_result(None))
        await idle
        self._stage = self._engine.own.generation

    def _take(self, begun: CrdtBegun, *, blank: bool) -> None:
        """Note what the other began with.

        Raises:
            CrdtFormatError: it cannot be read.
            UnavailableError: the two are not ready for each other.
        """
        self._context = decode_context(begun.context)
        self._frontier = dict(begun.frontier)
        self._retired = dict(begun.retired)
        mine, theirs = generation_of(self._stage), generation_of(begun.generation)
        self._behind = theirs > mine and self._folded and not blank
        if not (is_whole(self._stage) and is_whole(begun.generation)) or not (
            mine == theirs or self._behind or blank
        ):
            raise UnavailableError(
                f"node {self.node} is at stage {begun.generation} of folding, and this node at "
                f"{self._stage}: neither can take over from the other yet"
            )
        if blank:
            self._stage = 3 * theirs
        self._theirs = theirs
        for actor in (*self._context.actors(), *self._frontier):
            self._check_actor(actor)

    def _check_actor(self, actor: int) -> None:
        """Nothing is taken of lives that the log has not admitted, as far as it is known here.

        Raises:
            UnavailableError: this is one.
        """
        if actor in self._known:
            return
        engine = self._engine
        retired = epoch_of(actor) <= self._retired.get(member_of(actor), 0)
        if not (retired or engine.may_take(actor)):
            raise UnavailableError(
                f"node {self.node} holds data of life {epoch_of(actor)} of member "
                f"{member_of(actor)}, which the log has not admitted as far as this node knows"
            )
        self._known[actor] = None

    def _sees(self, actor: int, counter: int) -> bool:
        """What the other has accounted for."""
        return self._context.contains(actor, counter) or self._has_retired(actor)

    def _has_retired(self, actor: int) -> bool:
        """Whether the other has folded that life."""
        return epoch_of(actor) <= self._retired.get(member_of(actor), 0)

    def _complete(self, commit: Commit) -> None:
        if self._behind:
            commit.begin_at(3 * self._theirs)
        commit.complete(self._context, self._frontier, self._retired)

    async def _commit(self, change: Callable[[Commit], None]) -> None:
        """Make *change* durable, between other commits.

        Raises:
            QuorateError: it is not.
        """
        done: asyncio.Future[QuorateError | None] = self._loop.create_future()
        generation = generation_of(self._stage)

        def ended(error: QuorateError | None) -> None:
            if not done.done():
                done.set_result(error)

        def work(engine: Engine) -> Commit | None:
            if done.done():  # the session was given up
                return None
            commit = engine.open()
            stage = engine.own.generation
            same = generation_of(stage) == generation and is_whole(stage)
            if not same and not is_blank(engine):
                ended(UnavailableError("lives were folded since the session began"))
                return None
            change(commit)
            commit.tidy()
            commit.ended = ended
            return commit

        self._engine.alone(work)
        error = await done
        if error is not None:
            raise error
        if self._ended is not None:
            raise self._ended
        self._progress_s = self._engine.clock.monotonic_s()

    # --- comparing ----------------------------------------------------------------------------

    async def _compare(self) -> None:
        """Compare all ranges, and repair those that differ."""
        ranges: asyncio.Queue[tuple[bytes, CrdtRange] | None] = asyncio.Queue(maxsize=LANES)

        async def find() -> None:
            at: bytes | None = b""
            while at is not None:
                for each in await self._ranges(at):
                    await ranges.put((at or b"", each))
                    at = each.end
            for _ in range(LANES):
                await ranges.put(None)

        async def work() -> None:
            while (found := await ranges.get()) is not None:
                await self._repair(*found)

        await self._together(find(), *[work() for _ in range(LANES)])

    async def _together(self, *works: Awaitable[None]) -> None:
        """All of *works*, or none any more when one fails."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ranges(self, start: bytes) -> tuple[CrdtRange, ...]:
        answer = await self._ask(
            CrdtRanges, lambda number: CrdtCompare(self._me, self.session, number, start)
        )
        at: bytes | None = start
        for each in answer.ranges:
            if at is None or (each.end is not None and each.end <= at):
                raise CrdtFormatError(f"node {self.node} sent ranges out of order")
            at = each.end
        if not answer.ranges:
            raise CrdtFormatError(f"node {self.node} sent no ranges")
        return answer.ranges

    async def _repair(self, start: bytes, theirs: CrdtRange) -> None:
        """Take over what the other has in one range, if it differs."""
        end = theirs.end
        self._counts.ranges += 1
        own = await self._scan_own(start, end)
        if own.scanned.digest == _number(theirs.digest) and own.scanned.end is None:
            return
        self._counts.divergent += 1
        cells = self._first_cells(own, theirs)
        for _ in range(TRIES):
            if theirs.count <= FEW or not own.suits(cells):
                break
            sketch = await self._sketch(start, end, cells)
            found = own.difference(sketch, cells)
            if found is None:
                cells = min(LARGER * cells, CELLS_MAX)
                continue
            share = len(found) / max(theirs.count, own.scanned.count)
            self._density = (self._density + share) / 2 if self._density else share
            if await self._take_over(start, end, own, found, _number(sketch.digest)):
                return
            own = await self._scan_own(start, end)  # some changed while they were asked for
        await self._stream(start, end)

    async def _scan_own(self, start: bytes, end: bytes | None) -> _Own:
        own = _Own()
        own.scanned = await scan(
            self._engine.store,
            start,
            end,
            count_max=FINGERPRINTS_MAX,
            bytes_max=4 * RANGE_BYTES,
            each=own.note,
        )
        return own

    def _first_cells(self, own: _Own, theirs: CrdtRange) -> int:
        """For as large a difference as ranges had so far, or as the numbers of elements say."""
        guess = GUESS
        if self._density:
            guess = round(self._density * max(theirs.count, own.scanned.count) * 1.2)
        return cells_for(max(guess, abs(theirs.count - own.scanned.count)))

    async def _sketch(self, start: bytes, end: bytes | None, cells: int) -> CrdtSketch:
        return await self._ask(
            CrdtSketch,
            lambda number: CrdtFetch(self._me, self.session, number, start, end, cells),
        )

    async def _take_over(
        self, start: bytes, end: bytes | None, own: _Own, found: set[int], digest: int
    ) -> bool:
        """Join the elements of a range with these fingerprints, on whichever side they are. False:
        they are not all that it takes to come to the other's *digest*."""
        mine = [own.elements[each] for each in found if each in own.elements]
        wanted = sorted(each for each in found if each not in own.elements)
        theirs: Theirs = {}
        frontier = dict(self._frontier)
        at: bytes | None = start
        while wanted and at is not None:
            answer = await self._fetch(at, end, wanted)
            theirs.update(self._decoded(answer, at))
            raise_to(frontier, dict(answer.frontier))
            at = None if answer.end == end else answer.end
        total = own.scanned.digest - sum(each for each, _key in mine)
        total += sum(stored_digest(key, leaf) for key, (leaf, _, _) in theirs.items())
        if total % MODULUS != digest:
            return False
        keys = sorted({*theirs, *[key for _digest, key in mine]})
        for first in range(0, len(keys), ELEMENTS_MAX):
            await self._join(keys[first : first + ELEMENTS_MAX], theirs, frontier)
        return True

    async def _fetch(
        self, start: bytes, end: bytes | None, fingerprints: Iterable[int] = ()
    ) -> CrdtElements:
        wanted = b"".join([each.to_bytes(FINGERPRINT_BYTES, "big") for each in fingerprints])
        answer = await self._ask(
            CrdtElements,
            lambda number: CrdtFetch(self._me, self.session, number, start, end, 0, wanted),
        )
        at = answer.end
        if at != end and (at is None or at <= start or (end is not None and at > end)):
            raise CrdtFormatError(f"node {self.node} sent another range than it was asked for")
        stage = answer.generation
        if generation_of(stage) != self._theirs or not is_whole(stage):
            raise UnavailableError(f"node {self.node} has folded lives since the session began")
        return answer

    def _decoded(self, answer: CrdtElements, start: bytes) -> Theirs:
        """The elements of an answer.

        Raises:
            CrdtFormatError: they are none, or not of the range that was asked for.
            UnavailableError: they are of lives that are not admitted.
        """
        found: Theirs = {}
        for key, encoded in answer.elements:
            path, leaf = decode_element(ORMap, key, encoded)
            if key < start or (answer.end is not None and key >= answer.end):
                raise CrdtFormatError(f"node {self.node} sent an element of another range")
            for actor, _counter, _payload in leaf:
                self._check_actor(actor)
            found[key] = (encoded, path, leaf)
        self._counts.fetched += len(found)
        return found

    # --- taking over --------------------------------------------------------------------------

    async def _stream(self, start: bytes, end: bytes | None) -> None:
        """Take over all that the other has in a range, asking for what comes next while joining."""
        asked = asyncio.ensure_future(self._fetch(start, end))
        try:
            at: bytes | None = start
            while at is not None:
                answer = await asked
                first, at = at, None if answer.end == end else answer.end
                if at is not None:
                    asked = asyncio.ensure_future(self._fetch(at, end))
                await self._join_range(first, answer)
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def _join_range(self, start: bytes, answer: CrdtElements) -> None:
        """Join all elements from *start* on, up to the end of *answer*, that are there or here."""
        theirs = self._decoded(answer, start)
        frontier = dict(self._frontier)
        raise_to(frontier, dict(answer.frontier))
        view, end = self._engine.view, answer.end
        at: bytes | None = start
        while at is not None:
            page = self._engine.store.page(ELEMENTS, at, end, ELEMENTS_MAX, ELEMENTS_BYTES_MAX)
            here = [key for key, _leaf in page]
            behind = page[-1][0] + b"\0" if page else None
            if behind is not None and view.first(behind, end) is None:
                behind = None
            there = [key for key in theirs if at <= key and (behind is None or key < behind)]
            await self._join(sorted({*here, *there}), theirs, frontier)
            at = behind

    async def _join(self, keys: list[bytes], theirs: Theirs, frontier: Frontier) -> None:
        """Join these elements, of which the other holds what it holds in *theirs*."""
        elements: list[tuple[Path, Leaf]] = []
        for key in keys:
            element = theirs.get(key)
            if element is None:
                elements.append((path_of(key), ()))
            elif element[0] != self._engine.store.get(ELEMENTS, key):
                elements.append(element[1:])
        if not elements:
            return

        def change(commit: Commit) -> None:
            retired = self._has_retired if self._behind else None
            self._counts.joined += commit.join_elements(elements, self._sees, retired)
            commit.show(frontier)

        await self._commit(change)


def is_blank(engine: Engine) -> bool:
    """Whether nothing is here but what this life of the node did, if anything."""
    own = engine.own
    others = [actor for actor in engine.frontier if actor != own.actor]
    return not (others or own.ahead or own.generation)


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big")

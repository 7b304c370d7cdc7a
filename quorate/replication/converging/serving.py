"""The side of a repair that has what the other lacks: it answers questions about its elements.

Answers are made one after another, in slices, so that however many ask, the node has time for its
work. Nothing is kept of a session but what it began with: each answer is of the elements as they
are durable by then. A question that is lost, or comes when too many wait, is asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from quorate.base.limits import KIB, MIB
from quorate.base.types import NodeId
from quorate.crdt.codec import encode_context
from quorate.crdt.digest import DIGEST_BYTES, stored_digest
from quorate.crdt.folding import generation_of, is_whole
from quorate.crdt.sketch import CELLS_MAX, FINGERPRINT_BYTES, Sketch, fingerprint
from quorate.errors import CrdtFormatError, QuorateError
from quorate.replication.clock import Clock
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.records import Frontier, pairs
from quorate.replication.converging.scanning import PAUSE_S, SLICE_ELEMENTS, scan
from quorate.replication.converging.view import ELEMENTS
from quorate.replication.transport import (
    CrdtBegin,
    CrdtBegun,
    CrdtCompare,
    CrdtElements,
    CrdtEnd,
    CrdtFetch,
    CrdtFrame,
    CrdtPull,
    CrdtRange,
    CrdtRanges,
    CrdtSketch,
)

T = TypeVar("T")

_logger = logging.getLogger("quorate.crdt")

#: One range that is compared: at most so many elements, of about so many bytes.
RANGE_ELEMENTS: Final = 2048
RANGE_BYTES: Final = 1 * MIB
#: Ranges in one answer.
RANGES_MAX: Final = 16
#: Elements in one answer, which the other joins in one commit, and their bytes; always one.
ELEMENTS_MAX: Final = 256
ELEMENTS_BYTES_MAX: Final = 256 * KIB
FINGERPRINTS_MAX: Final = 2 * RANGE_ELEMENTS
#: Questions of one session that wait; what is beyond is asked again.
ASKED_MAX: Final = 8
#: A session whose other side says nothing for so long is forgotten.
IDLE_S: Final = 30.0


class _Session:
    """One puller's. What it began with never changes."""

    def __init__(self, number: int, begun: CrdtBegun, frontier: Frontier) -> None:
        self.number = number
        self.begun = begun
        self.frontier = frontier
        self.asked: dict[int, None] = {}
        self.heard_s = 0.0


class Serving:
    """*send*: to a member, or into nothing. *failed*: of an error that nobody expected."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        send: Callable[[NodeId, CrdtFrame], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._send = send
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[NodeId, _Session] = {}
        self._asked: deque[tuple[_Session, CrdtCompare | CrdtFetch]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def receive(self, frame: CrdtPull) -> None:
        """A question of one that pulls."""
        if isinstance(frame, CrdtBegin):
            self._engine.when_idle(lambda: self._begin(frame))
            return
        session = self._sessions.get(frame.sender)
        if session is None or session.number != frame.session:
            self._end(frame.sender, frame.session, "the session is not known here, any more")
            return
        session.heard_s = self._clock.monotonic_s()
        if frame.number not in session.asked and len(session.asked) < ASKED_MAX:
            session.asked[frame.number] = None
            self._asked.append((session, frame))
            if self._worker is None:
                self._worker = self._loop.create_task(self._work(), name="quorate-crdt-serve")

    def ended(self, frame: CrdtEnd) -> None:
        """One that pulls needs no more."""
        session = self._sessions.get(frame.sender)
        if session is not None and session.number == frame.session:
            del self._sessions[frame.sender]

    def on_tick(self, now_s: float) -> None:
        """Forget those that said nothing for long."""
        for node, session in list(self._sessions.items()):
            if now_s - session.heard_s > IDLE_S:
                del self._sessions[node]

    def stop(self) -> None:
        """Answer no more."""
        if self._worker is not None:
            self._worker.cancel()
        self._sessions.clear()

    def _begin(self, frame: CrdtBegin) -> None:
        """Elements, context and frontier are of one state now. Asked again, the answer is the
        same: by then elements may be newer than what the session began with, never older."""
        engine = self._engine
        if engine.own.ahead:
            self._end(frame.sender, frame.session, "it is itself taking over from another")
            return
        if not is_whole(engine.own.generation):
            self._end(frame.sender, frame.session, "it is folding lives")
            return
        session = self._sessions.get(frame.sender)
        if session is None or session.number != frame.session:
            begun = CrdtBegun(
                NodeId(engine.member),
                frame.session,
                engine.own.generation,
                pairs(engine.frontier, engine.frontier),
                encode_context(engine.view.context),
                tuple(sorted(engine.own.retired.items())),
            )
            session = _Session(frame.session, begun, engine.frontier)
            self._sessions[frame.sender] = session
        session.heard_s = self._clock.monotonic_s()
        self._send(frame.sender, session.begun)

    def _end(self, node: NodeId, number: int, why: str) -> None:
        self._send(node, CrdtEnd(NodeId(self._engine.member), number, why))

    # --- answers ------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Answer one question after another until none is left."""
        try:
            while self._asked:
                session, frame = self._asked.popleft()
                if self._sessions.get(frame.sender) is session:
                    await self._answer(session, frame)
                    session.asked.pop(frame.number, None)
                    await asyncio.sleep(PAUSE_S)
        except Exception as error:
            _logger.exception("answering one that pulls CRDT data")
            self._failed(error)
        finally:
            self._worker = None

    async def _answer(self, session: _Session, frame: CrdtCompare | CrdtFetch) -> None:
        try:
            answer: CrdtFrame
            if isinstance(frame, CrdtCompare):
                answer = await self._ranges(frame)
            elif frame.cells:
                answer = await self._sketch(frame)
            elif frame.fingerprints:
                answer = await self._chosen(session, frame)
            else:
                answer = await self._idle(lambda: self._elements(session, frame))
        except QuorateError as error:
            _logger.error("node %d cannot be answered: %s", frame.sender, error)  # noqa: TRY400
            self._sessions.pop(frame.sender, None)
            self._end(frame.sender, frame.session, str(error))
            return
        stage = self._engine.own.generation
        same = generation_of(stage) == generation_of(session.begun.generation)
        if not same or not is_whole(stage):
            self._sessions.pop(frame.sender, None)
            self._end(frame.sender, frame.session, "lives were folded since the session began")
            return
        self._send(frame.sender, answer)

    async def _ranges(self, frame: CrdtCompare) -> CrdtRanges:
        ranges: list[CrdtRange] = []
        at: bytes | None = frame.start
        while at is not None and len(ranges) < RANGES_MAX:
            scanned = await scan(
                self._engine.store, at, None, count_max=RANGE_ELEMENTS, bytes_max=RANGE_BYTES
            )
            at = scanned.end
            digest = scanned.digest.to_bytes(DIGEST_BYTES, "big")
            ranges.append(CrdtRange(at, scanned.count, digest))
        sender = NodeId(self._engine.member)
        return CrdtRanges(sender, frame.session, frame.number, tuple(ranges))

    async def _sketch(self, frame: CrdtFetch) -> CrdtSketch:
        if frame.cells % 3 or not 0 < frame.cells <= CELLS_MAX:
            raise CrdtFormatError(f"no sketch has {frame.cells} cells")
        sketch = Sketch(frame.cells)
        scanned = await scan(
            self._engine.store,
            frame.start,
            frame.end,
            count_max=FINGERPRINTS_MAX,
            each=lambda digest, _key, _leaf: sketch.add(fingerprint(digest)),
        )
        return CrdtSketch(
            NodeId(self._engine.member),
            frame.session,
            frame.number,
            scanned.count,
            scanned.digest.to_bytes(DIGEST_BYTES, "big"),
            sketch.encode() if scanned.end is None else b"",
        )

    def _elements(self, session: _Session, frame: CrdtFetch) -> CrdtElements:
        engine, end = self._engine, frame.end
        page = engine.store.page(ELEMENTS, frame.start, end, ELEMENTS_MAX, ELEMENTS_BYTES_MAX)
        if page and engine.view.first(page[-1][0] + b"\0", end) is not None:
            end = page[-1][0] + b"\0"
        return self._found(session, frame, end, page)

    async def _chosen(self, session: _Session, frame: CrdtFetch) -> CrdtElements:
        """The elements with certain fingerprints, as far as they fit into one answer."""
        fingerprints = frame.fingerprints
        if len(fingerprints) > FINGERPRINTS_MAX * FINGERPRINT_BYTES:
            raise CrdtFormatError(f"too many fingerprints: {len(fingerprints)} bytes")
        wanted = {
            int.from_bytes(fingerprints[at : at + FINGERPRINT_BYTES], "big")
            for at in range(0, len(fingerprints), FINGERPRINT_BYTES)
        }
        found: list[tuple[bytes, bytes]] = []
        at: bytes | None = frame.start
        room = ELEMENTS_BYTES_MAX

        def look() -> bytes | None:
            nonlocal room
            page = self._engine.store.page(
                ELEMENTS, at or b"", frame.end, SLICE_ELEMENTS, ELEMENTS_BYTES_MAX
            )
            for key, leaf in page:
                if fingerprint(stored_digest(key, leaf)) in wanted:
                    room -= len(key) + len(leaf)
                    if found and (room < 0 or len(found) == ELEMENTS_MAX):
                        room = 0
                        return key
                    found.append((key, leaf))
            return page[-1][0] + b"\0" if page else None

        while at is not None and room > 0:
            at = await self._idle(look)
            await asyncio.sleep(PAUSE_S)
        return await self._idle(
            lambda: self._found(session, frame, frame.end if at is None else at, found)
        )

    def _found(
        self,
        session: _Session,
        frame: CrdtFetch,
        end: bytes | None,
        elements: list[tuple[bytes, bytes]],
    ) -> CrdtElements:
        """An answer with elements that no commit has changed since the frontier was what it is, or
        that were read before."""
        engine, before = self._engine, session.frontier
        more = {
            actor: sequence
            for actor, sequence in engine.shown().items()
            if sequence > before.get(actor, 0)
        }
        return CrdtElements(
            NodeId(engine.member),
            frame.session,
            frame.number,
            engine.own.generation,
            end,
            tuple(elements),
            pairs(more, more),
        )

    async def _idle(self, work: Callable[[], T]) -> T:
        """The result of *work*, done while no commit is under way."""
        future: asyncio.Future[T] = self._loop.create_future()

        def now() -> None:
            if not future.done():
                try:
                    future.set_result(work())
                except QuorateError as error:
                    future.set_exception(error)

        self._engine.when_idle(now)
        return await future

"""How widely something is known: when a write is confirmed, and when a read may be answered.

Which members count is what the log says at the moment of the question, both halves of it while
the configuration is joint. A member confirms a record when it is joined and on its disk.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from quorate.base.crdt_frames import NOWHERE, Position
from quorate.base.levels import LEVELS, QUORUM, STRONG, Level
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership
from quorate.consensus.quorum import has_quorum, quorum_size, quorum_value
from quorate.crdt.folding import generation_of
from quorate.errors import BadCommandError, OverloadedError, QuorateError, UnavailableError
from quorate.replication.clock import Clock
from quorate.replication.converging.disseminating import Disseminating
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.records import FOLDS, Frontier, marks_of, raise_to
from quorate.replication.transport import CrdtKnown

#: A write that was not confirmed for so long is answered as it stands, and who has not confirmed.
CONFIRM_S: Final = 2.0
#: A read that could not be answered for so long is refused.
READ_S: Final = 2.0
#: Members are asked again while a read waits.
ASK_AGAIN_S: Final = 0.25
POLL_S: Final = 0.01
WAITING_MAX: Final = 20_000
RETRY_AFTER_MS: Final = 100


class _Write(msgspec.Struct, frozen=True):
    actor: int
    sequence: int
    level: Level
    until_s: float
    sink: Callable[[tuple[int, ...]], None]


class _Read(msgspec.Struct):
    """A read that waits. *asked*: number of its question to the members, 0: it asks nobody;
    *answers*: by member, what it had then; *marks*: what this node has to come to."""

    level: Level
    until_s: float
    index: int
    marks: Frontier
    ready: Callable[[], None]
    failed: Callable[[QuorateError], None]
    asked: int = 0
    asked_s: float = 0.0
    answers: dict[int, Frontier] = {}
    gathered: bool = True


class Levels:
    """*membership*: in force now. *index*: of the last applied entry."""

    def __init__(
        self,
        engine: Engine,
        disseminating: Disseminating,
        clock: Clock,
        membership: Callable[[], Membership],
        index: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._disseminating = disseminating
        self._clock = clock
        self._membership = membership
        self._index = index
        self._writes: dict[tuple[int, Level], list[tuple[int, int, _Write]]] = {}  # heaps
        self._write_count = 0  # ever: keeps the order
        self._waiting = 0
        self._reads: list[_Read] = []
        self._next_ask = 0

    @staticmethod
    def level(number: int) -> Level:
        """The level of a frame.

        Raises:
            BadCommandError: there is none with that number.
        """
        if not 0 <= number < len(LEVELS):
            raise BadCommandError(f"this node knows no level {number}")
        return LEVELS[number]

    # --- writes -------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Raises OverloadedError if too many wait already."""
        if self._waiting >= WAITING_MAX or len(self._reads) >= WAITING_MAX:
            raise OverloadedError(
                f"{WAITING_MAX} calls wait for other members; try again in {RETRY_AFTER_MS} ms",
                RETRY_AFTER_MS,
            )

    def confirm(
        self, level: Level, actor: int, sequence: int, sink: Callable[[tuple[int, ...]], None]
    ) -> None:
        """Call *sink* when as many as *level* says have that record, with (), or when that took too
        long, with those that have not."""
        if self._confirmed(level, actor) >= sequence:
            sink(())
            return
        write = _Write(actor, sequence, level, self._clock.monotonic_s() + CONFIRM_S, sink)
        self._write_count += 1
        self._waiting += 1
        heap = self._writes.setdefault((actor, level), [])
        heapq.heappush(heap, (sequence, self._write_count, write))

    def _confirmed(self, level: Level, actor: int) -> int:
        """Up to which record of *actor* enough members have all."""
        if level not in {STRONG, QUORUM} or self._engine.is_retired(actor):
            return 2**63
        membership, here = self._membership(), self._here(actor)
        if level == QUORUM:
            return quorum_value(membership.voters, membership.voters_old, here)
        return min(here.values(), default=0)

    def _here(self, actor: int) -> dict[NodeId, int]:
        """By voter, up to which record of *actor* it has all."""
        me, membership = self._engine.member, self._membership()
        return {
            node: self._engine.frontier.get(actor, 0)
            if node == me
            else self._disseminating.known(node).get(actor, 0)
            for node in sorted({*membership.voters, *membership.voters_old})
        }

    def _release(self) -> None:
        for (actor, level), heap in list(self._writes.items()):
            confirmed = self._confirmed(level, actor)
            while heap and heap[0][0] <= confirmed:
                self._waiting -= 1
                heapq.heappop(heap)[2].sink(())
            if not heap:
                del self._writes[actor, level]

    def _give_up(self, now_s: float) -> None:
        for (actor, level), heap in list(self._writes.items()):
            late = [each for each in heap if each[2].until_s <= now_s]
            if not late:
                continue
            kept = [each for each in heap if each[2].until_s > now_s]
            heapq.heapify(kept)
            self._writes[actor, level] = kept
            here = self._here(actor)
            for sequence, _, write in sorted(late, key=lambda each: each[:2]):
                self._waiting -= 1
                write.sink(tuple(node for node, has in here.items() if has < sequence))

    # --- reads --------------------------------------------------------------------------------

    def reach(
        self,
        level: Level,
        position: Position,
        ready: Callable[[], None],
        failed: Callable[[QuorateError], None],
    ) -> None:
        """Call *ready* when this node has come to *position*, and for ``quorum`` and ``strong`` to
        all that a majority, or every voter, has confirmed when this was asked; or *failed*."""
        until_s = self._clock.monotonic_s() + READ_S
        read = _Read(level, until_s, position.index, marks_of(position), ready, failed)
        if level in {QUORUM, STRONG} and not self._alone():
            self._next_ask += 1
            read.asked, read.gathered, read.answers = self._next_ask, False, {}
            self._ask(read)
        if not self._serve(read):
            self._reads.append(read)

    def _alone(self) -> bool:
        membership = self._membership()
        return not membership.joint and membership.voters == (self._engine.member,)

    def _ask(self, read: _Read) -> None:
        read.asked_s = self._clock.monotonic_s()
        membership = self._membership()
        for node in sorted({*membership.voters, *membership.voters_old}):
            if node not in read.answers and node != self._engine.member:
                self._disseminating.tell(node, asks=read.asked)

    def _serve(self, read: _Read) -> bool:
        """Whether the read has been answered."""
        if not read.gathered:
            read.gathered = self._gathered(read)
        if not read.gathered or self._index() < read.index or not self._engine.covers(read.marks):
            return False
        read.ready()
        return True

    def _gathered(self, read: _Read) -> bool:
        membership = self._membership()
        present = dict.fromkeys(map(NodeId, read.answers), True)
        present[NodeId(self._engine.member)] = True
        if read.level == QUORUM:
            enough = has_quorum(membership.voters, membership.voters_old, present)
        else:
            enough = all(node in present for node in (*membership.voters, *membership.voters_old))
        if enough:
            for answer in read.answers.values():
                raise_to(read.marks, answer)
        return enough

    def _serve_all(self) -> None:
        if self._reads:
            reads, self._reads = self._reads, []
            self._reads = [read for read in reads if not self._serve(read)] + self._reads

    # --- changes of the voters ----------------------------------------------------------------

    async def hand_over(self, voters: Sequence[NodeId], timeout_s: float) -> None:
        """Wait until so many of *voters*, who are to be the next, have all that a majority of the
        present ones has confirmed, that every majority of them holds one who does. A quorum write
        acknowledged before this was called is then seen by quorum reads after the change; one
        that is acknowledged while the change is made may not be, until it has spread.

        Raises:
            UnavailableError: that took too long.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        lives = self._engine.lives
        if not lives.generation and not lives.known():  # nobody in this cluster ever wrote any
            return
        gathered: asyncio.Future[None] = loop.create_future()

        def ready() -> None:
            if not gathered.done():
                gathered.set_result(None)

        def failed(error: QuorateError) -> None:
            if not gathered.done():
                gathered.set_exception(error)

        self.reach(QUORUM, NOWHERE, ready, failed)
        await gathered
        marks = {FOLDS: self._engine.folds, **self._engine.frontier}
        needed = len(voters) - quorum_size(len(voters)) + 1
        while sum(self._has(node, marks) for node in voters) < needed:
            if loop.time() > end_s:
                lacking = [node for node in voters if not self._has(node, marks)]
                raise UnavailableError(
                    f"members {lacking}, who are to vote, do not have all CRDT data of those who "
                    f"vote now: try again when they have caught up"
                )
            await asyncio.sleep(POLL_S)

    def _has(self, node: NodeId, marks: Mapping[int, int]) -> bool:
        if node == self._engine.member:
            return self._engine.covers(marks)
        known = {**self._disseminating.known(node), FOLDS: self._disseminating.folds(node)}
        return all(
            sequence <= known.get(actor, 0) or (actor != FOLDS and self._engine.is_retired(actor))
            for actor, sequence in marks.items()
        )

    # --- what happens -------------------------------------------------------------------------

    def on_known(self, frame: CrdtKnown) -> None:
        """A member confirmed something, or answers."""
        if frame.answers:
            for read in self._reads:
                if read.asked and read.asked <= frame.answers and not read.gathered:
                    folds = generation_of(frame.generation)
                    read.answers[frame.sender] = {FOLDS: folds, **dict(frame.frontier)}
            self._serve_all()
        if self._writes:
            self._release()

    def progressed(self) -> None:
        """This node's frontier moved, or it applied more of the log."""
        self._serve_all()
        if self._writes:
            self._release()

    def on_tick(self, now_s: float) -> None:
        """Ask again, and give up on what takes too long."""
        self._release()
        self._give_up(now_s)
        kept: list[_Read] = []
        late: list[_Read] = []
        for read in self._reads:
            (late if read.until_s <= now_s else kept).append(read)
            if not read.gathered and now_s - read.asked_s >= ASK_AGAIN_S:
                self._ask(read)
        self._reads = kept
        for read in late:
            read.failed(UnavailableError(self._why_not(read)))

    def _why_not(self, read: _Read) -> str:
        if not read.gathered:
            here = [*read.answers, self._engine.member]
            return f"a {read.level} read was answered by members {sorted(here)} only"
        if self._index() < read.index:
            return f"this node has applied the log up to {self._index()}, not {read.index}, so far"
        lacking: Mapping[int, int] = {
            actor: sequence
            for actor, sequence in read.marks.items()
            if not self._engine.covers({actor: sequence})
        }
        if FOLDS in lacking:
            return "this node lacks what earlier lives of members did, or has not folded them yet"
        members = sorted({actor >> 32 for actor in lacking})
        return f"records of members {members} that are to be seen have not arrived here yet"

    def stop(self, error: QuorateError) -> None:
        """Answer everybody."""
        writes, self._writes = self._writes, {}
        for (actor, _level), heap in writes.items():
            here = self._here(actor)
            for sequence, _, write in sorted(heap, key=lambda each: each[:2]):
                write.sink(tuple(node for node, has in here.items() if has < sequence))
        reads, self._reads = self._reads, []
        for read in reads:
            read.failed(error)

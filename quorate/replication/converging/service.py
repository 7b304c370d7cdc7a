"""The second tier as one thing: what a node's clients and peers ask of it, and who does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any, Final, Protocol

import msgspec

from quorate.base.crdt_frames import (
    CrdtAnswer,
    CrdtFailed,
    CrdtRead,
    CrdtWrite,
    CrdtWritten,
)
from quorate.base.levels import QUORUM, STRONG, Level
from quorate.base.types import NodeId
from quorate.consensus.membership import Membership
from quorate.errors import ClosedError, QuorateError, StorageError, UnavailableError
from quorate.replication.clock import Clock
from quorate.replication.converging.answering import Asked, answer_all
from quorate.replication.converging.disseminating import Disseminating
from quorate.replication.converging.engine import Done, Engine, Events
from quorate.replication.converging.folding import FoldedLives, Folding
from quorate.replication.converging.levels import Levels
from quorate.replication.converging.lives import LivesCommand
from quorate.replication.converging.living import Lives
from quorate.replication.converging.reconciling import Reconciling
from quorate.replication.converging.remembering import KnownLives, Remembering
from quorate.replication.converging.reports import PresentLives, Reports
from quorate.replication.converging.rescuing import Rescuing
from quorate.replication.converging.scanning import digest_of
from quorate.replication.converging.stability import LeadersLives, Stability
from quorate.replication.converging.watching import Watchers
from quorate.replication.disk import JobRunner
from quorate.replication.transport import CrdtFrame, CrdtGone, CrdtKnown, CrdtRecord
from quorate.storage.elements import ElementStore

_logger = logging.getLogger("quorate.crdt")

TICK_S: Final = 0.1

WriteAnswer = CrdtWritten | CrdtFailed
ReadAnswer = CrdtAnswer | CrdtFailed


def crdt_failed(number: int, error: QuorateError, *, write: bool) -> CrdtFailed:
    """The answer to a frame as a whole."""
    retry_ms = getattr(error, "retry_after_ms", 0)
    return CrdtFailed(number, write, error.code, str(error), retry_ms)


def _never() -> bool:
    return False


def _to_nobody(command: LivesCommand) -> None:
    """There is no log."""


class Surroundings(msgspec.Struct, frozen=True):
    """What the second tier needs of the node around it. *send*: to a member, or into nothing.
    *membership*: in force. *index*: of the last applied entry. *begin*, *adopt*: see ``Engine``.
    *failed*: the disk did, the node must stop. *leads*, *propose*: see ``Stability``."""

    send: Callable[[NodeId, CrdtFrame], None]
    membership: Callable[[], Membership]
    index: Callable[[], int]
    begin: Callable[[], Awaitable[int]]
    adopt: Callable[[int], Awaitable[bool]]
    failed: Callable[[BaseException], None]
    leads: Callable[[], bool] = _never
    propose: Callable[[LivesCommand], None] = _to_nobody


class LivesOfAll(Lives, PresentLives, FoldedLives, LeadersLives, KnownLives, Protocol):
    """What the log says of lives: ``lives.LivesMachine``."""


class Converging:
    """One node's second tier. ``start`` it, feed it, ``stop`` it."""

    def __init__(
        self,
        member: int,
        store: ElementStore,
        runner: JobRunner,
        clock: Clock,
        random: Random,
        lives: LivesOfAll,
        surroundings: Surroundings,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._surroundings = surroundings
        self._ticker: asyncio.TimerHandle | None = None
        self._stopped = False
        self.engine = Engine(
            member,
            store,
            runner,
            clock,
            random,
            lives,
            Events(
                committed=lambda records: self.disseminating.committed(records),  # noqa: PLW0108  made below
                joined=lambda joined: self.disseminating.joined(joined),  # noqa: PLW0108
                progress=self._progressed,
                changed=lambda names: self.watchers.changed(names),  # noqa: PLW0108
                dropped=lambda: self.disseminating.dropped(),  # noqa: PLW0108
                failed=surroundings.failed,
            ),
            begin=surroundings.begin,
            adopt=surroundings.adopt,
            index=surroundings.index,
        )
        self.disseminating = Disseminating(
            self.engine,
            clock,
            surroundings.send,
            on_known=self._on_known,
            on_gone=lambda frame: self.reconciling.on_gone(frame),  # noqa: PLW0108  made below
        )
        self.levels = Levels(
            self.engine,
            self.disseminating,
            clock,
            surroundings.membership,
            surroundings.index,
        )
        membership = surroundings.membership
        self.remembering = Remembering(self.engine, lives, membership)
        self.reports = Reports(self.engine, lives, membership)
        self.folding = Folding(self.engine, lives, self.reports, self._tell_all)
        self.stability = Stability(
            lives,
            self.reports,
            membership,
            leads=surroundings.leads,
            propose=surroundings.propose,
        )
        self.reconciling = Reconciling(
            self.engine,
            self.disseminating,
            clock,
            random,
            surroundings.send,
            surroundings.failed,
            self.folding.is_behind,
        )
        self.rescuing = Rescuing(self.engine, self.disseminating)
        self.watchers = Watchers(lambda: self.engine.change_count, self._loop.call_later)

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tick."""
        self.engine.start()
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def stop(self, error: QuorateError | None = None) -> None:
        """Answer everybody who waits, and do nothing more. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._ticker is not None:
            self._ticker.cancel()
        reason = error or ClosedError("the node is stopping")
        self.reconciling.stop()
        self.engine.stop(reason)
        self.levels.stop(reason)
        self.watchers.stop(UnavailableError(str(reason)))

    def _tick(self) -> None:
        if self._stopped:
            return
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now_s = self._clock.monotonic_s()
        try:
            self.disseminating.on_tick(now_s)
            self.levels.on_tick(now_s)
            self.reconciling.on_tick(now_s)
            self.folding.look()
            self.stability.on_tick(now_s)
        except Exception as error:
            _logger.exception("the second tier fails")
            self._surroundings.failed(error)

    def _progressed(self) -> None:
        self.disseminating.progressed()
        self.levels.progressed()

    def applied(self) -> None:
        """The node has applied more of the log."""
        if self._stopped:
            return
        try:
            self.disseminating.applied()
            self.levels.progressed()
            self.folding.look()
        except StorageError as error:
            self._failed(error)

    # --- peers --------------------------------------------------------------------------------

    def receive(self, frame: CrdtFrame) -> None:
        """A frame from another member."""
        if self._stopped:
            return
        try:
            if isinstance(frame, CrdtRecord):
                self.disseminating.on_record(frame)
            elif isinstance(frame, CrdtKnown):
                self.disseminating.on_known(frame)
            elif isinstance(frame, CrdtGone):
                self.disseminating.on_gone(frame)
            else:
                self.reconciling.receive(frame)
        except StorageError as error:  # the disk cannot be read: as bad as one that is not written
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.stop(UnavailableError(f"the node's disk failed: {error}"))
        self._surroundings.failed(error)

    def peer_reached(self, node: NodeId) -> None:
        """Frames to *node* can be sent now."""
        self.disseminating.reached(node)

    def peer_lost(self, node: NodeId, *, connected: bool) -> None:
        """A connection to or from *node* broke; *connected*: frames can be sent to it all the same.
        It may have died, and come back with less."""
        if connected:
            self.disseminating.reached(node)
        else:
            self.disseminating.gone(node)
            self.reconciling.lost(node)

    def _tell_all(self) -> None:
        for node in self.disseminating.connected():
            self.disseminating.tell(node)

    def _on_known(self, frame: CrdtKnown) -> None:
        self.remembering.on_known(frame)
        self.reports.on_known(frame)
        self.levels.on_known(frame)
        self.reconciling.on_known(frame)

    async def pull(self, node: NodeId) -> None:
        """Take over all that *node* has now, although nothing may seem to be missing here.

        Raises:
            UnavailableError: it cannot be done now.
        """
        await self.reconciling.pull(node)

    async def digest(self) -> str:
        """A digest of all data: equal on nodes that have the same records.

        Raises:
            UnavailableError: the data keeps changing.
        """
        return await digest_of(self.engine)

    # --- clients ------------------------------------------------------------------------------

    def write(self, frame: CrdtWrite, sink: Callable[[WriteAnswer], None]) -> None:
        """Carry *frame* out, and answer at its level; *sink* is called once, in a later turn.

        Raises:
            QuorateError: it is refused, and nothing was done.
        """
        level = self.levels.level(frame.level)
        self.levels.check_room()

        def failed(error: QuorateError) -> None:
            sink(crdt_failed(frame.sequence, error, write=True))

        def done(outcome: Done | QuorateError) -> None:
            if isinstance(outcome, QuorateError):
                failed(outcome)
            else:
                self._written(frame, level, outcome, sink)

        def begin() -> None:
            try:
                self.engine.write(frame, done)
            except StorageError as error:
                self._failed(error)
                raise UnavailableError(f"the node's disk failed: {error}") from error

        def ready() -> None:
            try:
                begin()
            except QuorateError as error:
                failed(error)

        if frame.after.index or frame.after.marks:
            self.levels.reach("causal", frame.after, ready, failed)
        else:
            begin()

    def _written(
        self, frame: CrdtWrite, level: Level, done: Done, sink: Callable[[WriteAnswer], None]
    ) -> None:
        position = self.engine.position

        def confirmed(unconfirmed: tuple[int, ...]) -> None:
            sink(CrdtWritten(frame.sequence, position, done.results, unconfirmed))

        if level in {STRONG, QUORUM} and done.sequence:
            self.levels.confirm(level, done.actor, done.sequence, confirmed)
        else:
            confirmed(())

    def read(self, frame: CrdtRead, sink: Callable[[ReadAnswer], None]) -> None:
        """Answer *frame* at its level; *sink* is called once, at once or in a later turn.

        Raises:
            QuorateError: it is refused.
        """
        level = self.levels.level(frame.level)
        self.levels.check_room()

        def failed(error: QuorateError) -> None:
            sink(crdt_failed(frame.id, error, write=False))

        def answer() -> None:
            engine = self.engine
            try:
                asked = Asked(
                    engine.view,
                    engine.own.actor,
                    tuple(engine.lives.present()),
                    engine.own.generation,
                )
                results = answer_all(asked, frame.questions)
            except StorageError as error:
                failed(UnavailableError(f"the node's disk failed: {error}"))
                self._failed(error)
            except QuorateError as error:
                failed(error)
            else:
                sink(CrdtAnswer(frame.id, engine.position, msgspec.Raw(results)))

        def ready() -> None:
            self.engine.when_idle(answer)

        if level in {STRONG, QUORUM} or frame.after.index or frame.after.marks:
            self.levels.reach(level, frame.after, ready, failed)
        else:
            ready()

    # --- for operators ------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """How this tier stands, as plain values."""
        engine, disseminating = self.engine, self.disseminating
        stable: Mapping[int, int] = engine.lives.stable()
        behind = {
            str(node): sum(
                max(0, sequence - disseminating.known(node).get(actor, 0))
                for actor, sequence in engine.frontier.items()
            )
            for node in disseminating.connected()
        }
        return {
            "actor": engine.own.actor,
            "generation": engine.own.generation,
            "folds": engine.folds,
            "retired": {str(member): epoch for member, epoch in sorted(engine.own.retired.items())},
            "folding_waits_for": [int(node) for node in self.stability.waits_for()],
            "records": sum(engine.frontier.values()),
            "lives": len(engine.frontier),
            "context_width": engine.context_width,
            "journal_bytes": engine.own.journal_bytes,
            "store_bytes": engine.store.size_bytes(),
            "stability_lag": sum(
                max(0, sequence - stable.get(actor, 0))
                for actor, sequence in engine.frontier.items()
            ),
            "peers_behind": behind,
            "bytes_sent": disseminating.bytes_sent,
            "records_dropped": disseminating.records_dropped,
            "stamps_ahead": engine.drift_count,
            "reconciling": self.reconciling.describe(),
            "watchers": len(self.watchers),
            "problem": engine.living.problem or self.folding.problem,
        }

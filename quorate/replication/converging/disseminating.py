"""Passing records on: each node sends its own to every other as soon as they are durable, and
those of others to whoever lacks them and does not get them from their author.

Per peer and life, records go out in order, a bounded number of bytes ahead of what the peer has
confirmed; what is not confirmed in time goes out again. Nothing is sent that a peer is known to
have, so nothing comes back to where it came from. A peer that needs what the journal has no longer
is told so, and compares ranges (``reconciling``).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from quorate.base.limits import MIB
from quorate.base.types import NodeId
from quorate.crdt.codec import decode_delta
from quorate.crdt.delta import Delta
from quorate.crdt.dots import member_of
from quorate.crdt.folding import generation_of, takes
from quorate.errors import CrdtError, CrdtFormatError
from quorate.replication.clock import Clock
from quorate.replication.converging.committing import Arrived, Made
from quorate.replication.converging.engine import Engine
from quorate.replication.converging.records import (
    JOURNAL,
    RECORD_BYTES_MAX,
    Frontier,
    decode_record,
    journal_key,
    pairs,
    parse_journal_key,
    raise_to,
)
from quorate.replication.transport import CrdtFrame, CrdtGone, CrdtKnown, CrdtRecord

_logger = logging.getLogger("quorate.crdt")

#: Bytes under way to one peer without its confirmation.
WINDOW_BYTES: Final = 1 * MIB
#: Without a confirmation for so long, all that is under way goes out again.
RESEND_S: Final = 1.0
#: The same, if the peer has just said that it lacks what is under way.
RESEND_LACKING_S: Final = 0.25
#: A peer that lacks another's records, and comes no further for so long, gets them from here.
RELAY_S: Final = 1.0
#: How often peers are told all, while they differ, and while they do not.
TELL_S: Final = 0.5
TELL_QUIET_S: Final = 5.0
#: After a gap, the sender is told at once, but no more often than this.
TELL_GAP_S: Final = 0.05
GONE_S: Final = 1.0
#: Whoever sent what waits for other records is asked for these so often, by a question of this
#: number: the answer is of no interest, what comes with it is.
UNBLOCK_S: Final = 0.2
UNBLOCK: Final = -1
#: Records of lives that the log has not admitted here yet: it mostly does within milliseconds.
EARLY_MAX: Final = 16


class _Peer:
    """What is known of one member while it is connected."""

    def __init__(self) -> None:
        self.heard = False  # it has told all that it has
        self.known: Frontier = {}
        self.folds = 0  # that it has behind it
        self.sent: Frontier = {}
        self.under_way: deque[tuple[int, int, int]] = deque()  # actor, sequence, bytes
        self.under_way_bytes = 0
        self.progress_s = 0.0
        self.lacks: dict[int, tuple[int, float]] = {}  # actor: confirmed so far, since when
        self.told_s = -TELL_QUIET_S
        self.gone_s = -GONE_S

    def forget_sent(self) -> None:
        self.sent.clear()
        self.under_way.clear()
        self.under_way_bytes = 0

    def confirmed(self, now_s: float) -> None:
        """Count off what ``known`` has come to cover."""
        under_way = self.under_way
        while under_way and under_way[0][1] <= self.known.get(under_way[0][0], 0):
            self.under_way_bytes -= under_way.popleft()[2]
            self.progress_s = now_s


class Disseminating:
    """*send*: to a member, or into nothing. *on_known*: a peer confirmed something. *on_gone*: a
    peer cannot send what comes next here."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        send: Callable[[NodeId, CrdtFrame], None],
        *,
        on_known: Callable[[CrdtKnown], None],
        on_gone: Callable[[CrdtGone], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._send = send
        self._on_known = on_known
        self._on_gone = on_gone
        self._peers: dict[NodeId, _Peer] = {}
        self._expected: Frontier = {}  # by actor, the last record that was taken in or waits
        self._early: dict[tuple[int, int], CrdtRecord] = {}  # of lives not admitted here, yet
        self._refused: Frontier = {}
        self._blocked: list[int] = []
        self.deaf = False  #: records are dropped: a range is being taken over
        self.bytes_sent = 0
        self.records_sent = 0
        self.records_dropped = 0

    # --- peers --------------------------------------------------------------------------------

    def reached(self, node: NodeId) -> None:
        """Frames to *node* can be sent now."""
        self._peers[node] = _Peer()
        if self._engine.frontier or self._engine.own.generation:
            self.tell(node)

    def gone(self, node: NodeId) -> None:
        """*node* cannot be sent to any more."""
        self._peers.pop(node, None)

    def connected(self) -> list[NodeId]:
        """Members that can be sent to."""
        return sorted(self._peers)

    def known(self, node: NodeId) -> Mapping[int, int]:
        """What *node* has confirmed, since it was reached."""
        peer = self._peers.get(node)
        return {} if peer is None else peer.known

    def folds(self, node: NodeId) -> int:
        """How often *node* has folded lives away, as it has told since it was reached."""
        peer = self._peers.get(node)
        return 0 if peer is None else peer.folds

    # --- going out ----------------------------------------------------------------------------

    def committed(self, records: Iterable[Made]) -> None:
        """Own records are durable: out they go, to whoever has all before them."""
        generation = self._engine.own.generation
        for actor, sequence, delta, after in records:
            member = NodeId(self._engine.member)
            frame = CrdtRecord(member, generation, actor, sequence, delta, after)
            for node, peer in self._peers.items():
                before = max(peer.sent.get(actor, 0), peer.known.get(actor, 0))
                ready = peer.heard or sequence == 1
                if ready and before == sequence - 1 and peer.under_way_bytes < WINDOW_BYTES:
                    self._push(node, peer, frame)

    def _push(self, node: NodeId, peer: _Peer, frame: CrdtRecord) -> None:
        if not peer.under_way:
            peer.progress_s = self._clock.monotonic_s()
        peer.sent[frame.actor] = frame.sequence
        peer.under_way.append((frame.actor, frame.sequence, len(frame.delta)))
        peer.under_way_bytes += len(frame.delta)
        self.bytes_sent += len(frame.delta)
        self.records_sent += 1
        self._send(node, frame)

    def _pump(self, node: NodeId, peer: _Peer, *, relay: bool = False) -> None:
        """Send what *node* lacks, as far as the window goes."""
        if not peer.heard:
            return
        now_s = self._clock.monotonic_s()
        for actor, sequence in sorted(self._engine.frontier.items()):
            if peer.known.get(actor, 0) >= sequence:
                peer.lacks.pop(actor, None)
                continue
            if member_of(actor) == self._engine.member or relay or self._stuck(peer, actor, now_s):
                self._pump_actor(node, peer, actor, sequence)

    def _stuck(self, peer: _Peer, actor: int, now_s: float) -> bool:
        """Whether the peer has come no further with *actor* for ``RELAY_S``."""
        confirmed = peer.known.get(actor, 0)
        seen, since_s = peer.lacks.get(actor, (-1, now_s))
        if confirmed != seen:
            peer.lacks[actor] = (confirmed, now_s)
            return False
        return now_s - since_s >= RELAY_S

    def _pump_actor(self, node: NodeId, peer: _Peer, actor: int, last: int) -> None:
        store = self._engine.store
        while peer.under_way_bytes < WINDOW_BYTES:
            at = max(peer.sent.get(actor, 0), peer.known.get(actor, 0)) + 1
            if at > last:
                return
            first, end = journal_key(actor, at), journal_key(actor, last + 1)
            page = store.page(JOURNAL, first, end, 64, WINDOW_BYTES)
            too_early = at <= self._engine.floor(actor)
            if too_early or not page or parse_journal_key(page[0][0])[1] != at:
                self._tell_gone(node, peer, actor, at)
                return
            for key, row in page:
                if peer.under_way_bytes >= WINDOW_BYTES:
                    return
                record = decode_record(row)
                _, sequence = parse_journal_key(key)
                if not takes(self._engine.own.generation, record.generation):
                    self._tell_gone(node, peer, actor, sequence)
                    return
                sender, stage = NodeId(self._engine.member), record.generation
                frame = CrdtRecord(sender, stage, actor, sequence, record.delta, record.after)
                self._push(node, peer, frame)

    def _tell_gone(self, node: NodeId, peer: _Peer, actor: int, sequence: int) -> None:
        """Tell *node* that this record cannot be had here any more."""
        now_s = self._clock.monotonic_s()
        if now_s - peer.gone_s >= GONE_S:
            peer.gone_s = now_s
            self._send(node, CrdtGone(NodeId(self._engine.member), actor, sequence))

    def tell(self, node: NodeId, *, asks: int = 0, answers: int = 0) -> None:
        """Tell *node* all that is here."""
        peer = self._peers.get(node)
        if peer is None:
            return
        peer.told_s = self._clock.monotonic_s()
        self._send(node, self._all(asks, answers))

    def _all(self, asks: int, answers: int) -> CrdtKnown:
        engine = self._engine
        return CrdtKnown(
            NodeId(engine.member),
            engine.stage,
            pairs(engine.frontier, engine.frontier),
            whole=True,
            asks=asks,
            answers=answers,
            deaf=self.deaf,
        )

    def joined(self, joined: Mapping[tuple[int, int], int]) -> None:
        """Records are durable: confirm them to whoever sent them."""
        by_sender: dict[int, Frontier] = {}
        for (sender, actor), sequence in joined.items():
            by_sender.setdefault(sender, {})[actor] = sequence
        engine = self._engine
        for sender, frontier in sorted(by_sender.items()):
            known = pairs(frontier, frontier)
            self._send(
                NodeId(sender), CrdtKnown(NodeId(engine.member), engine.own.generation, known)
            )

    def on_tick(self, now_s: float) -> None:
        """Send again, relay and tell what is due."""
        frontier = self._engine.frontier
        self._unblock()
        for node, peer in list(self._peers.items()):
            if peer.under_way and now_s - peer.progress_s >= RESEND_S:
                peer.forget_sent()
                peer.progress_s = now_s
            differs = peer.known != frontier or not peer.heard
            empty = not (frontier or peer.known or self._engine.own.generation)
            if not empty and now_s - peer.told_s >= (TELL_S if differs else TELL_QUIET_S):
                self.tell(node)
            if differs:
                self._pump(node, peer)

    def _unblock(self) -> None:
        """Records wait for others that did not come beside them: ask for these where they came
        from, for who sent them has all that their author had."""
        blocked = self._engine.blocked()
        for node in blocked:
            peer = self._peers.get(NodeId(node))
            waited_s = 0.0 if peer is None else self._clock.monotonic_s() - peer.told_s
            if node in self._blocked and waited_s >= UNBLOCK_S:
                self.tell(NodeId(node), asks=UNBLOCK)
        self._blocked = blocked

    # --- coming in ----------------------------------------------------------------------------

    def on_known(self, frame: CrdtKnown) -> None:
        """A peer says what it has."""
        peer = self._peers.get(frame.sender)
        if peer is None:
            return
        now_s = self._clock.monotonic_s()
        told = dict(frame.frontier)
        if frame.whole:
            for actor, sequence in peer.known.items():
                if told.get(actor, 0) < sequence:  # it forgot: its disk was set back, or it folded
                    peer.sent.pop(actor, None)
            peer.known = told
            peer.folds = generation_of(frame.generation)
            if frame.deaf:
                peer.heard = False  # what is sent would be dropped; it tells when that is over
                peer.forget_sent()
            elif not peer.heard:
                peer.heard = True
                peer.lacks.clear()
        else:
            raise_to(peer.known, told)
        peer.confirmed(now_s)
        waits_s = now_s - peer.progress_s if peer.under_way else 0.0
        if frame.whole and waits_s >= RESEND_LACKING_S:
            peer.forget_sent()
        if frame.asks:
            self.tell(frame.sender, answers=frame.asks)
        self._pump(frame.sender, peer, relay=bool(frame.asks))
        self._on_known(frame)

    def on_record(self, frame: CrdtRecord) -> None:
        """A record of some life: in order, or not at all."""
        engine, actor = self._engine, frame.actor
        if actor == engine.own.actor:
            return
        has = engine.frontier.get(actor, 0)
        if frame.sequence <= has or engine.is_retired(actor):
            self.joined({(frame.sender, actor): max(has, frame.sequence)})
            return
        expected = max(has, self._expected.get(actor, 0)) + 1
        if not engine.may_take(actor):
            self._early[actor, frame.sequence] = frame
            if len(self._early) > EARLY_MAX:
                self._drop(self._early.pop(next(iter(self._early))), "its life is not admitted")
        elif frame.sequence > expected:
            self._drop(frame, "records before it are missing")
            self._tell_of_gap(frame.sender)
        elif self.deaf:
            self._drop(frame, "ranges are being compared")
        elif frame.sequence == expected:
            self._take(frame)

    def applied(self) -> None:
        """The log has come further: a life may have been admitted whose records are here."""
        if self._early and any(self._engine.may_take(actor) for actor, _ in self._early):
            early, self._early = self._early, {}
            for key in sorted(early):
                self.on_record(early[key])

    def _take(self, frame: CrdtRecord) -> None:
        engine = self._engine
        if not takes(engine.own.generation, frame.generation):
            self._drop(frame, f"it was made at stage {frame.generation} of folding")
            return
        try:
            delta = decode_delta(frame.delta, bytes_max=2 * RECORD_BYTES_MAX)
            self._check(delta)
        except CrdtError as error:
            self._complain(frame, error)
            self._drop(frame, str(error))
            return
        record = Arrived(
            frame.sender,
            frame.actor,
            frame.sequence,
            delta,
            frame.delta,
            frame.after,
            frame.generation,
        )
        if engine.arrived(record):
            self._expected[frame.actor] = frame.sequence
        else:
            self._drop(frame, "too many wait")

    def _complain(self, frame: CrdtRecord, error: CrdtError) -> None:
        """Once for each record: it comes again and again."""
        if self._refused.get(frame.actor) != frame.sequence:
            self._refused[frame.actor] = frame.sequence
            _logger.error("a record of node %d is refused: %s", frame.sender, error)

    def _check(self, delta: Delta) -> None:
        """Refuse what nobody may have said.

        Raises:
            CrdtFormatError: it speaks of lives that nobody knows.
        """
        engine = self._engine
        if not delta.closed:
            raise CrdtFormatError("a record is a closed delta")
        for actor in delta.context().actors():
            if not engine.may_take(actor) and actor != engine.own.actor:
                raise CrdtFormatError(f"it speaks of actor {actor}, which was never admitted")

    def _drop(self, frame: CrdtRecord, why: str) -> None:
        self.records_dropped += 1
        _logger.debug(
            "record %d of %d from node %d: %s", frame.sequence, frame.actor, frame.sender, why
        )

    def _tell_of_gap(self, node: NodeId) -> None:
        peer = self._peers.get(node)
        if peer is not None and self._clock.monotonic_s() - peer.told_s >= TELL_GAP_S:
            self.tell(node)

    def progressed(self) -> None:
        """The frontier moved: what was expected is there, or is not coming."""
        frontier = self._engine.frontier
        here = [actor for actor, last in self._expected.items() if last <= frontier.get(actor, 0)]
        for actor in here:
            del self._expected[actor]

    def dropped(self) -> None:
        """What waited was thrown away: it has to come again."""
        self._expected.clear()

    def on_gone(self, frame: CrdtGone) -> None:
        """A peer cannot send what comes next here."""
        if frame.sequence > self._engine.frontier.get(frame.actor, 0):
            self._on_gone(frame)

    def deafen(self, *, deaf: bool) -> None:
        """From now on, drop all records, those that wait already too; or take them again."""
        self.deaf = deaf
        if deaf:
            self._engine.forget_arrived()
        for node in self.connected():
            self.tell(node)

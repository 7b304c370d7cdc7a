"""When a write is answered, if not simply when the leader has applied it.

``eventual`` is answered as soon as the entry is on the leader's own disk; what becomes of it later
is nobody's news any more. ``strong`` is answered when every voter has applied the entry: the leader
tells them at once that it is committed, and asks each to say when it has come so far. That costs
one more round trip, shared by all that were applied in the meantime.

Where clients watch at other members, those are told at once as well, once all that is in the log
is committed: else an event would wait for the next heartbeat there. (While more entries are under
way it need not: their appends, or their own commit, tell.) Each member says whether it is so.

*Every voter* means those of the configuration in force when the answer is given, of both if it is
joint: whoever was removed meanwhile is not waited for, whoever was promoted is. Learners are not.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import msgspec

from quorate.base.frames import Submit, SubmitAccepted, SubmitFailed, SubmitReply
from quorate.base.invariants import must
from quorate.base.levels import ANSWER_APPLIED, ANSWER_DURABLE, ANSWER_EVERYWHERE
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.output import Role
from quorate.consensus.state import State
from quorate.errors import BadCommandError, OverloadedError
from quorate.replication.clock import Clock
from quorate.replication.proposals import SubmitAnswer, SubmitSink, Waiting
from quorate.replication.transport import StateDigest

#: A voter that has not confirmed for so long is named in the answer: longer than a pause of its
#: collector or a lost connection takes, shorter than the timeout of a call.
CONFIRM_S: Final = 1.0
#: Answers that wait for confirmations; beyond it, ``strong`` writes are refused.
HELD_MAX: Final = 10_000
RETRY_AFTER_MS: Final = 100


class _Early:
    """The sink of an ``eventual`` submission: passes on the first answer, and no other. *hasty*:
    that may be before it is applied. If this node does not know the session, apply may be bound to
    refuse the submission, and the client has to hear of it."""

    __slots__ = ("_answered", "_sequence", "_sink", "hasty", "index", "term")

    def __init__(self, submit: Submit, sink: SubmitSink, *, hasty: bool) -> None:
        self._sequence = submit.sequence
        self._sink = sink
        self._answered = False
        self.hasty = hasty
        self.index, self.term = LogIndex(0), Term(0)  # 0: not proposed yet

    def __call__(self, answer: SubmitAnswer) -> None:
        """What became of it; too late, if it was answered as durable."""
        if isinstance(answer, SubmitFailed):
            self._answer(answer)
        else:
            self.durable()

    def durable(self) -> None:
        """It is on a disk, at least."""
        must(self.index > 0, "what is durable was proposed", sequence=self._sequence)
        self._answer(SubmitAccepted(self._sequence, self.index, self.term))

    def _answer(self, answer: SubmitAnswer) -> None:
        if not self._answered:
            self._answered = True
            self._sink(answer)


class _Held(msgspec.Struct, frozen=True):
    """A ``strong`` submission that was applied here. Given up at *until_s*."""

    reply: SubmitReply
    sink: SubmitSink
    until_s: float


class Sessions(Protocol):
    """Sessions, by id."""

    def __contains__(self, session: int, /) -> bool: ...


class Acknowledging:
    """See the module. *sessions*: those that the applied state knows. *ask*: tell the members what
    is committed, and ask these for a digest once they have applied the index. *tell*: send a digest
    to that member now."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        sessions: Sessions,
        ask: Callable[[tuple[NodeId, ...], LogIndex], None],
        tell: Callable[[NodeId], None],
    ) -> None:
        self._state = state
        self._clock = clock
        self._sessions = sessions
        self._ask = ask
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self.expecting = False  #: ``proposed`` wants to hear of the next entry
        self._early: list[_Early] = []  # in the log, not durable yet
        self._held: list[tuple[LogIndex, int, _Held]] = []  # a heap
        self._held_count = 0  # ever: keeps the order within an index
        self._first_until_s = 0.0  # none of the held is given up before
        self._applied: dict[NodeId, LogIndex] = {}
        self._askers: dict[NodeId, LogIndex] = {}
        self._watched: dict[NodeId, None] = {}  # members at which clients watch
        self._highest = LogIndex(0)  # that was ever held
        self._asking = False

    # --- the leader ------------------------------------------------------------------------------

    def sink(self, submit: Submit, sink: SubmitSink) -> SubmitSink:
        """What to give to ``Proposals`` in place of *sink*.

        Raises:
            BadCommandError: nobody knows such a level.
            OverloadedError: too many answers wait for confirmations.
        """
        if submit.level == ANSWER_APPLIED:
            return sink
        if submit.level == ANSWER_DURABLE:
            self.expecting = True
            hasty = submit.session == 0 or submit.session in self._sessions
            return _Early(submit, sink, hasty=hasty)
        if submit.level != ANSWER_EVERYWHERE:
            raise BadCommandError(f"this node knows no level {submit.level} of a submission")
        if len(self._held) >= HELD_MAX:
            raise OverloadedError(
                f"{len(self._held)} strong writes wait until every voter has applied them; try "
                f"again in {RETRY_AFTER_MS} ms",
                RETRY_AFTER_MS,
            )
        return lambda answer: self._on_applied(answer, sink)

    def proposed(
        self, index: LogIndex, term: Term, waiting: Iterable[Waiting], *, more: bool
    ) -> None:
        """These are in the log now, not yet on the disk. *more*: others are queued still."""
        self.expecting = more
        for each in waiting:
            if isinstance(each.sink, _Early):
                each.sink.index, each.sink.term = index, term
                if each.sink.hasty:
                    self._early.append(each.sink)

    def persisted(self) -> None:
        """The log is durable up to where the core says."""
        if not self._early:
            return
        log, persisted = self._state.log, self._state.persisted
        early, self._early = self._early, []
        for each in early:
            if each.index > persisted:
                self._early.append(each)
            elif log.term_at(each.index) == each.term:  # else overwritten, and told so at apply
                each.durable()

    def _on_applied(self, answer: SubmitAnswer, sink: SubmitSink) -> None:
        if not isinstance(answer, SubmitReply) or not self._missing(LogIndex(answer.index)):
            sink(answer)
            return
        until_s = self._clock.monotonic_s() + CONFIRM_S
        held = _Held(answer, sink, until_s)
        if self._state.role is not Role.LEADER:
            self._give_up(held)
            return
        if not self._held:
            self._first_until_s = until_s
        self._held_count += 1
        heapq.heappush(self._held, (LogIndex(answer.index), self._held_count, held))
        self._highest = LogIndex(max(self._highest, answer.index))
        self._ask_soon()

    def _ask_soon(self) -> None:
        if not self._asking:
            self._asking = True
            self._loop.call_soon(self._ask_now)

    def _ask_now(self) -> None:
        self._asking = False
        if (self._held and self._state.role is Role.LEADER) or self._watchers_wait():
            self._ask(self._missing(self._highest) if self._held else (), self._highest)

    def _watchers_wait(self) -> bool:
        """Whether other members have watchers, and nothing under way tells them of the commit."""
        state = self._state
        if not self._watched or state.role is not Role.LEADER:
            return False
        return state.commit == state.log.last_index

    def _missing(self, index: LogIndex) -> tuple[NodeId, ...]:
        """Voters other than this one that are not known to have applied *index*, ascending."""
        membership, me = self._state.membership, self._state.node_id
        voters = sorted({*membership.voters, *membership.voters_old})
        return tuple(node for node in voters if node != me and self._applied.get(node, 0) < index)

    def heard(self, digest: StateDigest) -> None:
        """A member has applied so much, and clients watch there, or not."""
        if digest.watched:
            self._watched[digest.sender] = None
        else:
            self._watched.pop(digest.sender, None)
        if digest.index > self._applied.get(digest.sender, 0):
            self._applied[digest.sender] = digest.index
            if self._held:
                self._release()

    def _release(self) -> None:
        while self._held and not self._missing(self._held[0][0]):
            _, _, held = heapq.heappop(self._held)
            held.sink(held.reply)

    def on_tick(self, now_s: float) -> None:
        """Give up on confirmations that did not come in time."""
        if not self._held:
            return
        self._release()  # the members may be others
        if now_s < self._first_until_s:
            return
        late = [held for _, _, held in sorted(self._held) if held.until_s <= now_s]
        self._held = [each for each in self._held if each[2].until_s > now_s]
        heapq.heapify(self._held)
        self._first_until_s = min((each[2].until_s for each in self._held), default=0.0)
        for held in late:
            self._give_up(held)

    def lead(self) -> None:
        """This node leads from now on, and goes by nobody's word to another."""
        self._applied.clear()
        self._watched.clear()

    def lost(self, node: NodeId) -> None:
        """The connection to *node* broke. It may have died, and come back with less applied."""
        self._applied.pop(node, None)
        self._watched.pop(node, None)

    def give_up_all(self) -> None:
        """This node does not lead any more: nobody answers it."""
        held, self._held = sorted(self._held), []
        for _, _, each in held:
            self._give_up(each)

    def _give_up(self, held: _Held) -> None:
        missing = self._missing(LogIndex(held.reply.index))
        held.sink(msgspec.structs.replace(held.reply, unconfirmed=missing))

    # --- the other voters ------------------------------------------------------------------------

    @property
    def waited_for(self) -> bool:
        """Whether a leader wants to hear when this member has applied more."""
        return bool(self._askers)

    def asked(self, node: NodeId, index: LogIndex, applied: LogIndex) -> None:
        """*node* leads, and waits until this member has applied *index*."""
        if index <= applied:
            self._tell(node)
        else:
            self._askers[node] = max(index, self._askers.get(node, index))

    def progressed(self, applied: LogIndex) -> None:
        """This member has applied so much."""
        if self._watchers_wait():
            self._ask_soon()
        if self._askers:
            for node in [node for node, index in self._askers.items() if index <= applied]:
                del self._askers[node]
                self._tell(node)

    def forget(self, members: Iterable[NodeId]) -> None:
        """Only these are members now."""
        kept = set(members)
        told: tuple[dict[NodeId, Any], ...] = (self._applied, self._askers, self._watched)
        for known in told:
            for node in [node for node in known if node not in kept]:
                del known[node]

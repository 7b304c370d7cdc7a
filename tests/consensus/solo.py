"""One core against hand-written peers: what goes in, what comes out, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

from quorate.base.types import BEFORE_FIRST, LogIndex, NodeId, Term
from quorate.consensus.checker import CoreChecker
from quorate.consensus.core import Core
from quorate.consensus.events import ChangeMembership, Event, Persisted, Propose, Tick
from quorate.consensus.membership import (
    ChangeKind,
    MemberChange,
    Membership,
    MembershipHistory,
    encode_membership,
)
from quorate.consensus.messages import (
    AppendReply,
    AppendRequest,
    Entry,
    EntryId,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Output, Role, SendAppend
from quorate.consensus.state import State
from tests.consensus.harness import plain, quick_config

M = TypeVar("M")
ME, PEER, THIRD, FOURTH, FIFTH = map(NodeId, range(1, 6))


class Solo:
    """Node 1. *terms*: of the entries in its log, from index 1 (or after *floor*).

    Writes become durable at once unless ``disk`` is False; then ``finish`` ends them. ``sent`` is
    all that left since the last ``step``, in order; ``out`` that step's own output.
    """

    def __init__(
        self,
        voters: Iterable[int] = (1, 2, 3),
        *,
        terms: Sequence[int] = (1,),
        term: int | None = None,
        vote: int = 0,
        commit: int = 1,
        floor: tuple[int, int] = (0, 0),
        learners: Iterable[int] = (),
        membership: Membership | None = None,
        seed: int = 1,
        **settings: int,
    ) -> None:
        last_term = terms[-1] if terms else floor[1]
        self.core = Core(
            quick_config(ME, **settings),
            Random(seed),
            hard_state=HardState(
                Term(last_term if term is None else term), NodeId(vote), LogIndex(commit)
            ),
            floor=EntryId(LogIndex(floor[0]), Term(floor[1])),
            terms=[Term(each) for each in terms],
            sizes_bytes=[1] * len(terms),
            members=MembershipHistory(membership or plain(voters, learners), BEFORE_FIRST),
        )
        self.checker = CoreChecker(self.core)
        self.disk = True
        self.waiting: list[Message] = []
        self.last_persist = 0
        self.sent: list[Message | SendAppend] = []
        self.out = Output()
        self.now_ms = 0

    @property
    def state(self) -> State:
        return self.core.state

    def step(self, event: Event) -> Output:
        self.sent = []
        self.out = self._step(event)
        return self.out

    def _step(self, event: Event) -> Output:
        output = self.core.step(event)
        self.checker.after_step(output)
        self.sent += output.messages
        self.waiting += output.after_persist
        if output.persist is not None:
            self.last_persist = output.persist.id
        if self.disk:
            self._release()
        return output

    def _release(self) -> None:
        self.sent += self.waiting
        self.waiting = []
        if self.state.pending_persists:
            self._step(Persisted(self.last_persist))

    def finish(self) -> None:
        """All writes under way become durable."""
        self.sent = []
        self._release()

    def sent_of(self, kind: type[M]) -> list[M]:
        return [message for message in self.sent if isinstance(message, kind)]

    def only(self, kind: type[M]) -> M:
        found = self.sent_of(kind)
        assert len(found) == 1, (kind, self.sent)
        return found[0]

    def terms(self) -> list[int | None]:
        log = self.state.log
        return [log.term_at(LogIndex(i)) for i in range(log.floor.index + 1, log.last_index + 1)]

    # --- events ---------------------------------------------------------------------------------

    def tick(self, count: int = 1) -> None:
        """One after another; ``sent`` gathers all."""
        gathered: list[Message | SendAppend] = []
        for _ in range(count):
            self.now_ms += 10
            self.step(Tick(1, self.now_ms))
            gathered += self.sent
        self.sent = gathered

    def timeout(self) -> None:
        state = self.state
        ticks = state.election_timeout - state.elapsed
        self.now_ms += 10 * ticks
        self.step(Tick(ticks, self.now_ms))

    def pre_votes(self, *voters: int) -> None:
        for voter in voters:
            reply = VoteReply(Term(self.state.term + 1), NodeId(voter), ME, granted=True, pre=True)
            self.step(reply)

    def votes(self, *voters: int, granted: bool = True) -> None:
        for voter in voters:
            self.step(VoteReply(self.state.term, NodeId(voter), ME, granted))

    def campaign(self) -> None:
        """A candidate, its own vote on disk if the disk works."""
        self.timeout()
        if self.state.role is Role.PRE_CANDIDATE:
            self.pre_votes(*(n for n in self.state.membership.members() if n != ME))

    def lead(self, *voters: int) -> Solo:
        """Wins an election with the votes of *voters*, or of all."""
        self.campaign()
        others = [node for node in self.state.membership.members() if node != ME]
        self.votes(*(voters or others))
        assert self.state.role is Role.LEADER
        return self

    def settle(self, *nodes: int) -> Solo:
        """Followers acknowledge everything the leader has."""
        for node in nodes or [n for n in self.state.membership.members() if n != ME]:
            self.ack(node, self.state.log.last_index)
        return self

    def propose(self, *payloads: bytes) -> Output:
        return self.step(Propose(payloads or (b"x",)))

    def ack(
        self, node: int, index: int, *, term: int | None = None, round_number: int = 0
    ) -> Output:
        return self.step(
            self.append_reply(node, index, ok=True, term=term, round_number=round_number)
        )

    def refuse(self, node: int, index: int, hint: tuple[int, int]) -> Output:
        return self.step(self.append_reply(node, index, ok=False, hint=hint))

    def append_reply(
        self,
        node: int,
        index: int,
        *,
        ok: bool,
        hint: tuple[int, int] = (0, 0),
        term: int | None = None,
        round_number: int = 0,
    ) -> AppendReply:
        return AppendReply(
            term=self.state.term if term is None else Term(term),
            sender=NodeId(node),
            target=ME,
            ok=ok,
            index=LogIndex(index),
            hint_index=LogIndex(hint[0]),
            hint_term=Term(hint[1]),
            round=round_number,
        )

    def echo(
        self,
        node: int,
        *,
        verified: int | None = None,
        sticky: bool = False,
        promise_ms: int = 100,
    ) -> Output:
        """*node* answers the latest heartbeat."""
        last = self.state.log.last_index
        at = LogIndex(last if verified is None else verified)
        round_number = self.state.round
        return self.step(
            HeartbeatReply(
                self.state.term,
                NodeId(node),
                ME,
                round_number,
                at,
                sticky,
                promise_ms=promise_ms if sticky else 0,
            )
        )

    def append(
        self,
        prev: tuple[int, int],
        *terms: int,
        term: int | None = None,
        sender: int = PEER,
        commit: int = 0,
    ) -> Output:
        """AppendEntries of *sender*: entries of these terms after *prev*."""
        return self.step(append_request(prev, *terms, term=term or self.state.term,
                                        sender=sender, commit=commit))  # fmt: skip

    def heartbeat(
        self, term: int | None = None, *, commit: int = 0, sender: int = PEER, round_number: int = 1
    ) -> Output:  # fmt: skip
        at = Term(term or self.state.term)
        return self.step(Heartbeat(at, NodeId(sender), ME, LogIndex(commit), round_number))

    def vote_request(
        self,
        term: int,
        last: tuple[int, int],
        *,
        sender: int = PEER,
        pre: bool = False,
        transfer: bool = False,
    ) -> bool | None:
        """The answer that left: True, False, or None for silence."""
        request = VoteRequest(
            Term(term), NodeId(sender), ME, LogIndex(last[0]), Term(last[1]), pre, transfer
        )
        self.step(request)
        replies = self.sent_of(VoteReply)
        return replies[0].granted if replies else None

    def change(self, *changes: tuple[ChangeKind, int]) -> Output:
        return self.step(
            ChangeMembership(
                tuple(MemberChange(kind, NodeId(node), f"n{node}:1") for kind, node in changes)
            )
        )


def append_request(
    prev: tuple[int, int],
    *terms: int,
    term: int,
    sender: int = PEER,
    commit: int = 0,
    members: Membership | None = None,
) -> AppendRequest:
    """*members*: the last entry is this configuration."""
    entries = [
        Entry(LogIndex(prev[0] + at), Term(each), int(EntryKind.BATCH), b"%d" % each)
        for at, each in enumerate(terms, 1)
    ]
    if members is not None:
        last = entries.pop()
        payload = encode_membership(members)
        entries.append(Entry(last.index, last.term, int(EntryKind.MEMBERSHIP), payload))
    return AppendRequest(
        term=Term(term),
        sender=NodeId(sender),
        target=ME,
        prev_index=LogIndex(prev[0]),
        prev_term=Term(prev[1]),
        entries=tuple(entries),
        commit=LogIndex(commit),
        round=1,
    )

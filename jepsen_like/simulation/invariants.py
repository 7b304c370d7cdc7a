"""What a cluster must never contradict: a memory of the past that outlives every restart.

``Invariants`` is told what happens at each node (``observing`` listens) and holds it against what
it remembers. It never raises into the system under test: what is wrong becomes a ``Violation``
in ``found``, and the run ends. The names of violations:

=========================  =====================================================================
two-leaders                one leader per term (Raft figure 3, election safety)
elected-without-votes      a leader has the durable votes of a quorum, and of all founders while it
                           is not on record who they are
lease-not-backed           who reads under a lease has a quorum's promises, as of that moment
lease-promise              who let a leader count on it for its lease gives no vote meanwhile
stale-answer               an answer to an earlier term, or to an earlier round, counts for no later
log-matching               an index and a term name one entry, and with it all before it
leader-completeness        a leader holds all that was committed in terms before its own
committed-changed          a committed entry is never replaced, on any node
committed-not-durable      what is committed is durable on a quorum when it is first called so
committed-dropped          a durable copy of a committed entry is never given up
commit-rule                a leader commits by counting only entries of its own term (5.4.2)
change-rule                members change when the last change, and an entry of the own term, are
                           committed
zombie-leader              who hears from no quorum, whose disk is stalled, or who is no voter any
                           more, stops leading
promised-not-durable       no vote, term or acknowledgement leaves before it is on the disk
two-votes                  one vote per term and disk, restarts included
durable-lost               after a restart a disk holds what it was said to hold
checkpoint-went-back       the state that a restart begins from never gets older
applied-not-committed      only committed entries are applied, as they were committed
state-differs              equal applied index, equal hash of the state
converging-differs         at the end members hold the same CRDT data, byte by byte
tasks-miscounted           what a node counts of tasks at the end is what its tables say
acknowledged-early         a command is answered after its entry was committed, and applied once
executed-twice             a (session, sequence) takes effect at one place of the log
stale-read                 a linearizable read sees all that was committed before it began
removed-early              who was told that a member is removed may switch it off: nobody needs it
membership-differs         the configuration at an index is the same everywhere
wiped-admitted             a node whose disk was replaced is never led under its old number
lease-early                no lease runs out in the first second of a term
raising-command            a command that raises is an error to its caller, and nothing else
order                      purged <= checkpoint <= applied <= committed <= end of the log
core                       an invariant of one core (``quorate.consensus.checker``)
node-failed                a node stops, or refuses to start, only if its disk gave it a reason
uncaught                   every exception is somebody's
liveness                   once all is healed, the cluster serves and agrees in time
livelock                   a run ends
=========================  =====================================================================

The last four are found by ``swarm`` and ``pool``.

Disks that were tampered with (wiped, rolled back, damaged) make no claims until they start again:
``tampered``. One that was damaged holds all of it then, or refuses to start. Whatever else is done
to at most a minority of them must break nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final

import msgspec

from jepsen_like.simulation.claims import Before, Disk, elected, quorum
from quorate.base.types import LogIndex
from quorate.consensus.membership import Membership, decode_membership
from quorate.consensus.messages import (
    AppendReply,
    Entry,
    EntryKind,
    HeartbeatReply,
    Message,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from quorate.consensus.output import Role
from quorate.consensus.state import State
from quorate.replication.sessions import TERM_GRACE_MS

#: Of one run; the first is what matters, the rest follow from it.
VIOLATIONS_MAX: Final = 20
#: A leader may be so much later in resigning than it ought to: it looks with each heartbeat, and
#: its clock may tick several times at once.
LATE_TICKS: Final = 20


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A broken promise. *at_s*: virtual time; *evidence*: what proves it."""

    name: str
    text: str
    at_s: float = 0.0
    evidence: dict[str, Any] = {}


def digest(payload: bytes) -> bytes:
    """Stands for a payload in the memory."""
    return blake2b(payload, digest_size=12).digest()


class Invariants:
    """See the module. *now_s*: virtual time, for the record."""

    def __init__(self, now_s: Callable[[], float] = lambda: 0.0) -> None:
        self._now_s = now_s
        self.found: list[Violation] = []
        self.disks: dict[int, Disk] = {}
        self.leaders: dict[int, tuple[int, str]] = {}  # term -> (node, incarnation)
        self.votes: dict[tuple[int, str, int], int] = {}  # (voter, incarnation, term)
        self.facts: dict[tuple[int, int], tuple[int | None, int, bytes]] = {}  # (index, term)
        self.memberships: dict[tuple[int, int], Membership] = {}  # of entries, by (index, term)
        self.committed: list[tuple[int, bytes]] = [(0, b"")]  # (term, digest) by index
        self.commit_terms: list[int] = [0]  # in which it was committed, ascending
        self.configs: list[tuple[int, Membership]] = []  # committed
        self.hashes: dict[int, tuple[bytes, int]] = {}  # applied index -> (state hash, node)
        self.executed: dict[tuple[int, int], int] = {}  # (session, sequence) -> index
        self.install_count = 0
        self.term_began_ms: dict[int, int] = {}  # cluster time of the first entry applied

    def claim(
        self,
        holds: bool,  # noqa: FBT001
        name: str,
        text: str,
        **evidence: Any,  # noqa: ANN401
    ) -> bool:
        """Record a violation unless *holds*; returns *holds*."""
        if not holds and len(self.found) < VIOLATIONS_MAX:
            plain = {key: _plain(value) for key, value in evidence.items()}
            self.found.append(
                Violation(name=name, text=text, at_s=round(self._now_s(), 6), evidence=plain)
            )
        return holds

    @property
    def commit_max(self) -> int:
        """Highest index that any node ever called committed."""
        return len(self.committed) - 1

    # --- disks ----------------------------------------------------------------------------------

    def started(self, node: int, incarnation: str, state: State, checkpoint: int) -> Disk:
        """A node recovered from its disk. *checkpoint*: index of the state it loaded."""
        before = self.disks.get(node)
        disk = self.disks[node] = Disk(node, incarnation, state, self._now_s())
        disk.checkpoint = checkpoint
        disk.wiped = before is not None and (before.wiped or before.incarnation != incarnation)
        trusted = before is not None and (not before.void or before.damaged)
        if before is not None and before.incarnation == incarnation and trusted:
            self._check_kept(before, disk)
        self._note_vote(disk)
        self._check_committed(disk, state.log.floor.index, None)
        return disk

    def tampered(self, node: int, *, damaged: bool = False) -> None:
        """The disk of *node*, which does not run, was wiped or rolled back, or *damaged*."""
        if node in self.disks:
            self.disks[node].void = True
            self.disks[node].damaged = damaged
        self.votes = {key: vote for key, vote in self.votes.items() if key[0] != node}

    def _check_kept(self, before: Disk, after: Disk) -> None:
        was, now = before.state, after.state
        where = f"node {after.node} restarted"
        term, vote = was.persisted_term, was.persisted_vote
        self.claim(
            now.term > term or (now.term == term and vote in {0, now.vote}),
            "durable-lost",
            f"{where} in term {now.term} with vote {now.vote}; durable were {term} and {vote}",
        )
        index = min(was.persisted, was.log.last_index)
        held = was.log.term_at(index) if index > was.log.floor.index else None
        self.claim(
            index <= now.log.floor.index or held is None or now.log.term_at(index) == held,
            "durable-lost",
            f"{where} without entry {index} of term {held}, which was durable on its disk; its "
            f"log is now ({now.log.floor.index}, {now.log.last_index}]",
        )
        self.claim(
            after.checkpoint >= before.checkpoint,
            "checkpoint-went-back",
            f"{where} from a checkpoint at {after.checkpoint}; {before.checkpoint} was durable",
        )

    # --- a step ---------------------------------------------------------------------------------

    def stepped(self, disk: Disk, before: Before, entries: Iterable[Entry]) -> None:
        """The core of *disk* took a step; *entries* go to its disk."""
        state = disk.state
        for entry in entries:
            self._know(disk, entry)
        self._note_vote(disk)
        self.claim(
            not disk.wiped or not state.leader,
            "wiped-admitted",
            f"node {disk.node}, whose disk is another than before, is led by {state.leader}",
        )
        if before.endangered:
            self._check_dropped(disk, before)
        if state.role is Role.LEADER:
            if before.role is not Role.LEADER:
                self._became_leader(disk)
            self._check_rules(disk, before, entries)
        if state.commit > before.commit:
            self._check_committed(disk, before.commit, before)

    def _check_dropped(self, disk: Disk, before: Before) -> None:
        state = disk.state
        for index, term in before.endangered.items():
            if index > self.commit_max or self.committed[index][0] != term:
                continue
            kept = index <= state.log.floor.index or (
                state.log.term_at(LogIndex(index)) == term
                and state.persisted >= min(index, before.persisted)
            )
            self.claim(
                kept,
                "committed-dropped",
                f"node {disk.node} gave up its durable copy of the committed entry {index} of term "
                f"{term}; its log is now ({state.log.floor.index}, {state.log.last_index}]",
            )

    def _check_rules(self, disk: Disk, before: Before, entries: Iterable[Entry]) -> None:
        """What a leader may do at all."""
        state = disk.state
        committed_term = state.log.term_at(state.commit)
        self.claim(
            state.commit == before.commit or committed_term == state.term,
            "commit-rule",
            f"node {disk.node}, leader of term {state.term}, committed entry {state.commit} of "
            f"term {committed_term} by counting",
        )
        for entry in entries:
            self.claim(
                entry.kind != EntryKind.MEMBERSHIP
                or (before.members_index <= state.commit and committed_term == state.term),
                "change-rule",
                f"node {disk.node}, leader of term {state.term}, changes the members in entry "
                f"{entry.index}; the change before it is entry {before.members_index}, committed "
                f"is {state.commit} of term {committed_term}",
            )
        membership = state.membership
        self.claim(
            membership.is_voter(state.node_id) or state.members.index > state.commit,
            "zombie-leader",
            f"node {disk.node} leads term {state.term} under a committed configuration without it",
            membership=membership,
        )

    def answered_by(
        self, disk: Disk, reply: AppendReply | HeartbeatReply, matched: int | None
    ) -> None:
        """A leader got an answer. *matched*: what it counted of that member before."""
        state, member = disk.state, int(reply.sender)
        if reply.term == state.term:
            self._note_term(disk)
            disk.heard[member] = state.tick
            disk.echoes[member] = max(disk.echoes.get(member, 0), reply.round)
        self.claim(
            (reply.term == state.term or state.match.get(reply.sender) == matched)
            and state.acked_rounds.get(reply.sender, 0) <= disk.echoes.get(member, 0),
            "stale-answer",
            f"node {disk.node}, leader of term {state.term} in round {state.round}, counts {reply}",
            counted=(state.match.get(reply.sender), state.acked_rounds.get(reply.sender)),
        )

    def promised(self, disk: Disk) -> None:
        """A follower let the leader count on it: no votes for the shortest election timeout."""
        state = disk.state
        disk.promised_until = state.tick + state.config.election_ticks_min
        disk.promised_lately, disk.promised_s = True, self._now_s()

    def time_passed(self, disk: Disk) -> None:
        """The clock of *disk* ticked, perhaps late: ticks of before a promise do not shorten it."""
        if disk.promised_lately:
            disk.promised_until = disk.state.tick + disk.state.config.election_ticks_min
            disk.promised_lately = False

    def leased(self, disk: Disk) -> None:
        """A leader answers a read by itself, on the strength of its lease: nobody else can be
        elected, since a quorum of the configuration in force, of both sides if it is joint, gives
        no votes. Who promised an earlier configuration only does not count."""
        bound = [node for node, other in self.disks.items() if other is disk or other.promises()]
        term, membership = int(disk.state.term), disk.state.membership
        self.claim(
            quorum(membership, bound) and disk.handed_over_term != term,
            "lease-not-backed",
            f"node {disk.node}, leader of term {term}, reads under a lease; only {bound} give no "
            f"votes; it handed over in term {disk.handed_over_term}",
            membership=membership,
        )

    def granted(self, disk: Disk, candidate: int) -> None:
        """A vote, for itself too, or the promise of one, without a transfer of leadership."""
        self.claim(
            disk.may_vote(self._now_s()),
            "lease-promise",
            f"node {disk.node} votes for node {candidate} at tick {disk.state.tick}, and a leader "
            f"may count on it until tick {disk.promised_until}, since {disk.promised_s:.3f} s",
        )

    def _note_term(self, disk: Disk) -> None:
        state = disk.state
        if disk.leads_term != state.term:
            disk.leads_term, disk.leads_since = int(state.term), state.tick
            disk.heard.clear()
            disk.echoes.clear()

    def ticked(self, disk: Disk) -> None:
        """A leader's clock went on."""
        state, config = disk.state, disk.state.config
        self._note_term(disk)
        oldest = state.tick - config.election_ticks_max - config.heartbeat_ticks - LATE_TICKS
        if disk.leads_since < oldest:
            present = [node for node, tick in disk.heard.items() if tick >= oldest]
            self.claim(
                quorum(state.membership, [*present, disk.node]),
                "zombie-leader",
                f"node {disk.node} leads term {state.term}, and has long heard of {present} only",
                membership=state.membership,
            )
        pending = state.pending_persists
        self.claim(
            not pending or state.tick - pending[0].tick <= config.disk_stall_ticks + LATE_TICKS,
            "zombie-leader",
            f"node {disk.node} leads term {state.term}, and its disk has long not answered",
        )

    def _know(self, disk: Disk, entry: Entry) -> None:
        previous = disk.state.log.term_at(entry.index - 1)  # type: ignore[arg-type]
        key = (int(entry.index), int(entry.term))
        fact = (previous, entry.kind, digest(entry.payload))
        known = self.facts.setdefault(key, fact)
        if entry.kind == EntryKind.MEMBERSHIP and key not in self.memberships:
            self.memberships[key] = decode_membership(entry.payload)
        self.claim(
            _same_fact(known, fact),
            "log-matching",
            f"entry {entry.index} of term {entry.term} on node {disk.node} is another than before",
            known=known,
            here=fact,
        )

    def _note_vote(self, disk: Disk) -> None:
        """Votes count once they are durable: one that a crash undid was told to nobody."""
        state = disk.state
        term, vote = int(state.persisted_term), int(state.persisted_vote)
        if not vote:
            return
        known = self.votes.setdefault((disk.node, disk.incarnation, term), vote)
        self.claim(
            known == vote,
            "two-votes",
            f"node {disk.node} voted for {known} and for {vote} in term {term}",
        )

    def _became_leader(self, disk: Disk) -> None:
        state = disk.state
        me = (disk.node, disk.incarnation)
        other = self.leaders.setdefault(int(state.term), me)
        self.claim(
            other == me,
            "two-leaders",
            f"nodes {other[0]} and {disk.node} both lead term {state.term}",
        )
        term = int(state.term)
        voted = [
            node
            for node, other_disk in self.disks.items()
            if self.votes.get((node, other_disk.incarnation, term)) == disk.node
        ]
        self.claim(
            elected(state.membership, voted),
            "elected-without-votes",
            f"node {disk.node} leads term {term} by the votes of {voted}",
            membership=state.membership,
        )
        # A leader that learns late of its election owes nothing to the terms after its own.
        last = bisect_left(self.commit_terms, state.term) - 1
        term = self.committed[last][0]
        found = state.log.term_at(LogIndex(last))
        self.claim(
            last <= state.log.floor.index or found == term,
            "leader-completeness",
            f"node {disk.node} leads term {state.term} without the committed entry {last} of "
            f"term {term}",
            log=(state.log.floor.index, state.log.last_index),
        )

    # --- commits --------------------------------------------------------------------------------

    def _check_committed(self, disk: Disk, after: int, before: Before | None) -> None:
        state = disk.state
        for index in range(max(after, state.log.floor.index) + 1, state.commit + 1):
            term = state.log.term_at(index) or 0  # type: ignore[arg-type]
            if index > self.commit_max:
                self._commit_first(disk, index, term, before)
            else:
                known = self.committed[index][0]
                self.claim(
                    known == term,
                    "committed-changed",
                    f"entry {index} was committed with term {known}; node {disk.node} has it "
                    f"committed with term {term}",
                )
            if self.found:
                return
        self._check_config(disk)

    def _commit_first(self, disk: Disk, index: int, term: int, before: Before | None) -> None:
        state = disk.state
        fact = self.facts.get((index, term))
        self.committed.append((term, b"" if fact is None else fact[2]))
        self.commit_terms.append(max(self.commit_terms[-1], int(state.term)))
        if (index, term) in self.memberships:
            self.configs.append((index, self.memberships[index, term]))
        if index == 1 and fact is None:
            return  # written by each founder for itself, before there is a cluster
        holders = [other.node for other in self.disks.values() if other.holds(index, term)]
        now = state.membership
        if before is None:
            counts = quorum(now, holders)
        else:
            latest = now if index > before.members_index else before.membership
            counts = quorum(before.membership, holders) or quorum(latest, holders)
        self.claim(
            counts,
            "committed-not-durable",
            f"node {disk.node} ({state.role.value}, term {state.term}) committed entry {index} of "
            f"term {term}, which is durable on {holders} only",
            membership=now,
        )

    def installed(self, disk: Disk) -> None:
        """A snapshot replaced the log of *disk*."""
        self.install_count += 1
        state = disk.state
        floor = state.log.floor
        if self.claim(
            floor.index <= self.commit_max,
            "committed-not-durable",
            f"node {disk.node} installed a snapshot up to {floor.index}; {self.commit_max} is the "
            "last entry that anybody committed",
        ):
            known = self.committed[floor.index][0]
            self.claim(
                known == floor.term,
                "committed-changed",
                f"node {disk.node} installed a snapshot that ends with entry {floor.index} of term "
                f"{floor.term}; committed was term {known}",
            )
            self._check_config(disk)

    def config_at(self, index: int) -> tuple[int, Membership] | None:
        """The committed configuration that holds at *index*, and its own index."""
        for step in reversed(self.configs):
            if step[0] <= index:
                return step
        return None

    def _check_config(self, disk: Disk) -> None:
        state = disk.state
        if state.commit < 1:
            return
        index, membership = state.members.step_at(state.commit)
        known = self.config_at(state.commit)
        if known is None:
            self.configs.append((int(index), membership))
            return
        self.claim(
            known == (index, membership),
            "membership-differs",
            f"at entry {state.commit}, node {disk.node} has the configuration of entry {index}, "
            f"others that of {known[0]}",
            here=membership,
            known=known[1],
        )

    def removed(self, node: int) -> None:
        """Somebody was told that *node* is not a member any more."""
        index, membership = self.configs[-1]
        self.claim(
            node not in membership.members(),
            "removed-early",
            f"node {node} is said to be removed; the last configuration that was committed, in "
            f"entry {index}, needs it still",
            membership=membership,
        )

    # --- applying -------------------------------------------------------------------------------

    def applied(self, disk: Disk, index: int, term: int, payload: bytes | None) -> None:
        """An entry was given to the machines; *payload* None: nothing for them."""
        if not self.claim(
            index <= self.commit_max,
            "applied-not-committed",
            f"node {disk.node} applies entry {index}; committed is {self.commit_max}",
        ):
            return
        known, payload_digest = self.committed[index]
        self.claim(
            known == term
            and (payload is None or not payload_digest or digest(payload) == payload_digest),
            "applied-not-committed",
            f"node {disk.node} applies an entry {index} of term {term} that is not the committed "
            f"one, of term {known}",
        )

    def ran_out(self, disk: Disk, term: int, time_ms: int, leases: list[int]) -> None:
        """In the entry of *term* that was just applied, at that cluster time."""
        began_ms = self.term_began_ms.setdefault(term, time_ms)
        self.claim(
            not leases or time_ms >= began_ms + TERM_GRACE_MS,
            "lease-early",
            f"in node {disk.node} leases {leases} run out at {time_ms}, in term {term}, which "
            f"began at {began_ms}",
        )

    def state_at(self, disk: Disk, index: int, state_hash: bytes) -> None:
        """The machines of *disk* stand after *index*, with that hash."""
        known, node = self.hashes.setdefault(index, (state_hash, disk.node))
        self.claim(
            known == state_hash,
            "state-differs",
            f"after entry {index}, the state of node {disk.node} is {state_hash.hex()}, that of "
            f"node {node} was {known.hex()}",
        )

    def execute(self, disk: Disk, session: int, sequence: int, index: int) -> None:
        """The commands of a submission run, in the entry at *index*."""
        known = self.executed.setdefault((session, sequence), index)
        self.claim(
            known == index,
            "executed-twice",
            f"node {disk.node} runs submission {sequence} of session {session} in entry {index}; "
            f"it took effect in entry {known}",
        )

    def ordered(self, disk: Disk, checkpoint: int, applied: int) -> None:
        """Called when log, checkpoint or state moved, and no snapshot is being loaded."""
        state = disk.state
        self.claim(
            checkpoint <= max(state.persisted, state.log.floor.index),
            "order",
            f"node {disk.node}: its checkpoint at {checkpoint} is ahead of its own durable log, "
            f"which ends at {state.persisted}",
        )
        disk.checkpoint = max(disk.checkpoint, checkpoint)
        chain = (state.log.floor.index, checkpoint, applied, state.commit, state.log.last_index)
        self.claim(
            all(low <= high for low, high in pairwise(chain)),
            "order",
            f"node {disk.node}: purged, checkpoint, applied, committed and end are {chain}",
        )

    # --- promises -------------------------------------------------------------------------------

    def sent(self, disk: Disk, message: Message) -> None:
        """A message leaves: the disk must already vouch for it."""
        if isinstance(message, TimeoutNow):
            disk.handed_over_term = int(message.term)
        pre = isinstance(message, VoteRequest | VoteReply) and message.pre
        if pre:
            return
        term, vote, last = disk.written
        holds = term >= message.term
        if isinstance(message, VoteRequest):
            holds &= term > message.term or vote == disk.node
        elif isinstance(message, VoteReply) and message.granted:
            holds &= term > message.term or vote == message.target
        elif isinstance(message, AppendReply) and message.ok:
            holds &= term > message.term or last >= message.index
        elif isinstance(message, HeartbeatReply):
            holds &= term > message.term or last >= message.durable
        self.claim(
            holds,
            "promised-not-durable",
            f"node {disk.node} sends {message}; durable are term {term}, vote {vote} and the log "
            f"up to {last}",
        )

    def answered(self, disk: Disk, session: int, sequence: int, index: int) -> None:
        """A client is told that its submission took effect in the entry at *index*."""
        if not index:
            return
        self.claim(
            index <= self.commit_max,
            "acknowledged-early",
            f"node {disk.node} acknowledges entry {index}; committed is {self.commit_max}",
        )
        known = self.executed.get((session, sequence))
        self.claim(
            not session or known == index,
            "acknowledged-early",
            f"node {disk.node} says that submission {sequence} of session {session} took effect "
            f"in entry {index}; it did in {known}",
        )

    def read(self, disk: Disk, floor: int, index: int) -> None:
        """A linearizable read was answered from the state after *index*; *floor* was committed
        before it began. It need not have been acknowledged: who leads when the round of the read
        ends has committed an entry behind it."""
        self.claim(
            index >= floor,
            "stale-read",
            f"node {disk.node} answers a linearizable read from the state after entry {index}; "
            f"entry {floor} was committed before the read began",
        )


def _same_fact(known: tuple[int | None, int, bytes], fact: tuple[int | None, int, bytes]) -> bool:
    """A previous term of None: that entry is below the floor there, so it says nothing."""
    return known[1:] == fact[1:] and (known[0] is None or fact[0] is None or known[0] == fact[0])


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Something that any encoder takes."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)

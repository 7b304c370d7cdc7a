"""Sessions: what makes a retried command take effect once (thesis 6.3).

A client opens a session and numbers its submissions. The reply to each is kept, as part of the
replicated state, until the client acknowledges it; a submission that comes again is answered from
there. Both the session's end and the replies are decided by the log alone: a session expires at a
cluster time, in ``expire``, on every replica in the same entry.

Outside the tables the machine keeps only what it can derive: the kept sequence numbers of each
session, and their deadlines.

It also knows when the present term began, for whatever expires: in the first second of a term
nothing does, so that clients find the new leader before it judges them.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.frames import Submit
from quorate.base.limits import (
    MIB,
    SESSION_UNACKNOWLEDGED_MAX,
    SESSIONS_MAX,
)
from quorate.base.results import Failure
from quorate.base.session_commands import (
    SESSION_MACHINE,
    CloseSession,
    KeepAlive,
    ListSessions,
    OpenSession,
    SessionAlive,
    SessionClosed,
    SessionCommand,
    SessionInfo,
    SessionList,
    SessionOpened,
)
from quorate.errors import OverloadedError, SequenceError, SessionExpiredError
from quorate.replication.deadlines import Deadlines
from quorate.replication.machine import Context, Machine
from quorate.replication.tables import Table, Tables

#: Bytes of replies kept for one session: one client must not fill every node's memory.
SESSION_UNACKNOWLEDGED_BYTES_MAX: Final = 64 * MIB
#: Sessions that one entry ends; the rest waits for the next, which is due at once. Some 20 ms.
SESSIONS_EXPIRED_MAX: Final = 1000
#: So long after the first entry of a term nothing expires.
TERM_GRACE_MS: Final = 1000

OVERLOADED_RETRY_MS: Final = 100

_LAST_KEY: Final = b"last"
_TERM_KEY: Final = b"term"
_ID_MAX: Final = 2**64 - 1

# --- state --------------------------------------------------------------------------------------


class SessionRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """*acknowledged*: the client has every reply up to here."""

    client: str
    ttl_ms: int
    expires_ms: int
    acknowledged: int


class ReplyRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reply as it was given. *index*: of the entry that the submission was applied in."""

    index: int
    results: bytes


class LastRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The highest session id given out."""

    session: int


class TermRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The latest term with an entry for machines, and that entry's cluster time. *due_ms*: what had
    its deadline up to there was over when the term began."""

    term: int
    since_ms: int
    due_ms: int = 0


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to one submission: *results* as in ``SubmitReply``, applied at *index*; or, if
    *code* is set, the error to the submission as a whole."""

    index: int
    results: bytes
    code: str = ""
    message: str = ""
    retry_after_ms: int = 0


class _Kept:
    """What is derived of one session: sequence numbers with a kept reply, sorted, and bytes."""

    __slots__ = ("bytes", "sequences")

    def __init__(self) -> None:
        self.sequences: deque[int] = deque()
        self.bytes = 0


def _session_key(session: int) -> bytes:
    return session.to_bytes(8, "big")


def _reply_key(session: int, sequence: int) -> bytes:
    return session.to_bytes(8, "big") + sequence.to_bytes(8, "big")


class SessionMachine(Machine):
    """Machine "sessions", part of every node. Version history: 1, first release."""

    name = SESSION_MACHINE
    version = 1
    command_type: ClassVar[Any] = SessionCommand
    query_type: ClassVar[Any] = ListSessions

    _live: Table[SessionRecord]
    _replies: Table[ReplyRecord]
    _last: Table[LastRecord]
    _terms: Table[TermRecord]

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}
        self._deadlines = Deadlines(self._deadline_of)
        self._term = TermRecord(0, 0)
        self._ended: list[int] = []  # within the entry at hand
        self._tell: Callable[[int, Context], None] = _tell_nobody

    def on_end(self, tell: Callable[[int, Context], None]) -> None:
        """*tell* is called with each session that ends, inside the apply that ends it."""
        self._tell = tell

    @property
    def live_count(self) -> int:
        """Sessions that have not ended."""
        return len(self._live)

    # --- the contract ---------------------------------------------------------------------------

    def attach(self, tables: Tables) -> None:
        self._live = tables.table("sessions.live", SessionRecord, ordered=True, trusted=True)
        self._replies = tables.table("sessions.replies", ReplyRecord, trusted=True)
        self._last = tables.table("sessions.last", LastRecord, trusted=True)
        self._terms = tables.table("sessions.term", TermRecord, trusted=True)

    def loaded(self) -> None:
        self._ended.clear()
        self._kept = {}
        self._term = self._terms.get(_TERM_KEY) or TermRecord(0, 0)
        deadlines = []
        for key, record in self._live.items():
            session = int.from_bytes(key, "big")
            self._kept[session] = _Kept()
            deadlines.append((record.expires_ms, session))
        self._deadlines.load(deadlines)
        for key, reply in self._replies.items():
            kept = self._kept[int.from_bytes(key[:8], "big")]
            kept.sequences.append(int.from_bytes(key[8:], "big"))
            kept.bytes += len(reply.results)

    def apply(self, command: Any, context: Context) -> Any:  # noqa: ANN401
        if command.__class__ is KeepAlive:
            return self._keep_alive(command, context)
        if command.__class__ is OpenSession:
            return self._open(command, context)
        return self._close(command, context)

    def query(self, query: Any) -> SessionList:  # noqa: ANN401
        after = _session_key(min(query.after + 1, _ID_MAX))
        rows = self._live.range(after, limit=query.limit)
        infos = []
        for key, record in rows:
            session = int.from_bytes(key, "big")
            infos.append(
                SessionInfo(
                    session,
                    record.client,
                    record.ttl_ms,
                    record.expires_ms,
                    record.acknowledged,
                    len(self._kept[session].sequences),
                )
            )
        return SessionList(len(self._live), tuple(infos))

    def frees_space(self, command: Any) -> bool:  # noqa: ANN401, ARG002
        """All of them, although opening one takes a few bytes: whoever wants to delete needs it."""
        return True

    def next_deadline_ms(self) -> int | None:
        return self._deadlines.first_ms()

    def expire(self, context: Context) -> None:
        for session in islice(self._deadlines.due(context.due_ms), SESSIONS_EXPIRED_MAX):
            self._end(session, context)

    def finish(self, context: Context) -> None:  # noqa: ARG002
        # Not at once in _end: the command that closed a session may still be undone.
        for session in self._ended:
            if session not in self:
                self._kept.pop(session, None)
        self._ended.clear()
        self._deadlines.sweep(len(self._live))

    # --- when terms began: called by Machines ---------------------------------------------------

    def due_ms(self, term: int, time_ms: int, before_ms: int) -> int:
        """What had its deadline up to here is over, in an entry of *term* at *time_ms*, whose
        predecessor stands at *before_ms*."""
        if term != self._term.term:
            # Not up to *time_ms*: whose time ran out since then could reach no leader.
            self._term = TermRecord(term, time_ms, self._due_at(before_ms))
            self._terms.put(_TERM_KEY, self._term)
        return self._due_at(time_ms)

    def _due_at(self, time_ms: int) -> int:
        return time_ms if time_ms >= self.calm_until_ms else self._term.due_ms

    @property
    def calm_until_ms(self) -> int:
        """Nothing expires before this cluster time."""
        return self._term.since_ms + TERM_GRACE_MS

    # --- exactly once: called by Machines around the commands of a submission -------------------

    def admit(self, submit: Submit, context: Context) -> Outcome | None:
        """Renew the submission's session, forget what it acknowledges, and say None if the
        commands shall run; else the outcome: a stored reply or an error."""
        session = submit.session
        record = self._alive(session, context)
        if record is None:
            return _refusal(
                context,
                SessionExpiredError.code,
                f"session {session} is closed or has expired; open a new one",
            )
        kept = self._kept[session]
        sequences = kept.sequences
        acknowledged = record.acknowledged
        if submit.acknowledged > acknowledged:
            acknowledged = submit.acknowledged
            while sequences and sequences[0] <= acknowledged:
                kept.bytes -= self._forget(session, sequences.popleft())
        expires_ms = context.time_ms + record.ttl_ms
        if expires_ms != record.expires_ms or acknowledged != record.acknowledged:
            renewed = SessionRecord(record.client, record.ttl_ms, expires_ms, acknowledged)
            self._live.put(_session_key(session), renewed)
        sequence = submit.sequence
        if sequence <= acknowledged:
            return _refusal(
                context,
                SequenceError.code,
                f"submission {sequence} of session {session} came after its client had "
                f"acknowledged {acknowledged}",
            )
        if not sequences:
            return None
        if sequence <= sequences[-1]:
            stored = self._replies.get(_reply_key(session, sequence))
            if stored is not None:
                return Outcome(stored.index, stored.results)
        if (
            len(sequences) < SESSION_UNACKNOWLEDGED_MAX
            and kept.bytes < SESSION_UNACKNOWLEDGED_BYTES_MAX
        ):
            return None
        return _refusal(
            context,
            OverloadedError.code,
            f"session {session} has {len(sequences)} replies of {kept.bytes} bytes that its "
            "client has not acknowledged; acknowledge some",
            OVERLOADED_RETRY_MS,
        )

    def keep(self, submit: Submit, outcome: Outcome) -> None:
        """Remember the reply, unless the submission itself has ended its session."""
        session, sequence = submit.session, submit.sequence
        key = _reply_key(session, sequence)
        if key[:8] not in self._live:
            return
        self._replies.put(key, ReplyRecord(outcome.index, outcome.results))
        kept = self._kept[session]
        kept.bytes += len(outcome.results)
        if not kept.sequences or sequence > kept.sequences[-1]:
            kept.sequences.append(sequence)
        else:
            insort(kept.sequences, sequence)

    def _forget(self, session: int, sequence: int) -> int:
        """Drop a kept reply; its bytes."""
        reply = self._replies.delete(_reply_key(session, sequence))
        return 0 if reply is None else len(reply.results)

    # --- commands -------------------------------------------------------------------------------

    def __contains__(self, session: int) -> bool:
        return 0 < session <= _ID_MAX and _session_key(session) in self._live

    def _alive(self, session: int, context: Context) -> SessionRecord | None:
        """The record of a session that is neither gone nor due (an entry ends only so many)."""
        if not 0 < session <= _ID_MAX:
            return None
        record = self._live.get(_session_key(session))
        if record is None or record.expires_ms <= context.due_ms:
            return None
        return record

    def _open(self, command: OpenSession, context: Context) -> SessionOpened | Failure:
        if len(self._live) >= SESSIONS_MAX:
            return Failure(
                OverloadedError.code,
                f"there are {SESSIONS_MAX} sessions already; close or let expire some",
            )
        last = self._last.get(_LAST_KEY)
        session = 1 if last is None else last.session + 1
        expires_ms = context.time_ms + command.ttl_ms
        self._last.put(_LAST_KEY, LastRecord(session))
        self._live.put(
            _session_key(session), SessionRecord(command.client, command.ttl_ms, expires_ms, 0)
        )
        self._kept[session] = _Kept()
        self._deadlines.add(expires_ms, session)
        return SessionOpened(session, expires_ms)

    def _keep_alive(self, command: KeepAlive, context: Context) -> SessionAlive | Failure:
        session = command.session
        record = self._alive(session, context)
        if record is None:
            return Failure(
                SessionExpiredError.code,
                f"session {session} is closed or has expired; open a new one",
            )
        expires_ms = context.time_ms + record.ttl_ms
        self._live.put(
            _session_key(session),
            SessionRecord(record.client, record.ttl_ms, expires_ms, record.acknowledged),
        )
        return SessionAlive(session, expires_ms)

    def _close(self, command: CloseSession, context: Context) -> SessionClosed:
        existed = command.session in self
        if existed:
            self._end(command.session, context)
        return SessionClosed(command.session, existed)

    def _end(self, session: int, context: Context) -> None:
        for sequence in self._kept[session].sequences:
            self._replies.delete(_reply_key(session, sequence))
        self._live.delete(_session_key(session))
        self._ended.append(session)
        self._tell(session, context)

    def _deadline_of(self, session: int) -> int | None:
        record = self._live.get(_session_key(session))
        return None if record is None else record.expires_ms


def _tell_nobody(session: int, context: Context) -> None:
    """Until ``on_end`` is called."""


def _refusal(context: Context, code: str, message: str, retry_after_ms: int = 0) -> Outcome:
    return Outcome(context.index, b"", code, message, retry_after_ms)

"""Linearizable reads at any member: one read-index round serves all reads of its turn.

A round costs a heartbeat to every member and an answer from most, no disk. At most two are under
way at once; reads that arrive meanwhile share the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from quorate.base.frames import Query, QueryFailed, QueryReply
from quorate.base.types import LogIndex
from quorate.errors import OverloadedError, UnavailableError

#: Receives the one answer to a query.
QuerySink = Callable[[QueryReply | QueryFailed], None]

ROUNDS_IN_FLIGHT_MAX = 2
QUERIES_WAITING_MAX = 50_000
#: A round that is not answered for so long is asked again, under a new context: its messages may
#: be lost, and an old context must never be trusted twice (etcd issue 20418).
ROUND_TIMEOUT_S = 0.25
#: One that was refused (no leader is known) is asked again so soon: elections are short.
REFUSED_RETRY_S = 0.05
#: Reads that no leader vouched for in this time are given up: they may be served elsewhere.
ROUND_GIVE_UP_S = 2.0
#: And so are those that wait for this member to apply what it was granted: it is far behind.
APPLY_GIVE_UP_S = 5.0


class Reading(msgspec.Struct, frozen=True, gc=False):
    """A query between its arrival and its answer."""

    query: Query
    sink: QuerySink


class Round(msgspec.Struct):
    """Reads that share one context. *asked_s*: when it was asked for last."""

    context: int
    readings: list[Reading]
    began_s: float
    asked_s: float
    refused: bool = False


class Granted(msgspec.Struct, gc=False):
    """Reads that may be served once *index* is applied here."""

    index: LogIndex
    readings: list[Reading]
    began_s: float


class Reads:
    """Reads waiting for a round, rounds waiting for an index, reads waiting for apply."""

    def __init__(self, *, ask: Callable[[int], None], first_context: int) -> None:
        self._ask = ask
        self._next_context = first_context
        self._waiting: list[Reading] = []
        self._rounds: dict[int, Round] = {}
        self._granted: deque[Granted] = deque()
        self._count = 0
        self._stopped = False

    @property
    def count(self) -> int:
        """Queries not answered yet."""
        return self._count

    def add(self, query: Query, sink: QuerySink) -> None:
        """Queue one query for the next round.

        Raises:
            OverloadedError: too many wait.
        """
        if self._count >= QUERIES_WAITING_MAX:
            raise OverloadedError(f"{self._count} queries wait for an answer; try again")
        self._waiting.append(Reading(query, sink))
        self._count += 1

    def start_round(self, now_s: float) -> None:
        """Ask the core for an index on behalf of everything that waits, if a round is free."""
        if not self._waiting or len(self._rounds) >= ROUNDS_IN_FLIGHT_MAX or self._stopped:
            return
        readings, self._waiting = self._waiting, []
        self._begin(Round(0, readings, now_s, now_s), now_s)

    def _begin(self, round_: Round, now_s: float) -> None:
        round_.context = self._next_context
        self._next_context += 1
        round_.asked_s = now_s
        round_.refused = False
        self._rounds[round_.context] = round_
        self._ask(round_.context)

    def on_index(self, context: int, index: LogIndex) -> None:
        """The core's answer. Index 0: nobody can vouch for one now; try again in a moment."""
        round_ = self._rounds.get(context)
        if round_ is None:
            return  # asked again meanwhile
        if index == 0:
            round_.refused = True
            return
        del self._rounds[context]
        self._granted.append(Granted(index, round_.readings, round_.asked_s))

    def ready(self, applied: LogIndex) -> list[Reading]:
        """Reads that the applied state may answer now."""
        found: list[Reading] = []
        waiting: deque[Granted] = deque()
        for granted in self._granted:
            if granted.index <= applied:
                found.extend(granted.readings)
            else:
                waiting.append(granted)
        self._granted = waiting
        self._count -= len(found)
        return found

    @property
    def any_granted(self) -> bool:
        """Whether reads wait for nothing but apply."""
        return bool(self._granted)

    @property
    def any_waiting(self) -> bool:
        """Whether reads wait for a round to be free."""
        return bool(self._waiting) and len(self._rounds) < ROUNDS_IN_FLIGHT_MAX

    def on_tick(self, now_s: float) -> None:
        """Ask again for rounds that got no answer; give up on hopeless ones; start waiting ones."""
        code = UnavailableError.code
        for round_ in list(self._rounds.values()):
            late_s = REFUSED_RETRY_S if round_.refused else ROUND_TIMEOUT_S
            if now_s - round_.asked_s < late_s or self._stopped:
                continue
            del self._rounds[round_.context]
            if now_s - round_.began_s < ROUND_GIVE_UP_S:
                self._begin(round_, now_s)
            else:
                self._fail(round_.readings, code, "no leader confirmed the read in time")
        while self._granted and now_s - self._granted[0].began_s > APPLY_GIVE_UP_S:
            behind = self._granted.popleft().readings
            self._fail(behind, code, "this member is too far behind; ask another")
        self.start_round(now_s)

    def fail_all(self, code: str, message: str) -> None:
        """The node stops: nothing is asked for any more."""
        self._stopped = True
        waiting = [
            *(reading for round_ in self._rounds.values() for reading in round_.readings),
            *(reading for granted in self._granted for reading in granted.readings),
            *self._waiting,
        ]
        self._rounds.clear()
        self._granted.clear()
        self._waiting = []
        self._fail(waiting, code, message)

    def _fail(self, readings: list[Reading], code: str, message: str) -> None:
        self._count -= len(readings)
        for reading in readings:
            reading.sink(QueryFailed(reading.query.id, code, message))

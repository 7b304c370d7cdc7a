"""Reads at any member: linearizable ones, and those that wait for an entry.

One read-index round serves all linearizable reads of its turn. It costs a heartbeat to every member
and an answer from most, no disk. At most two are under way at once; reads that arrive meanwhile
share the next one. A ``causal`` read names the entry that its session has seen, and waits for this
member to apply it; an ``eventual`` one names none.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from math import inf

import msgspec

from quorate.base.frames import Query, QueryFailed, QueryReply
from quorate.base.types import LogIndex
from quorate.errors import (
    ClosedError,
    OverloadedError,
    QuorateError,
    UnavailableError,
)
from quorate.replication.applying import Applier
from quorate.replication.clock import Clock
from quorate.replication.machines import Machines

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
#: A causal read waits so long for this member to catch up: a few heartbeats. Then another member
#: may have what it wants.
BEHIND_GIVE_UP_S = 0.25


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


class Behind(msgspec.Struct, frozen=True, gc=False):
    """A causal read that came before this member has applied what it follows."""

    reading: Reading
    began_s: float


class Reads:
    """Reads waiting for a round, rounds waiting for an index, reads waiting for apply."""

    def __init__(self, *, ask: Callable[[int], None], first_context: int) -> None:
        self._ask = ask
        self._next_context = first_context
        self._waiting: list[Reading] = []
        self._rounds: dict[int, Round] = {}
        self._granted: deque[Granted] = deque()
        self._behind: list[tuple[int, int, Behind]] = []  # a heap by the entry waited for
        self._behind_since_s = inf  # none of them began before
        self._behind_count = 0  # ever: keeps the order within an entry
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

    def add_behind(self, query: Query, sink: QuerySink, now_s: float) -> None:
        """Keep one query until ``query.after`` is applied. Raises as ``add``."""
        if self._count >= QUERIES_WAITING_MAX:
            raise OverloadedError(f"{self._count} queries wait for an answer; try again")
        self._count += 1
        self._behind_count += 1
        behind = Behind(Reading(query, sink), now_s)
        heapq.heappush(self._behind, (query.after, self._behind_count, behind))
        self._behind_since_s = min(self._behind_since_s, now_s)

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
        while self._behind and self._behind[0][0] <= applied:
            found.append(heapq.heappop(self._behind)[2].reading)
        self._count -= len(found)
        return found

    @property
    def any_granted(self) -> bool:
        """Whether reads wait for nothing but apply."""
        return bool(self._granted) or bool(self._behind)

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
        if now_s - self._behind_since_s > BEHIND_GIVE_UP_S:
            self._give_up_behind(now_s)
        self.start_round(now_s)

    def _give_up_behind(self, now_s: float) -> None:
        late = [each for each in self._behind if now_s - each[2].began_s > BEHIND_GIVE_UP_S]
        self._behind = [
            each for each in self._behind if now_s - each[2].began_s <= BEHIND_GIVE_UP_S
        ]
        heapq.heapify(self._behind)
        self._behind_since_s = min((each[2].began_s for each in self._behind), default=inf)
        for after, _, behind in sorted(late):
            text = f"this member has not applied entry {after} yet; ask another"
            self._fail([behind.reading], UnavailableError.code, text)

    def fail_all(self, code: str, message: str) -> None:
        """The node stops: nothing is asked for any more."""
        self._stopped = True
        waiting = [
            *(reading for round_ in self._rounds.values() for reading in round_.readings),
            *(reading for granted in self._granted for reading in granted.readings),
            *(behind.reading for _, _, behind in sorted(self._behind)),
            *self._waiting,
        ]
        self._rounds.clear()
        self._granted.clear()
        self._behind = []
        self._waiting = []
        self._fail(waiting, code, message)

    def _fail(self, readings: list[Reading], code: str, message: str) -> None:
        self._count -= len(readings)
        for reading in readings:
            reading.sink(QueryFailed(reading.query.id, code, message))


class Serving:
    """Answers queries from the applied state, each when its level allows. *ask*: have the core find
    an index under that context. *contexts*: where those begin."""

    def __init__(
        self,
        machines: Machines,
        applier: Applier,
        clock: Clock,
        *,
        ask: Callable[[int], None],
        contexts: int,
    ) -> None:
        self._machines = machines
        self._applier = applier
        self._clock = clock
        self._reads = Reads(ask=ask, first_context=contexts)
        self._loop = asyncio.get_running_loop()
        self._round_scheduled = self._stopped = False

    def query(self, query: Query, sink: QuerySink) -> None:
        """As ``Replica.query``."""
        if self._stopped:
            raise ClosedError("the node is stopping")
        for run in query.runs:
            self._machines.machine(run.machine)
        if query.linearizable:
            self._reads.add(query, sink)
            self._round_soon()
        elif not self._applier.ready:
            raise UnavailableError("this node is loading a snapshot; ask another")
        else:
            self._query_here(query, sink)

    @property
    def waited_for(self) -> bool:
        """Whether queries wait for this member to apply more."""
        return self._reads.any_granted

    def _query_here(self, query: Query, sink: QuerySink) -> None:
        self._applier.catch_up()
        if self._stopped:  # that failed
            raise ClosedError("the node is stopping")
        if query.after <= self._applier.applied:
            sink(self._answer(query))
        else:
            self._reads.add_behind(query, sink, self._clock.monotonic_s())

    def on_index(self, context: int, index: LogIndex) -> None:
        """The core's answer to *ask*."""
        self._reads.on_index(context, index)

    def serve(self) -> None:
        """Answer what the applied state allows now."""
        if self._reads.any_granted and self._applier.ready:
            for reading in self._reads.ready(self._applier.applied):
                reading.sink(self._answer(reading.query))
            if self._reads.any_waiting:
                self._round_soon()

    def on_tick(self, now_s: float) -> None:
        """See ``Reads``."""
        self._reads.on_tick(now_s)

    def stop(self, code: str, message: str) -> None:
        """Answer everybody who waits, and take no more."""
        self._stopped = True
        self._reads.fail_all(code, message)

    def _round_soon(self) -> None:
        if not self._round_scheduled:
            self._round_scheduled = True
            self._loop.call_soon(self._start_round)

    def _start_round(self) -> None:
        self._round_scheduled = False
        if not self._stopped:
            self._reads.start_round(self._clock.monotonic_s())

    def _answer(self, query: Query) -> QueryReply | QueryFailed:
        try:
            results = self._machines.query_runs(query.runs)
        except QuorateError as error:
            return QueryFailed(query.id, error.code, str(error))
        return QueryReply(query.id, self._applier.applied, msgspec.Raw(results))

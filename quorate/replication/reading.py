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
from quorate.errors import OverloadedError

#: Receives the one answer to a query.
QuerySink = Callable[[QueryReply | QueryFailed], None]

ROUNDS_IN_FLIGHT_MAX = 2
QUERIES_WAITING_MAX = 50_000
#: A round that is not answered for so long is asked again, under a new context: its messages may
#: be lost, and an old context must never be trusted twice (etcd issue 20418).
ROUND_TIMEOUT_S = 0.25
ROUND_TRIES_MAX = 8


class Reading(msgspec.Struct, frozen=True, gc=False):
    """A query between its arrival and its answer."""

    query: Query
    sink: QuerySink


class Round(msgspec.Struct):
    """Reads that share one context."""

    context: int
    readings: list[Reading]
    started_s: float
    tries: int = 1


class Reads:
    """Reads waiting for a round, rounds waiting for an index, reads waiting for apply."""

    def __init__(self, *, ask: Callable[[int], None], first_context: int) -> None:
        self._ask = ask
        self._next_context = first_context
        self._waiting: list[Reading] = []
        self._rounds: dict[int, Round] = {}
        self._granted: deque[tuple[LogIndex, list[Reading]]] = deque()
        self._count = 0

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
        if not self._waiting or len(self._rounds) >= ROUNDS_IN_FLIGHT_MAX:
            return
        readings, self._waiting = self._waiting, []
        self._begin(Round(0, readings, now_s))

    def _begin(self, round_: Round) -> None:
        round_.context = self._next_context
        self._next_context += 1
        self._rounds[round_.context] = round_
        self._ask(round_.context)

    def on_index(self, context: int, index: LogIndex) -> None:
        """The core's answer. Index 0: nobody can vouch for one now; try again on the next tick."""
        round_ = self._rounds.get(context)
        if round_ is None:
            return  # asked again meanwhile
        if index == 0:
            round_.started_s = 0.0
            return
        del self._rounds[context]
        self._granted.append((index, round_.readings))

    def ready(self, applied: LogIndex) -> list[Reading]:
        """Reads that the applied state may answer now."""
        found: list[Reading] = []
        waiting: deque[tuple[LogIndex, list[Reading]]] = deque()
        while self._granted:
            index, readings = self._granted.popleft()
            if index <= applied:
                found.extend(readings)
            else:
                waiting.append((index, readings))
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
        late = [r for r in self._rounds.values() if now_s - r.started_s > ROUND_TIMEOUT_S]
        for round_ in late:
            del self._rounds[round_.context]
            if round_.tries >= ROUND_TRIES_MAX:
                self._fail(round_.readings, "unavailable", "no leader confirmed the read in time")
                continue
            round_.tries += 1
            round_.started_s = now_s
            self._begin(round_)
        self.start_round(now_s)

    def fail_all(self, code: str, message: str) -> None:
        """The node stops."""
        for round_ in self._rounds.values():
            self._fail(round_.readings, code, message)
        for _, readings in self._granted:
            self._fail(readings, code, message)
        self._fail(self._waiting, code, message)
        self._rounds.clear()
        self._granted.clear()
        self._waiting = []

    def _fail(self, readings: list[Reading], code: str, message: str) -> None:
        self._count -= len(readings)
        for reading in readings:
            reading.sink(QueryFailed(reading.query.id, code, message))

"""What workers say of their attempts: begun, alive, done, failed, given back.

Each is taken from the present attempt alone, as its worker and number say. Whoever is late is told
who has the task now, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol, TypeVar

from quorate.base.task_commands import (
    Begin,
    Complete,
    Fail,
    GiveBack,
    Report,
    Settlement,
    Stale,
)
from quorate.base.task_specs import ASSIGNED, CANCELLED, DEAD, DONE, RUNNING, Task
from quorate.replication.machine import Context
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.records import LiveRecord, id_key
from quorate.tasks.registry import WorkerRegistry
from quorate.tasks.workflow_sweeps import Sweeper


class Said(Protocol):
    """What is said of an attempt names it."""

    @property
    def task(self) -> int: ...
    @property
    def attempt(self) -> int: ...


S = TypeVar("S", bound=Said)

_RUNS: Final = (RUNNING,)
_STORED: Final = (ASSIGNED,)
_HAS: Final = (RUNNING, ASSIGNED)


class Attempts:
    """See the module."""

    def __init__(
        self, ledger: Ledger, life: Life, registry: WorkerRegistry, sweeper: Sweeper
    ) -> None:
        self._ledger = ledger
        self._life = life
        self._registry = registry
        self._sweeper = sweeper

    # --- whose attempt it is --------------------------------------------------------------------

    def present(
        self, task: int, attempt: int, worker: int, states: tuple[int, ...]
    ) -> tuple[Task, LiveRecord] | Stale:
        """The records, if it is that worker's attempt, in one of *states*; else who has it."""
        tables, key = self._ledger.tables, id_key(task)
        live = tables.live.get(key)
        if live is not None and live.attempt == attempt and live.worker == worker:
            spec = tables.specs.get(key)
            if live.state in states and spec is not None:
                return spec, live
        return self._stale(task)

    def _stale(self, task: int) -> Stale:
        tables, key = self._ledger.tables, id_key(task)
        live = tables.live.get(key)
        if live is not None:
            return Stale(task, live.state, live.attempt, live.worker)
        ended = tables.ended.get(key)
        if ended is not None:
            return Stale(task, ended.state, ended.attempt, ended.worker)
        dead = tables.dead.get(key)
        if dead is not None:
            return Stale(task, DEAD, dead.attempt, dead.worker)
        return Stale(task, 0, 0, 0)

    def _own(
        self, worker: int, said: Iterable[S], states: tuple[int, ...], stale: list[Stale]
    ) -> Iterator[tuple[S, Task, LiveRecord]]:
        """Of what is *said*, that of present attempts; the rest goes to *stale*."""
        for each in said:
            found = self.present(each.task, each.attempt, worker, states)
            if isinstance(found, Stale):
                stale.append(found)
            else:
                yield each, *found

    # --- what is said ---------------------------------------------------------------------------

    def begin(self, command: Begin, context: Context) -> Settlement:
        """They were in store, and run."""
        stale: list[Stale] = []
        for each, spec, live in self._own(command.worker, command.tasks, _STORED, stale):
            if self._sweeper.is_stopped(each.task):
                self._sweeper.stop(each.task, context)
                stale.append(self._stale(each.task))
            else:
                self._life.begin(each.task, spec, live, context)
        return _settled(stale)

    def complete(self, command: Complete, context: Context) -> Settlement:
        """They came to results."""
        stale: list[Stale] = []
        done = ran_ms = 0
        for each, spec, live in self._own(command.worker, command.tasks, _RUNS, stale):
            self._life.end(each.task, spec, live, DONE, context, each.result)
            done += 1
            ran_ms += context.time_ms - live.since_ms
        if done:
            self._registry.count_done(command.worker, done, ran_ms, context)
        return _settled(stale)

    def fail(self, command: Fail, context: Context) -> Settlement:
        """They failed, or stopped as they were told to."""
        stale: list[Stale] = []
        for each, spec, live in self._own(command.worker, command.tasks, _RUNS, stale):
            task, kind, error = each.task, each.kind, each.error
            if each.cancelled and live.stopping:
                self._life.end(task, spec, live, CANCELLED, context, kind=kind, error=error)
                continue
            self._life.fail(
                task, spec, live, kind, error, context, final=each.final, after_ms=each.after_ms
            )
        return _settled(stale)

    def give_back(self, command: GiveBack, context: Context) -> Settlement:
        """The worker will not run them after all."""
        stale: list[Stale] = []
        for each, spec, live in self._own(command.worker, command.tasks, _HAS, stale):
            if live.stopping:
                self._life.end(each.task, spec, live, CANCELLED, context)
            else:
                self._life.give_back(each.task, spec, live, "given-back", context)
        return _settled(stale)

    def report(self, command: Report, context: Context) -> Settlement:
        """They are alive; those that were told to stop are named again."""
        stale: list[Stale] = []
        for each, spec, live in self._own(command.worker, command.tasks, _HAS, stale):
            if live.stopping:
                stale.append(Stale(each.task, live.state, live.attempt, live.worker, stop=True))
            self._life.report(each.task, spec, live, command.permille, command.note, context)
        return _settled(stale)


_ALL_WELL: Final = Settlement()


def _settled(stale: list[Stale]) -> Settlement:
    return Settlement(tuple(stale)) if stale else _ALL_WELL

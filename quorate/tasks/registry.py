"""Workers come, say how they are, and go."""

from __future__ import annotations

import msgspec

from quorate.base.limits import WORKERS_GONE_MAX, WORKERS_MAX
from quorate.base.results import Failure
from quorate.base.task_commands import Attend, Attended, Register, Registered, Unregister
from quorate.base.task_queries import WorkerEvent
from quorate.base.task_specs import CANCELLED, RUNNING
from quorate.errors import LeaseExpiredError, OverloadedError, WorkerNotFoundError
from quorate.replication.machine import Context
from quorate.tasks.ledger import Ledger
from quorate.tasks.life import Life
from quorate.tasks.records import WorkerRecord, id_key, id_of
from quorate.tasks.telling import tell_worker


class WorkerRegistry:
    """The commands on workers. A worker that is gone is remembered for a while, under its id,
    which no other one gets; one of the same name is another worker."""

    def __init__(self, ledger: Ledger, life: Life) -> None:
        self._ledger = ledger
        self._life = life

    def register(self, command: Register, context: Context) -> Registered | Failure:
        """A new worker."""
        ledger = self._ledger
        if not context.lease_alive(command.lease):
            text = f"lease {command.lease} was revoked or has run out"
            return Failure(LeaseExpiredError.code, text)
        if len(ledger.crew.workers) >= WORKERS_MAX:
            return Failure(OverloadedError.code, f"there are {WORKERS_MAX} workers")
        id_ = ledger.draw_worker()
        now_ms = context.time_ms
        record = WorkerRecord(
            command.name,
            command.lease,
            command.load,
            command.prefetch,
            command.capabilities,
            command.queues,
            command.weight,
            command.model,
            "active",
            now_ms,
            now_ms,
        )
        ledger.set_worker(id_, record)
        tell_worker(context, WorkerEvent("registered", id_, command.name, now_ms))
        return Registered(id_)

    def attend(self, command: Attend, context: Context) -> Attended | Failure:
        """How a worker is."""
        worker = self._ledger.crew.workers.get(command.worker)
        if worker is None:
            return _no_worker(command.worker)
        record = worker.record
        if command.state != record.state:
            event = WorkerEvent(command.state, worker.id, record.name, context.time_ms)
            tell_worker(context, event)
        cleared = command.state == "active"
        self._ledger.set_worker(
            worker.id,
            msgspec.structs.replace(
                record,
                state=command.state,
                load=record.load if command.load is None else command.load,
                prefetch=record.prefetch if command.prefetch is None else command.prefetch,
                failures_in_row=0 if cleared else record.failures_in_row,
                seen_ms=context.time_ms,
            ),
        )
        return Attended(len(worker.held))

    def unregister(self, command: Unregister, context: Context) -> Attended | Failure:
        """A worker goes, by itself."""
        if command.worker not in self._ledger.crew.workers:
            return _no_worker(command.worker)
        return Attended(self.lose(command.worker, context, crashed=False) - 1)

    def lose(self, id_: int, context: Context, *, crashed: bool) -> int:
        """A worker is gone, and what it had is ready again. Of how much that was."""
        ledger, tables = self._ledger, self._ledger.tables
        worker = ledger.crew.workers[id_]
        held = sorted(worker.held)
        died = 0
        # It takes no more, before what it had is handed out anew.
        record = msgspec.structs.replace(worker.record, state="gone")
        for task in held:
            key = id_key(task)
            spec, live = tables.specs.get(key), tables.live.get(key)
            if spec is None or live is None:
                continue
            if crashed:
                died += live.state == RUNNING
                self._life.crash(task, spec, live, context)
            elif live.stopping:
                self._life.end(task, spec, live, CANCELLED, context)
            else:
                self._life.give_back(task, spec, live, "given-back", context)
        ledger.set_worker(
            id_,
            msgspec.structs.replace(
                record, gone_ms=max(context.time_ms, 1), crashed=record.crashed + died
            ),
        )
        tell_worker(context, WorkerEvent("gone", id_, record.name, context.time_ms))
        self._forget_gone()
        return len(held) + 1

    def _forget_gone(self) -> None:
        """The oldest of those that are gone, if they are too many."""
        ledger = self._ledger
        workers = ledger.tables.workers
        if len(workers) - len(ledger.crew.workers) <= WORKERS_GONE_MAX:
            return
        for key, record in workers.range():
            if record.gone_ms:
                ledger.set_worker(id_of(key), None)
                return

    def count_done(self, id_: int, done: int, ran_ms: int, context: Context) -> None:
        """A worker has completed so many."""
        worker = self._ledger.crew.workers.get(id_)
        if worker is None:
            return
        record = worker.record
        self._ledger.set_worker(
            id_,
            WorkerRecord(
                record.name,
                record.lease,
                record.load,
                record.prefetch,
                record.capabilities,
                record.queues,
                record.weight,
                record.model,
                record.state,
                record.registered_ms,
                context.time_ms,
                record.gone_ms,
                record.done + done,
                record.failed,
                record.crashed,
                record.ran_ms + ran_ms,
                0,
            ),
        )


def _no_worker(id_: int) -> Failure:
    text = f"there is no worker {id_}: it was unregistered, or its lease has ended"
    return Failure(WorkerNotFoundError.code, text)

"""Workers: which are there, what they have, and who gets a task that several could take.

Derived from the records of workers and live tasks. The choice is a function of the state and of
the command's own chance, never of the order in which a dict happens to stand.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from quorate.base.chance import Chance
from quorate.base.limits import WORKER_HELD_BYTES_MAX
from quorate.base.task_specs import NO_NEEDS, Needs
from quorate.tasks.records import SettingsRecord, WorkerRecord

#: Failures of one worker in a row that put it into the state "error".
FAILURES_IN_ROW_MAX = 3


class Worker:
    """One that is there. *held*: tasks that it has, and bytes of each; *stored*: those of them it
    has not begun."""

    __slots__ = (
        "capabilities", "capacity", "held", "held_bytes", "id", "open", "queues", "record", "stored"
    )  # fmt: skip

    def __init__(self, id_: int, record: WorkerRecord) -> None:
        self.id = id_
        self.held: dict[int, int] = {}
        self.held_bytes = 0
        self.stored: dict[int, None] = {}
        self.record: WorkerRecord
        self.capacity: int  # tasks that it takes
        self.open: int  # the same, now that it is in this state
        self.capabilities = frozenset(record.capabilities)
        self.queues = frozenset(record.queues)
        self.set(record)

    def set(self, record: WorkerRecord) -> None:
        """As its record is now."""
        self.record = record
        self.capacity = record.load + record.prefetch
        self.open = self.capacity if record.state == "active" else 0

    @property
    def free(self) -> int:
        """Tasks that it takes now, without asking for them."""
        return max(self.open - len(self.held), 0) if self.has_room else 0

    @property
    def has_room(self) -> bool:
        """Whether it takes any. All that it has is one answer when its link breaks."""
        return self.open > len(self.held) and self.held_bytes < WORKER_HELD_BYTES_MAX

    @property
    def running(self) -> int:
        """Tasks that it has begun."""
        return len(self.held) - len(self.stored)

    @property
    def fullness(self) -> int:
        """Its load in millionths of what it takes."""
        return len(self.held) * 1_000_000 // (self.capacity or 1)

    def serves(self, queue: str, needs: Needs, settings: SettingsRecord) -> bool:
        """Whether it may run what asks for *needs*."""
        if self.queues and queue not in self.queues:
            return False
        if needs is NO_NEEDS:
            return True
        if settings.capabilities and not self.capabilities.issuperset(needs.capabilities):
            return False
        if not settings.affinity:
            return True
        name = self.record.name
        return (not needs.worker or needs.worker == name) and name not in needs.excluded


class Crew:
    """All workers that are there, by id and by name."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.by_name: dict[str, dict[int, Worker]] = {}
        self.by_lease: dict[int, dict[int, Worker]] = {}
        self.free: dict[int, Worker] = {}  # those that take more
        self.stored = 0  # tasks in store, of all

    def set(self, id_: int, record: WorkerRecord | None) -> None:
        """As the record of a worker is now; None, or gone: it is not there."""
        worker = self.workers.get(id_)
        if record is None or record.gone_ms:
            if worker is not None:
                self._remove(worker)
            return
        if worker is None:
            worker = self.workers[id_] = Worker(id_, record)
            self.by_name.setdefault(record.name, {})[id_] = worker
            self.by_lease.setdefault(record.lease, {})[id_] = worker
        else:
            worker.set(record)
        self._note_free(worker)

    def _remove(self, worker: Worker) -> None:
        record = worker.record
        del self.workers[worker.id]
        self.free.pop(worker.id, None)
        self.stored -= len(worker.stored)
        by_name, by_lease = self.by_name[record.name], self.by_lease[record.lease]
        del by_name[worker.id], by_lease[worker.id]
        if not by_name:
            del self.by_name[record.name]
        if not by_lease:
            del self.by_lease[record.lease]

    def _note_free(self, worker: Worker) -> None:
        if worker.has_room:
            self.free[worker.id] = worker
        else:
            self.free.pop(worker.id, None)

    def hold(self, id_: int, task: int, size: int, *, stored: bool) -> None:
        """A worker has a task, of *size* bytes."""
        worker = self.workers.get(id_)
        if worker is not None:
            worker.held[task] = size
            worker.held_bytes += size
            if stored:
                worker.stored[task] = None
                self.stored += 1
            if not worker.has_room:
                self.free.pop(id_, None)

    def let_go(self, id_: int, task: int) -> None:
        """It has it no more."""
        worker = self.workers.get(id_)
        if worker is not None and task in worker.held:
            worker.held_bytes -= worker.held.pop(task)
            if task in worker.stored:
                del worker.stored[task]
                self.stored -= 1
            if id_ not in self.free:
                self._note_free(worker)


class Pool:
    """Free workers that could take the tasks of one line, and the choice among them. Lives for one
    round of handing out, in which loads only grow."""

    def __init__(self, workers: list[Worker], settings: SettingsRecord, needs: Needs) -> None:
        self._strategy = settings.strategy
        self._load_max = settings.load_max * 1000
        self._needs = len(needs.capabilities)
        self._workers = {each.id: each for each in workers}
        self._ids = sorted(self._workers)
        self._heap: list[tuple[Any, ...]] = []
        self._ranked = self._strategy in ("least-loaded", "capability-match")
        if self._ranked:
            self._heap = [self._rank(each) for each in workers]
            heapq.heapify(self._heap)

    def choose(self, preferred: str, last: int, chance: Callable[[], Chance]) -> Worker | None:
        """One that has room, or None: there is none. *preferred*: a name that goes first; *last*:
        whom round-robin chose last."""
        if preferred:
            found = [each for each in self._open() if each.record.name == preferred]
            if found:
                return min(found, key=lambda worker: (worker.fullness, worker.id))
        if self._ranked:
            return self._choose_ranked()
        if self._strategy == "round-robin":
            return self._choose_next(last)
        workers = self._open()
        if not workers:
            return None
        if self._strategy == "weighted":
            return _weighted(workers, chance())
        return chance().choice(workers)

    def _fits(self, worker: Worker) -> bool:
        return worker.has_room and worker.fullness <= self._load_max

    def _open(self) -> list[Worker]:
        """By id."""
        workers = self._workers
        return [workers[each] for each in self._ids if self._fits(workers[each])]

    def _rank(self, worker: Worker) -> tuple[Any, ...]:
        """Ends with the fullness and the id."""
        if self._strategy == "least-loaded":
            return worker.fullness, worker.id
        surplus = len(worker.capabilities) - self._needs
        return surplus, worker.fullness, worker.id

    def _choose_ranked(self) -> Worker | None:
        heap = self._heap
        while heap:
            worker = self._workers[heap[0][-1]]
            if len(heap) == 1:
                return worker if self._fits(worker) else None
            rank = self._rank(worker)
            if not worker.has_room or rank[-2] > self._load_max:
                heapq.heappop(heap)
            elif rank == heap[0]:
                return worker
            else:
                heapq.heapreplace(heap, rank)
        return None

    def _choose_next(self, last: int) -> Worker | None:
        ids = self._ids
        start = bisect_right(ids, last)
        for each in (*ids[start:], *ids[:start]):
            worker = self._workers[each]
            if self._fits(worker):
                return worker
        return None


def _weighted(workers: list[Worker], chance: Chance) -> Worker:
    """Each as likely as its free places times its weight."""
    weights = [each.free * each.record.weight for each in workers]
    drawn = chance.below(sum(weights))
    for worker, weight in zip(workers, weights, strict=True):
        drawn -= weight
        if drawn < 0:
            return worker
    return workers[-1]

"""Workers that are registered by name and kept alive by what they say: ``WorkerManager``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any, Literal

import msgspec

from quorate.base.task_commands import Attend, Attended, Register, Registered, Strategy, Unregister
from quorate.base.task_queries import ChooseWorker, ListWorkers, WorkerInfo, WorkerList
from quorate.client.coordinator_config import (
    CoordinatorConfig,
    WorkerHeartbeat,
    WorkerRegistration,
    as_given,
)
from quorate.client.coordinator_inbox import Inbox
from quorate.client.coordinator_rows import ActiveWorkerRow, WorkerRow
from quorate.client.coordinator_tables import Tables, Views, worker_row
from quorate.client.database import Database
from quorate.client.task_settings import check_name, sorted_names
from quorate.client.workflows import checked
from quorate.errors import InvalidArgumentError, WorkerNotFoundError

#: What a heartbeat's status comes to: whether the worker takes tasks.
_TAKES = {"active": True, "idle": True, "busy": True, "draining": False, "error": False}


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster has of a worker that said it is alive. *current_load*: tasks; it counts,
    whatever the worker believed."""

    worker_id: int
    current_load: int


class WorkerManager:
    """Workers of one coordinator. Made by ``Coordinator``.

    A worker has a lease of its own, which ends ``dead_worker_threshold_ms`` after its last
    heartbeat: in the log entry that ends it, what the worker had is ready for others.
    """

    def __init__(self, db: Database, config: CoordinatorConfig, inbox: Inbox) -> None:
        self._db = db
        self._config = config
        self._inbox = inbox
        inbox.on_gone = self._forget
        self._leases: dict[int, int] = {}
        self._reserved: dict[int, int] = {}
        self._max_load: dict[int, int] = {}
        self._draining: set[int] = set()
        self._last = 0  # whom round-robin chose last
        self._random = Random()  # noqa: S311  a choice among workers is no secret

    # --- life -----------------------------------------------------------------------------------

    async def register(self, worker: WorkerRegistration | Mapping[str, Any]) -> int:
        """A new worker; its id, which no other one gets, whatever its name. It takes tasks at once.

        Raises:
            InvalidArgumentError: it cannot be so.
            OverloadedError: the cluster has as many workers as it may.
        """
        given = as_given(WorkerRegistration, worker)
        name = check_name("a worker", given.name)
        lease = await self._db.grant_lease(
            self._config.dead_worker_threshold_ms / 1000, f"worker {name}"
        )
        # It stores and begins nothing by itself: ``start_task`` says when.
        command = checked(
            lambda: Register(
                name,
                lease,
                0,
                given.max_load,
                sorted_names("capabilities", given.capabilities),
                sorted_names("queues", given.queues),
                given.weight,
                given.model_name,
            )
        )
        registered: Registered = await self._db.tasks.run(command)
        id_ = registered.worker
        self._leases[id_], self._max_load[id_] = lease, given.max_load
        self._inbox.follow(id_)
        return id_

    async def unregister(self, worker_id: int) -> int:
        """The worker goes, and what it had is ready again; returns how many tasks that were.

        Raises:
            WorkerNotFoundError: it is gone already.
        """
        attended: Attended = await self._db.tasks.run(checked(lambda: Unregister(worker_id)))
        self._inbox.leave(worker_id)
        lease = self._forget(worker_id)
        if lease:
            await self._db.revoke_lease(lease)
        return attended.tasks

    def _forget(self, worker_id: int) -> int:
        self._reserved.pop(worker_id, None)
        self._max_load.pop(worker_id, None)
        self._draining.discard(worker_id)
        return self._leases.pop(worker_id, 0)

    async def heartbeat(self, beat: WorkerHeartbeat | Mapping[str, Any]) -> Beat:
        """A worker is alive, and how it is. Clears the state "error", in which it got no more tasks
        after three failures in a row.

        Raises:
            WorkerNotFoundError: it is dead, or was never registered: register it anew.
        """
        given = as_given(WorkerHeartbeat, beat)
        id_ = given.worker_id
        if given.status == "offline":
            await self.unregister(id_)
            return Beat(worker_id=id_, current_load=0)
        lease = self._leases.get(id_) or (await self._info(id_)).lease
        state = self._says(id_, takes=_TAKES[given.status])
        attend = self._db.tasks.run(checked(lambda: Attend(id_, state)))
        try:
            alive = await self._db.renew_lease(lease)
        finally:
            attended: Attended = await attend
        if not alive:
            self._forget(id_)
            raise WorkerNotFoundError(f"worker {id_} is dead: its lease has ended; register anew")
        return Beat(worker_id=id_, current_load=attended.tasks)

    def _says(self, worker_id: int, *, takes: bool) -> Literal["active", "draining"]:
        (self._draining.discard if takes else self._draining.add)(worker_id)
        return "active" if takes else "draining"

    async def release_all(self) -> None:
        """All workers of this coordinator go."""
        for worker in list(self._leases):
            try:
                await self.unregister(worker)
            except WorkerNotFoundError:
                self._forget(worker)

    async def drain_all(self) -> None:
        """None of them takes more tasks."""
        for worker in list(self._leases):
            try:
                await self._db.tasks.run(Attend(worker, self._says(worker, takes=False)))
            except WorkerNotFoundError:
                self._forget(worker)

    # --- looking --------------------------------------------------------------------------------

    @property
    def own(self) -> tuple[int, ...]:
        """Ids of those that were registered here, and have not gone."""
        return tuple(self._leases)

    async def get(self, worker_id: int) -> WorkerRow:
        """A worker, also one that is gone, as long as it is known.

        Raises:
            WorkerNotFoundError: there was none, or it is forgotten.
        """
        return worker_row(await self._info(worker_id))

    async def _info(self, worker_id: int) -> WorkerInfo:
        query = checked(lambda: ListWorkers(worker_id - 1, 1, gone=True))
        found: WorkerList = await self._db.tasks.ask(query)
        if not found.workers or found.workers[0].worker != worker_id:
            raise WorkerNotFoundError(f"there is no worker {worker_id}, or not any more")
        return found.workers[0]

    async def get_active(self) -> list[ActiveWorkerRow]:
        """Workers that are there, by id; see ``v_active_workers``."""
        return await Views(self._db, self._config).v_active_workers(10_000)

    async def get_with_capabilities(self, capabilities: Iterable[str]) -> list[WorkerRow]:
        """Workers that are there and have all of *capabilities*, and perhaps more; by id."""
        wanted = set(sorted_names("capabilities", capabilities))
        rows = await Tables(self._db).workers(10_000)
        return [row for row in rows if row.status != "offline" and wanted <= set(row.capabilities)]

    async def names(self, workers: Iterable[str | int]) -> dict[int, str]:
        """The names of those that are given by id.

        Raises:
            WorkerNotFoundError: there is none of one.
        """
        found: dict[int, str] = {}
        for each in workers:
            if not isinstance(each, str) and each not in found:
                found[each] = (await self._info(each)).name
        return found

    async def select_worker(
        self, strategy: Strategy | None = None, capabilities: Iterable[str] = ()
    ) -> WorkerRow:
        """Who would get a task that asks for *capabilities*, by *strategy* (None: the
        coordinator's): the cluster's own choice, of the moment.

        Raises:
            NoAvailableWorkerError: nobody who has them has room.
        """
        chosen = strategy or self._config.load_balancer.strategy
        seed = self._random.getrandbits(62)
        wanted = sorted_names("capabilities", capabilities)
        query = checked(lambda: ChooseWorker(chosen, wanted, self._last, seed))
        found: WorkerList = await self._db.tasks.ask(query)
        row = worker_row(found.workers[0])
        if chosen == "round-robin":
            self._last = row.id
        return row

    # --- load -----------------------------------------------------------------------------------

    async def increment_load(self, worker_id: int, by: int = 1) -> int:
        """The worker is busy with *by* more things of its own, and takes as many tasks less; it
        never is with more than its ``max_load``. Returns how many it is. What it has of the cluster
        is counted by the cluster alone, and is never wrong.

        Raises:
            WorkerNotFoundError: it was not registered here, or is gone.
        """
        return await self._reserve(worker_id, by)

    async def decrement_load(self, worker_id: int, by: int = 1) -> int:
        """As many less; never less than none."""
        return await self._reserve(worker_id, -by)

    async def _reserve(self, worker_id: int, by: int) -> int:
        if worker_id not in self._leases:
            raise WorkerNotFoundError(f"worker {worker_id} was not registered here, or is gone")
        given: object = by
        if not isinstance(given, int) or isinstance(given, bool):
            raise InvalidArgumentError(f"a load is a number of tasks, not {by!r}")
        most = self._max_load[worker_id]
        load = min(max(self._reserved.get(worker_id, 0) + by, 0), most)
        self._reserved[worker_id] = load
        state = self._says(worker_id, takes=worker_id not in self._draining)
        await self._db.tasks.run(Attend(worker_id, state, prefetch=most - load))
        return load

"""A world for a test: one node in memory, on virtual time, and what to ask and do to it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, Self, TypeVar

import msgspec

from quorate.base.invariants import must
from quorate.base.lease_commands import LEASE_MACHINE
from quorate.base.limits import LEASE_TTL_MS_MAX, SESSION_TTL_MS_MAX
from quorate.base.session_commands import SESSION_MACHINE
from quorate.base.task_queries import ListTasks, System, SystemInfo, TaskInfo, TaskList
from quorate.base.task_specs import NORMAL, SCHEDULED, STATE_NAMES, Options
from quorate.client.database import Database
from quorate.client.settings import TIMEOUT_S_MAX
from quorate.client.task_app import App
from quorate.client.task_payloads import unpack_arguments
from quorate.client.task_worker import Worker
from quorate.client.tasks import State, check_state
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    QuorateError,
    StuckError,
    TaskPayloadError,
)
from quorate.replication.machine import Machine
from quorate.server.config import NodeConfig
from quorate.server.node import Node
from quorate.tasks.machine import TaskMachine
from quorate.testing.doors import Door
from quorate.testing.loop import VirtualTimeLoop
from quorate.testing.running import PATIENCE_S_DEFAULT, current_loop, run_for
from quorate.testing.surroundings import Memory, MemoryPlatform

T = TypeVar("T")

#: Where the clock begins, unless a test says otherwise: a Tuesday.
START_DEFAULT: Final = datetime(2030, 1, 1, tzinfo=UTC)
#: A worker of the world has a lease of so many seconds: one of ten seconds would be renewed 26,000
#: times in a day, which takes seconds.
WORKER_TTL_S_DEFAULT: Final = LEASE_TTL_MS_MAX / 1000
#: Longer than this no task is waited for.
IDLE_WITHIN_DEFAULT: Final = timedelta(days=366)
#: What is due now is done when the node has looked for it, which it does every few milliseconds.
LOOK_S: Final = 0.01
DUE_SLACK_S: Final = 0.002
SETTLE_LOOKS_MAX: Final = 1000

_DATA: Final = "/world"


class EnqueuedTask(msgspec.Struct, frozen=True):
    """A task as it stands. *args*, *kwargs*: of its function, empty if its *payload* was not made
    of such. *due*: when it may begin at the soonest, of one that is to wait; None of any other.
    *attempt*: the latest, 0: it has not begun. *error*: of the last failure. What was in a task
    that is done or cancelled is not kept: it shows as empty."""

    id: int
    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    queue: str
    state: str
    priority: int
    key: bytes
    due: datetime | None
    attempt: int
    headers: dict[str, str]
    error: str
    payload: bytes


class World:
    """See the module; made by ``cluster``. Use it as ``async with``, on virtual time, or hand
    ``run`` a coroutine function that takes it.

    Raises:
        InvalidArgumentError: *start* has no time zone.
    """

    def __init__(
        self,
        *,
        start: datetime = START_DEFAULT,
        machines: Sequence[Machine] = (),
        seed: int = 0,
    ) -> None:
        given: object = start
        if not isinstance(given, datetime) or given.utcoffset() is None:
            raise InvalidArgumentError(f"start is a datetime with a time zone, not {start!r}")
        self.start = start.astimezone(UTC)
        self._start_ms = round(self.start.timestamp() * 1000)
        self._machines = machines
        self._random = Random(seed)  # noqa: S311  nothing secret
        self._memory = Memory()
        self._loop: VirtualTimeLoop | None = None
        self._began_s = 0.0
        self._node: Node | None = None
        self._db: Database | None = None
        self._doors: dict[Database, Door] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._restarts = 0

    # --- life ------------------------------------------------------------------------------------

    def run(
        self,
        story: Callable[[World], Coroutine[Any, Any, T]],
        *,
        patience: float = PATIENCE_S_DEFAULT,
    ) -> T:
        """What ``await story(world)`` returns, on virtual time, in this world. *patience*: real
        seconds after which it is given up.

        Raises:
            StuckError: it waits for what never comes, or took too long.
        """

        async def told() -> T:
            async with self:
                return await story(self)

        return run_for(patience, told)

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise ClosedError("a world is entered once; make another one")
        self._loop = loop = current_loop()
        self._began_s = loop.time()
        await self._start()
        loop.dues.append(self._due_at)
        loop.prospects.append(self._has_prospects)
        self._db = await self.connect().open()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for ending in self._endings:
            ending.cancel()
        await asyncio.gather(*self._endings, return_exceptions=True)
        try:
            for db in list(self._doors):
                await db.close()
        finally:
            node, self._node = self._node, None
            if node is not None:
                await node.stop()
            loop = self._running_loop()
            loop.dues.remove(self._due_at)
            loop.prospects.remove(self._has_prospects)

    async def _start(self) -> None:
        loop = self._running_loop()
        platform = MemoryPlatform(loop, self._memory, self._wall_ms, self._random)
        config = NodeConfig(node_id=1, data=_DATA, listen="")
        machines = [copy.deepcopy(each) for each in self._machines]  # as another process has them
        node = Node(config, machines, platform=platform)
        await node.start()
        self._node = node

    def _running_loop(self) -> VirtualTimeLoop:
        if self._loop is None:
            raise ClosedError("the world is not entered: use `async with`, or world.run(...)")
        return self._loop

    # --- handles and workers ---------------------------------------------------------------------

    @property
    def db(self) -> Database:
        """A handle on the node, as ``quorate.open`` returns one."""
        if self._db is None:
            raise ClosedError("the world is not entered: use `async with`, or world.run(...)")
        return self._db

    def connect(self, name: str = "") -> Database:
        """Another handle, as another process would have one: with a session, leases and locks of
        its own. It is closed with the world."""
        door = Door(self._running_loop(), self._serving)
        made = Database(
            door,
            session_ttl=SESSION_TTL_MS_MAX / 1000,
            stall_timeout=TIMEOUT_S_MAX,  # a door is open or shut, and says so
            name=name,
            random=self._random,
        )
        self._doors[made] = door
        return made

    def worker(self, app: App, **settings: Any) -> Worker:  # noqa: ANN401  those of a Worker
        """A worker with a handle of its own, not started yet: ``async with world.worker(app):``.
        *settings*: as for ``Worker``; its ``ttl`` is a day if nothing else is said, so that the
        clock need not stop for each renewal. An *app* that no handle of this world is used with is
        used with ``db``."""
        settings.setdefault("ttl", WORKER_TTL_S_DEFAULT)
        if not app.in_use or app.db not in self._doors:
            app.use(self.db)
        return Worker(self.connect(), app, **settings)

    def cut_off(self, db: Database) -> None:
        """From now on *db*, of ``connect``, reaches nobody: what it holds ends with its leases."""
        self._door(db).shut()

    def heal(self, db: Database) -> None:
        """It does again."""
        self._door(db).open()

    def worker_dies(self, worker: Worker) -> None:
        """As if its process were killed: the code that it runs is stopped where it is, and nobody
        is told. Its tasks are others' once its lease has run out, ``worker.ttl`` seconds after
        it was last renewed."""
        self.cut_off(worker._db)  # noqa: SLF001
        ending = self._running_loop().create_task(_end(worker), name="the end of a worker")
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def restart(self) -> None:
        """Stop the node and start another one from its disk. Handles find it by themselves; what
        is under way ends as it does when a node is restarted."""
        node, self._node = self._node, None
        if node is not None:
            await node.stop()
        await self._start()
        await self.db.welcomed(self.db.timeout)

    def _door(self, db: Database) -> Door:
        door = self._doors.get(db)
        if door is None or db is self._db:
            raise InvalidArgumentError(
                "only handles that world.connect() made, and workers of world.worker(), can be "
                "cut off"
            )
        return door

    def _serving(self) -> Node | None:
        return self._node

    # --- time ------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time of day in this world, in UTC."""
        return self.start + timedelta(seconds=self._passed_s())

    async def advance(
        self,
        by: timedelta | None = None,
        /,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> None:
        """Let so much time pass, and then do all that is due by then, which may take a few
        milliseconds more. Everything on the way happens at its own time.

        Raises:
            InvalidArgumentError: it is less than no time.
        """
        more = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        wait_s = (more + (by or timedelta())).total_seconds()
        if wait_s < 0:
            raise InvalidArgumentError(f"time does not go back, not by {-wait_s:g} s either")
        await asyncio.sleep(wait_s)
        await self.settle()

    async def settle(self) -> None:
        """Do all that is to be done now: what is due later is left alone."""
        loop = self._running_loop()
        until_s = loop.time() + DUE_SLACK_S
        for _ in range(SETTLE_LOOKS_MAX):
            await loop.idle()
            due_s = self._due_at()
            if due_s is None or due_s > until_s:
                return
            await asyncio.sleep(LOOK_S)
        raise StuckError("there was always something more that was due")

    async def run_until_idle(self, within: timedelta = IDLE_WITHIN_DEFAULT) -> None:
        """Let time pass until no task runs, and none waits for its time: retries and delayed tasks
        have ended by then, sleeps of workflows are over. Not waited for: ready tasks that no worker
        takes, signals, and what schedules will enqueue later.

        Raises:
            StuckError: it goes on beyond *within*.
        """
        loop = self._running_loop()
        until_s = loop.time() + within.total_seconds()
        await self.settle()
        while self._busy():
            if loop.time() >= until_s:
                raise StuckError(f"there are tasks that go on after {within}")
            await loop.passing()
            await self.settle()

    def _passed_s(self) -> float:
        return self._running_loop().time() - self._began_s

    def _wall_ms(self) -> int:
        return self._start_ms + int(self._passed_s() * 1000)

    def _due_at(self) -> float | None:
        """When the node has something to do by itself, by the loop's clock."""
        node = self._node
        if node is None or not node.replica.is_leader:
            return None
        times = (self._deadline_at(node), self._tick_at(node))
        return min((each for each in times if each is not None), default=None)

    def _deadline_at(self, node: Node) -> float | None:
        deadline_ms = node.machines.next_deadline_ms()
        if deadline_ms is None:
            return None
        left_ms = deadline_ms - node.replica._now_ms()  # noqa: SLF001  nobody else asks
        return self._running_loop().time() + left_ms / 1000

    def _has_prospects(self) -> bool:
        """Whether something is to come besides the end of leases, which are renewed as a rule."""
        node = self._node
        if node is None:
            return False
        times = (
            each.next_deadline_ms()
            for each in node.machines._timed  # noqa: SLF001  as ``Machines`` does
            if each.name not in (LEASE_MACHINE, SESSION_MACHINE)
        )
        return self._tick_at(node) is not None or any(each is not None for each in times)

    def _tick_at(self, node: Node) -> float | None:
        """Of the schedules by cron."""
        wall_ms = node._task_machine.schedules.cron.first_ms()  # noqa: SLF001  as the node's ticker
        return None if wall_ms is None else self._began_s + (wall_ms - self._start_ms) / 1000

    # --- what there is ---------------------------------------------------------------------------

    def enqueued(
        self, queue: str = "", function: str = "", *, state: State | None = None
    ) -> list[EnqueuedTask]:
        """Tasks in the order in which they were enqueued: those that have not ended, or those in
        *state*; of one *queue*, of one *function*, "": of all."""
        number = 0 if state is None else STATE_NAMES.index(check_state(state))
        found: list[EnqueuedTask] = []
        after = 0
        while True:
            page = self._machine().query(ListTasks(number, queue, after))
            must(isinstance(page, TaskList), "tasks are listed", page=page)
            found.extend(
                self._shown(each) for each in page.tasks if function in ("", each.function)
            )
            after = page.next
            if not after:
                return found

    def _shown(self, info: TaskInfo) -> EnqueuedTask:
        spec = info.spec
        payload = spec.payload if spec is not None else b""
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        with contextlib.suppress(TaskPayloadError):
            given, named = unpack_arguments(payload)
            args, kwargs = tuple(given), dict(named)
        options = (spec.options if spec is not None else None) or Options()
        waits = info.state == SCHEDULED
        return EnqueuedTask(
            info.task,
            info.function,
            args,
            kwargs,
            info.queue,
            STATE_NAMES[info.state],
            spec.priority if spec is not None else NORMAL,
            spec.key if spec is not None else b"",
            self._time_of_day(info.due_ms) if waits else None,
            info.attempt,
            dict(options.headers),
            info.error,
            payload,
        )

    def _time_of_day(self, cluster_ms: int) -> datetime:
        node = self._node
        now_ms = 0 if node is None else node.replica._now_ms()  # noqa: SLF001
        return self.now() + timedelta(milliseconds=cluster_ms - now_ms)

    def _machine(self) -> TaskMachine:
        if self._node is None:
            raise ClosedError("the world is not entered, or its node is being restarted")
        return self._node._task_machine  # noqa: SLF001

    def _busy(self) -> bool:
        """Whether a task runs, or will without anybody's doing."""
        machine = self._machine()
        counts: SystemInfo = machine.query(System())
        if counts.scheduled or counts.assigned or counts.running:
            return True
        return counts.ready > 0 and machine._dispatcher.wake_ms() is not None  # noqa: SLF001


async def _end(worker: Worker) -> None:
    """Nobody hears that it goes."""
    with contextlib.suppress(QuorateError):
        await worker.drain(0)


def cluster(
    *, start: datetime = START_DEFAULT, machines: Sequence[Machine] = (), seed: int = 0
) -> World:
    """A world with one node: ``async with quorate.testing.cluster() as world``, on virtual time.

    Args:
        start: the time of day at which it begins; with a time zone.
        machines: of your own, as for ``quorate.open``; each start of the node has copies of them.
        seed: of chance in the node and in handles: equal runs of equal code are equal.

    Raises:
        InvalidArgumentError: *start* has no time zone.
    """
    return World(start=start, machines=machines, seed=seed)

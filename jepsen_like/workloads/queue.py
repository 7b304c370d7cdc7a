"""Queues of tasks, and workers that run them: tasks are enqueued, one or many, beside others or
together with a key, waited for and cancelled, requeued when they are dead, and given from one
worker to another, while workers come and go, freeze and come back late, die and are cut off.

What is judged in the end: what the cluster acknowledged, what workers' code really did, what
watchers were told, and what the cluster says of every task (``checkers.queue``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Any, Final, get_args

from jepsen_like.checkers.queue import FREED, QueueChecker
from jepsen_like.checkers.queue_moves import DID
from jepsen_like.history import Event
from jepsen_like.processes.crew import Crew
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.queue_work import FUNCTION, Looker, app
from jepsen_like.workloads.staff import Staff
from quorate.base.task_commands import Strategy
from quorate.base.task_queries import TaskInfo, WorkerInfo
from quorate.base.task_specs import STATE_NAMES, Task
from quorate.client import operations as ops
from quorate.client.database import Database
from quorate.client.task_payloads import unpack_arguments, unpack_result
from quorate.client.tasks import State, Tasks
from quorate.errors import QuorateError, TaskPendingError

#: The queues, with their rules, which do not change but for a pause.
QUEUES: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "limited": {"running_max": 2, "key_running_max": 1},
    "rated": {"rate": 8, "key_rate": 5, "rate_per": 0.5},
    "deep": {"depth_max": 12},
    "aged": {"ageing": 0.2},
    "paused": {},
}
NAMES: Final = ("w0", "w1", "w2", "w3", "w4")
TTLS_S: Final = (1.0, 1.0, 1.5, 3.0)
KEYS: Final = ("", "", "", "a", "b")
UNIQUES: Final = ("one", "two", "three")
BATCH_MAX: Final = 8
#: Of all tasks of a run: what is left at the end must be done in time.
TASKS_MAX: Final = 400
#: Tasks that others may wait for, or cancel.
KNOWN_MAX: Final = 40
#: Of those, the last ones are given out by hand, and have others beside them.
RECENT: Final = 12
REQUEUED_MAX: Final = 5
#: Workers that are asked for by hand.
HIRED_MAX: Final = 6
#: Keys under which something is done together with an enqueueing: each once.
KEYS_PREFIX: Final = "queue/"
PAYS: Final = 12
GRACES_S: Final = (0.0, 0.2, 2.0)
#: The same of workers that are processes, which have a minute.
TASKS_MAX_REAL: Final = 4_000
_KEPT: Final = "queue"


class QueueWorkload:
    """*lasting*: the share of tasks that go wrong in some way at their first attempt."""

    name = "queue"
    #: See ``processes.crew.Staffed``.
    rate = 20.0
    last_timeout_s = 40.0

    def __init__(self, *, lasting: float = 0.25) -> None:
        self._wrong = lasting
        self._value = 0
        self._staff = Staff(_KEPT, app)
        self._tasks_max = TASKS_MAX
        self._parts: list[list[list[Any]]] = []
        self._known: deque[int] = deque(maxlen=KNOWN_MAX)
        self._hired: deque[int] = deque(maxlen=HIRED_MAX)
        #: Those that were dead when somebody last looked.
        self._dead: list[int] = []
        #: Those that may have been given out by hand: nobody was answered.
        self._moved: list[int] = []

    def staff(self, crew: Crew) -> None:
        """Its workers are processes of *crew*."""
        self._staff.crew = crew
        self._tasks_max = TASKS_MAX_REAL

    async def setup(self, client: Client) -> None:
        """The rules of the queues."""
        tasks = quorate_client(client).database.tasks
        for name, rules in QUEUES.items():
            await outcome_of(tasks.configure(name, **rules))

    # --- what is asked ----------------------------------------------------------------------------

    def next(self, random: Random, process: int) -> Invocation:
        del process
        chance = random.random()
        if chance < 0.22:
            return self._hire(random)
        if chance < 0.27:
            return Invocation("dismiss", None, {"grace": random.choice(GRACES_S)})
        if chance < 0.29:
            return Invocation("look")
        if chance < 0.33:
            return Invocation("survey")
        if chance < 0.36 and self._known:
            return Invocation("cancel", None, {"tasks": [random.choice(self._known)]})
        if chance < 0.44 and self._known:
            tasks = sorted(random.sample(self._known, min(3, len(self._known))))
            return Invocation("wait", None, {"tasks": tasks, "seconds": random.choice((0.1, 0.5))})
        if chance < 0.46:
            return Invocation("settle", None, {"strategy": random.choice(get_args(Strategy))})
        if chance < 0.48:
            return Invocation("pause", "paused", {"paused": random.random() < 0.5})
        if chance < 0.52 and self._known:
            tasks = self._dead or list(self._known)
            chosen = sorted(random.sample(tasks, min(REQUEUED_MAX, len(tasks))))
            return Invocation("requeue", None, {"tasks": chosen})
        if chance < 0.60 and self._known:
            return self._assign(random)
        if self._value >= self._tasks_max:
            return Invocation("look")
        if chance < 0.66:
            return self._together(random)
        count = random.randint(2, BATCH_MAX) if random.random() < 0.2 else 1
        return Invocation("enqueue", None, [self._task(random) for _ in range(count)])

    def _assign(self, random: Random) -> Invocation:
        """To a certain worker, or to any other."""
        worker = random.choice(self._hired) if self._hired and random.random() < 0.5 else 0
        return Invocation("assign", None, {"worker": worker, "place": random.randrange(100)})

    def _together(self, random: Random) -> Invocation:
        """With a key, which another one may have taken before; where there may be no room."""
        asked = [self._task(random) for _ in range(random.choice((1, 1, 3)))]
        pays = f"{KEYS_PREFIX}pay/{random.randrange(PAYS)}"
        for each in asked:
            each["pays"] = pays
            for name in ("unique", "until", "beside"):
                each.pop(name, None)
            if random.random() < 0.5:
                each["queue"] = "deep"
        return Invocation("together", None, asked)

    def _hire(self, random: Random) -> Invocation:
        queues = [] if random.random() < 0.7 else random.sample(list(QUEUES), 3)
        return Invocation(
            "hire",
            None,
            {
                "name": random.choice(NAMES),
                "queues": queues,
                "concurrency": random.choice((1, 1, 2, 5)),
                "prefetch": random.choice((0, 0, 1, 4)),
                "capabilities": ["big"] if random.random() < 0.5 else [],
                "weight": random.choice((1, 5)),
                "ttl": random.choice(TTLS_S),
            },
        )

    def _task(self, random: Random) -> dict[str, Any]:
        self._value += 1
        often = random.random
        queue = random.choice(list(QUEUES))
        timeout_s = random.choice((None, 0.4, 0.4, 1.0))
        asked: dict[str, Any] = {
            "value": self._value,
            "queue": queue,
            "priority": random.choice((1, 2, 2, 2, 4)),
            "key": random.choice(KEYS),
            "retries": random.choice((0, 1, 3)),
            "crashes": random.choice((0, 1, 3)),
            "backoff": random.choice((0.0, 0.0, 0.05, 0.3)),
            "timeout": timeout_s,
            "course": [self._attempt(random, timeout_s) for _ in range(random.choice((1, 2, 4)))],
        }
        if often() < 0.15:
            asked["delay"] = random.choice((0.1, 0.5, 1.5))
        if often() < 0.1:
            asked["heartbeat"] = 0.3
        if often() < 0.1:
            asked["expires"] = random.choice((0.1, 1.0))
        if often() < 0.2:
            asked["unique"] = random.choice(UNIQUES)
            asked["until"] = random.choice(("ended", "ended", "started"))
        if often() < 0.1:
            asked["capabilities"] = ["big"]
        if often() < 0.1:
            asked["excluded"] = [random.choice(NAMES)]
        if often() < 0.1:
            asked["prefers"] = random.choice(NAMES)
        if often() < 0.12:
            asked["writes"] = f"{DID}{self._value}"
        if self._known and "excluded" not in asked and often() < 0.12:
            asked["beside"] = random.choice(list(self._known)[-RECENT:])
        return asked

    def _attempt(self, random: Random, timeout_s: float | None) -> list[Any]:
        """Its fate, and seconds; some end just when their time is up."""
        fate = "ok"
        seconds = random.choice((0.0, 0.01, 0.1, 0.35, timeout_s or 0.5))
        if random.random() < self._wrong:
            fate = random.choice(("fail", "spoil", "fail", "hang", "deaf")[: 5 if timeout_s else 3])
        return [fate, seconds]

    def last(self) -> Sequence[Invocation]:
        """All is done; then every unique key is free; then what became of every task."""
        finals = [Invocation("drain")]
        for queue in QUEUES:
            tasks = []
            for unique in UNIQUES:
                self._value += 1
                asked = {"value": self._value, "queue": queue, "priority": 2, "key": ""}
                asked |= {"retries": 3, "crashes": 3, "backoff": 0.0, "timeout": 5.0}
                asked |= {"course": [["ok", 0.0]], "unique": unique, "until": "ended"}
                tasks.append({**asked, "fresh": True})
            finals.append(Invocation("enqueue", None, tasks))
        ends = ("drain", "tasks", "queues", "crew", "keys", "moved", "acts", "told")
        return [*finals, *map(Invocation, ends)]

    # --- how it is done ---------------------------------------------------------------------------

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        f, value, tasks = invocation.f, invocation.value, ours.database.tasks
        if f == "enqueue":
            result = await outcome_of(tasks.enqueue_many([_task(asked) for asked in value]))
            self._known.extend(result.tasks)
            return True, {"ids": list(result.tasks), "known": list(result.known)}
        if f == "hire":
            hired = await self._staff.hire(ours, value)
            if hired[0]:
                self._hired.append(hired[1]["worker"])
            return hired
        if f == "dismiss":
            return await self._staff.dismiss(ours, value["grace"]), None
        if f == "together":
            return True, await self._commit(ours.database, value)
        if f == "survey":
            found = await outcome_of(_page(tasks, "dead"), reads=True)
            self._dead = [each.task for each in found if each.queue in QUEUES]
            return True, len(self._dead)
        if f == "requeue":
            return True, {"changed": list(await outcome_of(tasks.requeue(*value["tasks"])))}
        if f == "assign":
            return await self._move(tasks, value)
        if f == "look":
            return self._look(ours)
        if f == "wait":
            return await _wait(tasks, value)
        if f == "cancel":
            return True, {
                "changed": list(await outcome_of(tasks.cancel(*value["tasks"], grace=0.5)))
            }
        if f == "settle":
            await outcome_of(tasks.settle(strategy=value["strategy"]))
            return True, None
        if f == "pause":
            await outcome_of(tasks.configure("paused", paused=value["paused"]))
            return True, None
        if f == "drain":
            return True, await self._drain(ours)
        return True, await self._final(ours.database, f)

    async def _move(self, tasks: Tasks, asked: dict[str, int]) -> tuple[bool, Any]:
        """One that a worker has now, or else that waits, gets another one."""
        live = await outcome_of(_page(tasks, None), reads=True)
        found = [each.task for each in live if each.queue in QUEUES]
        held = [each.task for each in live if each.queue in QUEUES and each.worker]
        if not found:
            return False, "there are none"
        choice = held or found
        task = choice[asked["place"] % len(choice)]
        self._moved.append(task)
        try:
            given = await outcome_of(tasks.assign(task, asked["worker"]))
        except OutcomeError as error:
            if error.definite:
                self._moved.remove(task)
            raise
        self._moved.remove(task)
        return True, {"task": task, "attempt": given.attempt, "reason": given.reason}

    async def _commit(self, database: Database, asked: list[dict[str, Any]]) -> dict[str, Any]:
        key, value = asked[0]["pays"], str(asked[0]["value"])
        done = await outcome_of(
            database.together(
                [ops.missing(key)],
                then=[ops.put(key, value)],
                tasks=[_task(each) for each in asked],
            )
        )
        self._known.extend(done.tasks)
        return {"ids": list(done.tasks), "known": list(done.known)}

    def _look(self, ours: QuorateClient) -> tuple[bool, Any]:
        kept: dict[str, Any] = ours.kept.setdefault(_KEPT, {})
        if "looker" in kept:
            return False, "looks"
        try:
            kept["looker"] = Looker(ours.database, self._new_part, QUEUES)
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=True) from error
        return True, None

    def _new_part(self) -> list[list[Any]]:
        part: list[list[Any]] = []
        self._parts.append(part)
        return part

    # --- the end ----------------------------------------------------------------------------------

    async def _drain(self, ours: QuorateClient) -> dict[str, Any]:
        """Everything that waits is run, where it was to run or not; what is left after a while."""
        self._staff.mark(FREED)
        return await self._staff.drain(
            ours, _resume, _left, name="last", concurrency=50, capabilities=["big"], ttl=3.0
        )

    async def _final(self, database: Database, f: str) -> Any:  # noqa: ANN401  by kind
        tasks = database.tasks
        if f == "tasks":
            return await outcome_of(_list(tasks), reads=True)
        if f == "queues":
            return [
                {each: getattr(info, each) for each in info.__struct_fields__}
                for info in await outcome_of(tasks.queues(), reads=True)
                if info.name in QUEUES
            ]
        if f == "moved":
            return self._moved
        if f == "crew":
            found = await outcome_of(tasks.workers(gone=True), reads=True)
            return [_worker(each) for each in found]
        if f == "keys":
            keys = await outcome_of(database.kv.range(prefix=KEYS_PREFIX), reads=True)
            return {each.key.decode(): each.value.decode() for each in keys.items}
        if f == "acts":
            return await self._staff.told()
        return [part for part in self._parts if part]

    def check(self, history: Sequence[Event]) -> Verdict:
        return QueueChecker().check(history)


def _task(asked: dict[str, Any]) -> Task:
    settings: dict[str, Any] = {
        name: asked[name]
        for name in (
            *("queue", "priority", "key", "delay", "retries", "crashes", "backoff", "timeout"),
            *("heartbeat", "expires", "unique", "capabilities", "excluded", "prefers", "beside"),
        )
        if name in asked
    }
    if "unique" in asked:
        settings["unique_until"] = asked["until"]
    args = (asked["value"], asked["course"], asked.get("writes", ""))
    return Tasks.task(FUNCTION, args=args, **settings)


async def _resume(database: Database) -> None:
    """Nothing is kept from running: no pause, and nobody has to wait for a worker of some name."""
    await outcome_of(database.tasks.configure("paused"))
    await outcome_of(database.tasks.settle(affinity=False))


def _worker(info: WorkerInfo) -> dict[str, Any]:
    queues, can = list(info.queues), list(info.capabilities)
    return {"worker": info.worker, "name": info.name, "queues": queues, "can": can}


async def _wait(tasks: Tasks, asked: dict[str, Any]) -> tuple[bool, Any]:
    try:
        found = await tasks.wait(asked["tasks"], timeout=asked["seconds"])
    except TaskPendingError:
        return False, "pending"
    except QuorateError as error:
        raise OutcomeError(f"{error.code}: {error}", definite=True) from error
    return True, [
        [each.task, each.what, each.attempt, unpack_result(each.result)] for each in found
    ]


async def _page(tasks: Tasks, state: State | None) -> list[TaskInfo]:
    return [info async for info in tasks.list(state)]


async def _list(tasks: Tasks) -> list[dict[str, Any]]:
    """Every task of this workload that is known."""
    found = []
    for state in (None, "done", "dead", "cancelled"):
        found += [shown(info) async for info in tasks.list(state) if info.queue in QUEUES]
    return sorted(found, key=lambda each: int(each["task"]))


async def _left(database: Database) -> int:
    """How many tasks of this workload have not ended."""
    return sum(
        each.scheduled + each.blocked + each.ready + each.assigned + each.running
        for each in await database.tasks.queues()
        if each.name in QUEUES
    )


def shown(info: TaskInfo) -> dict[str, Any]:
    """A task, as histories have it."""
    value = by = None
    if info.result:
        value, by = unpack_result(info.result)
    elif info.spec is not None:
        value = unpack_arguments(info.spec.payload)[0][0]
    return {
        "task": info.task,
        "state": STATE_NAMES[info.state],
        "queue": info.queue,
        "attempt": info.attempt,
        "worker": info.worker,
        "errors": info.errors,
        "crashes": info.crashes,
        "kind": info.kind,
        "enqueued_ms": info.enqueued_ms,
        "ended_ms": info.since_ms,
        "value": value,
        "by": by,
    }

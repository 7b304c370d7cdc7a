"""Workflows and schedules, and the workers of their tasks: graphs of tasks that wait for each other
in every way, that fail, hang and are undone, that grow while they run, that sleep and wait for
signals, now and then one of hundreds of nodes; and ticks by cluster time and by wall clocks, of
schedules that are paused, resumed and triggered, while leaders come and go.

What is judged in the end: what the cluster says of every node, what workers' code really did and
what it was given, what watchers were told (``checkers.workflow``, ``checkers.ticks``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.base import Together
from jepsen_like.checkers.ticks import TicksChecker
from jepsen_like.checkers.workflow import WorkflowChecker
from jepsen_like.history import Event
from jepsen_like.processes.crew import Crew
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.queue import shown
from jepsen_like.workloads.queue_work import Looker
from jepsen_like.workloads.staff import Staff
from jepsen_like.workloads.workflow_plans import (
    CAPABILITY,
    CROWD,
    FLOW_QUEUE,
    FUNCTION,
    TICK_QUEUE,
    draw_crowd,
    draw_plan,
    task_of_tick,
    workflow_of,
)
from jepsen_like.workloads.workflow_work import app
from quorate.base.schedule_commands import ScheduleInfo
from quorate.base.task_specs import STATE_NAMES
from quorate.base.workflow_commands import SIGNAL, WORKFLOW_STATE_NAMES, NodeInfo, WorkflowInfo
from quorate.client.database import Database
from quorate.client.task_payloads import unpack_result
from quorate.client.workflows import ENDS
from quorate.errors import QuorateError, TaskPendingError

#: Signals and sleeps are nowhere enqueued, and belong to the queue of this name.
QUEUES: Final = (FLOW_QUEUE, TICK_QUEUE, "default")
NAMES: Final = ("f0", "f1", "f2", "f3")
TTLS_S: Final = (1.0, 1.5, 3.0)
#: Of all workflows of a run, and of workers that are processes, which have a minute.
FLOWS_MAX: Final = 60
FLOWS_MAX_REAL: Final = 400
#: Schedules that stand at a time: each enqueues a task per tick.
SCHEDULES_MAX: Final = 4
#: One workflow in so many is a large one, and no more than one in a run.
CROWDS_ONE_IN: Final = 90
#: Workflows that others may wait for, signal or cancel.
KNOWN_MAX: Final = 12
EVERY_S: Final = (0.2, 0.5, 1.0)
#: Expressions, with their steps in milliseconds. Wall clocks jump by up to a day: where each tick
#: is made up for, they have to be rare.
CRONS: Final = (("* * * * * *", 1000), ("*/2 * * * * *", 2000))
RARE_CRON: Final = ("*/10 * * * *", 600_000)
#: After healing a schedule ticks again so soon.
TICK_S: Final = 10.0
POLL_S: Final = 0.1


class WorkflowWorkload:
    """*lasting*: the share of attempts that go wrong in some way."""

    name = "workflow"
    #: See ``processes.crew.Staffed``.
    rate = 10.0
    last_timeout_s = 40.0

    def __init__(self, *, lasting: float = 0.2) -> None:
        self._wrong = lasting
        self._flows = self._schedules = self._payloads = 0
        self._flows_max = FLOWS_MAX
        self._staff = Staff(self.name, app)
        self._parts: list[list[list[Any]]] = []
        #: Workflows, with the names of their signals; schedules that stand, as they were asked for.
        self._known: deque[tuple[int, list[str]]] = deque(maxlen=KNOWN_MAX)
        self._standing: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, dict[str, Any]] = {}
        self._crowded = False
        #: A large workflow that somebody is to cancel, perhaps.
        self._crowd = 0
        #: Numbers of plans whose workflows are forgotten soon after their end.
        self._brief: set[str] = set()

    def staff(self, crew: Crew) -> None:
        """Its workers are processes of *crew*."""
        self._staff.crew = crew
        self._flows_max = FLOWS_MAX_REAL

    async def setup(self, client: Client) -> None:
        """Nothing has to be there."""
        await outcome_of(quorate_client(client).database.tasks.system(), reads=True)

    # --- what is asked ----------------------------------------------------------------------------

    def next(self, random: Random, process: int) -> Invocation:
        del process
        chance = random.random()
        if chance < 0.22:
            return self._hire(random)
        if chance < 0.27:
            return Invocation("dismiss", None, {"grace": random.choice((0.0, 0.2, 2.0))})
        if chance < 0.32:
            return Invocation("look")
        if chance < 0.42:
            return Invocation("schedules")
        if chance < 0.49:
            return self._schedule(random)
        if chance < 0.56 and self._standing:
            return self._tend(random)
        if self._crowd and chance < 0.65:
            workflow, self._crowd = self._crowd, 0
            undo = random.random() < 0.5
            return Invocation("cancel", None, {"workflow": workflow, "undo": undo})
        if chance < 0.77 and self._known:
            return self._about(random, *random.choice(self._known))
        if self._flows >= self._flows_max:
            return Invocation("schedules")
        self._flows += 1
        plan = draw_plan(random, self._flows, self._wrong)
        if not self._crowded and not random.randrange(CROWDS_ONE_IN):
            self._crowded = True
            plan = draw_crowd(random, self._flows)
        if "keep" in plan:
            self._brief.add(str(self._flows))
        return Invocation("submit", None, plan)

    def _hire(self, random: Random) -> Invocation:
        return Invocation(
            "hire",
            None,
            {
                "name": random.choice(NAMES),
                "queues": [] if random.random() < 0.8 else [FLOW_QUEUE],
                "concurrency": random.choice((1, 2, 5)),
                "prefetch": random.choice((0, 0, 1, 4)),
                "capabilities": [CAPABILITY],
                "ttl": random.choice(TTLS_S),
            },
        )

    def _schedule(self, random: Random) -> Invocation:
        if len(self._standing) >= SCHEDULES_MAX or (self._standing and random.random() < 0.1):
            return Invocation("remove", None, {"name": random.choice(list(self._standing))})
        self._schedules += 1
        name = f"s{self._schedules}"
        misfire = random.choice(("skip", "once", "all"))
        asked: dict[str, Any] = {"name": name, "misfire": misfire, "overlap": random.random() < 0.8}
        if random.random() < 0.6:
            asked["every"] = random.choice(EVERY_S)
            asked["step_ms"] = round(asked["every"] * 1000)
        else:
            cron = RARE_CRON if misfire == "all" else random.choice(CRONS)
            asked["cron"], asked["step_ms"] = cron
        if random.random() < 0.1:
            asked["paused"] = True
        self._standing[name] = self._asked[name] = asked
        return Invocation("put", None, asked)

    def _tend(self, random: Random) -> Invocation:
        """A schedule is paused, goes on, or fires out of its turn."""
        what = random.choice(("pause", "resume", "trigger", "trigger"))
        return Invocation(what, None, {"name": random.choice(list(self._standing))})

    def _about(self, random: Random, workflow: int, signals: list[str]) -> Invocation:
        """Somebody signals, cancels, or waits."""
        if signals and random.random() < 0.6:
            self._payloads += 1
            node = random.choice(signals)
            asked = {"workflow": workflow, "node": node, "payload": self._payloads}
            return Invocation("signal", None, asked)
        if random.random() < 0.15:
            undo = random.random() < 0.5
            return Invocation("cancel", None, {"workflow": workflow, "undo": undo})
        return Invocation("wait", None, {"workflow": workflow, "seconds": 0.3})

    def last(self) -> Sequence[Invocation]:
        """Schedules tick again, and then no more; all workflows end; what became of everything."""
        names = (
            *("ticking", "schedules", "freeze", "schedules", "drain", "schedules"),
            *("flows", "ticked", "acts", "told"),
        )
        return [*map(Invocation, names)]

    # --- how it is done ---------------------------------------------------------------------------

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        database, f, value = ours.database, invocation.f, invocation.value
        if f == "submit":
            run = await outcome_of(database.workflows.submit(workflow_of(value)))
            signals = [each["name"] for each in value["nodes"] if each["kind"] == "signal"]
            self._known.append((run.id, signals))
            if len(value["nodes"]) > CROWD:
                self._crowd = run.id
            return True, {"workflow": run.id}
        if f in ("signal", "cancel", "wait"):
            return await _tell(database, f, value)
        if f == "hire":
            return await self._staff.hire(ours, value)
        if f == "dismiss":
            return await self._staff.dismiss(ours, value["grace"]), None
        if f == "look":
            return self._look(ours)
        if f == "put":
            await _put(database, value)
            return True, None
        if f == "remove":
            self._standing.pop(value["name"], None)
            return True, await outcome_of(database.schedules.remove(value["name"]))
        if f in ("pause", "resume"):
            await outcome_of(getattr(database.schedules, f)(value["name"]))
            return True, None
        if f == "trigger":
            return True, {"task": await outcome_of(database.schedules.trigger(value["name"]))}
        if f == "schedules":
            return True, await outcome_of(_schedules(database), reads=True)
        return True, await self._final(ours, f)

    def _look(self, ours: QuorateClient) -> tuple[bool, Any]:
        kept: dict[str, Any] = ours.kept.setdefault(self.name, {})
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

    async def _final(self, ours: QuorateClient, f: str) -> Any:  # noqa: ANN401  by kind
        database = ours.database
        if f == "ticking":
            return await outcome_of(self._ticking(database), reads=True)
        if f == "freeze":
            for info in await outcome_of(_schedules(database), reads=True):
                await outcome_of(database.schedules.pause(info["name"]))
            return None
        if f == "drain":
            return await self._staff.drain(
                ours, _signal_all, self._left, name="last", concurrency=50, ttl=3.0,
                capabilities=[CAPABILITY],
            )  # fmt: skip
        if f == "flows":
            return await outcome_of(_flows(database), reads=True)
        if f == "ticked":
            return await outcome_of(_ticked(database), reads=True)
        if f == "acts":
            return await self._staff.told()
        return [part for part in self._parts if part]

    async def _left(self, database: Database) -> int:
        """What has not ended, of workflows and of tasks, or is to be forgotten."""
        flows = [
            info.name in self._brief or WORKFLOW_STATE_NAMES[info.state] not in ENDS
            async for info in database.workflows.list()
        ]
        return sum(flows) + sum(
            each.scheduled + each.blocked + each.ready + each.assigned + each.running
            for each in await database.tasks.queues()
            if each.name in QUEUES
        )

    async def _ticking(self, database: Database) -> dict[str, Any]:
        """Schedules by cluster time tick, unless they are paused: those that do not within
        ``TICK_S``."""
        before = {info["name"]: info["next_ms"] for info in await _schedules(database)}
        now_s = asyncio.get_running_loop().time
        begun_s = now_s()
        while True:
            left = [
                info["name"]
                for info in await _schedules(database)
                if info["every_ms"]
                and not info["paused"]
                and info["next_ms"] <= before.get(info["name"], 0)
            ]
            if not left or now_s() > begun_s + TICK_S:
                return {"left": left, "seconds": round(now_s() - begun_s, 3)}
            await asyncio.sleep(POLL_S)

    def check(self, history: Sequence[Event]) -> Verdict:
        return Together(self.name, (WorkflowChecker(), TicksChecker())).check(history)


async def _tell(database: Database, f: str, value: dict[str, Any]) -> tuple[bool, Any]:
    run = database.workflows.run(value["workflow"])
    if f == "signal":
        said = [value["payload"]]
        return True, {"new": await outcome_of(run.signal(value["node"], said))}
    if f == "cancel":
        return True, {"new": await outcome_of(run.cancel(undo=value["undo"]))}
    try:
        info = await run.wait(timeout=value["seconds"])
    except TaskPendingError:
        return False, "pending"
    except QuorateError as error:
        raise OutcomeError(f"{error.code}: {error}", definite=True) from error
    return True, WORKFLOW_STATE_NAMES[info.state]


async def _put(database: Database, asked: dict[str, Any]) -> None:
    await outcome_of(
        database.schedules.put(
            asked["name"],
            FUNCTION,
            cron=asked.get("cron", ""),
            every=asked.get("every", 0.0),
            misfire=asked["misfire"],
            overlap=asked["overlap"],
            paused=asked.get("paused", False),
            **task_of_tick(asked["name"]),
        )
    )


async def _schedules(database: Database) -> list[dict[str, Any]]:
    return [_schedule(info) async for info in database.schedules.list()]


def _schedule(info: ScheduleInfo) -> dict[str, Any]:
    names = ("name", "every_ms", "paused", "revision", "next_ms", "last_ms", "last_task")
    return {name: getattr(info, name) for name in (*names, "fired", "skipped")}


async def _signal_all(database: Database) -> None:
    """Whatever waits for a signal has it."""
    async for info in database.workflows.list():
        if WORKFLOW_STATE_NAMES[info.state] in ENDS:
            continue
        run = database.workflows.run(info.workflow)
        for name, node in (await outcome_of(run.nodes(), reads=True)).items():
            if node.kind == SIGNAL:
                await outcome_of(run.signal(name, [0]))


async def _flows(database: Database) -> list[dict[str, Any]]:
    """Every workflow, with its nodes."""
    found = []
    async for info in database.workflows.list():
        nodes = await database.workflows.run(info.workflow).nodes()
        found.append({**_flow(info), "nodes": [_node(each) for each in nodes.values()]})
    return found


def _flow(info: WorkflowInfo) -> dict[str, Any]:
    names = ("workflow", "cause", "total", "done", "dead", "cancelled")
    shown = {name: getattr(info, name) for name in names}
    return {"flow": int(info.name), "state": WORKFLOW_STATE_NAMES[info.state], **shown}


def _node(info: NodeInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "task": info.task,
        "state": STATE_NAMES[info.state],
        "attempt": info.attempt,
        "result": unpack_result(info.result) if info.result else None,
        "kind": info.error_kind,
        "after": list(info.after),
    }


async def _ticked(database: Database) -> list[dict[str, Any]]:
    """Every task of schedules."""
    found = []
    for state in (None, "done", "dead", "cancelled"):
        found += [shown(info) async for info in database.tasks.list(state, queue=TICK_QUEUE)]
    return sorted(found, key=lambda each: int(each["task"]))

"""Long logs of everything that there is, drawn from a seed, on replicas that must stay alike.

``python -m tests.tasks.random_logs SEED ENTRIES`` prints the hash of the state that a log ends in.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import msgspec

from quorate.base.frames import Submit as Frame
from quorate.base.group_commands import JoinGroup, LeaveGroup
from quorate.base.kv_commands import Put
from quorate.base.lease_commands import GrantLease, RenewLeases, RevokeLease
from quorate.base.schedule_commands import (
    Fire,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    TriggerSchedule,
)
from quorate.base.task_commands import (
    Assign,
    Attend,
    Begin,
    Cancel,
    Claim,
    Complete,
    Configure,
    Done,
    Enqueue,
    Fail,
    Failed,
    GiveBack,
    Held,
    Purge,
    Register,
    Report,
    Requeue,
    Settle,
    Unregister,
)
from quorate.base.task_specs import (
    ASSIGNED,
    FOR_A_TIME,
    RUNNING,
    Needs,
    Options,
    Retry,
    Task,
    Unique,
)
from quorate.base.together_commands import Part, Together
from quorate.base.workflow_commands import (
    BLOCKING,
    OPTIONAL,
    RUN,
    SIGNAL,
    SLEEP,
    WEAK,
    After,
    CancelWorkflow,
    Node,
    Signal,
    Spawn,
    Submit,
)
from quorate.replication import deadlines
from quorate.tasks import dispatching, life, lines, machine, registry, workflow_sweeps
from quorate.tasks.records import id_of
from tests.replication.support import encode, run_of, submit
from tests.tasks.support import TaskNode

QUEUES = ("a", "b", "c")
NAMES = ("n", "m", "o")
#: Bounds so low that these logs come to them.
LOW: tuple[tuple[Any, str, int], ...] = (
    (deadlines, "STALE_MAX", 2),
    (lines, "STALE_MAX", 1),
    (life, "TASK_RESULTS_KEPT_MAX", 8),
    (life, "TASK_DEAD_MAX", 3),
    (machine, "DUE_WORK_MAX", 3),
    (machine, "PURGE_LOOK_MAX", 4),
    (registry, "WORKERS_GONE_MAX", 2),
    (workflow_sweeps, "SWEEP_NODES_MAX", 2),
    (dispatching, "STOPS_MAX", 1),
)


class Draw:
    """Commands by chance; *node*: on which they are to make sense."""

    def __init__(self, seed: int, node: TaskNode) -> None:
        self.chance = random.Random(seed)
        self.node = node

    def command(self) -> Any:
        kinds = [
            (self.enqueue, 20), (self.held, 40), (self.claim, 8), (self.worker, 8),
            (self.rules, 5), (self.others, 10), (self.workflow, 8), (self.schedule, 5),
            (self.group, 4),
        ]  # fmt: skip
        return self.one(kinds)()

    def one(self, weighted: list[tuple[Any, int]]) -> Any:
        return self.chance.choices([each for each, _ in weighted], [by for _, by in weighted])[0]

    def task(self, *, alone: bool = True) -> Task:
        chance = self.chance
        options = None
        if chance.random() < 0.6:
            options = self.options(alone=alone)
        delay_ms = chance.choice((0, 0, 0, 100, 700))
        return Task(
            "f", chance.choice((b"", b"x" * 50)), chance.choice(QUEUES), chance.randint(1, 3),
            chance.choice((b"", b"x", b"y", b"z")), delay_ms, options,
            0 if delay_ms else chance.choice((0, 0, self.node.wall_ms + chance.randint(-99, 999))),
        )  # fmt: skip

    def options(self, *, alone: bool) -> Options:
        chance = self.chance
        unique, beside = None, 0
        if alone and chance.random() < 0.2:
            hold = chance.randint(1, FOR_A_TIME)
            unique = Unique(chance.choice((b"u", b"v")), hold, 500 if hold == FOR_A_TIME else 0)
        if alone and chance.random() < 0.15:
            beside = chance.randint(0, self.node.tasks.ledger.last_task)
        needs = chance.choice((None, None, Needs(("gpu",)), Needs(excluded=("n",)), Needs((), "m")))
        return Options(
            chance.choice((None, Retry(1, 100), Retry(3, 50, 200, 2.0, 0.5, ("Bad",)), Retry(0),
                           Retry(2, 50, only=("Bad",)))),
            chance.choice((0, 400, 3_000)), chance.choice((0, 0, 150)), chance.choice((0, 0, 300)),
            chance.randint(0, 2), chance.choice((200, 5_000)), unique,
            Needs(("gpu",)) if beside and needs is not None else needs,
            chance.choice(("", "", "o")), beside,
        )  # fmt: skip

    def enqueue(self) -> Any:
        return Enqueue(tuple(self.task() for _ in range(self.chance.choice((1, 1, 3)))))

    def attempts(self) -> list[tuple[int, int, int, int]]:
        return [
            (live.worker, id_of(key), live.attempt, live.state)
            for key, live in self.node.tasks.ledger.tables.live.items()
            if live.state in (ASSIGNED, RUNNING)
        ]

    def held(self) -> Any:
        """A worker says something of what it has."""
        held = self.attempts()
        if not held:
            return self.enqueue()
        chance = self.chance
        worker, task, attempt, state = chance.choice(held)
        attempt -= attempt > 1 and chance.random() < 0.05
        mine = Held(task, attempt)
        if state == ASSIGNED and chance.random() < 0.8:
            return Begin(worker, (mine,))
        how = chance.random()
        if how < 0.55:
            rest = [each for each in held if each[0] == worker and chance.random() < 0.5]
            done = [Done(each, number, b"r") for _, each, number, _ in rest]
            return Complete(worker, (Done(task, attempt, b"r"), *done))
        if how < 0.8:
            after_ms = chance.choice((None, None, 0, 150))
            kind, final = chance.choice(("", "Bad")), chance.random() < 0.1
            cancelled = chance.random() < 0.3
            return Fail(worker, (Failed(task, attempt, kind, "e", final, after_ms, cancelled),))
        if how < 0.9:
            return GiveBack(worker, (mine,))
        return Report(worker, (mine,), chance.choice((None, 500)), chance.choice(("", "n")))

    def claim(self) -> Any:
        return Claim(self.some_worker(), self.chance.randint(1, 4))

    def some_worker(self) -> int:
        return self.chance.choice([*self.node.tasks.ledger.crew.workers, 1])

    def worker(self) -> Any:
        chance = self.chance
        ledger = self.node.tasks.ledger
        leases = self.leases()
        if len(ledger.crew.workers) < 4 and leases:
            return Register(
                chance.choice(NAMES), chance.choice(leases), chance.randint(0, 3),
                chance.randint(0, 2), chance.choice(((), ("gpu",))),
                chance.choice(((), (), ("a", "b"))), chance.randint(1, 3),
            )  # fmt: skip
        if chance.random() < 0.2:
            return Unregister(self.some_worker())
        state: Any = chance.choice(("active", "active", "draining"))
        return Attend(self.some_worker(), state, chance.choice((None, 0, 2)))

    def rules(self) -> Any:
        chance = self.chance
        if chance.random() < 0.4:
            strategy: Any = chance.choice(
                ("least-loaded", "round-robin", "capability-match", "random", "weighted")
            )
            return Settle(
                strategy, chance.choice((0, 0, 3)), chance.choice((1_000, 1_000, 400)),
                chance.random() < 0.8, chance.random() < 0.8,
            )  # fmt: skip
        few = (0, 0, 0, 1, 2)
        return Configure(
            chance.choice(QUEUES), chance.random() < 0.15, chance.choice(few), chance.choice(few),
            chance.choice(few), chance.choice(few), 300, chance.choice((0, 200)),
            chance.choice((0, 0, 6)),
        )  # fmt: skip

    def others(self) -> Any:
        chance = self.chance
        last = self.node.tasks.ledger.last_task + 1
        some = tuple(chance.randint(1, last) for _ in range(3))
        what = chance.random()
        if what < 0.4:
            return Cancel(some, chance.choice((0, 100)))
        if what < 0.6:
            return Assign(some[0], chance.choice((0, self.some_worker())))
        if what < 0.8:
            dead = [id_of(key) for key, _ in self.node.tasks.ledger.tables.dead.items()]
            return Requeue((*dead[:2], some[0]))
        state: Any = chance.choice(("done", "cancelled", "dead", "ready", "scheduled"))
        return Purge(state, chance.choice(("", "a")), chance.choice((0, 100)), chance.randint(1, 3))

    def group(self) -> Any:
        chance = self.chance
        name, member = chance.choice(("g", "h")), chance.randint(0, 3)
        lease = chance.choice(self.leases() or [1])
        kind: Any = JoinGroup if chance.random() < 0.7 else LeaveGroup
        return kind(name, member, lease)

    def leases(self) -> list[int]:
        return [id_of(key) for key, _ in self.node.machines.leases._live.items()]

    # --- workflows and schedules ----------------------------------------------------------------

    def workflow(self) -> Any:
        chance = self.chance
        tables = self.node.tasks.ledger.tables
        what = chance.random()
        if what < 0.5 or not len(tables.workflows):
            nodes = self.nodes("", chance.randint(1, 6))
            fast = chance.random() < 0.5
            return Submit("w", nodes, fast, chance.choice((0, 1, 2)), chance.choice((0, 300)))
        workflow = id_of(chance.choice([key for key, _ in tables.workflows.items()]))
        if what < 0.65:
            names = [
                key[8:].decode() for key, _ in tables.nodes.items() if id_of(key[:8]) == workflow
            ]
            return Signal(workflow, chance.choice([*names, "nobody"]), b"s")
        if what < 0.75:
            return CancelWorkflow(workflow, chance.random() < 0.5)
        kin = [each for each in self.attempts() if each[1].to_bytes(8, "big") in tables.kin]
        if not kin:
            return self.enqueue()
        worker, task, attempt, _ = chance.choice(kin)
        children = [id_of(row) for row, _ in tables.children.range_prefix(task.to_bytes(8, "big"))]
        names = [record.node for child in children
                 if (record := tables.kin.get(child.to_bytes(8, "big"))) is not None]  # fmt: skip
        before = tuple(names[: chance.randint(0, 1)])
        return Spawn(worker, task, attempt, self.nodes(f"{task}-", chance.randint(1, 3)), before)

    def nodes(self, prefix: str, count: int) -> tuple[Node, ...]:
        chance = self.chance
        nodes: list[Node] = []
        for at in range(count):
            before = [each.name for each in nodes if chance.random() < 0.4]
            kinds = (BLOCKING, BLOCKING, OPTIONAL, WEAK)
            after = tuple(After(name, chance.choice(kinds)) for name in before)
            firm = [each.node for each in after if each.kind != WEAK]
            task = self.task(alone=False)
            if task.options is not None and task.options.needs is not None:
                firm = []
            nodes.append(
                Node(
                    f"{prefix}{at}",
                    task,
                    after,
                    chance.choice((RUN, RUN, RUN, RUN, SLEEP, SIGNAL)),
                    self.task(alone=False) if chance.random() < 0.3 else None,
                    chance.choice((*firm, "")),
                )
            )
        chance.shuffle(nodes)
        return tuple(nodes)

    def schedule(self) -> Any:
        chance = self.chance
        name, what = chance.choice(("s", "t")), chance.random()
        rows = dict(self.node.tasks.ledger.tables.schedules.items())
        found = rows.get(name.encode())
        if what < 0.5 or found is None:
            cron = chance.random() < 0.4
            misfire: Any = chance.choice(("skip", "once", "all"))
            return PutSchedule(
                name, self.task(alone=False), "* * * * *" if cron else "", "UTC",
                0 if cron else 300, misfire,
                overlap=chance.random() < 0.5, paused=chance.random() < 0.1,
            )  # fmt: skip
        if what < 0.6:
            return RemoveSchedule(name)
        if what < 0.75:
            pause = PauseSchedule(name, chance.random() < 0.5)
            return chance.choice((pause, TriggerSchedule(name)))
        at_ms = found.next_ms if chance.random() < 0.9 else 7
        return Fire(name, found.revision, at_ms, at_ms + 60_000, run=chance.random() < 0.8)


def frame(draw: Draw) -> Frame:
    """A submission of a few commands."""
    chance = draw.chance
    runs = []
    what = chance.random()
    if what < 0.12:
        leases = tuple(draw.leases())
        command: Any = GrantLease(chance.choice((1_000, 3_000, 20_000)))
        if leases and what < 0.04:
            command = RevokeLease(chance.choice(leases))
        elif leases and what < 0.08:
            command = RenewLeases(leases)
        runs.append(run_of("leases", command))
    commands = [draw.command() for _ in range(chance.choice((0, 1, 1, 2, 4)))]
    if commands and chance.random() < 0.1:
        parts = (Part("tasks", msgspec.Raw(encode(commands[0]))),
                 Part("kv", msgspec.Raw(encode(Put(b"k", b"v")))))  # fmt: skip
        runs.append(run_of("together", Together(parts)))
    else:
        runs.append(run_of("tasks", *commands))
    return submit(*runs)


def breaks(chance: random.Random) -> dict[int | str, int]:
    """What shall raise in this entry."""
    places = (0, 1, 2, "expire", "finish", "on_lease_end")
    if chance.random() < 0.8:
        return {}
    return {chance.choice(places): chance.choice((0, 1, 2, 99))}


def play(seed: int, entries: int) -> TaskNode:
    """One log: the last node of those that it was played on. All but the first restart."""
    low = [(where, name, getattr(where, name)) for where, name, _ in LOW]
    for where, name, bound in LOW:
        setattr(where, name, bound)
    try:
        return _play(seed, entries)
    finally:
        for where, name, bound in low:
            setattr(where, name, bound)


def _play(seed: int, entries: int) -> TaskNode:
    first, second = TaskNode(), TaskNode()
    draw = Draw(seed, first)
    chance = draw.chance
    for _ in range(entries):
        if chance.random() < 0.3:
            second.restart()
        first.time_ms += chance.choice((0, 0, 0, 1, 20, 100, 100, 400, 2_000))
        broken = breaks(chance)
        for node in (first, second):
            node.tasks.breaks = broken
        told = first.entry(frame(draw), leader=chance.random() < 0.5)
        heard = second.feed(first.log[-1])
        where = f"seed {seed}, entry {len(first.log)}"
        assert second.machines.state_hash == first.machines.state_hash, where
        one, two = shown(told), shown(heard)
        assert one == two, where
        for node in (first, second):
            node.tasks.breaks = {}
            ledger = node.tasks.ledger
            assert ledger.derived() == ledger.recount(), where
    return second


def shown(applied: Any) -> list[Any]:
    """Outcomes, and events of tasks and leases."""
    events: list[Any] = []
    for name, key, event in applied.effects:
        if name == "kv":
            continue
        events.extend(event if key is None else [(name, key, event)])
    return [applied.outcomes, events]


if __name__ == "__main__":
    from quorate.replication import sessions

    sessions.TERM_GRACE_MS = 0
    print(play(int(sys.argv[1]), int(sys.argv[2])).machines.state_hash.hex())

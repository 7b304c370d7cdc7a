"""A node with the task machine, and what tests ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from quorate.base.lease_commands import GrantLease, LeaseResult, RevokeLease
from quorate.base.results import Failure
from quorate.base.task_commands import (
    Begin,
    Claim,
    Complete,
    Done,
    Enqueue,
    Fail,
    Failed,
    GiveBack,
    Held,
    Register,
)
from quorate.base.task_protocol import Answers, Results
from quorate.base.task_queries import (
    Assigned,
    Stop,
    System,
    TaskEvent,
    TaskInfo,
    TaskQuery,
)
from quorate.base.task_specs import TASK_MACHINE, Options, Task
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Context, Machine
from quorate.replication.machines import Applied
from quorate.storage.memory_store import MemoryImage
from quorate.tasks.machine import TaskMachine
from tests.replication.support import Node, restored, run_of, state_of, store_checkpoint, submit

RESULTS: dict[str, Any] = {
    "leases": msgspec.msgpack.Decoder(list[list[LeaseResult]]),
    TASK_MACHINE: msgspec.msgpack.Decoder(list[list[Results]]),
}
ANSWER_DECODER: Any = msgspec.msgpack.Decoder(list[Answers])


class Breakable(TaskMachine):
    """*breaks*: after how many moves of tasks a command (by its position in the entry) or a hook
    (by its name) raises, or else at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks: dict[int | str, int] = {}

    def apply(self, command: Any, context: Context) -> Any:
        return self._break(context.position, super().apply, command, context)

    def expire(self, context: Context) -> None:
        self._break("expire", super().expire, context)

    def finish(self, context: Context) -> None:
        self._break("finish", super().finish, context)

    def on_lease_end(self, lease: int, context: Context) -> int:
        work: int = self._break("on_lease_end", super().on_lease_end, lease, context)
        return work

    def _break(self, place: int | str, call: Callable[..., Any], *arguments: Any) -> Any:
        left = self.breaks.get(place)
        if left is None:
            return call(*arguments)
        ledger: Any = self.ledger
        move = ledger.move

        def break_down(*moved: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise RuntimeError("broken on purpose")
            move(*moved)

        ledger.move = break_down
        try:
            call(*arguments)
        finally:
            del ledger.move
        raise RuntimeError("broken on purpose")


def machines() -> list[Machine]:
    return [KvMachine(), Breakable()]


#: What the wall clock is ahead of cluster time.
WALL_AHEAD_MS = 1_000_000


class TaskNode(Node):
    """A log in a list; *told*: the events of the latest entry: (keys, event)."""

    def __init__(self) -> None:
        super().__init__(machines())
        self.told: list[tuple[tuple[bytes, ...], Any]] = []
        self.image = MemoryImage()
        #: (task, attempt) by worker, as its watch tells.
        self.handed: dict[int, list[Any]] = {}

    @property
    def wall_ms(self) -> int:
        return self.time_ms + WALL_AHEAD_MS

    @property
    def tasks(self) -> Breakable:
        machine = self.machines.machine(TASK_MACHINE)
        assert isinstance(machine, Breakable)
        return machine

    def run(self, machine: str, *commands: Any, time_ms: int | None = None) -> list[Any]:
        applied: Applied = self.entry(submit(run_of(machine, *commands)), time_ms=time_ms)
        self.told = []
        for name, key, event in applied.effects:
            if name == TASK_MACHINE and key is None:
                self.told.extend(event)
            elif name == TASK_MACHINE and key is not None:
                self.told.append(((key,), event))
        (outcome,) = applied.outcomes
        assert not outcome.code, outcome
        results: list[list[Any]] = RESULTS[machine].decode(outcome.results)
        ledger = self.tasks.ledger
        assert ledger.derived() == ledger.recount()
        return results[0]

    def one(self, command: Any, *, time_ms: int | None = None) -> Any:
        (result,) = self.run(TASK_MACHINE, command, time_ms=time_ms)
        return result

    def wait(self, ms: int) -> None:
        """Time passes, and the log notices."""
        self.time_ms += ms
        self.run(TASK_MACHINE)

    # --- doing ----------------------------------------------------------------------------------

    def lease(self, ttl_ms: int = 60_000) -> int:
        (granted,) = self.run("leases", GrantLease(ttl_ms))
        assert not isinstance(granted, Failure), granted
        lease: int = granted.lease
        return lease

    def revoke(self, lease: int) -> None:
        self.run("leases", RevokeLease(lease))

    def worker(self, name: str = "w", load: int = 1, *, lease: int = 0, **more: Any) -> int:
        result = self.one(Register(name, lease or self.lease(), load, **more))
        assert not isinstance(result, Failure), result
        worker: int = result.worker
        return worker

    def enqueue(self, *tasks: Task) -> tuple[int, ...]:
        result = self.one(Enqueue(tasks))
        assert not isinstance(result, Failure), result
        ids: tuple[int, ...] = result.tasks
        return ids

    def put(self, type_: str = "f", *, queue: str = "default", **more: Any) -> int:
        """One task; *more*: fields of it, or of its options."""
        fields = {name: more.pop(name) for name in list(more) if name in Task.__struct_fields__}
        options = Options(**more) if more else None
        (task,) = self.enqueue(Task(type_, queue=queue, options=options, **fields))
        return task

    def claim(self, worker: int, count: int = 1) -> list[Any]:
        result = self.one(Claim(worker, count))
        assert not isinstance(result, Failure), result
        return list(result.tasks)

    def done(self, worker: int, task: int, attempt: int, result: bytes = b"") -> Any:
        return self.one(Complete(worker, (Done(task, attempt, result),)))

    def fail(self, worker: int, task: int, attempt: int, **more: Any) -> Any:
        return self.one(Fail(worker, (Failed(task, attempt, **more),)))

    def begin(self, worker: int, task: int, attempt: int) -> Any:
        return self.one(Begin(worker, (Held(task, attempt),)))

    def give_back(self, worker: int, task: int, attempt: int) -> Any:
        return self.one(GiveBack(worker, (Held(task, attempt),)))

    # --- asking ---------------------------------------------------------------------------------

    def ask(self, query: Any) -> Any:
        raw = self.machines.query(TASK_MACHINE, msgspec.msgpack.encode([query]))
        (result,) = ANSWER_DECODER.decode(raw)
        return result

    def info(self, task: int) -> TaskInfo:
        found = self.ask(TaskQuery(task))
        assert isinstance(found, TaskInfo), found
        return found

    def system(self) -> Any:
        return self.ask(System())

    def state(self, task: int) -> int:
        return self.info(task).state

    def assigned(self) -> list[tuple[int, int, int]]:
        """(worker, task, attempt), as the workers were told in the last entry."""
        return [
            (int.from_bytes(keys[0][1:], "big"), each.task, each.attempt)
            for keys, event in self.told
            if isinstance(event, Assigned)
            for each in event.tasks
        ]

    def stops(self) -> list[tuple[int, int, int, str]]:
        return [
            (int.from_bytes(keys[0][1:], "big"), event.task, event.attempt, event.why)
            for keys, event in self.told
            if isinstance(event, Stop)
        ]

    def happened(self) -> list[tuple[str, int]]:
        return [(event.what, event.task) for _, event in self.told if isinstance(event, TaskEvent)]

    def restart(self) -> None:
        """From a checkpoint, as after a crash, or on a node that got a snapshot."""
        store_checkpoint(self.image, self.machines.take_checkpoint(b""))
        before, derived = state_of(self.machines), self.tasks.ledger.derived()
        self.machines = restored(self.image, machines())
        assert state_of(self.machines) == before
        assert self.tasks.ledger.derived() == derived

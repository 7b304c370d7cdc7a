"""What somebody did with tasks of queues besides: took them out of the dead-letter queue, gave them
to another worker, or enqueued and completed them together with a write of a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from jepsen_like.history import Operation

#: Keys that are written with completions.
DID: Final = "queue/did/"

Tasks = Mapping[int, Mapping[str, Any]]
#: What was asked of a task.
AskedOf = Callable[[int], dict[str, Any] | None]
#: By task and attempt: the worker that had it.
Holders = Mapping[tuple[int, int], int]


class Moves:
    """What is known of ``requeue`` and ``assign``, of which some were not answered."""

    def __init__(self, by_f: Mapping[str, Sequence[Operation]]) -> None:
        #: How often a task was requeued, by answers; and how often it may have been besides.
        self.requeued: dict[int, int] = {}
        self._perhaps: dict[int, int] = {}
        #: By task and attempt: the worker that was asked for (0: any other), and the reason.
        self.assigned: dict[tuple[int, int], tuple[int, str]] = {}
        self._unknown = {
            task
            for each in by_f.get("moved", ())
            if each.completed is not None
            for task in each.completed.value
        }
        self.twice: list[tuple[int, int]] = []
        for each in by_f.get("requeue", ()):
            said = None if each.completed is None else each.completed.value
            counts = self._perhaps if each.outcome == "info" else self.requeued
            tasks = each.invoked.value["tasks"] if each.outcome == "info" else ()
            for task in said["changed"] if each.outcome == "ok" and said else tasks:
                counts[task] = counts.get(task, 0) + 1
        for each in by_f.get("assign", ()):
            if each.outcome == "ok" and each.completed is not None:
                given = each.completed.value
                key = given["task"], given["attempt"]
                if key in self.assigned:
                    self.twice.append(key)
                self.assigned[key] = each.invoked.value["worker"], given["reason"]

    def requeues_max(self, task: int) -> int:
        """It was requeued no more often than so."""
        return self.requeued.get(task, 0) + self._perhaps.get(task, 0)

    def by_hand(self, task: int, attempt: int) -> bool:
        """Whether somebody may have given it out in that attempt, out of its turn."""
        return (task, attempt) in self.assigned or task in self._unknown

    def moved(self, task: int, attempt: int) -> bool:
        """Whether it may have come from another worker, and so was counted before."""
        return self.assigned.get((task, attempt), (0, ""))[1] == "moved" or task in self._unknown

    def span(self, tasks: Sequence[int]) -> tuple[int, int]:
        """Of *tasks*, so many were requeued, at least and at most."""
        known = sum(self.requeued.get(each, 0) for each in tasks)
        return known, known + sum(self._perhaps.get(each, 0) for each in tasks)


def check_requeued(moves: Moves, tasks: Tasks) -> Iterator[str]:
    """Who is taken out of the dead-letter queue is ready, and never too late."""
    for task in moves.requeued:
        found = tasks.get(task)
        if found is None:
            yield f"task {task} was requeued, and is lost"
        elif found["kind"] == "expired":
            yield f"task {task} was requeued, and expired"


def check_assigned(moves: Moves, tasks: Tasks, holders: Holders) -> Iterator[str]:
    """Who was given a task has it, in an attempt of its own, and who had it before does not."""
    for task, attempt in moves.twice:
        yield f"attempt {attempt} of task {task} was given out twice"
    for (task, attempt), (worker, reason) in moves.assigned.items():
        what = f"task {task} was given out by hand as attempt {attempt}"
        found = tasks.get(task)
        if found is None:
            yield f"{what}, and is lost"
        elif found["attempt"] < attempt:
            yield f"{what}, and is {found['state']} by attempt {found['attempt']}"
        holder, former = holders.get((task, attempt), 0), holders.get((task, attempt - 1), 0)
        if worker and holder and holder != worker:
            yield f"{what} to worker {worker}, and worker {holder} had it"
        if reason == "moved" and holder and holder == former:
            yield f"{what} away from worker {former}, which had it again"


def holders_of(
    acts: Sequence[Sequence[Any]], parts: Sequence[Sequence[Sequence[Any]]], problems: list[str]
) -> dict[tuple[int, int], int]:
    """Who had which attempt, as code and watchers tell; *problems* takes where they differ."""
    found: dict[tuple[int, int], int] = {}
    lines = [each for part in parts for each in part if each[0] in ("assigned", "started")]
    for _, task, attempt, worker, *_ in (*acts, *lines):
        before = found.setdefault((task, attempt), worker)
        if before != worker:
            problems.append(f"attempt {attempt} of task {task} is of workers {before} and {worker}")
    return found


def check_places(
    acts: Sequence[Sequence[Any]], crew: Mapping[int, Mapping[str, Any]], asked_of: AskedOf
) -> Iterator[str]:
    """Code runs on workers that serve its queue, have what it needs, and are not excluded."""
    for what, task, _, worker, _ in acts:
        asked, found = asked_of(task), crew.get(worker)
        if what != "begin" or asked is None or found is None:
            continue
        if found["queues"] and asked["queue"] not in found["queues"]:
            yield f"task {task} of queue {asked['queue']!r} ran on worker {worker}: {found}"
        missing = [each for each in asked.get("capabilities", ()) if each not in found["can"]]
        if missing or found["name"] in asked.get("excluded", ()):
            yield f"task {task} ran on worker {worker}, {found}, of which it asks otherwise"


def check_beside(
    acts: Sequence[Sequence[Any]],
    crew: Mapping[int, Mapping[str, Any]],
    asked_of: AskedOf,
    tasks: Tasks,
    holders: Holders,
    moves: Moves,
) -> Iterator[str]:
    """A task that runs beside another one runs on workers of one name, which that one had, too. It
    is anybody's if that one ended without a worker; and nobody knows what was requeued."""
    names: dict[int, set[str]] = {}
    for what, task, _, worker, _ in acts:
        if what == "begin" and worker in crew:
            names.setdefault(task, set()).add(crew[worker]["name"])
    for task, here in names.items():
        asked = asked_of(task)
        if asked is None or "beside" not in asked or moves.requeues_max(task):
            continue
        other = asked["beside"]
        found = tasks.get(other)
        if found is None or moves.requeues_max(other) or found["kind"] == "expired":
            continue
        if found["state"] not in ("done", "dead"):
            continue
        workers = [holders.get((other, at), 0) for at in range(1, found["attempt"] + 1)]
        there = {crew[each]["name"] for each in workers if each in crew}
        if len(here) > 1:
            yield f"task {task}, which runs beside task {other}, ran on workers {sorted(here)}"
        if all(each in crew for each in workers) and not here <= there:
            yield (
                f"task {task} ran on workers {sorted(here)}, and task {other}, beside which it "
                f"is to run, on {sorted(there)}"
            )


def check_together(
    commits: Sequence[Operation],
    keys: Mapping[str, str],
    values: Mapping[int, Sequence[int]],
    tasks: Tasks,
    asked_of: AskedOf,
) -> Iterator[str]:
    """A key is written if, and only if, what goes with it happened. *values*: tasks, by value."""
    for each in commits:
        key, value = each.invoked.value[0]["pays"], str(each.invoked.value[0]["value"])
        there = any(values.get(asked["value"]) for asked in each.invoked.value)
        is_so = each.outcome == "ok" or (each.outcome == "info" and there)
        if is_so != (keys.get(key) == value):
            what = "enqueued" if is_so else "not enqueued"
            yield f"value {value} was {what}, and key {key!r} is {keys.get(key)!r}"
    known: set[str] = set()
    for task, found in tasks.items():
        asked = asked_of(task)
        if asked is None or "writes" not in asked:
            continue
        known.add(asked["writes"])
        wanted = str(found["attempt"]) if found["state"] == "done" else None
        if keys.get(asked["writes"]) != wanted:
            yield (
                f"task {task} is {found['state']} by attempt {found['attempt']}, and the key that "
                f"goes with its completion is {keys.get(asked['writes'])!r}"
            )
    for key in keys:
        if key.startswith(DID) and key not in known:
            yield f"key {key!r} goes with a completion of nothing"

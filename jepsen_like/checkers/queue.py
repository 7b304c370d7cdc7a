"""Queues of tasks: nothing acknowledged is lost, each task ends once, and rules hold.

Four witnesses are held against each other: what was acknowledged, what workers' code really did,
what watchers were told (in parts without gaps, each a piece of the one log), and what the cluster
says in the end of every task. Code may run more than once: that is counted and reported. What must
be so is that one attempt is taken, the last one, and that it did run to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from jepsen_like.checkers.base import Findings, readable, show
from jepsen_like.checkers.queue_moves import (
    Moves,
    check_assigned,
    check_beside,
    check_places,
    check_requeued,
    check_together,
    holders_of,
)
from jepsen_like.checkers.queue_parts import check_part
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

ENDS: Final = ("done", "dead", "cancelled")
#: It goes from one worker to another, but not for ever.
ATTEMPTS_MAX: Final = 200
#: Events that are the end of an attempt, of which it has one.
_OVER: Final = ("failed", "timeout", "crashed", "given-back", "stolen", "done")


#: Operations of which nothing is judged by itself.
QUIET: Final = ("dismiss", "look", "settle", "pause", "survey")
KNOWN: Final = frozenset(
    (
        *("enqueue", "together", "cancel", "requeue", "assign", "hire", "wait", "drain"),
        *("tasks", "queues", "crew", "keys", "moved", "acts", "told", *QUIET),
    )
)
#: In the place of an act: from here on pins and exclusions do not count.
FREED: Final = "freed"


class QueueChecker:
    """For these operations:

    ========  =========================================================================
    enqueue   value: what is asked of each task: "value" (unique), "queue", "priority", "key",
              "retries", "crashes", "course" ([what an attempt comes to, seconds] of each), and,
              where there is one, "delay", "expires", "unique", "until", "capabilities", "excluded",
              "beside" (a task), "writes" (a key, with the attempt as its value, that goes with its
              completion), "fresh" (its unique key is free); answered with {"ids", "known": places
              of old ones}
    together  as enqueue, in one transaction with a key, "pays", that must be missing, and gets the
              first "value"
    cancel    {"tasks"}, answered with {"changed"}
    requeue   {"tasks"}, answered with {"changed"}: those that were dead
    assign    {"worker": or 0, any but its own}, answered with {"task", "attempt", "reason"}
    moved     at the end: tasks that may have been assigned, as nobody was answered
    hire      {"concurrency"}, answered with {"worker"}
    wait      {"tasks"}, answered with [[task, "done" or else, attempt, result], ...]
    drain     all is run: {"left": tasks that were not}
    tasks     every task at the end: "task", "state", "queue", "attempt", "worker", "errors",
              "crashes", "kind", "enqueued_ms", "ended_ms", "value", and of what is done the attempt
              that says so ("by")
    queues    of each queue at the end, its rules, its tasks by state, its totals
    crew      of each worker that ever was "worker", "name", "queues", "can"
    keys      {key: value} of all that were to be written
    acts      {"acts": what code did, in the order in which it happened: ["begin", task, attempt,
              worker, value] or ["end", task, attempt, worker, "ok" or else], and one "freed", from
              which on it does not matter where something is to run; "done": completions that
              workers were told were taken, "stale": that were not}
    told      parts of [what, task, attempt, worker, queue, ms, kind]
    ========  =========================================================================

    Those in ``QUIET`` do not count. Facts of the verdict: "lost" (acknowledged, and not there, or
    done without having run), "duplicated_completions", "unexpected" (there, and never asked for),
    "redelivered" (runs beyond the first of a task, which may be).
    """

    name = "queue"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nothing was done, or the end was not looked at."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        run = _Run(findings, operations(history))
        if not run.looked:
            return findings.verdict(self.name, proves=False)
        run.check_enqueued()
        run.check_ends()
        run.check_acts()
        run.check_waits()
        run.check_unique()
        run.check_told()
        run.check_moves()
        run.check_queues()
        return findings.verdict(self.name, proves=run.facts["done"] > 0, **run.facts)


class _Run:
    """One history."""

    def __init__(self, findings: Findings, found: Sequence[Operation]) -> None:
        self._add = findings.add
        by_f: dict[str, list[Operation]] = {}
        for each in found:
            if each.invoked.f not in KNOWN:
                raise HistoryError(
                    f"event {each.invoked_at}: a queue has no operation {show(each.invoked.f)}"
                )
            by_f.setdefault(each.invoked.f, []).append(each)
        self._together = by_f.get("together", [])
        self._enqueues = [*by_f.get("enqueue", []), *self._together]
        self._moves = Moves(by_f)
        self._cancels = by_f.get("cancel", [])
        self._waits = _ok(by_f, "wait")
        #: By worker: how much it runs at once.
        self._loads = {
            each.completed.value["worker"]: each.invoked.value["concurrency"]
            for each in _ok(by_f, "hire")
            if each.completed is not None
        }
        tasks, queues = _answers(by_f, "tasks"), _answers(by_f, "queues")
        acts, told = _answers(by_f, "acts"), _answers(by_f, "told")
        self.looked = bool(tasks and queues and acts and told)
        self._drains = _answers(by_f, "drain")
        #: What was asked, by value; of every task that is known, its value.
        self._asked: dict[int, dict[str, Any]] = {}
        self._value_of: dict[int, int] = {}
        self.facts: dict[str, int] = {}
        if not self.looked:
            return
        self._tasks: dict[int, dict[str, Any]] = {each["task"]: each for each in tasks[-1]}
        self._queues: list[dict[str, Any]] = queues[-1]
        crew, keys = _answers(by_f, "crew"), _answers(by_f, "keys")
        self._crew: dict[int, Any] = {each["worker"]: each for each in (crew[-1] if crew else ())}
        self._keys: dict[str, str] | None = keys[-1] if keys else None
        lines: list[list[Any]] = acts[-1]["acts"]
        freed = [at for at, line in enumerate(lines) if line[0] == FREED]
        self._acts = [line for line in lines if line[0] != FREED]
        #: What code did while it mattered where.
        self._bound = lines[: freed[0]] if freed else lines
        self._said_done: int = acts[-1]["done"]
        self._parts: list[list[list[Any]]] = told[-1]
        self.facts = {
            "tasks": len(self._tasks),
            "attempts_max": max((each["attempt"] for each in self._tasks.values()), default=0),
            **{state: self._count(state) for state in ENDS},
            "lost": 0,
            "unexpected": 0,
            "duplicated_completions": 0,
            "stale": acts[-1]["stale"],
            "told": sum(map(len, self._parts)),
            "requeued": sum(self._moves.requeued.values()),
            "assigned": len(self._moves.assigned),
            "together": sum(each.outcome == "ok" for each in self._together),
        }

    def _count(self, state: str) -> int:
        return sum(each["state"] == state for each in self._tasks.values())

    # --- what was acknowledged --------------------------------------------------------------------

    def check_enqueued(self) -> None:
        """Total queue: what was acknowledged is there, what was never asked for is not, and nothing
        is there twice."""
        by_value = self._by_value()
        unknown = recovered = 0
        for each in self._enqueues:
            for asked in each.invoked.value:
                self._asked[asked["value"]] = asked
        for each in self._enqueues:
            there = [bool(by_value.get(asked["value"])) for asked in each.invoked.value]
            if each.outcome == "ok" and each.completed is not None:
                self._check_acknowledged(each, each.completed.value)
            elif each.outcome == "fail":
                for asked, is_there in zip(each.invoked.value, there, strict=True):
                    if is_there and not asked.get("fresh"):
                        self._add(f"{_task(asked)} was refused, and is there")
            else:
                unknown += len(there)
                recovered += sum(there)
                plain = [
                    is_there
                    for asked, is_there in zip(each.invoked.value, there, strict=True)
                    if "unique" not in asked
                ]
                if any(plain) and not all(plain):
                    self._add(f"of {show(each.invoked.value)}, asked for at once, some are there")
        for value, tasks in by_value.items():
            if value not in self._asked:
                self.facts["unexpected"] += len(tasks)
                self._add(f"task {tasks[0]} has value {value}, which nobody asked for")
            elif len(tasks) > 1:
                done = sum(self._tasks[task]["state"] == "done" for task in tasks)
                self.facts["duplicated_completions"] += max(done - 1, 0)
                self._add(f"value {value} was enqueued more than once: as tasks {tasks}")
            for task in tasks:
                self._value_of.setdefault(task, value)
        self.facts |= {"unknown": unknown, "recovered": recovered}

    def _by_value(self) -> dict[int, list[int]]:
        """Tasks, by what they were enqueued with, as far as the cluster still says that."""
        by_value: dict[int, list[int]] = {}
        for task, found in self._tasks.items():
            if found["value"] is not None:
                by_value.setdefault(found["value"], []).append(task)
        return by_value

    def _check_acknowledged(self, each: Operation, answer: Mapping[str, Any]) -> None:
        known = set(answer["known"])
        for at, (asked, task) in enumerate(zip(each.invoked.value, answer["ids"], strict=True)):
            found = self._tasks.get(task)
            if found is None:
                self.facts["lost"] += 1
                self._add(f"{_task(asked)} was acknowledged as task {task}, and is lost")
                continue
            if at in known:
                if "unique" not in asked:
                    self._add(f"{_task(asked)} has no unique key, and is said to be task {task}")
                continue
            before = self._value_of.setdefault(task, asked["value"])
            value = found["value"]
            if before != asked["value"] or value not in (None, asked["value"]):
                self._add(f"{_task(asked)} was acknowledged as task {task}, of value {value}")

    def _asked_of(self, task: int) -> dict[str, Any] | None:
        return self._asked.get(self._value_of.get(task, 0))

    # --- how tasks ended --------------------------------------------------------------------------

    def check_ends(self) -> None:
        """Everything ended, in a way that it may end in."""
        for drain in self._drains:
            if drain["left"]:
                self._add(f"{drain['left']} tasks are left {drain['seconds']} s after healing")
        cancelled = {task for each in self._cancels for task in each.invoked.value["tasks"]}
        for task, found in self._tasks.items():
            state, asked = found["state"], self._asked_of(task)
            if state not in ENDS:
                self._add(f"task {task} is {state} at the end")
            if found["attempt"] > ATTEMPTS_MAX:
                self._add(f"task {task} was handed out {found['attempt']} times")
            if state == "cancelled" and task not in cancelled:
                self._add(f"task {task} is cancelled, which nobody asked for")
            if state == "done" and found["by"] != found["attempt"]:
                attempt = found["attempt"]
                self._add(f"task {task} is done by attempt {found['by']}, and says {attempt}")
            if state == "dead" and asked is not None:
                self._check_dead(task, found, asked)

    def _check_dead(self, task: int, found: dict[str, Any], asked: dict[str, Any]) -> None:
        kind, errors, crashes = found["kind"], found["errors"], found["crashes"]
        if errors > asked["retries"] + 1 or crashes > asked["crashes"] + 1:
            self._add(f"task {task} failed {errors} times and crashed {crashes}: {show(asked)}")
        if kind == "expired":
            if "expires" not in asked:
                self._add(f"task {task} expired, which never does")
        elif kind == "crashed":
            if crashes <= asked["crashes"]:
                self._add(f"task {task} is dead after {crashes} crashes of {asked['crashes']}")
        elif kind != "TaskGiveUpError" and errors <= asked["retries"]:
            self._add(f"task {task} is dead after {errors} errors: {show(asked)}")

    # --- what code did ----------------------------------------------------------------------------

    def check_acts(self) -> None:
        """Each attempt began once; the one that was taken is the last, and came to its end."""
        begun: dict[tuple[int, int], int] = {}
        ended: dict[tuple[int, int], str] = {}
        open_: dict[int, set[int]] = {}
        overlaps = 0
        last: dict[int, int] = {}
        for what, task, attempt, worker, more in self._acts:
            if what == "end":
                ended[task, attempt] = more
                open_[task].discard(attempt)
                continue
            if (task, attempt) in begun:
                self._add(f"attempt {attempt} of task {task} began twice")
            begun[task, attempt] = worker
            overlaps += bool(open_.get(task))
            open_.setdefault(task, set()).add(attempt)
            last[task] = max(last.get(task, 0), attempt)
            if self._value_of.setdefault(task, more) != more:
                self._add(f"task {task} of value {self._value_of[task]} ran with value {more}")
        for task, attempt in last.items():
            found = self._tasks.get(task)
            if found is None:
                self._add(f"task {task} ran, and is not known")
            elif attempt > found["attempt"]:
                self._add(
                    f"task {task} is {found['state']} by attempt {found['attempt']}, and attempt "
                    f"{attempt} ran"
                )
            elif found["kind"] == "expired":
                self._add(f"task {task} expired before it began, and ran")
        for task, found in self._tasks.items():
            if found["state"] != "done":
                continue
            place = (task, found["attempt"])
            self.facts["lost"] += ended.get(place) != "ok"
            if ended.get(place) != "ok" or begun.get(place) != found["worker"]:
                self._add(
                    f"task {task} is done by attempt {place[1]} of worker {found['worker']}: its "
                    f"code ran on worker {begun.get(place)}, and came to {ended.get(place)!r}"
                )
        self._check_loads(ended)
        if self._said_done > self._count("done"):
            done = self._count("done")
            self.facts["duplicated_completions"] += self._said_done - done
            self._add(f"{self._said_done} completions were taken, of {done} tasks that are done")
        counted = {"runs": len(begun), "redelivered": len(begun) - len(last)}
        self.facts |= {**counted, "overlaps": overlaps}

    def _check_loads(self, ended: Mapping[tuple[int, int], str]) -> None:
        """A worker runs no more at once than it said, but for code that was told to stop."""
        running: dict[int, set[tuple[int, int]]] = {}
        for what, task, attempt, worker, _ in self._acts:
            asked = self._asked_of(task)
            deaf = asked is None or any(fate == "deaf" for fate, _ in asked["course"])
            if deaf or ended.get((task, attempt), "stopped") == "stopped":
                continue
            here = running.setdefault(worker, set())
            if what == "end":
                here.discard((task, attempt))
                continue
            here.add((task, attempt))
            if len(here) > self._loads.get(worker, len(here)):
                self._add(f"worker {worker}, of {self._loads[worker]} at once, ran {sorted(here)}")

    def check_waits(self) -> None:
        """What somebody who waited was told is so for ever."""
        for each in self._waits:
            for task, what, attempt, result in each.completed.value if each.completed else ():
                found = self._tasks.get(task)
                says = (found["state"], found["attempt"]) if found else ("unknown", 0)
                again = what == "dead" and attempt <= says[1] and self._moves.requeues_max(task)
                if again:
                    continue
                if (what, attempt) != says or (what == "done" and result[1] != attempt):
                    self._add(f"task {task} was {what} by attempt {attempt}, and then {says}")

    def check_unique(self) -> None:
        """A unique key is held by one task at a time, and free when that has ended. Of what was
        requeued its last life counts."""
        held: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for task in sorted(self._tasks):
            asked = self._asked_of(task)
            if asked is not None and "unique" in asked:
                held.setdefault((asked["queue"], asked["unique"]), []).append(asked | {"id": task})
        for key, tasks in held.items():
            tasks.sort(key=lambda each: self._life(each["id"]))
            for one, other in pairwise(tasks):
                first, second = self._tasks[one["id"]], self._tasks[other["id"]]
                if one["until"] == "ended" and first["ended_ms"] > second["enqueued_ms"]:
                    self._add(
                        f"task {other['id']} was enqueued at {second['enqueued_ms']} under unique "
                        f"key {key}, which task {one['id']} held until {first['ended_ms']}"
                    )
        for each in self._enqueues:
            if each.outcome != "ok" or each.completed is None:
                continue
            for at in each.completed.value["known"]:
                self._check_known(each.invoked.value[at], each.completed.value["ids"][at])

    def _life(self, task: int) -> tuple[int, int]:
        found = self._tasks[task]
        return found["enqueued_ms"], found["ended_ms"]

    def _check_known(self, asked: dict[str, Any], task: int) -> None:
        holder = self._asked_of(task)
        if holder is None:  # nobody heard that it was enqueued, and it was cancelled before it ran
            if self._tasks.get(task, {}).get("state") != "cancelled":
                self._add(f"{_task(asked)} is said to be task {task}, which nobody knows")
            return
        same = (asked["queue"], asked.get("unique")) == (holder.get("queue"), holder.get("unique"))
        if not same:
            self._add(f"{_task(asked)} is said to be task {task}, which is {show(holder)}")
        elif asked.get("fresh") and not holder.get("fresh"):
            self._add(f"unique key {asked['unique']!r} is held by task {task}, which has ended")

    # --- what was told ----------------------------------------------------------------------------

    def check_told(self) -> None:
        """Attempts grow, each is over once, ends are for ever, in their order, within the rules."""
        over: dict[tuple[int, int], set[str]] = {}
        ends: dict[int, set[tuple[str, int]]] = {}
        rules = {each["name"]: each for each in self._queues}
        for part in self._parts:
            for what, task, attempt, *_ in part:
                if what in _OVER:
                    over.setdefault((task, attempt), set()).add(what)
                if what in ENDS:
                    ends.setdefault(task, set()).add((what, attempt))
            for problem in check_part(part, self._asked_of, rules, self._loads, self._moves):
                self._add(problem)
        for (task, attempt), found in over.items():
            if len(found) > 1:
                self._add(f"attempt {attempt} of task {task} is {' and '.join(sorted(found))}")
        for task, said in ends.items():
            last = self._tasks.get(task)
            self.facts["duplicated_completions"] += max(
                sum(what == "done" for what, _ in said) - 1, 0
            )
            before = said - {(last["state"], last["attempt"])} if last is not None else said
            buried = sum(what == "dead" for what, _ in before)
            if last is None or len(before) > buried or buried > self._moves.requeues_max(task):
                self._add(f"task {task} was told to be {sorted(said)}, and is {show(last)}")
        self._check_tries(over)

    def _check_tries(self, over: Mapping[tuple[int, int], set[str]]) -> None:
        failures: dict[int, int] = {}
        crashes: dict[int, int] = {}
        for (task, _), found in over.items():
            failures[task] = failures.get(task, 0) + bool(found & {"failed", "timeout"})
            crashes[task] = crashes.get(task, 0) + ("crashed" in found)
        for task, count in failures.items():
            asked = self._asked_of(task)
            lives = 1 + self._moves.requeues_max(task)
            if not asked:
                continue
            if count > lives * asked["retries"] or crashes[task] > lives * asked["crashes"]:
                self._add(
                    f"task {task} was tried again after {count} failures and {crashes[task]} "
                    f"crashes: {show(asked)}"
                )
        self.facts["crashes"] = sum(crashes.values())
        self.facts["failures"] = sum(failures.values())

    # --- what was done besides --------------------------------------------------------------------

    def check_moves(self) -> None:
        """What was requeued, given out by hand, to run somewhere, or done with a key."""
        tasks, moves, problems = self._tasks, self._moves, list[str]()
        holders = holders_of(self._acts, self._parts, problems)
        problems += check_requeued(moves, tasks)
        problems += check_assigned(moves, tasks, holders)
        problems += check_places(self._bound, self._crew, self._asked_of)
        more = (self._asked_of, tasks, holders, moves)
        problems += check_beside(self._bound, self._crew, *more)
        if self._keys is not None:
            values = self._by_value()
            problems += check_together(self._together, self._keys, values, tasks, self._asked_of)
        for problem in problems:
            self._add(problem)

    def check_queues(self) -> None:
        """What was enqueued is what ended, by the cluster's own count and by ours."""
        for queue in self._queues:
            name = queue["name"]
            live = sum(
                queue[state] for state in ("scheduled", "blocked", "ready", "assigned", "running")
            )
            ended = queue["done"] + queue["died"] + queue["cancelled"]
            came, again = queue["enqueued"], queue.get("requeued", 0)
            if came + again != ended + live:
                self._add(f"queue {name!r}: {came} and {again} came, {ended} ended, {live} are")
            found = [each for each in self._tasks.values() if each["queue"] == name]
            least, most = self._moves.span([each["task"] for each in found])
            if not least <= again <= most:
                self._add(f"queue {name!r}: {again} were requeued, of {least} that must be, {most}")
            counts = [sum(each["state"] == state for each in found) for state in ENDS]
            if counts != [queue["done"], queue["died"] - again, queue["cancelled"]]:
                self._add(f"queue {name!r}: {counts} tasks are {ENDS}, it counts {show(queue)}")


def _ok(by_f: Mapping[str, Sequence[Operation]], f: str) -> list[Operation]:
    return [each for each in by_f.get(f, ()) if each.outcome == "ok"]


def _answers(by_f: Mapping[str, Sequence[Operation]], f: str) -> list[Any]:
    return [each.completed.value for each in _ok(by_f, f) if each.completed is not None]


def _task(asked: Mapping[str, Any]) -> str:
    return f"value {asked['value']}, for queue {asked['queue']!r},"

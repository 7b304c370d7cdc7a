"""Queues of tasks, and workers, on simulated clusters under faults; and what their checker says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from jepsen_like.checkers.queue import QueueChecker
from jepsen_like.history import Event
from jepsen_like.mutants.patching import rewritten
from jepsen_like.mutants.queueing import MUTANTS
from jepsen_like.mutants.running import run_mutated
from jepsen_like.simulation.swarm import run_seed
from jepsen_like.systems.base import UnsupportedError
from jepsen_like.workloads.registry import make
from tests.jepsen_like.test_workloads import Store, StoreClient
from tests.sharing import turn


@pytest.mark.parametrize("seed", turn((2, 3, 6)))
def test_queues_keep_their_promises(seed: int) -> None:
    outcome = run_seed(seed, workloads=("queue",))
    replay = f"replay: python -m jepsen_like simulate --workload queue --seed {seed}"
    assert outcome.violations == (), replay
    assert outcome.verdicts == {"queue": "True"}


@pytest.mark.parametrize("name", turn(("unique-for-ever", "unfinished-is-done", "one-retry-more")))
def test_a_bug_of_queues_is_found(name: str) -> None:
    mutant = next(each for each in MUTANTS if each.name == name)
    assert {each.name for each in run_mutated(mutant, 1).violations} == {"history-queue"}


def test_every_bug_fits_the_product() -> None:
    for mutant in MUTANTS:
        with rewritten(mutant.rewrites):
            pass


def test_systems_without_tasks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="only quorate"):
        asyncio.run(make("queue").setup(StoreClient(Store(Random(1)), 0.0)))


# --- the checker ----------------------------------------------------------------------------------

ASKED = {"queue": "q", "priority": 2, "key": "", "retries": 1, "crashes": 1, "course": [["ok", 0]]}
ENDED = {"queue": "q", "errors": 0, "crashes": 0, "kind": "", "enqueued_ms": 1, "ended_ms": 5}
COUNTS = dict.fromkeys(("scheduled", "blocked", "ready", "assigned", "running", "died"), 0)


class Story:
    """Two tasks, of values 1 and 2, that were enqueued, ran and are done."""

    def __init__(self) -> None:
        self.asked = [{**ASKED, "value": 1}, {**ASKED, "value": 2}]
        self.answer: dict[str, Any] = {"ids": [1, 2], "known": []}
        self.drained = {"left": 0, "seconds": 1.0}
        done = {"state": "done", "attempt": 1, "worker": 7, "by": 1}
        self.tasks: list[dict[str, Any]] = [
            {**ENDED, **done, "task": 1, "value": 1}, {**ENDED, **done, "task": 2, "value": 2}
        ]  # fmt: skip
        self.queue: dict[str, Any] = {
            **COUNTS, "name": "q", "enqueued": 2, "done": 2, "cancelled": 0, "running_max": 1
        }  # fmt: skip
        self.acts: list[list[Any]] = [
            ["begin", 1, 1, 7, 1], ["end", 1, 1, 7, "ok"],
            ["begin", 2, 1, 7, 2], ["end", 2, 1, 7, "ok"],
        ]  # fmt: skip
        self.told = [["enqueued", 1, 0, 0], ["enqueued", 2, 0, 0], ["started", 1, 1, 7],
                     ["done", 1, 1, 7], ["started", 2, 1, 7], ["done", 2, 1, 7]]  # fmt: skip
        self.waited: list[list[Any]] = [[1, "done", 1, [1, 1]]]
        self.moves: list[tuple[str, Any, Any]] = []
        self.keys: dict[str, str] = {}
        self.crew = [
            {"worker": each, "name": f"w{each}", "queues": [], "can": []} for each in (7, 8)
        ]

    def verdict(self) -> tuple[Any, str]:
        told = [[*each, "q", 10, ""] for each in self.told]
        said = {"acts": self.acts, "done": self.queue["done"], "stale": 0}
        history: list[Event] = []
        for f, asked, answer in (
            ("enqueue", self.asked, self.answer), ("hire", {"concurrency": 1}, {"worker": 7}),
            *self.moves, ("wait", {}, self.waited), ("drain", None, self.drained),
            ("tasks", None, self.tasks), ("queues", None, [self.queue]), ("crew", None, self.crew),
            ("keys", None, self.keys), ("acts", None, said), ("told", None, [told]),
        ):  # fmt: skip
            history.append(Event(process=1, type="invoke", f=f, value=asked, time_ns=0))
            history.append(Event(process=1, type="ok", f=f, value=answer, time_ns=1))
        found = QueueChecker().check(history)
        return found.valid, "; ".join(found.problems)


def lose(story: Story) -> None:
    del story.tasks[1]


def double(story: Story) -> None:
    story.tasks.append({**story.tasks[1], "task": 3})


def leave(story: Story) -> None:
    story.drained["left"] = 1


def run_later(story: Story) -> None:
    story.acts += [["begin", 1, 2, 8, 1]]


def run_twice(story: Story) -> None:
    story.acts += [["begin", 1, 1, 8, 1]]


def not_run(story: Story) -> None:
    del story.acts[3]


def overrun(story: Story) -> None:
    story.acts[1:3] = [story.acts[2], story.acts[1]]


def turn_round(story: Story) -> None:
    story.told[2:] = [*story.told[4:], *story.told[2:4]]


def hold_two(story: Story) -> None:
    story.told[3:5] = [story.told[4], story.told[3]]


def after_the_end(story: Story) -> None:
    story.told.append(["crashed", 1, 1, 7])


def of_another(story: Story) -> None:
    story.told[3] = ["done", 1, 1, 8]


def change(story: Story) -> None:
    story.waited = [[1, "dead", 1, None]]


def hold_unique(story: Story) -> None:
    for asked in story.asked:
        asked |= {"unique": "u", "until": "ended"}


def drift(story: Story) -> None:
    story.queue["done"] = 1


def hurry(story: Story) -> None:
    story.asked[0]["backoff"] = 0.3
    story.told[3:] = [["failed", 1, 1, 7], ["started", 1, 2, 7], ["done", 1, 2, 7]]


def refuse(story: Story) -> None:
    story.tasks[0] |= {"state": "dead", "by": None, "kind": "Failed", "errors": 1}


def die(story: Story) -> None:
    """Task 1 fails twice, is requeued, and done by its third attempt."""
    requeue(story)
    done = {"state": "done", "attempt": 3, "by": 3, "enqueued_ms": 3}
    story.tasks[0] |= done
    story.queue |= {"died": 1, "requeued": 1}
    runs = [[["begin", 1, at, 7, 1], ["end", 1, at, 7, how]] for at, how in LIVES]
    story.acts[:2] = [line for run in runs for line in run]
    story.told[2:4] = [
        ["started", 1, 1, 7], ["failed", 1, 1, 7], ["started", 1, 2, 7], ["dead", 1, 2, 7],
        ["requeued", 1, 2, 0], ["started", 1, 3, 7], ["done", 1, 3, 7],
    ]  # fmt: skip
    story.waited = [[1, "dead", 2, None], [1, "done", 3, [1, 3]]]


LIVES = ((1, "failed"), (2, "failed"), (3, "ok"))


def requeue(story: Story) -> None:
    story.moves.append(("requeue", {"tasks": [1]}, {"changed": [1]}))


def move(story: Story) -> None:
    """Task 1 is taken from worker 8, and done by worker 7."""
    given = {"task": 1, "attempt": 2, "reason": "moved"}
    story.moves.append(("assign", {"worker": 7, "place": 0}, given))
    story.tasks[0] |= {"attempt": 2, "by": 2}
    story.acts[:2] = [["begin", 1, 1, 8, 1], ["begin", 1, 2, 7, 1], ["end", 1, 2, 7, "ok"]]
    story.told[2:4] = [["started", 1, 1, 8], ["given-back", 1, 1, 8], ["started", 1, 2, 7],
                       ["done", 1, 2, 7]]  # fmt: skip
    story.waited = []


def together(story: Story) -> None:
    """Value 3 is enqueued with a key, and completed with another one."""
    asked = {**ASKED, "value": 3, "pays": "queue/pay/1", "writes": "queue/did/3"}
    story.moves.append(("together", [asked], {"ids": [3], "known": []}))
    story.keys = {"queue/pay/1": "3", "queue/did/3": "1"}
    story.tasks.append({**story.tasks[1], "task": 3, "value": 3})
    story.acts += [["begin", 3, 1, 7, 3], ["end", 3, 1, 7, "ok"]]
    story.queue |= {"enqueued": 3, "done": 3}


def beside(story: Story) -> None:
    """Task 2 runs beside task 1, on a worker of the same name."""
    story.asked[1]["beside"] = 1


@pytest.mark.parametrize("twist", [die, move, together, beside])
def test_what_may_be_is_let_pass(twist: Callable[[Story], None]) -> None:
    story = Story()
    twist(story)
    assert story.verdict() == (True, "")


def die_for_good(story: Story) -> None:
    die(story)
    story.moves.clear()


def begin_anew(story: Story) -> None:
    die(story)
    story.acts[4][2] = story.acts[5][2] = 1


def fail_too_often(story: Story) -> None:
    die(story)
    story.tasks[0] |= {"state": "dead", "errors": 3}


def expire_again(story: Story) -> None:
    requeue(story)
    story.tasks[0]["kind"] = "expired"


def keep_dead(story: Story) -> None:
    requeue(story)
    story.queue["requeued"] = 0


def requeue_done(story: Story) -> None:
    requeue(story)
    story.told.append(["requeued", 1, 1, 0])


def take_the_former(story: Story) -> None:
    move(story)
    story.tasks[0] |= {"attempt": 1, "by": 1, "worker": 8}


def move_elsewhere(story: Story) -> None:
    move(story)
    story.moves[0][1]["worker"] = 9


def move_nowhere(story: Story) -> None:
    move(story)
    story.moves[0][1]["worker"] = 0
    story.acts[0][3] = 7
    story.told[2][3] = story.told[3][3] = 7


def move_as_before(story: Story) -> None:
    move(story)
    story.moves.append(story.moves[0])


def be_two_workers(story: Story) -> None:
    story.told[2][3] = 8


def run_elsewhere(story: Story) -> None:
    beside(story)
    for each in story.acts[2:]:
        each[3] = 8
    story.tasks[1]["worker"] = story.told[4][3] = story.told[5][3] = 8


def run_unable(story: Story) -> None:
    story.asked[0]["capabilities"] = ["big"]


def pay_only(story: Story) -> None:
    together(story)
    story.moves[0][2]["ids"] = [4]


def enqueue_only(story: Story) -> None:
    together(story)
    del story.keys["queue/pay/1"]


def complete_only(story: Story) -> None:
    together(story)
    del story.keys["queue/did/3"]


def write_late(story: Story) -> None:
    together(story)
    story.keys["queue/did/3"] = "2"


@pytest.mark.parametrize(
    ("twist", "text"),
    [
        (lose, "acknowledged as task 2, and is lost"),
        (double, "enqueued more than once"),
        (leave, "1 tasks are left"),
        (run_later, "and attempt 2 ran"),
        (run_twice, "began twice"),
        (not_run, "came to None"),
        (overrun, "of 1 at once, ran"),
        (turn_round, "handed out after task 2, which came later"),
        (hold_two, "2 tasks are held, running_max 1"),
        (after_the_end, "was done, and then crashed"),
        (of_another, "by attempt 1 of worker 8"),
        (change, "was dead by attempt 1, and then"),
        (hold_unique, "which task 1 held until 5"),
        (drift, "1 ended"),
        (hurry, "task 1 is started 300 ms too early"),
        (refuse, "dead after 1 errors"),
        (die_for_good, "was dead by attempt 2, and then"),
        (begin_anew, "attempt 1 of task 1 began twice"),
        (fail_too_often, "task 1 failed 3 times"),
        (expire_again, "was requeued, and expired"),
        (keep_dead, "0 were requeued, of 1 that must be"),
        (requeue_done, "is requeued, and was done"),
        (take_the_former, "by hand as attempt 2, and is done by attempt 1"),
        (move_elsewhere, "to worker 9, and worker 7 had it"),
        (move_nowhere, "away from worker 7, which had it again"),
        (move_as_before, "attempt 2 of task 1 was given out twice"),
        (be_two_workers, "is of workers 7 and 8"),
        (run_elsewhere, "ran on workers ['w8'], and task 1"),
        (run_unable, "of which it asks otherwise"),
        (pay_only, "as task 4, and is lost"),
        (enqueue_only, "value 3 was enqueued, and key 'queue/pay/1' is None"),
        (complete_only, "that goes with its completion is None"),
        (write_late, "that goes with its completion is '2'"),
    ],
)
def test_what_must_not_be_is_seen(twist: Callable[[Story], None], text: str) -> None:
    story = Story()
    assert story.verdict() == (True, "")
    twist(story)
    valid, problems = story.verdict()
    assert valid is False
    assert text in problems

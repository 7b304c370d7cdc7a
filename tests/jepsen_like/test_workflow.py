"""Workflows and schedules on simulated clusters under faults; and what their checkers say."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from jepsen_like.history import Event
from jepsen_like.mutants.flowing import MUTANTS
from jepsen_like.mutants.patching import rewritten
from jepsen_like.mutants.running import run_mutated
from jepsen_like.simulation.plan import draw, replace_settings
from jepsen_like.simulation.swarm import run_plan
from jepsen_like.workloads.registry import make
from jepsen_like.workloads.workflow_plans import CROWD, draw_crowd, draw_plan, workflow_of
from quorate.tasks.workflow_sweeps import SWEEP_NODES_MAX
from tests.sharing import turn


@pytest.mark.parametrize("seed", turn((3, 4, 5)))
def test_workflows_keep_their_promises(seed: int) -> None:
    plan = draw(seed, ("workflow",))
    plan = replace_settings(plan, voters=3, operations_max=100, think_ms=20.0, seconds=3.0)
    outcome = run_plan(plan)
    assert outcome.violations == ()
    assert outcome.verdicts == {"workflow": "True"}


@pytest.mark.deep
@pytest.mark.parametrize(
    "name", ["any-parent-lets-go", "undone-in-order", "ticks-drift", "triggered-twice"]
)
def test_a_bug_of_workflows_is_found(name: str) -> None:
    mutant = next(each for each in MUTANTS if each.name == name)
    assert {each.name for each in run_mutated(mutant, 1).violations} == {"history-workflow"}


def test_every_bug_fits_the_product() -> None:
    for mutant in MUTANTS:
        with rewritten(mutant.rewrites):
            pass


def test_what_is_drawn_can_be_submitted() -> None:
    random, kinds = Random(1), set()
    for number in range(100):
        plan = draw_plan(random, number + 1, 0.3)
        assert len(workflow_of(plan).command().nodes) == len(plan["nodes"])
        for node in plan["nodes"]:
            kinds |= {node["kind"], *(kind for _, kind in node["after"])}
            kinds |= {"spawn", "undo"} & node.keys()
    waits = {"blocking", "optional", "weak"}
    assert kinds == {"run", "sleep", "signal", "spawn", "undo"} | waits


def test_a_large_one_takes_several_entries_to_stop() -> None:
    plan = draw_crowd(Random(1), 1)
    assert len(workflow_of(plan).command().nodes) > CROWD > SWEEP_NODES_MAX
    assert plan["fail_fast"]
    names = [each["name"] for each in plan["nodes"]]
    assert names == sorted(names)  # in which order they are stopped


# --- the checkers ---------------------------------------------------------------------------------

WORK = {"kind": "run", "course": [["ok", 0]]}


def node(name: str, task: int, state: str = "done", **more: Any) -> dict[str, Any]:
    found = {"name": name, "task": task, "state": state, "attempt": 1, "kind": "", "after": []}
    return {**found, "result": [f"1/{name}", 1] if state == "done" else None, **more}


def ran(value: str, task: int, inputs: list[Any], how: str = "ok") -> list[list[Any]]:
    return [["begin", task, 1, 7, value, inputs], ["end", task, 1, 7, how]]


class Story:
    """Two nodes a and b in a row, then c, which fails; b is undone, then a. And a schedule, whose
    third tick was missed."""

    def __init__(self) -> None:
        self.plan: dict[str, Any] = {
            "flow": 1, "fail_fast": True, "at_once": 1, "nodes": [
                {**WORK, "name": "a", "after": [], "undo": [["ok", 0]]},
                {**WORK, "name": "b", "after": [["a", "blocking"]], "undo": [["ok", 0]]},
                {**WORK, "name": "c", "after": [["b", "blocking"], ["a", "weak"]]},
                {**WORK, "name": "d", "after": [["c", "blocking"]]},
            ],
        }  # fmt: skip
        self.nodes = [
            node("a", 1), node("b", 2, after=[1]), node("c", 3, "dead", after=[2, 1]),
            node("d", 4, "cancelled", after=[3], attempt=0, kind="upstream"),
            node("undo b", 5, after=[2]), node("undo a", 6, after=[1]),
        ]  # fmt: skip
        self.flow: dict[str, Any] = {
            "workflow": 9, "flow": 1, "state": "compensated", "cause": "c", "total": 4, "done": 2,
            "dead": 1, "cancelled": 1,
        }  # fmt: skip
        came = {name: [name, "done", [f"1/{name}", 1]] for name in ("a", "b")}
        self.acts = [
            *ran("1/a", 1, []), *ran("1/b", 2, [came["a"]]),
            *ran("1/c", 3, [came["b"], came["a"]], "failed"),
            *ran("1/undo b", 5, [came["b"]]), *ran("1/undo a", 6, [came["a"]]),
        ]  # fmt: skip
        self.told = [["started", 1], ["done", 1], ["started", 2], ["done", 2], ["started", 3],
                     ["dead", 3], ["cancelled", 4], ["started", 5], ["done", 5], ["started", 6],
                     ["done", 6]]  # fmt: skip
        self.answer: Any = {"workflow": 9}
        self.drained = {"left": 0, "seconds": 1.0}
        self.waited = "compensated"
        self.more: list[tuple[str, Any, Any]] = []
        self.later: list[tuple[str, Any, Any]] = []
        self.put = {"name": "s", "misfire": "once", "overlap": True, "step_ms": 100}
        self.looks = [self.look(200, 1, 0), self.look(500, 3, 0)]
        self.ticking: dict[str, Any] = {"left": [], "seconds": 1.0}
        self.ticked = [self.tick(21, 110), self.tick(22, 210), self.tick(23, 410)]

    def look(self, next_ms: int, fired: int, skipped: int) -> dict[str, Any]:
        return {"name": "s", "every_ms": 100, "revision": 1, "next_ms": next_ms, "fired": fired,
                "last_task": 20 + fired, "skipped": skipped}  # fmt: skip

    def tick(self, task: int, at_ms: int) -> dict[str, Any]:
        return {"task": task, "value": "s", "state": "done", "enqueued_ms": at_ms,
                "ended_ms": at_ms + 50}  # fmt: skip

    def verdict(self) -> tuple[Any, str]:
        told = [
            [what, task, 0 if what == "cancelled" else 1, 7, "flow", 10 * at, ""]
            for at, (what, task) in enumerate(self.told)
        ]
        flows = [{**self.flow, "nodes": self.nodes}]
        history: list[Event] = []
        for f, asked, answer in (
            ("submit", self.plan, self.answer), ("put", self.put, None), *self.more,
            ("wait", {"workflow": 9}, self.waited), ("ticking", None, self.ticking),
            *(("schedules", None, [look]) for look in self.looks), *self.later,
            ("drain", None, self.drained),
            ("flows", None, flows), ("ticked", None, self.ticked),
            ("acts", None, {"acts": self.acts, "done": 5, "stale": 0}), ("told", None, [told]),
        ):  # fmt: skip
            history.append(Event(process=1, type="invoke", f=f, value=asked, time_ns=0))
            history.append(Event(process=1, type="ok", f=f, value=answer, time_ns=1))
        found = make("workflow").check(history)
        return found.valid, "; ".join(found.problems)


def lose(story: Story) -> None:
    story.answer = {"workflow": 8}


def leave_out(story: Story) -> None:
    del story.nodes[3]


def leave(story: Story) -> None:
    story.drained["left"] = 1


def go_on(story: Story) -> None:
    story.nodes[3] = node("d", 4, after=[3])
    story.flow |= {"done": 3, "cancelled": 0}


def begin_early(story: Story) -> None:
    story.acts[1:3] = [story.acts[2], story.acts[1]]


def other_input(story: Story) -> None:
    story.acts[4][5][0][2] = ["1/b", 2]


def no_input(story: Story) -> None:
    del story.acts[4][5][1]


def not_run(story: Story) -> None:
    del story.acts[3]


def run_twice(story: Story) -> None:
    story.acts.append(story.acts[0])


def run_never_to(story: Story) -> None:
    story.acts += ran("1/d", 4, [["c", "dead", None]])


def keep(story: Story) -> None:
    del story.nodes[4]


def undo_failed(story: Story) -> None:
    story.nodes.append(node("undo c", 7, after=[3]))


def turn_round(story: Story) -> None:
    story.nodes[4]["task"], story.nodes[5]["task"] = 6, 5


def undo_at_once(story: Story) -> None:
    story.acts[7:9] = [story.acts[8], story.acts[7]]


def say_done(story: Story) -> None:
    story.flow["state"] = "done"


def fail_without(story: Story) -> None:
    story.flow["cause"] = "a"


def stop_for_nothing(story: Story) -> None:
    story.flow["state"] = "cancelled"


def hear_otherwise(story: Story) -> None:
    story.waited = "failed"


def cancel(story: Story) -> None:
    story.more = [("cancel", {"workflow": 9, "undo": False}, {"new": True})]


def two_at_once(story: Story) -> None:
    story.told[1:3] = [["started", 2], ["done", 1]]


def hand_out_late(story: Story) -> None:
    story.told.insert(6, ["started", 4])


def end_twice(story: Story) -> None:
    story.told.append(["dead", 1])


def tick_twice(story: Story) -> None:
    story.looks[1] = story.look(300, 3, 0)


def drift(story: Story) -> None:
    story.looks[1]["next_ms"] = 510


def pass_over(story: Story) -> None:
    story.looks[1]["skipped"] = 1


def miss(story: Story) -> None:
    story.put["misfire"] = "all"


def fire_late(story: Story) -> None:
    story.put["misfire"] = "skip"


def miscount(story: Story) -> None:
    del story.ticked[0]


def fire_at_once(story: Story) -> None:
    story.ticked[1]["enqueued_ms"] = 430


def overlap(story: Story) -> None:
    story.put["overlap"] = False
    story.ticked[0]["ended_ms"] = 215


def stand_still(story: Story) -> None:
    story.ticking["left"] = ["s"]


def forget(story: Story) -> None:
    story.looks[1]["name"] = "t"


def trigger(story: Story) -> None:
    """It is fired by hand, too: task 22 is no tick."""
    story.more = [("trigger", {"name": "s"}, {"task": 22})]
    for look in story.looks[1:]:
        look["fired"] -= 1


def hold(story: Story) -> None:
    """It is paused, looked at twice, and goes on."""
    paused = {**story.looks[1], "paused": True, "revision": 2, "next_ms": 600}
    look = ("schedules", None, [paused])
    story.later = [("pause", {"name": "s"}, None), look, ("schedules", None, [{**paused}]),
                   ("resume", {"name": "s"}, None),
                   ("schedules", None, [{**paused, "paused": False, "revision": 3}])]  # fmt: skip


@pytest.mark.parametrize("twist", [trigger, hold])
def test_what_may_be_is_let_pass(twist: Callable[[Story], None]) -> None:
    story = Story()
    twist(story)
    assert story.verdict() == (True, "")


def trigger_twice(story: Story) -> None:
    trigger(story)
    story.ticked.append(story.tick(20, 205))


def trigger_for_nothing(story: Story) -> None:
    story.more = [("trigger", {"name": "s"}, {"task": 0})]


def trigger_elsewhere(story: Story) -> None:
    story.more = [("trigger", {"name": "s"}, {"task": 99})]


def tick_paused(story: Story) -> None:
    hold(story)
    story.later[2][2][0].update(fired=4, next_ms=700)


def not_paused(story: Story) -> None:
    hold(story)
    story.later[2][2][0]["paused"] = False


def not_resumed(story: Story) -> None:
    hold(story)
    story.later[4][2][0]["paused"] = True


def not_forgotten(story: Story) -> None:
    story.plan["keep"] = 0.5


@pytest.mark.parametrize(
    ("twist", "text"),
    [
        (lose, "acknowledged as workflow 8, and is lost"),
        (leave_out, "node 'd' is not there"),
        (leave, "1 have not ended"),
        (go_on, "is done, though ['c'] before it were not"),
        (begin_early, "'b' began before 'a' had come to its end"),
        (other_input, "was given ['1/b', 2] of 'b'"),
        (no_input, "was given ['b'], and waits for"),
        (not_run, "its code came to None"),
        (run_twice, "attempt 1 of task 1 began twice"),
        (run_never_to, "never was to begin"),
        (keep, "['a'] were undone, ['a', 'b'] were to be"),
        (undo_failed, "['b', 'a', 'c'] were undone"),
        (turn_round, "'a' was undone before ['b']"),
        (undo_at_once, "'undo a' began while 'undo b' was not over"),
        (say_done, "it is done, and ['c', 'd'] are not"),
        (fail_without, "it failed because of 'a'"),
        (stop_for_nothing, "it is cancelled, which nobody asked for"),
        (hear_otherwise, "was failed, and then compensated"),
        (cancel, "it was cancelled, undo False, and is compensated"),
        (two_at_once, "['a', 'b'] are with workers, and at most 1"),
        (hand_out_late, "was started after 'c' had failed for good"),
        (end_twice, "was done, and then dead"),
        (tick_twice, "1 ticks, 2 fired"),
        (drift, "goes from 200 to 510"),
        (pass_over, "1 were passed over"),
        (miss, "'all': 3 ticks, 2 fired"),
        (fire_late, "'skip': 3 ticks, 2 fired"),
        (miscount, "says that 1 fired, 0 tasks"),
        (fire_at_once, "fired more than once in one step"),
        (overlap, "and task 21 ended at 215"),
        (stand_still, "['s'] do not tick"),
        (not_forgotten, "of plan 1, is not forgotten"),
        (forget, "'s' was acknowledged, and is lost"),
        (trigger_twice, "says that 2 fired, 4 tasks are there (1 by hand"),
        (trigger_for_nothing, "was fired, and there is no task for it"),
        (trigger_elsewhere, "was fired as task 99"),
        (tick_paused, "'s' is paused as"),
        (not_paused, "'s', after 'pause', is shown as"),
        (not_resumed, "'s', after 'resume', is shown as"),
    ],
)
def test_what_must_not_be_is_seen(twist: Callable[[Story], None], text: str) -> None:
    story = Story()
    assert story.verdict() == (True, "")
    twist(story)
    valid, problems = story.verdict()
    assert valid is False
    assert text in problems, problems

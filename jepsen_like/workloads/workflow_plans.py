"""Workflows as they are drawn, and as they are submitted.

A *plan* is JSON: "flow" (its number), "fail_fast", "at_once", and "nodes", each with its "name",
its "kind" ("run", "sleep", "signal"), "after" ([name, "blocking", "optional" or "weak"] of each
that it waits for), and what its attempts come to ("course"). "undo": the course of a compensation;
"spawn": nodes that it adds when it runs, {"parts": plans of nodes, "before": [names]}. "keep": it
is forgotten so many seconds after its end.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from quorate.base.task_specs import Task
from quorate.client.tasks import Tasks
from quorate.client.workflows import Workflow

#: Name of the one function of workflows and schedules.
FUNCTION: Final = "flow.work"
#: Where its tasks wait, and those of schedules.
FLOW_QUEUE: Final = "flow"
TICK_QUEUE: Final = "ticks"
#: What workers of queues do not have.
CAPABILITY: Final = "flow"
COUNTS: Final = (1, 2, 3, 4, 5, 7)
KINDS: Final = ("blocking", "blocking", "blocking", "optional", "weak")
#: Of attempts at a compensation: it fails for good, sometimes.
UNDO_COURSES: Final = ([["ok", 0.0]], [["ok", 0.05]], [["fail", 0.0], ["ok", 0.0]], [["spoil", 0]])

#: Of workflows that are forgotten within a run, and of all others.
KEEP_S: Final = 0.5
KEEP_LONG_S: Final = 3600.0

#: Nodes of a large workflow that sleep, longer than it lives.
CROWD: Final = 560
CROWD_SLEEP_S: Final = 60.0

Plan = dict[str, Any]


def draw_plan(random: Random, flow: int, wrong: float) -> Plan:
    """The plan of a workflow; *wrong*: the share of attempts that do not go well."""
    likely = random.choice((0.2, 0.5, 0.8))
    nodes: list[Plan] = []
    for place in range(random.choice(COUNTS)):
        kind = random.choice(("run",) * 8 + ("sleep", "signal"))
        kinds = KINDS if kind == "run" else ("blocking",)
        after = [
            [other["name"], random.choice(kinds)] for other in nodes if random.random() < likely
        ]
        nodes.append({"name": f"n{place}", "kind": kind, "after": after})
    for node in nodes:
        if node["kind"] == "run":
            node.update(_work(random, wrong))
            if random.random() < 0.4:
                node["undo"] = random.choice(UNDO_COURSES)
        elif node["kind"] == "sleep":
            node["seconds"] = random.choice((0.0, 0.1, 0.5, 1.5))
        elif random.random() < 0.2:
            node["expires"] = random.choice((0.5, 2.0))
    _draw_spawns(random, nodes, wrong)
    plan = {
        "flow": flow,
        "fail_fast": random.random() < 0.5,
        "at_once": random.choice((None, None, 1, 2)),
        "nodes": nodes,
    }
    return plan | {"keep": KEEP_S} if random.random() < 0.15 else plan


def draw_crowd(random: Random, flow: int) -> Plan:
    """A workflow that takes several entries to stop: it fails in the middle, if nobody cancels it
    before. Nodes are stopped by name: those that could begin come late."""
    ok = {"course": [["ok", 0.05]], "timeout": 5.0, "retries": 1, "crashes": 9, "backoff": 0.0}
    nodes: list[Plan] = []
    for place in range(4):
        after = [[nodes[-1]["name"], "blocking"]] if nodes else []
        node = {"name": f"a{place}", "kind": "run", "after": after, **ok}
        nodes.append({**node, "undo": [["ok", 0.0]]})
    fails = {**ok, "course": [["spoil", random.choice((0.0, 0.3))]]}
    last = random.choice(("a0", "a3"))
    nodes.append({"name": "b", "kind": "run", "after": [[last, "blocking"]], **fails})
    for place in range(CROWD):
        after = [["z", "blocking"]] if place % 2 else []
        sleep = {"kind": "sleep", "seconds": CROWD_SLEEP_S, "after": after}
        nodes.append({"name": f"m{place:03}", **sleep})
    nodes += [{"name": f"y{place}", "kind": "run", "after": [], **ok} for place in range(8)]
    nodes.append({"name": "z", "kind": "signal", "after": []})
    plan = {"flow": flow, "fail_fast": True, "at_once": random.choice((None, 3)), "nodes": nodes}
    return plan | {"keep": KEEP_S} if random.random() < 0.3 else plan


def _work(random: Random, wrong: float) -> Plan:
    timeout_s = random.choice((None, 0.4, 1.0))
    attempts = range(random.choice((1, 2, 3)))
    node: Plan = {
        "course": [_attempt(random, timeout_s, wrong) for _ in attempts],
        "retries": random.choice((0, 1, 2)),
        "crashes": random.choice((1, 3)),
        "backoff": random.choice((0.0, 0.05)),
        "timeout": timeout_s,
    }
    if random.random() < 0.1:
        node["delay"] = random.choice((0.1, 0.5))
    return node


def _attempt(random: Random, timeout_s: float | None, wrong: float) -> list[Any]:
    fate = "ok"
    if random.random() < wrong:
        fate = random.choice(("fail", "fail", "spoil", "hang", "deaf")[: 5 if timeout_s else 3])
    return [fate, random.choice((0.0, 0.01, 0.1, 0.3))]


def _draw_spawns(random: Random, nodes: list[Plan], wrong: float) -> None:
    """Some nodes add parts when they run, for which one of those after them waits besides."""
    by_name = {node["name"]: node for node in nodes}
    for join in nodes:
        for name, kind in join["after"]:
            node = by_name[name]
            both = node["kind"] == join["kind"] == "run"
            if kind != "blocking" or not both or "spawn" in node or random.random() < 0.7:
                continue
            parts: list[Plan] = []
            for place in range(random.choice((1, 2, 3))):
                after = [[parts[-1]["name"], "blocking"]] if parts and random.random() < 0.3 else []
                part = {"name": f"{name}.{place}", "kind": "run", "after": after}
                parts.append(part | _work(random, wrong / 2))
            node["spawn"] = {"parts": parts, "before": [join["name"]]}


def workflow_of(plan: Plan) -> Workflow:
    """For ``db.workflows.submit``."""
    flow = Workflow(
        str(plan["flow"]),
        fail_fast=plan["fail_fast"],
        at_once=plan["at_once"],
        keep=plan.get("keep", KEEP_LONG_S),
    )
    add_nodes(flow, plan["flow"], plan["nodes"])
    return flow


def add_nodes(flow: Workflow, number: int, nodes: list[Plan]) -> None:
    """The nodes of a plan, to a workflow."""
    for node in nodes:
        name, waits = node["name"], _waits(node["after"])
        if node["kind"] == "sleep":
            flow.sleep(name, node["seconds"], after=waits("blocking"))
        elif node["kind"] == "signal":
            flow.signal(name, after=waits("blocking"), timeout=node.get("expires"))
        else:
            undo = node.get("undo")
            flow.add(
                name,
                FUNCTION,
                args=(f"{number}/{name}", node["course"], node.get("spawn")),
                after=waits("blocking"),
                after_any_end=waits("optional"),
                inputs=waits("weak"),
                undo=None if undo is None else _undo(f"{number}/undo {name}", undo),
                queue=FLOW_QUEUE,
                capabilities=[CAPABILITY],
                **{key: node[key] for key in _SETTINGS if key in node},
            )


_SETTINGS: Final = ("retries", "crashes", "backoff", "timeout", "delay")


def _waits(after: list[list[str]]) -> Callable[[str], list[str]]:
    return lambda kind: [name for name, each in after if each == kind]


def _undo(value: str, course: list[list[Any]]) -> Task:
    return Tasks.task(
        FUNCTION, args=(value, course, None), queue=FLOW_QUEUE, capabilities=[CAPABILITY],
        retries=1, backoff=0.0, crashes=10, timeout=5.0,
    )  # fmt: skip


def task_of_tick(value: str) -> dict[str, Any]:
    """What a schedule enqueues."""
    return {
        "args": (value, [["ok", 0.05]], None),
        "queue": TICK_QUEUE,
        "capabilities": [CAPABILITY],
        "retries": 3,
        "crashes": 50,
        "backoff": 0.0,
        "timeout": 5.0,
    }

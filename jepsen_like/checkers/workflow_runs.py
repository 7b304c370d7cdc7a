"""What the code of workflows' nodes did: it began after all that it waits for, was given what that
came to, and ran to its end where the cluster says that it is done."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from jepsen_like.checkers.base import show

if TYPE_CHECKING:
    from jepsen_like.checkers.workflow import Flow

_ENDS: Final = ("done", "dead", "cancelled")
_UNDO: Final = "undo "

#: Place among all acts of the begin and of the end of attempts: (task, attempt).
Places = dict[tuple[int, int], int]


def check_runs(
    flows: Sequence[Flow],
    others: Container[int],
    acts: Sequence[Sequence[Any]],
    facts: dict[str, int],
) -> Iterator[str]:
    """What is wrong, in sentences. *others*: tasks that are of no workflow."""
    of = {node["task"]: (flow, node) for flow in flows for node in flow.nodes.values()}
    begun: Places = {}
    ended: Places = {}
    how: dict[tuple[int, int], str] = {}
    ran: set[tuple[int, int]] = set()
    last: dict[int, int] = {}
    for place, (what, task, attempt, _worker, *more) in enumerate(acts):
        if task in others:
            continue
        if what == "end":
            ended[task, attempt], how[task, attempt] = place, more[0]
            if more[0] == "ok":
                ran.add((task, attempt))
            continue
        if (task, attempt) in begun:
            yield f"attempt {attempt} of task {task} began twice"
        begun[task, attempt] = place
        last[task] = max(last.get(task, 0), attempt)
        if task not in of:
            yield f"task {task} ran, of {show(more[0])}, and is not known"
            continue
        flow, node = of[task]
        for problem in _check_begin(flow, node, attempt, more, ran):
            yield f"workflow {flow.number}: {problem}"
    facts |= {"runs": len(begun), "redelivered": len(begun) - len(last)}
    for flow in flows:
        for problem in _check_done(flow, how, last):
            facts["lost"] += "came to" in problem
            yield f"workflow {flow.number}: {problem}"
        for problem in _check_undo(flow, begun, ended):
            yield f"workflow {flow.number}: {problem}"


def _check_begin(
    flow: Flow,
    node: Mapping[str, Any],
    attempt: int,
    more: Sequence[Any],
    done: Container[tuple[int, int]],
) -> Iterator[str]:
    """One attempt of *node* begins. *done*: attempts that have come to their end."""
    name, (value, inputs) = node["name"], more
    if value != f"{flow.plan['flow']}/{name}":
        yield f"node {name!r} ran as {value!r}"
    if attempt > node["attempt"]:
        yield f"node {name!r} is {node['state']} by attempt {node['attempt']}, {attempt} ran"
    given = {each: (state, result) for each, state, result in inputs}
    waits = [[name.removeprefix(_UNDO), "blocking"]] if name.startswith(_UNDO) else None
    waits = flow.waits.get(name, []) if waits is None else waits
    if sorted(given) != sorted(each for each, _ in waits):
        yield f"node {name!r} was given {sorted(given)}, and waits for {waits}"
    for before, kind in waits:
        parent = flow.nodes.get(before)
        if parent is None or before not in given:
            continue
        state, result = given[before]
        ended = parent["state"]
        if kind == "blocking" and (ended != "done" or state != "done"):
            yield f"node {name!r} began, and {before!r} before it was {state}, is {ended}"
        is_run = flow.plans.get(before, parent).get("kind", "run") == "run"
        if kind == "blocking" and is_run and (parent["task"], parent["attempt"]) not in done:
            yield f"node {name!r} began before {before!r} had come to its end"
        if kind == "optional" and state != ended:
            yield f"node {name!r} began, and {before!r} before it was {state}, is {ended}"
        if state in _ENDS and state != ended:
            yield f"node {name!r} was told that {before!r} is {state}; it is {ended}"
        if state == "done" and result != parent["result"]:
            came = show(parent["result"])
            yield f"node {name!r} was given {show(result)} of {before!r}, which came to {came}"


def _check_done(
    flow: Flow, how: Mapping[tuple[int, int], str], last: Mapping[int, int]
) -> Iterator[str]:
    for name, node in flow.nodes.items():
        if flow.plans.get(name, {}).get("kind", "run") != "run":
            continue
        task, attempt = node["task"], node["attempt"]
        if node["state"] == "done":
            if how.get((task, attempt)) != "ok":
                came = how.get((task, attempt))
                yield f"node {name!r} is done by attempt {attempt}: its code came to {came!r}"
            if node["result"] != [f"{flow.plan['flow']}/{name}", attempt]:
                yield f"node {name!r}, attempt {attempt}, has result {show(node['result'])}"
        elif node["kind"] in ("upstream", "expired") and task in last:
            yield f"node {name!r} never was to begin ({node['kind']}), and ran"


def _check_undo(flow: Flow, begun: Places, ended: Places) -> Iterator[str]:
    """One after the other."""
    nodes = [flow.nodes[_UNDO + name] for name in flow.undone()]
    for one, other in pairwise(nodes):
        first = (one["task"], one["attempt"])
        starts = [place for (task, _), place in begun.items() if task == other["task"]]
        over = ended.get(first, -1) if one["state"] == "done" else begun.get(first, -1)
        if starts and over > min(starts):
            yield f"{other['name']!r} began while {one['name']!r} was not over"

"""Workflows: what was submitted is there, whole; nothing begins before what it waits for; every
workflow ends, as its nodes and its rules say; what was done before a failure is undone in reverse.

Witnesses are as for queues: what was acknowledged, what workers' code did and what it was given,
what watchers were told (``checkers.workflow_parts``), and what the cluster says in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jepsen_like.checkers.base import Findings, readable, show
from jepsen_like.checkers.workflow_parts import check_told
from jepsen_like.checkers.workflow_runs import check_runs
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

ENDS: Final = ("done", "dead", "cancelled")
FLOW_ENDS: Final = ("done", "failed", "compensated", "cancelled")
UNDO: Final = "undo "
#: Operations of schedules, which another checker judges.
TICKS: Final = (
    *("put", "remove", "pause", "resume", "trigger"),
    *("schedules", "ticking", "freeze", "ticked"),
)
KNOWN: Final = frozenset(
    (
        *("submit", "signal", "cancel", "wait", "hire", "dismiss", "look", "drain"),
        *("flows", "acts", "told", *TICKS),
    )
)


class WorkflowChecker:
    """For these operations:

    =======  ==========================================================================
    submit   the plan of a workflow (``workloads.workflow_plans``); answered {"workflow"}
    signal   {"workflow", "node", "payload"}; answered {"new"}
    cancel   {"workflow", "undo"}; answered {"new"}
    wait     {"workflow"}; answered with the state that it ended in
    drain    all is run: {"left": what has not ended}
    flows    every workflow at the end: "workflow", "flow" (of the plan), "state", "cause", counts,
             and "nodes": "name", "task", "state", "attempt", "result", "kind" of error, "after"
    acts     {"acts": what code did: ["begin", task, attempt, worker, value, inputs], or ["end",
             task, attempt, worker, how]}
    told     parts of [what, task, attempt, worker, queue, ms, kind]
    =======  ==========================================================================
    """

    name = "workflow"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nothing was done, or the end was not looked at."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        run = _Run(findings, operations(history))
        if not run.looked:
            return findings.verdict(self.name, proves=False)
        run.check_submitted()
        run.check_said()
        flows = list(run.flows.values())
        for flow in flows:
            for problem in flow.problems():
                findings.add(f"workflow {flow.number}: {problem}")
        for problem in check_runs(flows, run.others, run.acts, run.facts):
            findings.add(problem)
        for part in run.told:
            for problem in check_told(part, flows, run.facts):
                findings.add(problem)
        return findings.verdict(self.name, proves=run.facts["nodes_done"] > 0, **run.facts)


class Flow:
    """One workflow: its plan, and what it came to. *asked_to_cancel*: somebody may have cancelled
    it; *cancelled*: somebody was told that it is, and *asked_to_undo* is how."""

    def __init__(self, plan: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        self.plan = plan
        self.found = found
        self.number: int = found["workflow"]
        self.state: str = found["state"]
        self.fail_fast: bool = plan["fail_fast"]
        self.asked_to_cancel = self.cancelled = False
        self.asked_to_undo: bool | None = None
        self.nodes: dict[str, Mapping[str, Any]] = {each["name"]: each for each in found["nodes"]}
        self.plans: dict[str, Mapping[str, Any]] = {each["name"]: each for each in plan["nodes"]}
        #: Parts that were added, and by whom; and who waits for them besides.
        self.waits: dict[str, list[list[str]]] = {
            name: [*each["after"]] for name, each in self.plans.items()
        }
        for each in plan["nodes"]:
            if "spawn" in each:
                self._take_parts(each["spawn"])

    def _take_parts(self, spawn: Mapping[str, Any]) -> None:
        for part in spawn["parts"]:
            if part["name"] not in self.nodes:
                continue
            self.plans[part["name"]] = part
            self.waits[part["name"]] = [*part["after"]]
            for join in spawn["before"]:
                self.waits[join].append([part["name"], "blocking"])

    def _own_waits(self, name: str) -> list[list[str]]:
        own: list[list[str]] = self.plans[name]["after"]
        return own

    def state_of(self, name: str) -> str:
        """Of a node."""
        return str(self.nodes[name]["state"])

    def undone(self) -> list[str]:
        """Names of nodes that were undone, or were to be, in the order in which that began."""
        names = [name for name in self.nodes if name.startswith(UNDO)]
        names.sort(key=lambda name: int(self.nodes[name]["task"]))
        return [name.removeprefix(UNDO) for name in names]

    # --- what it must be --------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What is wrong with what it came to."""
        return [
            *self._wrong_nodes(),
            *self._wrong_ends(),
            *self._wrong_whole(),
            *self._wrong_undo(),
        ]

    def _wrong_nodes(self) -> list[str]:
        found = [f"node {name!r} is not there" for name in self.plans if name not in self.nodes]
        by_task = {each["task"]: name for name, each in self.nodes.items()}
        for name, node in self.nodes.items():
            if name.startswith(UNDO):
                continue
            if name not in self.plans:
                found.append(f"node {name!r} was never asked for")
                continue
            waits = sorted(by_task.get(task, "?") for task in node["after"])
            asked = sorted(each for each, _ in self.waits[name])
            if node["state"] == "cancelled":  # perhaps before parts came that it was to wait for
                asked = sorted({*waits, *(each for each, _ in self._own_waits(name))})
            if waits != asked:
                found.append(f"node {name!r} waits for {waits}, asked for {self.waits[name]}")
        for each in self.plan["nodes"]:
            if "spawn" in each and each["name"] in self.nodes:
                names = [part["name"] for part in each["spawn"]["parts"]]
                missing = [name for name in names if name not in self.nodes]
                if missing and self.state_of(each["name"]) == "done":
                    found.append(f"node {each['name']!r} is done, and {missing} were not added")
        return found

    def _wrong_ends(self) -> list[str]:
        """Each node ended, and as those before it let it."""
        found = []
        for name, node in self.nodes.items():
            state = node["state"]
            if state not in ENDS:
                found.append(f"node {name!r} is {state} at the end")
                continue
            blocked = [
                other
                for other, kind in self.waits.get(name, ())
                if kind == "blocking" and other in self.nodes and self.state_of(other) != "done"
            ]
            if state == "done" and blocked:
                found.append(f"node {name!r} is done, though {blocked} before it were not")
            stopped = self.asked_to_cancel or (self.fail_fast and self.state != "done")
            if state == "cancelled" and not blocked and not stopped:
                found.append(f"node {name!r} is cancelled, and nothing before it failed")
        return found

    def _wrong_whole(self) -> list[str]:
        found, state = [], self.state
        own = {name: each for name, each in self.nodes.items() if not name.startswith(UNDO)}
        if state not in FLOW_ENDS:
            return [f"it is {state} at the end"]
        counts = [sum(each["state"] == end for each in own.values()) for end in ENDS]
        if counts != [self.found[end] for end in ENDS] or len(own) != self.found["total"]:
            found.append(f"{counts} of {len(own)} nodes are {ENDS}, it counts {show(self.found)}")
        not_done = [name for name, each in own.items() if each["state"] != "done"]
        if state == "done" and (not_done or self.cancelled):
            found.append(f"it is done, and {not_done} are not; cancelled: {self.cancelled}")
        if state != "done" and not not_done and not self.asked_to_cancel:
            found.append(f"it is {state}, and all its nodes are done")
        if state == "cancelled" and not self.asked_to_cancel:
            found.append("it is cancelled, which nobody asked for")
        if state in ("failed", "compensated") and not self.asked_to_cancel:
            cause = self.found["cause"]
            if cause not in own or own[cause]["state"] != "dead":
                found.append(f"it failed because of {cause!r}, which is {show(own.get(cause))}")
        return found

    def _wrong_undo(self) -> list[str]:
        undone = self.undone()
        wanted = [
            name
            for name, plan in self.plans.items()
            if "undo" in plan and name in self.nodes and self.state_of(name) == "done"
        ]
        if self.asked_to_undo is not None:
            is_so = self.state in ("compensated", "failed")
            if is_so != (self.asked_to_undo and bool(wanted)):
                return [f"it was cancelled, undo {self.asked_to_undo}, and is {self.state}"]
        if self.state in ("done", "cancelled"):
            return [f"it is {self.state}, and {undone} were undone"] if undone else []
        found = []
        if sorted(undone) != sorted(wanted):
            found.append(f"it is {self.state}: {undone} were undone, {wanted} were to be")
        bad = [name for name in undone if self.state_of(UNDO + name) != "done"]
        if self.state == "compensated" and (bad or not undone):
            found.append(f"it is compensated, and compensations of {bad} of {undone} failed")
        if self.state == "failed" and undone and not bad:
            found.append(f"it is failed, and all of {undone} were undone")
        for place, name in enumerate(undone):
            late = [other for other in undone[place + 1 :] if other in self.descendants(name)]
            if late:
                found.append(f"{name!r} was undone before {late}, which came after it")
        return found

    def descendants(self, name: str) -> frozenset[str]:
        """Nodes that cannot have begun before *name* was done."""
        found: set[str] = set()
        todo = [name]
        while todo:
            last = todo.pop()
            for other, waits in self.waits.items():
                if other not in found and [last, "blocking"] in [list(each) for each in waits]:
                    found.add(other)
                    todo.append(other)
        return frozenset(found)


class _Run:
    """One history."""

    def __init__(self, findings: Findings, found: Sequence[Operation]) -> None:
        self._add = findings.add
        self._by_f: dict[str, list[Operation]] = {}
        for each in found:
            if each.invoked.f not in KNOWN:
                text = f"workflows have no operation {show(each.invoked.f)}"
                raise HistoryError(f"event {each.invoked_at}: {text}")
            self._by_f.setdefault(each.invoked.f, []).append(each)
        flows, acts = self._answers("flows"), self._answers("acts")
        told, ticked = self._answers("told"), self._answers("ticked")
        self.looked = bool(flows and acts and told)
        self.flows: dict[int, Flow] = {}
        self.facts: dict[str, int] = {}
        if not self.looked:
            return
        self._found: list[dict[str, Any]] = flows[-1]
        self.acts: list[list[Any]] = acts[-1]["acts"]
        self.told: list[list[list[Any]]] = told[-1]
        #: Tasks that are of no workflow.
        self.others = {each["task"] for each in (ticked[-1] if ticked else ())}
        nodes = [node for each in self._found for node in each["nodes"]]
        self.facts = {
            "flows": len(self._found),
            **{f"flows_{end}": sum(f["state"] == end for f in self._found) for end in FLOW_ENDS},
            "nodes": len(nodes),
            **{f"nodes_{end}": sum(each["state"] == end for each in nodes) for end in ENDS},
            "undone": sum(each["name"].startswith(UNDO) for each in nodes),
            "lost": 0,
            "unexpected": 0,
            "duplicated_completions": 0,
            "stale": acts[-1]["stale"],
        }
        self._forget()
        for each in self._answers("drain"):
            if each["left"]:
                self._add(f"{each['left']} have not ended {each['seconds']} s after healing")

    def _answers(self, f: str) -> list[Any]:
        return [
            each.completed.value
            for each in self._by_f.get(f, ())
            if each.outcome == "ok" and each.completed is not None
        ]

    def _forget(self) -> None:
        """Workflows that are not kept are gone at the end, and nobody can say what they came to."""
        #: Their plans; their ids, as far as anybody was told.
        self._brief: set[int] = set()
        self._brief_ids: set[int] = set()
        for each in self._by_f.get("submit", ()):
            if "keep" in each.invoked.value:
                self._brief.add(each.invoked.value["flow"])
                if each.outcome == "ok" and each.completed is not None:
                    self._brief_ids.add(each.completed.value["workflow"])
        self.facts["flows_forgotten"] = len(self._brief_ids)
        for what, task, _attempt, _worker, value, *_ in self.acts:
            if what == "begin" and value.partition("/")[0] in map(str, self._brief):
                self.others.add(task)

    def check_submitted(self) -> None:
        """What was acknowledged is there, what was refused or never asked for is not."""
        plans = {each.invoked.value["flow"]: each for each in self._by_f.get("submit", ())}
        seen: dict[int, int] = {}
        for found in self._found:
            flow = found["flow"]
            asked = plans.get(flow)
            if asked is None or asked.outcome == "fail":
                self.facts["unexpected"] += 1
                said = "nobody asked for" if asked is None else "was refused"
                self._add(f"workflow {found['workflow']} is of plan {flow}, which {said}")
            elif flow in self._brief:
                self._add(f"workflow {found['workflow']}, of plan {flow}, is not forgotten")
            elif flow in seen:
                self.facts["unexpected"] += 1
                ids = [seen[flow], found["workflow"]]
                self._add(f"plan {flow} was submitted more than once: as workflows {ids}")
            else:
                seen[flow] = found["workflow"]
                self.flows[found["workflow"]] = Flow(asked.invoked.value, found)
        for flow, asked in plans.items():
            if asked.outcome != "ok" or asked.completed is None or flow in self._brief:
                continue
            workflow = asked.completed.value["workflow"]
            if seen.get(flow) != workflow:
                self.facts["lost"] += 1
                self._add(f"plan {flow} was acknowledged as workflow {workflow}, and is lost")

    def check_said(self) -> None:
        """Signals count once, cancelled is cancelled, and an end is one for ever."""
        for each in self._by_f.get("cancel", ()):
            flow = self.flows.get(each.invoked.value["workflow"])
            if flow is not None and each.outcome != "fail":
                new = each.outcome != "ok" or (each.completed and each.completed.value["new"])
                flow.asked_to_cancel = flow.asked_to_cancel or bool(new)
                if new and each.outcome == "ok":
                    flow.cancelled = True
                    flow.asked_to_undo = each.invoked.value["undo"]
        for each in self._by_f.get("wait", ()):
            brief = each.invoked.value["workflow"] in self._brief_ids
            if each.outcome == "ok" and each.completed is not None and not brief:
                flow = self.flows.get(each.invoked.value["workflow"])
                state = "unknown" if flow is None else flow.state
                if each.completed.value != state:
                    number = each.invoked.value["workflow"]
                    self._add(f"workflow {number} was {each.completed.value}, and then {state}")
        self._check_signals()

    def _check_signals(self) -> None:
        said: dict[tuple[int, str], list[Operation]] = {}
        for each in self._by_f.get("signal", ()):
            place = (each.invoked.value["workflow"], each.invoked.value["node"])
            said.setdefault(place, []).append(each)
        for (number, name), signals in said.items():
            flow = self.flows.get(number)
            if flow is None or name not in flow.nodes:
                continue
            node = flow.nodes[name]
            new = [
                each.invoked.value["payload"]
                for each in signals
                if each.outcome == "ok" and each.completed and each.completed.value["new"]
            ]
            maybe = [each.invoked.value["payload"] for each in signals if each.outcome == "info"]
            if len(new) > 1:
                self._add(f"workflow {number}: signals {new} of node {name!r} all counted")
            if node["state"] == "done":
                # The end of a run says 0 to all that wait.
                known = new or [*maybe, 0]
                if not node["result"] or node["result"][0] not in known:
                    self._add(
                        f"workflow {number}: node {name!r} came to {node['result']}, its signal "
                        f"was {known}"
                    )

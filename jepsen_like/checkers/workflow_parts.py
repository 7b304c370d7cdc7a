"""What watchers were told of the nodes of workflows in one go: a piece of the log without a gap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from jepsen_like.checkers.queue_parts import check_attempts

if TYPE_CHECKING:
    from jepsen_like.checkers.workflow import Flow

_HANDED: Final = ("assigned", "started")
_LET_GO: Final = ("given-back", "failed", "timeout", "crashed")
_ENDS: Final = ("done", "dead", "cancelled")
_UNDO: Final = "undo "


def check_told(
    part: Sequence[Sequence[Any]], flows: Sequence[Flow], facts: dict[str, int]
) -> Iterator[str]:
    """What is wrong in it, in sentences."""
    yield from check_attempts(part)
    by_task = {node["task"]: flow for flow in flows for node in flow.nodes.values()}
    parts = {flow.number: _Part(flow) for flow in flows}
    for event in part:
        flow = by_task.get(event[1])
        if flow is not None:
            for problem in parts[flow.number].take(event):
                yield f"workflow {flow.number}: {problem}"
    facts["told"] = facts.get("told", 0) + len(part)
    for each in parts.values():
        for problem in each.wrong_order():
            yield f"workflow {each.flow.number}: {problem}"


class _Part:
    """What was told of one workflow."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._names = {node["task"]: name for name, node in flow.nodes.items()}
        self._children: dict[str, list[str]] = {}
        for name, waits in flow.waits.items():
            for other, kind in waits:
                if kind != "weak":
                    self._children.setdefault(other, []).append(name)
        self._handed: dict[str, None] = {}
        self._ended: dict[str, int] = {}
        self._failed: tuple[str, int] | None = None
        self._held: dict[str, None] = {}

    def take(self, event: Sequence[Any]) -> Iterator[str]:
        """The next one."""
        what, task, attempt, _worker, _queue, at_ms, _kind = event
        name = self._names[task]
        if what in _ENDS:
            yield from self._end(name, what, attempt, at_ms)
        if what in _LET_GO or what in _ENDS:
            self._held.pop(name, None)
        if what in _HANDED:
            yield from self._hand(name, what, at_ms)

    def _end(self, name: str, what: str, attempt: int, at_ms: int) -> Iterator[str]:
        node = self.flow.nodes[name]
        if (what, attempt) != (node["state"], node["attempt"]):
            yield f"node {name!r} was told to be {what} by {attempt}, and is {node['state']}"
        late = [child for child in self._children.get(name, ()) if child in self._handed]
        if late:
            yield f"{late} were handed out before {name!r}, for which they wait, was {what}"
        plan = self.flow.plans.get(name, {})
        if what == "done" and plan.get("kind") == "sleep":
            times = [self._ended.get(other) for other, _ in self.flow.waits[name]]
            known = [time for time in times if time is not None]
            if known and len(known) == len(times):
                slept_ms = at_ms - max(known)
                if slept_ms < round(plan["seconds"] * 1000):
                    yield f"node {name!r} is to sleep {plan['seconds']} s, and slept {slept_ms} ms"
        self._ended[name] = at_ms
        if what == "dead" and self._failed is None and not name.startswith(_UNDO):
            self._failed = (name, at_ms)

    def _hand(self, name: str, what: str, at_ms: int) -> Iterator[str]:
        self._handed[name] = None
        if name.startswith(_UNDO):
            return
        if self.flow.fail_fast and self._failed is not None and at_ms > self._failed[1]:
            yield f"node {name!r} was {what} after {self._failed[0]!r} had failed for good"
        most = self.flow.plan["at_once"]
        self._held[name] = None
        if most and len(self._held) > most:
            yield f"{list(self._held)} are with workers, and at most {most} may be"

    def wrong_order(self) -> Iterator[str]:
        """What was done last is undone first: compensations are numbered as they begin."""
        undone = {name: place for place, name in enumerate(self.flow.undone())}
        done = [name for name in self._ended if name in undone]
        for place, name in enumerate(done):
            for later in done[place + 1 :]:
                if undone[later] > undone[name]:
                    yield f"{name!r} was done before {later!r}, and undone before it"

"""Barriers: nobody passes before all parties are there, each round lets through exactly its
parties, and nobody leaves the inside of a double barrier before all who are there want to.

Who passed was at the door at some moment between the beginning and the end of its call, and so were
the others of its round. Whoever went away unanswered may have been counted before it went, in one
round at most. So there must be a way to put all who passed into rounds of as many as there are
parties, each round at one moment that lies within the calls of all its members, its empty places
taken by some who went away. Serving the earliest end first finds one if there is one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from jepsen_like.checkers.base import Findings, readable, show
from jepsen_like.checkers.linearizable import split
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

_KINDS: Final = ("wait", "enter", "leave", "count", "empty")


class _Visit(NamedTuple):
    """Inside of a double barrier, alive all the time: from the answer to entering (*entered*) until
    it wanted to leave (*wanted*); *left*: when it was told that all others wanted to as well."""

    entered: int
    wanted: int
    left: int
    leave: Operation


class BarrierChecker:
    """For these operations, with the barrier's name as their key. What waits has "parties" in its
    invocation, and "ok" is the answer that it passed.

    =======  ======================================================================
    wait     at a barrier
    enter    a double barrier; {"visit": a number} in the invocation
    leave    likewise, of the same visit
    count    {"parties", "waiting", "inside", "leaving"}, of one state, linearizable
    empty    nobody is there
    =======  ======================================================================
    """

    name = "barrier"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nobody ever passed."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        facts = dict.fromkeys(("names", "passed", "rounds", "unanswered", "left", "counted"), 0)
        for key, found in split(operations(history)):
            facts["names"] += 1
            one = _Name(findings, facts, f"barrier {show(key)}", found)
            one.check_rounds()
            one.check_visits()
            one.check_counts()
        return findings.verdict(self.name, proves=facts["passed"] > 0, **facts)


class _Name:
    """One barrier."""

    def __init__(
        self, findings: Findings, facts: dict[str, int], title: str, found: list[Operation]
    ) -> None:
        self._findings = findings
        self._facts = facts
        self._title = title
        self._parties = 0
        self._by_kind: dict[str, list[Operation]] = {kind: [] for kind in _KINDS}
        for each in found:
            if each.invoked.f not in self._by_kind:
                raise HistoryError(
                    f"event {each.invoked_at}: {each.invoked.f!r} is none of {', '.join(_KINDS)}"
                )
            self._by_kind[each.invoked.f].append(each)
            if each.invoked.f in {"wait", "enter"}:
                self._parties = each.invoked.value["parties"]

    def _add(self, text: str) -> None:
        self._findings.add(f"{self._title}: {text}")

    def check_rounds(self) -> None:
        """All who passed fit into rounds."""
        arrived = [*self._by_kind["wait"], *self._by_kind["enter"]]
        passed = [each for each in arrived if each.outcome == "ok"]
        away = sorted(each.invoked_at for each in arrived if each.outcome != "ok")
        self._facts["passed"] += len(passed)
        self._facts["unanswered"] += len(away)
        left = sorted(passed, key=lambda each: each.completed_at)
        counted = 0
        while left:
            moment = left[0].completed_at
            together = [each for each in left if each.invoked_at < moment][: self._parties]
            missing = self._parties - len(together)
            free = bisect_left(away, moment) - counted
            self._facts["rounds"] += 1
            if missing > free:
                shown = ", ".join(_at(each) for each in together)
                self._add(
                    f"{shown} passed, of {self._parties} parties: of those who went away unanswered"
                    f" there were {free} who may have been counted"
                )
            counted += min(missing, free)
            members = {each.invoked_at for each in together}
            left = [each for each in left if each.invoked_at not in members]

    def check_visits(self) -> None:
        """Nobody was told that all want to leave while one who is alive did not."""
        entered = {
            each.invoked.value["visit"]: each.completed_at
            for each in self._by_kind["enter"]
            if each.outcome == "ok"
        }
        visits = [
            _Visit(entered[each.invoked.value["visit"]], each.invoked_at, each.completed_at, each)
            for each in self._by_kind["leave"]
            if each.outcome == "ok" and each.invoked.value["visit"] in entered
        ]
        self._facts["left"] += len(visits)
        for one in visits:
            inside = [each for each in visits if each.entered < one.wanted < each.wanted]
            if len(inside) >= self._parties:
                self._add(
                    f"{len(inside) + 1} were inside at event {one.wanted}, of {self._parties} "
                    f"parties: {', '.join(_at(each.leave) for each in (one, *inside))} came later"
                )
            for other in inside:
                if other.wanted > one.left:
                    self._add(
                        f"{_at(one.leave)} ended while another was inside, which wanted to leave "
                        f"only later: {_at(other.leave)}"
                    )

    def check_counts(self) -> None:
        """A state that may be: whoever could pass has passed."""
        for each in self._by_kind["count"]:
            if each.outcome != "ok" or each.completed is None:
                continue
            self._facts["counted"] += 1
            value: dict[str, Any] = each.completed.value
            parties, inside = value["parties"], value["inside"] + value["leaving"]
            if inside > parties or (parties and not inside and value["waiting"] >= parties):
                self._add(f"{_at(each)} found {show(value)}: a round is too large, or stands still")


def _at(operation: Operation) -> str:
    return (
        f"the {operation.invoked.f} by process {operation.invoked.process} "
        f"(event {operation.invoked_at})"
    )

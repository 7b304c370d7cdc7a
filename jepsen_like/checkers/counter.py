"""Counters: every number that a client was told lies between what surely was added by then and what
may have been. Adds may be negative. Numbers that only grow are told once each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jepsen_like.checkers.base import Findings, show, whole_number
from jepsen_like.checkers.bounds import Addition, Bounds
from jepsen_like.checkers.linearizable import split
from jepsen_like.checkers.models import NEVER
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict


class CounterChecker:
    """For "add" (value: a number; its result, if it has one: the new count) and "read"."""

    name = "counter"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if a counter was added to and never read afterwards."""
        findings = Findings()
        facts = {"keys": 0, "adds": 0, "unknown_adds": 0, "reads": 0, "unread_keys": 0}
        for key, found in split(operations(history)):
            facts["keys"] += 1
            if not _check_key(findings, key, found, facts):
                facts["unread_keys"] += 1
        return findings.verdict(self.name, proves=not facts["unread_keys"], **facts)


def _check_key(
    findings: Findings,
    key: Any,  # noqa: ANN401  any JSON value
    found: list[Operation],
    facts: dict[str, int],
) -> bool:
    """Whether a read came after every acknowledged add."""
    adds = [each for each in found if each.invoked.f == "add" and each.outcome != "fail"]
    numbers = [whole_number(each.invoked.value, _at(each)) for each in adds]
    bounds = Bounds(
        0,
        [
            Addition(number, each.invoked_at, each.completed_at if each.outcome == "ok" else NEVER)
            for each, number in zip(adds, numbers, strict=True)
        ],
    )
    facts["adds"] += len(adds)
    facts["unknown_adds"] += sum(each.outcome == "info" for each in adds)
    last_add = max((each.completed_at for each in adds if each.outcome == "ok"), default=-1)
    read_last = last_add < 0
    told: dict[int, Operation] = {}
    only_grows = all(number > 0 for number in numbers)
    for each in found:
        completed = each.completed
        if each.invoked.f not in {"add", "read"}:
            raise HistoryError(f"{_at(each)}: a counter knows 'add' and 'read'")
        if completed is None or completed.type != "ok":
            continue
        if each.invoked.f == "read":
            facts["reads"] += 1
            read_last = read_last or each.invoked_at > last_add
            value = 0 if completed.value is None else whole_number(completed.value, _at(each))
        elif completed.value is None:
            continue
        else:
            value = whole_number(completed.value, _at(each))
            if only_grows and value in told:
                findings.add(
                    f"counter {show(key)}: {_at(told[value])} and {_at(each)} were both told "
                    f"{value}: one of the two adds is lost"
                )
            told.setdefault(value, each)
        lower, upper = bounds.between(each.invoked_at, each.completed_at)
        if each.invoked.f == "add":  # what it was told includes its own number
            lower += max(each.invoked.value, 0)
            upper += min(each.invoked.value, 0)
        if not lower <= value <= upper:
            findings.add(
                f"counter {show(key)}: {_at(each)} gave {value}, which should lie between {lower} "
                f"and {upper}: " + ("adds are lost" if value < lower else "too much was added")
            )
    return read_last


def _at(operation: Operation) -> str:
    return (
        f"{operation.invoked.f} by process {operation.invoked.process} "
        f"(event {operation.invoked_at})"
    )

"""Sets that only grow: what was added stays, and nothing else appears.

Each element is added at most once, under a key. A read that began after an element was surely
there must show it: the add was acknowledged, or an earlier read had shown it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jepsen_like.checkers.base import Findings, freeze, show
from jepsen_like.checkers.linearizable import split
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

_FACTS: Final = (
    *("keys", "attempted", "acknowledged", "reads", "recovered", "lost", "stale"),
    *("unexpected", "duplicated", "never_read"),
)


class SetChecker:
    """For "add" (value: an element) and "read" (value: the list of all elements).

    Facts: *acknowledged*, *recovered* (outcome unknown, and found later), *lost*, *stale* (missing
    in one read, there in a later one), *unexpected* (never added, or surely not), *duplicated*,
    *never_read* (acknowledged after the last read began: nothing is known of these).
    """

    name = "set"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if anything acknowledged was never asked for afterwards."""
        findings = Findings()
        facts = dict.fromkeys(_FACTS, 0)
        for key, found in split(operations(history)):
            facts["keys"] += 1
            _Key(findings, facts, key, found).check()
        return findings.verdict(self.name, proves=not facts["never_read"], **facts)


class _Read:
    """One answered read."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        value = operation.completed.value if operation.completed is not None else None
        if not isinstance(value, list | tuple):
            raise HistoryError(
                f"event {operation.completed_at}: a set is read as a list, not {show(value)}"
            )
        elements = [freeze(each) for each in value]
        self.elements = frozenset(elements)
        counted: dict[Any, int] = {}
        for each in elements:
            counted[each] = counted.get(each, 0) + 1
        self.twice = [each for each, count in counted.items() if count > 1]


class _Key:
    """One set."""

    def __init__(
        self,
        findings: Findings,
        facts: dict[str, int],
        key: Any,  # noqa: ANN401  any JSON value
        found: list[Operation],
    ) -> None:
        self._findings = findings
        self._facts = facts
        self._name = f"set {show(key)}"
        self._adds: dict[Any, Operation] = {}
        self._reads: list[_Read] = []
        for each in found:
            if each.invoked.f == "add":
                element = freeze(each.invoked.value)
                earlier = self._adds.get(element)
                if earlier is not None and earlier.outcome != "fail":
                    raise HistoryError(
                        f"event {each.invoked_at}: {show(each.invoked.value)} is added twice to "
                        f"{self._name}; elements must be unique"
                    )
                self._adds[element] = each
            elif each.invoked.f != "read":
                raise HistoryError(
                    f"event {each.invoked_at}: a set knows 'add' and 'read', not {each.invoked.f!r}"
                )
            elif each.outcome == "ok":
                self._reads.append(_Read(each))

    def check(self) -> None:
        """Everything about this set."""
        facts = self._facts
        facts["attempted"] += len(self._adds)
        facts["reads"] += len(self._reads)
        shown_at: dict[Any, _Read] = {}  # the read of those that show an element that ended first
        for read in sorted(self._reads, key=lambda each: each.operation.completed_at):
            self._check_read(read)
            for element in sorted(read.elements, key=repr):
                shown_at.setdefault(element, read)
        last = max(self._reads, key=lambda each: each.operation.invoked_at, default=None)
        for element, add in self._adds.items():
            acknowledged = add.outcome == "ok"
            facts["acknowledged"] += acknowledged
            facts["recovered"] += add.outcome == "info" and element in shown_at
            if add.outcome != "fail":
                self._check_element(element, add, shown_at.get(element), last)

    def _check_read(self, read: _Read) -> None:
        at = _at(read.operation)
        for element in read.twice:
            self._facts["duplicated"] += 1
            self._findings.add(f"{self._name}: {at} shows {show(element)} more than once")
        for element in sorted(read.elements, key=repr):
            add = self._adds.get(element)
            if add is None:
                why = "which nobody added"
            elif add.outcome == "fail":
                why = "whose add surely failed"
            elif add.invoked_at > read.operation.completed_at:
                why = "which was added only later"
            else:
                continue
            self._facts["unexpected"] += 1
            self._findings.add(f"{self._name}: {at} shows {show(element)}, {why}")

    def _check_element(
        self,
        element: Any,  # noqa: ANN401  frozen
        add: Operation,
        shown: _Read | None,
        last: _Read | None,
    ) -> None:
        """Was it there whenever it had to be?"""
        sure_at = add.completed_at if add.outcome == "ok" else None
        because = f"although its add was acknowledged at event {add.completed_at}"
        if shown is not None and (sure_at is None or shown.operation.completed_at < sure_at):
            sure_at = shown.operation.completed_at
            because = f"although the read that ended at event {sure_at} shows it"
        if sure_at is None:
            return
        if last is None or last.operation.invoked_at < sure_at:
            self._facts["never_read"] += add.outcome == "ok"
        missing = [
            read
            for read in self._reads
            if read.operation.invoked_at > sure_at and element not in read.elements
        ]
        if not missing:
            return
        again = last is not None and element in last.elements
        self._facts["stale" if again else "lost"] += 1
        self._findings.add(
            f"{self._name}: {_at(missing[0].operation)} does not show {show(element)}, {because}"
            + (": a stale read, it is there later" if again else ": it is lost")
        )


def _at(operation: Operation) -> str:
    return f"the read by process {operation.invoked.process} (event {operation.invoked_at})"

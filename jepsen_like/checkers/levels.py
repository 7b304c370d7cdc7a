"""Levels of consistency: what each call promised by its level, judged by places in the log.

Every answer names a *place*: of a write, where it stands in the log; of a read, how far the state
had come that it saw. Places order all writes, so each read has one right answer for the place that
it names, whatever its level. A level says which places will do:

strong, quorum  at or behind every place that any answer had named before the call began
causal          at or behind every place that its session had come to, tokens taken in included
eventual        any

A write stands behind every place named before it began, so the four guarantees of sessions (read
your writes, monotonic reads, monotonic writes, writes follow reads) are all about places. After a
strong write every voter's own state has come to its place.
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

LEVELS: Final = ("strong", "quorum", "causal", "eventual")


class _Write(NamedTuple):
    """*place* 0: not known."""

    place: int
    value: Any
    operation: Operation


class LevelsChecker:
    """For "write" and "read" of keys with unique values. The invocation has {"level", "token": the
    place that a token taken in names, or 0}, a write {"value"} too. The answer has {"session",
    "place"}, a read {"value"} too; a write at "eventual" answers {"session", "place": 0}, and one
    at "strong" may add {"locals": [[node, place, value], ...]}, read there afterwards.
    """

    name = "levels"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nothing was written and read."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        found = operations(history)
        order = _Order(found)
        sessions: dict[str, int] = {}
        facts = dict.fromkeys(("writes", "unknown_writes", "reads", "sessions", "locals"), 0)
        for each in sorted(found, key=lambda each: each.invoked_at):
            if each.invoked.f not in {"read", "write"}:
                raise HistoryError(f"event {each.invoked_at}: levels know 'read' and 'write'")
            facts["writes"] += each.invoked.f == "write"
            facts["unknown_writes"] += each.invoked.f == "write" and each.outcome == "info"
            facts["reads"] += each.invoked.f == "read" and each.outcome == "ok"
            if each.outcome == "ok":
                facts["locals"] += len(_answer(each).get("locals", ()))
                _check_place(findings, each, order)
                _check_session(findings, each, sessions)
        for key, of_key in split(found):
            _Key(findings, key, of_key).check()
        facts["sessions"] = len(sessions)
        proves = facts["reads"] > 0 and facts["writes"] > facts["unknown_writes"]
        return findings.verdict(self.name, proves=proves, **facts)


class _Order:
    """The highest place that was named before some time."""

    def __init__(self, found: list[Operation]) -> None:
        named = sorted(
            (each.completed_at, _answer(each)["place"]) for each in found if each.outcome == "ok"
        )
        self._ends = [end for end, _place in named]
        highest = 0
        self._highest = [highest := max(highest, place) for _end, place in named]

    def before(self, at: int) -> int:
        """Of answers that came before event *at*."""
        count = bisect_left(self._ends, at)
        return self._highest[count - 1] if count else 0


def _check_place(findings: Findings, each: Operation, order: _Order) -> None:
    """Is it behind everything, if it has to be?"""
    place, level = _answer(each)["place"], each.invoked.value["level"]
    before = order.before(each.invoked_at)
    if each.invoked.f == "write":
        if place and place <= before:
            findings.add(
                f"{_at(each)} stands at {place}, although {before} had been seen before it began"
            )
        for node, local, value in _answer(each).get("locals", ()):
            if local < place:
                findings.add(
                    f"{_at(each)} was acknowledged as applied everywhere at {place}, and node "
                    f"{node} had come to {local}, and showed {show(value)}"
                )
    elif level in {"strong", "quorum"} and place < before:
        findings.add(
            f"{_at(each)} at {level} saw the state at {place}, although {before} had been seen "
            "before it began: a stale read"
        )


def _check_session(findings: Findings, each: Operation, sessions: dict[str, int]) -> None:
    """Is it behind what its session had seen? Operations of a session come one by one."""
    answer = _answer(each)
    session, place = answer["session"], answer["place"]
    seen = max(sessions.get(session, 0), each.invoked.value["token"])
    if each.invoked.f == "read" and each.invoked.value["level"] != "eventual" and place < seen:
        findings.add(
            f"{_at(each)} at {each.invoked.value['level']} saw the state at {place}, although "
            f"session {session} had come to {seen}"
        )
    sessions[session] = max(seen, place)


class _Key:
    """The reads of one key, each against the writes up to its place."""

    def __init__(self, findings: Findings, key: Any, found: list[Operation]) -> None:  # noqa: ANN401
        self._findings = findings
        self._title = f"key {show(key)}"
        self._reads = [each for each in found if each.invoked.f == "read" and each.outcome == "ok"]
        writes = [each for each in found if each.invoked.f == "write"]
        self._writes = {each.invoked.value["value"]: each for each in writes}
        known = [
            _Write(_answer(each)["place"], each.invoked.value["value"], each)
            for each in writes
            if each.outcome == "ok"
        ]
        self._known = sorted((each for each in known if each.place), key=lambda each: each.place)
        self._places = [each.place for each in self._known]

    def check(self) -> None:
        """Every one of them."""
        for each in self._reads:
            answer = _answer(each)
            self._check(each, answer["place"], answer["value"])

    def _check(self, read: Operation, place: int, value: Any) -> None:  # noqa: ANN401
        write = self._writes.get(value)
        if value is not None and write is None:
            self._add(f"{_at(read)} shows {show(value)}, which nobody wrote")
            return
        if write is not None and write.outcome == "fail":
            self._add(f"{_at(read)} shows {show(value)}, which {_at(write)} surely did not write")
        if write is not None and write.invoked_at > read.completed_at:
            self._add(f"{_at(read)} shows {show(value)}, which was written only later")
        at = _answer(write)["place"] if write is not None and write.outcome == "ok" else None
        if at is not None and at > place:
            self._add(f"{_at(read)} of the state at {place} shows {show(value)}, written at {at}")
        if at == 0 or (at is None and value is not None):
            return  # nobody knows where that write stands
        last = bisect_left(self._places, place + 1) - 1
        if last >= 0 and self._places[last] > (at or 0):
            newer = self._known[last]
            self._add(
                f"{_at(read)} of the state at {place} shows {show(value)}, although "
                f"{_at(newer.operation)} had written {show(newer.value)} at {newer.place}"
            )

    def _add(self, text: str) -> None:
        self._findings.add(f"{self._title}: {text}")


def _answer(each: Operation) -> dict[str, Any]:
    value = each.completed.value if each.completed is not None else None
    if not isinstance(value, dict) or "place" not in value:
        raise HistoryError(f"{_at(each)} was answered {show(value)}, which names no place")
    return value


def _at(operation: Operation) -> str:
    return (
        f"the {operation.invoked.f} by process {operation.invoked.process} "
        f"(event {operation.invoked_at})"
    )

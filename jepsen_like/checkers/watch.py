"""Watches: what watchers were told is the store's own history, each part of it once.

Watchers take their events in *parts*, each from one revision to another, and one part begins where
the last ended. So the six guarantees come down to this, of any part of any watcher:

ordered      revisions grow
unique       no revision comes twice, and none of an earlier part again
reliable     no revision is missing that any watcher, or any acknowledged write, knows of
atomic       all that one revision did comes together, and the same to everybody
resumable    a part that begins at an old revision is as whole as one that was watched live
bookmarkable what is told up to a revision is all there was up to it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jepsen_like.checkers.base import Findings, readable, show
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict

#: Kind ("put" or "delete"), key, value (None of a deletion).
_Change = tuple[str, str, Any]


class _Part(NamedTuple):
    """*first* to *last*, both included; *keys*: a prefix of the keys watched."""

    operation: Operation
    watcher: str
    keys: str
    first: int
    last: int
    told: list[tuple[int, list[Any]]]


class WatchChecker:
    """For these operations; values are unique, and written under one prefix:

    =======  ==========================================================================
    write    [["put", key, value], ["delete", key, None], ...], one command; answered with
             {"revision": r, "done": the changes that had an effect}
    watch    answered with {"watcher", "keys": prefix, "from", "to",
             "events": [[revision, [[kind, key, value, previous value], ...]], ...]}, and
             {"compacted": the oldest revision that is kept} if it could not go on
    read     {"revision": r, "state": {key: value}}: all keys, linearizable
    =======  ==========================================================================
    """

    name = "watch"

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nothing that was written was watched."""
        with readable(self.name):
            return self._check(history)

    def _check(self, history: Sequence[Event]) -> Verdict:
        findings = Findings()
        found = operations(history)
        run = _Run(findings, found)
        run.check_parts()
        run.check_writes()
        run.check_whole()
        run.check_states()
        watched = sum(len(part.told) for part in run.parts)
        return findings.verdict(
            self.name,
            proves=watched > 0,
            writes=len(run.written),
            parts=len(run.parts),
            watchers=len({part.watcher for part in run.parts}),
            revisions_told=watched,
            revisions_known=len(run.known),
            compacted=run.compacted,
        )


class _Run:
    """All of a history."""

    def __init__(self, findings: Findings, found: list[Operation]) -> None:
        self._findings = findings
        self.parts: list[_Part] = []
        self.compacted = 0
        self.written: dict[int, tuple[Operation, list[_Change]]] = {}
        self._reads: list[tuple[Operation, int, dict[str, Any]]] = []
        #: Values, and keys deleted, by those who asked for it; None: surely to no effect.
        self._puts: dict[Any, bool] = {}
        self._deletes: set[str] = set()
        for each in found:
            self._take(each)
        #: What each revision did, as far as anybody knows, and who says so.
        self.known: dict[int, tuple[str, dict[str, _Change]]] = {}

    def _take(self, each: Operation) -> None:
        f, completed = each.invoked.f, each.completed
        answer = completed.value if completed is not None and completed.type == "ok" else None
        if f == "write":
            for kind, key, value in each.invoked.value:
                if kind == "put":
                    self._puts[value] = each.outcome != "fail"
                elif each.outcome != "fail":
                    self._deletes.add(key)
            if answer is not None and answer["done"]:
                done = [(kind, key, value) for kind, key, value in answer["done"]]
                if answer["revision"] in self.written:
                    other = self.written[answer["revision"]][0]
                    self._findings.add(
                        f"{_at(other)} and {_at(each)} both got revision {answer['revision']}"
                    )
                self.written[answer["revision"]] = (each, done)
        elif f == "watch":
            if answer is not None:
                told = [(revision, events) for revision, events in answer["events"]]
                oldest = answer.get("compacted")
                self.compacted += oldest is not None
                if oldest is not None and oldest <= answer["to"] + 1:
                    self._findings.add(
                        f"{_at(each)} could not go on behind {answer['to']}, although all from "
                        f"{oldest} on is kept"
                    )
                self.parts.append(
                    _Part(
                        each,
                        str(answer["watcher"]),
                        answer["keys"],
                        answer["from"],
                        answer["to"],
                        told,
                    )
                )
        elif f == "read":
            if answer is not None:
                self._reads.append((each, answer["revision"], answer["state"]))
        else:
            raise HistoryError(f"event {each.invoked_at}: {f!r} is none of write, watch, read")

    # --- each part by itself ----------------------------------------------------------------------

    def check_parts(self) -> None:
        """Ordered, unique, within its bounds, of what somebody wrote; and parts of one watcher
        follow each other. Collects what is known of each revision."""
        ends: dict[tuple[str, str], int] = {}
        for part in sorted(self.parts, key=lambda each: each.operation.completed_at):
            place = (part.watcher, part.keys)
            if place in ends and part.first <= ends[place]:
                self._add(part, f"begins at {part.first}, and {ends[place]} was reached before")
            ends[place] = max(ends.get(place, 0), part.last)
            before = part.first - 1
            for revision, events in part.told:
                if revision <= before:
                    what = "again" if revision == before else f"after {before}"
                    self._add(part, f"was told revision {revision} {what}")
                if not part.first <= revision <= part.last:
                    self._add(
                        part,
                        f"was told revision {revision}, outside of {part.first} to {part.last}",
                    )
                before = max(before, revision)
                self._learn(part, revision, events)

    def _learn(self, part: _Part, revision: int, events: list[Any]) -> None:
        changes: dict[str, _Change] = {}
        for kind, key, value, _previous in events:
            if key in changes:
                self._add(part, f"was told of {key} twice in revision {revision}")
            if not key.startswith(part.keys):
                self._add(part, f"was told of {key}, which it does not watch")
            changes[key] = (kind, key, value)
            self._check_source(part, revision, kind, key, value)
        who, known = self.known.setdefault(revision, (_at(part.operation), {}))
        for key, change in changes.items():
            if key in known and known[key] != change:
                self._add(
                    part,
                    f"was told {show(change)} in revision {revision}, and {who} {show(known[key])}",
                )
            known.setdefault(key, change)

    def _check_source(
        self,
        part: _Part,
        revision: int,
        kind: str,
        key: str,
        value: Any,  # noqa: ANN401
    ) -> None:
        if kind == "delete":
            if key not in self._deletes:
                self._add(part, f"was told that {key} was deleted, which nobody asked for")
        elif value not in self._puts:
            self._add(part, f"was told of {show(value)} in revision {revision}, never written")
        elif not self._puts[value]:
            self._add(part, f"was told of {show(value)} in revision {revision}: it was undone")

    # --- all together -----------------------------------------------------------------------------

    def check_writes(self) -> None:
        """What was acknowledged is what watchers were told of that revision."""
        for revision, (each, done) in self.written.items():
            who, known = self.known.setdefault(revision, (_at(each), {}))
            for change in done:
                told = known.setdefault(change[1], change)
                if told != change:
                    self._findings.add(
                        f"watch: {_at(each)} did {show(change)} in revision {revision}, and {who} "
                        f"was told {show(told)}"
                    )

    def check_whole(self) -> None:
        """Nothing that is known of the revisions of a part is missing from it, in whole or part."""
        revisions = sorted(self.known)
        before: dict[int, dict[str, Any]] = self._states(revisions)
        for part in self.parts:
            told = dict(part.told)
            for revision in revisions:
                if not part.first <= revision <= part.last:
                    continue
                who, known = self.known[revision]
                expected = {key for key in known if key.startswith(part.keys)}
                shown = {event[1] for event in told.get(revision, [])}
                if expected - shown and not shown:
                    self._add(part, f"was not told of revision {revision}, which {who} knows of")
                elif expected - shown:
                    self._add(
                        part,
                        f"was told of {sorted(shown)} in revision {revision}, and not of "
                        f"{sorted(expected - shown)}",
                    )
                self._check_previous(part, revision, told.get(revision, []), before[revision])

    def _check_previous(
        self, part: _Part, revision: int, events: list[Any], before: dict[str, Any]
    ) -> None:
        for _kind, key, _value, previous in events:
            if previous != before.get(key, previous):
                self._add(
                    part,
                    f"was told in revision {revision} that {key} was {show(previous)} before; it "
                    f"was {show(before[key])}",
                )

    def _states(self, revisions: list[int]) -> dict[int, dict[str, Any]]:
        """What each revision found, of keys whose last change is certain: only while all revisions
        between are known, which they are from the first to the last of a whole watch."""
        whole = {
            revision
            for part in self.parts
            if part.keys == self._all_keys()
            for revision in range(part.first, part.last + 1)
        }
        found: dict[int, dict[str, Any]] = {}
        state: dict[str, Any] = {}
        last = 0
        for revision in revisions:
            if any(each not in whole for each in range(last + 1, revision)):
                state = {}
            found[revision] = dict(state)
            for kind, key, value in self.known[revision][1].values():
                state[key] = None if kind == "delete" else value
            last = revision
        return found

    def _all_keys(self) -> str:
        """The shortest prefix that anybody watches."""
        return min((part.keys for part in self.parts), key=len, default="")

    def check_states(self) -> None:
        """What is read is what the events up to that revision come to."""
        for each, revision, state in self._reads:
            covered = [
                part for part in self.parts
                if part.first == 1 and part.last >= revision and part.keys == self._all_keys()
            ]  # fmt: skip
            if not covered:
                continue
            replayed: dict[str, Any] = {}
            for known in sorted(self.known):
                if known > revision:
                    break
                for kind, key, value in self.known[known][1].values():
                    if kind == "put":
                        replayed[key] = value
                    else:
                        replayed.pop(key, None)
            if replayed != state:
                different = sorted(
                    key for key in {**replayed, **state} if replayed.get(key) != state.get(key)
                )
                key = different[0]
                self._findings.add(
                    f"watch: {_at(each)} shows {key} = {show(state.get(key))} at revision "
                    f"{revision}; all events until then come to {show(replayed.get(key))}"
                )

    def _add(self, part: _Part, text: str) -> None:
        self._findings.add(
            f"watcher {part.watcher} of {show(part.keys)}, {_at(part.operation)} {text}"
        )


def _at(operation: Operation) -> str:
    return (
        f"the {operation.invoked.f} by process {operation.invoked.process} "
        f"(event {operation.invoked_at})"
    )

"""The checker of converging data: what is broken is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from jepsen_like.checkers.crdt.checker import CrdtChecker
from jepsen_like.errors import UsageError
from jepsen_like.history import NEMESIS, Event
from jepsen_like.processes.shapes import cut_off as cut_off_nodes
from jepsen_like.processes.shapes import deaf, halves, isolated
from jepsen_like.workloads.registry import make
from tests.jepsen_like.test_coordination_checkers import verdict

Marks = Mapping[float, int]


def token(marks: Marks, index: int = 5) -> str:
    """Of records of the first lives of members, and of the second ones, under 1.2; under 0: how
    often lives were folded."""
    lives = {float(life) if life % 1 or not life else life + 0.1: marks[life] for life in marks}
    shown = "".join(f":{life:.1f}.{lives[life]}" for life in sorted(lives) if lives[life])
    return f"q2:c:{index}{shown}" if shown else f"q1:c:{index}"


class Scribe:
    """Writes a history; each event comes a second after the one before."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.number = 0

    def add(self, process: int | str, kind: Any, f: str, key: Any, value: Any, **more: Any) -> None:
        time_ns = len(self.events) * 1_000_000_000
        event = Event(process=process, type=kind, f=f, key=key, value=value, time_ns=time_ns)
        self.events.append(event if not more else _with(event, more))

    def tell(self, kind: str, do: str, nodes: list[int], **more: Any) -> None:
        self.add(
            NEMESIS, "info", kind, None, {"id": 1, "do": do, "what": "", "nodes": nodes, **more}
        )

    def begin(self, process: int, f: str, kind: str, node: int, level: str, **more: Any) -> int:
        self.number += 1
        value = {"number": self.number, "node": node, "level": level, "kind": kind, **more}
        self.add(process, "invoke", f, f"k/{kind}", value)
        return self.number

    def end(
        self,
        process: int,
        f: str,
        kind: str,
        place: Marks,
        *,
        after: Marks | None = None,
        index: int = 5,
        **more: Any,
    ) -> None:
        answer = {"after": token(after or {}, 0), "place": token(place, index), **more}
        self.add(process, "ok", f, f"k/{kind}", answer)

    def write(
        self,
        process: int,
        kind: str,
        verb: str,
        place: Marks,
        *,
        node: int = 0,
        level: str = "eventual",
        cell: Any = None,
        what: Any = None,
        after: Marks | None = None,
        **more: Any,
    ) -> None:
        asked = {"verb": verb, "cell": cell, "what": what, **more}
        self.begin(process, "write", kind, node or process, level, **asked)
        self.end(process, "write", kind, place, after=after)

    def read(
        self,
        process: int,
        kind: str,
        shows: Any,
        place: Marks,
        *,
        node: int = 0,
        level: str = "eventual",
        after: Marks | None = None,
        f: str = "read",
    ) -> None:
        self.begin(process, f, kind, node or process, level)
        self.end(process, f, kind, place, after=after, shows=shows)

    def final(self, kind: str, shown: Mapping[int, tuple[Any, Marks]]) -> None:
        self.begin(9, "final", kind, 0, "strong")
        answers = [
            {"node": node, "after": "", "place": token(marks), "shows": shows}
            for node, (shows, marks) in shown.items()
        ]
        self.add(9, "ok", "final", f"k/{kind}", answers)


def _with(event: Event, more: dict[str, Any]) -> Event:
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return Event(**{**fields, **more})


# --- what is shown --------------------------------------------------------------------------------


def counted(scribe: Scribe, shows: int) -> None:
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    scribe.write(2, "counter", "add", {2: 1}, what=-2)
    scribe.read(1, "counter", shows, {1: 1, 2: 1})


def added_and_removed(scribe: Scribe, shows: list[str], *, seen: bool = True) -> None:
    """Node 2 removes what node 1 added."""
    scribe.write(1, "set", "add", {1: 1}, cell="a")
    had = {1: 1} if seen else {}
    scribe.read(2, "set", ["a"] if seen else [], had)
    scribe.write(2, "set", "remove", {**had, 2: 1}, cell="a")
    scribe.read(3, "set", shows, {1: 1, 2: 1})


def added_again(scribe: Scribe, shows: list[str]) -> None:
    """And adds again, without having seen the removal."""
    added_and_removed(scribe, [])
    scribe.write(1, "set", "add", {1: 2}, cell="a")
    scribe.read(3, "set", shows, {1: 2, 2: 1})


def removed_what_was_observed(scribe: Scribe, shows: list[str]) -> None:
    scribe.write(1, "set", "add", {1: 1}, cell="a")
    number = scribe.begin(2, "observe", "set", 2, "causal", cell="a")
    scribe.end(2, "observe", "set", {1: 1})
    scribe.write(1, "set", "add", {1: 2}, cell="a")
    scribe.read(2, "set", ["a"], {1: 2})
    scribe.write(2, "set", "remove", {1: 2, 2: 1}, cell="a", seen=number)
    scribe.read(3, "set", shows, {1: 2, 2: 1})


def observed_when_it_was_gone(scribe: Scribe, shows: list[str]) -> None:
    """Node 2 removes, and observes that nothing is there; what was observed is removed at node 3,
    which has not seen the first removal."""
    scribe.write(1, "set", "add", {1: 1}, cell="a")
    scribe.read(2, "set", ["a"], {1: 1})
    scribe.write(2, "set", "remove", {1: 1, 2: 1}, cell="a")
    number = scribe.begin(2, "observe", "set", 2, "causal", cell="a")
    scribe.end(2, "observe", "set", {1: 1, 2: 1})
    scribe.read(3, "set", ["a"], {1: 1})
    scribe.write(3, "set", "remove", {1: 1, 3: 1}, cell="a", seen=number)
    scribe.read(3, "set", shows, {1: 1, 3: 1})


def assigned(scribe: Scribe, kind: str, shows: Any) -> None:
    """2 over 1, and 3 beside it."""
    scribe.write(1, kind, "assign", {1: 1}, what=1)
    scribe.read(2, kind, [1] if kind == "multi" else 1, {1: 1})
    scribe.write(2, kind, "assign", {1: 1, 2: 1}, what=2)
    scribe.write(3, kind, "assign", {3: 1}, what=3)
    scribe.read(1, kind, shows, {1: 1, 2: 1, 3: 1})


def flagged(scribe: Scribe, kind: str, shows: bool) -> None:
    """Enabled and disabled, neither having seen the other."""
    scribe.write(1, kind, "enable", {1: 1})
    scribe.write(2, kind, "disable", {2: 1})
    scribe.read(3, kind, shows, {1: 1, 2: 1})


def dropped(scribe: Scribe, shows: dict[str, int]) -> None:
    """A key with 5 is dropped, while 7 is added to it elsewhere."""
    scribe.write(1, "map", "add", {1: 1}, cell="a", what=5)
    scribe.read(2, "map", {"a": 5}, {1: 1})
    scribe.write(2, "map", "drop", {1: 1, 2: 1}, cell="a")
    scribe.write(1, "map", "add", {1: 2}, cell="a", what=7)
    scribe.read(3, "map", shows, {1: 2, 2: 1})


VALUES: list[tuple[str, Callable[[Scribe], None], str]] = [
    ("counted", lambda s: counted(s, 3), ""),
    ("counted twice", lambda s: counted(s, 8), "counted twice"),
    ("not counted", lambda s: counted(s, -2), "additions are lost"),
    ("removed", lambda s: added_and_removed(s, []), ""),
    ("comes back", lambda s: added_and_removed(s, ["a"]), "it was taken out"),
    ("add wins", lambda s: added_and_removed(s, ["a"], seen=False), ""),
    ("add loses", lambda s: added_and_removed(s, [], seen=False), "nothing took out"),
    ("another add wins", lambda s: added_again(s, ["a"]), ""),
    ("another add loses", lambda s: added_again(s, []), "nothing took out"),
    ("never added", lambda s: added_and_removed(s, ["b"]), "never was there"),
    ("observed", lambda s: removed_what_was_observed(s, ["a"]), ""),
    ("more than observed", lambda s: removed_what_was_observed(s, []), "nothing took out"),
    ("observed too late", lambda s: observed_when_it_was_gone(s, ["a"]), ""),
    ("not observed", lambda s: observed_when_it_was_gone(s, []), "nothing took out"),
    ("the last one", lambda s: assigned(s, "register", 2), ""),
    ("the other last one", lambda s: assigned(s, "register", 3), ""),
    ("replaced", lambda s: assigned(s, "register", 1), "replaced"),
    ("emptied", lambda s: assigned(s, "register", None), "it lacks"),
    ("both", lambda s: assigned(s, "multi", [2, 3]), ""),
    ("one of two", lambda s: assigned(s, "multi", [3]), "it lacks"),
    ("all three", lambda s: assigned(s, "multi", [1, 2, 3]), "replaced"),
    ("enable wins", lambda s: flagged(s, "on-flag", shows=True), ""),
    ("enable loses", lambda s: flagged(s, "on-flag", shows=False), "nothing took out"),
    ("disable wins", lambda s: flagged(s, "off-flag", shows=False), ""),
    ("disable loses", lambda s: flagged(s, "off-flag", shows=True), "it is up"),
    ("key stays", lambda s: dropped(s, {"a": 7}), ""),
    ("key comes back", lambda s: dropped(s, {"a": 12}), "from 7 to 7"),
    ("key is gone", lambda s: dropped(s, {}), "from 7 to 7"),
]


@pytest.mark.parametrize(
    ("story", "problem"), [each[1:] for each in VALUES], ids=[e[0] for e in VALUES]
)
def test_values(story: Callable[[Scribe], None], problem: str) -> None:
    scribe = Scribe()
    story(scribe)
    valid, problems = verdict(CrdtChecker("crdt"), scribe)  # type: ignore[arg-type]
    assert valid is not bool(problem), problems
    assert problem in problems


# --- levels, tokens, losses, availability ---------------------------------------------------------


def quorum(scribe: Scribe, place: Marks, shows: int) -> None:
    scribe.write(1, "counter", "add", {1: 1}, what=5, level="quorum")
    scribe.read(2, "counter", shows, place, level="quorum")


def quorum_over_a_change(scribe: Scribe, at: int) -> None:
    """A change of the voters is asked for before (0), while (1) or after (2) it is written."""
    for number in (1, 2):
        scribe.tell("voters", "note", [number], voters=[1, 2, 3])
    for step in range(3):
        if step == at:
            scribe.tell("changing", "begin", [0])
        if step == 0:
            scribe.begin(1, "write", "counter", 1, "quorum", verb="add", cell=None, what=5)
        if step == 1:
            scribe.end(1, "write", "counter", {1: 1})
    scribe.tell("voters", "note", [2], voters=[2, 3, 4])
    scribe.tell("changing", "end", [0])
    scribe.read(2, "counter", 0, {}, level="quorum")


def quorum_over_a_loss(scribe: Scribe) -> None:
    scribe.write(1, "counter", "add", {1: 1}, what=5, level="quorum")
    scribe.tell("disk-lost", "note", [1])
    scribe.read(2, "counter", 0, {}, level="quorum")


def strong_is_everywhere(scribe: Scribe, level: str) -> None:
    scribe.write(1, "counter", "add", {1: 1}, what=5, level=level)
    scribe.read(2, "counter", 0, {})


def behind_its_token(scribe: Scribe, level: str) -> None:
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    scribe.read(2, "counter", 0, {}, level=level, after={1: 1})


def lost(scribe: Scribe, told: str, level: str = "eventual") -> None:
    scribe.write(1, "counter", "add", {1: 1}, what=5, level=level)
    if told:
        scribe.tell(told, "note", [1])
    scribe.final("counter", {1: (0, {}), 2: (0, {})})


def differ(scribe: Scribe) -> None:
    scribe.write(1, "register", "assign", {1: 1}, what=1)
    scribe.write(2, "register", "assign", {2: 1}, what=2)
    marks = {1: 1, 2: 1}
    scribe.final("register", {1: (1, marks), 2: (2, marks)})


def same_place_differs(scribe: Scribe) -> None:
    scribe.write(1, "register", "assign", {1: 1}, what=1)
    scribe.write(2, "register", "assign", {2: 1}, what=2)
    scribe.read(1, "register", 1, {1: 1, 2: 1})
    scribe.read(2, "register", 2, {1: 1, 2: 1})


def refuses(scribe: Scribe, error: str, *, away: bool = False) -> None:
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    for _ in range(5):
        scribe.read(1, "counter", 5, {1: 1})
    if away:
        scribe.tell("node-away", "begin", [1])
        scribe.tell("node-away", "end", [1])
    refuses_now(scribe, error)


def refuses_now(scribe: Scribe, error: str) -> None:
    process = 100 + len(scribe.events)
    value = {"number": process, "node": 1, "level": "eventual", "kind": "counter"}
    value |= {"verb": "add", "cell": None, "what": 5}
    scribe.add(process, "invoke", "write", "k/counter", value)
    scribe.add(process, "info", "write", "k/counter", value, error=error)


def took_over(scribe: Scribe, shows: int) -> None:
    """Node 2 takes over what node 1 holds: its place names what it may show."""
    scribe.tell("crdt-watched", "begin", [0])
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    scribe.tell("crdt-ahead", "begin", [2], marks=[])
    scribe.read(2, "counter", shows, {1: 1})
    scribe.tell("crdt-ahead", "end", [2])
    scribe.read(2, "counter", 5, {1: 1})


def restarted(
    scribe: Scribe, *, folds: int, told: Any, final: Marks, loses: str = "", shows: int = 12
) -> None:
    """Node 1 wrote in its first life, and has another one at the end. *told*: by member, which of
    its lives were folded by then. *loses*: what was between."""
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    scribe.tell("kill", "begin", [1])
    scribe.tell("kill", "end", [1])
    if loses:
        scribe.tell(loses, "note", [1])
    if told is not None:
        scribe.tell("crdt-folded", "note", [1], folds=folds, retired=list(told.items()))
    scribe.write(1, "counter", "add", {**final, 1.2: 1}, what=7)
    place = {**final, 1.2: 1}
    scribe.final("counter", {1: (shows, place), 2: (shows, place)})


def folded_meanwhile(scribe: Scribe, shows: int) -> None:
    """The answer to what node 1 wrote in its first life comes when that has been folded."""
    scribe.write(2, "counter", "add", {2: 1}, what=7)
    scribe.begin(1, "write", "counter", 1, "eventual", verb="add", cell=None, what=5)
    scribe.tell("crdt-folded", "note", [1], folds=1, retired=[(1, 1)])
    scribe.read(3, "counter", shows, {2: 1})
    scribe.end(1, "write", "counter", {0: 1, 2: 1})
    scribe.read(3, "counter", 12, {0: 1, 2: 1})


def digests(scribe: Scribe, *found: tuple[str, int]) -> None:
    """What nodes say at the end: a digest, and which life of node 1 they folded."""
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    scribe.final("counter", {node: (5, {1: 1}) for node in (1, 2, 3)})
    answers = [
        {"node": node, "digest": digest, "generation": 3, "frontier": [], "folds": 1}
        | {"retired": [[1, epoch]]}
        for node, (digest, epoch) in enumerate(found, 1)
    ]
    scribe.add(9, "invoke", "digests", None, {"number": -1})
    scribe.add(9, "ok", "digests", None, answers)


def cut_off(scribe: Scribe, error: str) -> None:
    """Node 1 is alone, and refuses whatever is written there."""
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    scribe.tell("partition", "begin", [1])
    for _ in range(3):
        refuses_now(scribe, error)
    scribe.tell("partition", "end", [1])
    scribe.read(2, "counter", 5, {1: 1})


FOLDED: dict[str, Any] = {"folds": 1, "told": {1: 1}, "final": {0: 1}}

PROMISES: list[tuple[str, Callable[[Scribe], None], str]] = [
    ("fresh", lambda s: quorum(s, {1: 1}, 5), ""),
    ("stale", lambda s: quorum(s, {}, 0), "a stale read"),
    ("stale over a change", lambda s: quorum_over_a_change(s, 2), "a stale read"),
    ("written in a change", lambda s: quorum_over_a_change(s, 1), ""),
    ("written in a change of before", lambda s: quorum_over_a_change(s, 0), ""),
    ("forgotten with a disk", quorum_over_a_loss, ""),
    ("strong is everywhere", lambda s: strong_is_everywhere(s, "strong"), "a stale read"),
    ("quorum is not", lambda s: strong_is_everywhere(s, "quorum"), ""),
    ("behind its token", lambda s: behind_its_token(s, "causal"), "its session had seen"),
    ("eventual asks for nothing", lambda s: behind_its_token(s, "eventual"), ""),
    ("lost", lambda s: lost(s, ""), "is lost"),
    ("lost with its disk", lambda s: lost(s, "disk-lost"), ""),
    ("lost with its node", lambda s: lost(s, "removed"), ""),
    ("confirmed and lost", lambda s: lost(s, "disk-lost", "quorum"), "is lost"),
    ("nodes differ", differ, "at the end"),
    ("states differ", same_place_differs, "are of the same place"),
    ("refuses", lambda s: refuses(s, "unavailable: why"), "was not taken by a node that ran"),
    ("was away", lambda s: refuses(s, "unavailable: why", away=True), ""),
    ("of the operation", lambda s: refuses(s, "not-observed: what"), ""),
    ("folded", lambda s: restarted(s, **FOLDED), ""),
    ("folded, not shown", lambda s: restarted(s, **FOLDED, shows=7), "from 12 to 12"),
    ("lost, and folded", lambda s: restarted(s, **FOLDED, shows=7, loses="disk-lost"), ""),
    ("left, and folded", lambda s: restarted(s, **FOLDED, shows=7, loses="removed"), ""),
    ("nothing folded", lambda s: restarted(s, folds=0, told=None, final={}), "is lost"),
    ("others folded", lambda s: restarted(s, folds=1, told={2: 1}, final={0: 1}), "is lost"),
    ("folded later", lambda s: restarted(s, folds=2, told={1: 1}, final={0: 1}), ""),
    ("not folded yet", lambda s: restarted(s, folds=2, told={2: 1}, final={0: 1}), "is lost"),
    ("folded meanwhile", lambda s: folded_meanwhile(s, 7), ""),
    ("shown before it is there", lambda s: folded_meanwhile(s, 12), "it is from 7 to 7"),
    ("the same", lambda s: digests(s, ("a", 1), ("a", 1), ("a", 1)), ""),
    ("not the same", lambda s: digests(s, ("a", 1), ("a", 1), ("b", 1)), "do not hold the same"),
    ("folded others", lambda s: digests(s, ("a", 1), ("a", 2), ("a", 1)), "the same ones"),
    ("refuses alone", lambda s: cut_off(s, "unavailable: why"), "cut off from all others"),
    ("of the operation, alone", lambda s: cut_off(s, "not-observed: what"), ""),
    ("has taken over", lambda s: took_over(s, 5), ""),
    ("has not yet", lambda s: took_over(s, 0), ""),
    ("has something else", lambda s: took_over(s, 4), "comes to that"),
]


@pytest.mark.parametrize(
    ("story", "problem"), [each[1:] for each in PROMISES], ids=[e[0] for e in PROMISES]
)
def test_promises(story: Callable[[Scribe], None], problem: str) -> None:
    scribe = Scribe()
    story(scribe)
    valid, problems = verdict(CrdtChecker("crdt"), scribe)  # type: ignore[arg-type]
    assert (valid is False) is bool(problem), problems
    assert problem in problems


def test_what_was_seen_is_counted() -> None:
    scribe = Scribe()
    scribe.write(1, "counter", "add", {1: 1}, what=5)
    scribe.tell("partition", "begin", [1])
    scribe.write(1, "counter", "add", {1: 2}, what=5)
    scribe.write(2, "counter", "add", {2: 1}, what=5)
    scribe.tell("partition", "end", [1])
    digests(scribe, ("a", 1), ("a", 1), ("b", 1))
    facts = CrdtChecker("crdt").check(scribe.events).facts
    assert (facts["isolated_writes"], facts["isolated_refused"]) == (1, 0)
    assert facts["digest_equal"] is False


def test_several_workloads_are_judged_each_by_its_own() -> None:
    good, bad = Scribe(), Scribe()
    counted(good, 3)
    lost(bad, "")
    mixed = [
        replace(event, f=f"{name}:{event.f}", process=place * 10 + int(event.process))
        for place, (name, scribe) in enumerate((("crdt-counter", good), ("crdt", bad)))
        for event in scribe.events
    ]
    workload = make("crdt-counter,crdt")
    assert workload.name == "crdt-counter,crdt"
    judged = workload.check(mixed)
    assert judged.valid is False
    assert {problem.split(":")[0] for problem in judged.problems} == {"crdt"}
    assert workload.check(mixed[: len(good.events)]).valid == "unknown"
    asked = make("crdt-set,crdt-map").next(Random(1), 1)
    assert asked.f in {"crdt-set:members", "crdt-map:members"}
    with pytest.raises(UsageError, match="no workload 'x'"):
        make("crdt,x")


def test_who_is_cut_off() -> None:
    assert cut_off_nodes([1, 2, 3], isolated([2, 1, 3])) == [2]
    assert cut_off_nodes([1, 2, 3], deaf([2, 1, 3])) == []
    assert cut_off_nodes([1, 2, 3], halves([3, 1, 2])) == [3]
    assert cut_off_nodes([1, 2], halves([2, 1])) == [1, 2]

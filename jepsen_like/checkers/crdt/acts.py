"""Histories of converging data, read: who did what at which node, and how far that node had come.

Every answer names a *place*: by life of a member, up to which of its records the node had come
(``marks``), and how far in the log. Places are the only clock there is: what a state holds is what
its place covers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from jepsen_like.checkers.base import readable
from jepsen_like.checkers.crdt.folds import FOLDS, Folds, Marks, actor_of
from jepsen_like.errors import HistoryError
from jepsen_like.history import NEMESIS, Event, Operation, operations
from quorate.client.levels import parse_token
from quorate.errors import TokenError

#: Of nodes, told by the fault injector: it does not run or stands still; its disk, or what it holds
#: of this data, was lost or set back; it was removed.
AWAY, DISK_LOST, REMOVED = "node-away", "disk-lost", "removed"
#: Which members a node takes for voters, from then on; and that somebody has asked for others,
#: until all nodes know of them.
VOTERS, CHANGING = "voters", "changing"
#: A node takes over what another holds: its place names what it may show, and not what it surely
#: holds; that is told with it ("marks"). *WATCHED* is told at the beginning: whenever that happens,
#: it is told.
WATCHED, AHEAD = "crdt-watched", "crdt-ahead"
#: A node has folded lives, so and so often; and which those were.
FOLDED = "crdt-folded"
#: Nodes that no other node reaches, nor they any; and nodes that clients may not reach.
ALONE, UNREACHED = "alone", "unreached"

#: What faults of real processes do to the nodes that they name.
_MEANS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("kill", "pause", "rolling", "clock-rate", "clock-strobe"), (AWAY,)),
    **dict.fromkeys(("disk-full", "disk-stall", "disk-fsync-error", "disk-write-error"), (AWAY,)),
    **dict.fromkeys(("disk-bit-flip", "disk-truncation"), (AWAY, DISK_LOST, REMOVED)),
    **dict.fromkeys(("slow", "reset", "clients"), (UNREACHED,)),
    "partition": (ALONE,),
    "join": (AWAY,),
    "remove": (REMOVED,),
}
#: Those that change the members, and after which nodes take over what others hold.
_CHANGES: Final = frozenset(("join", "promote", "remove", "disk-bit-flip", "disk-truncation"))

WRITE, READ, OBSERVE, FINAL = "write", "read", "observe", "final"
_MINE: Final = frozenset((WRITE, READ, OBSERVE, FINAL))
#: What nodes are asked of themselves: which lives they folded, and at the end their digests, too.
LIVES, DIGESTS = "lives", "digests"
#: Of the log's tier, and of nobody.
_OTHERS: Final = frozenset(("kv-write", "kv-read", "members", LIVES, DIGESTS))
#: Levels whose calls wait for other members.
WIDE: Final = frozenset(("quorum", "strong"))

#: By kind: verbs that put something in, and verbs that take out what they have seen. A verb may do
#: both: what a register is assigned takes the place of what was seen.
PUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "counter": ("add",),
    "set": ("add",),
    "register": ("assign",),
    "multi": ("assign",),
    "on-flag": ("enable",),
    "off-flag": ("disable",),
    "map": ("add",),
}
TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "counter": (),
    "set": ("remove",),
    "register": ("assign",),
    "multi": ("assign",),
    "on-flag": ("disable",),
    "off-flag": ("enable",),
    "map": ("drop",),
}


class Act(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One operation. *cell*: the part of the data that it concerns: an element of a set, a key of a
    map, else None. *after*: what its node had come to before, for certain; *place*: what it had
    come to afterwards, None if there is no answer. *seen*: of a removal of what was observed, that
    observation. *wide*: the level that was confirmed, for "quorum" and "strong"."""

    number: int
    begun: int
    ended: int
    process: int | str
    f: str
    key: str
    node: int
    level: str
    kind: str
    outcome: str
    verb: str = ""
    cell: Any = None
    what: Any = None
    after: Marks = {}
    place: Marks | None = None
    after_index: int = 0
    index: int = 0
    seen: Act | None = None
    wide: str = ""
    shows: Any = None
    error: str = ""
    begun_ns: int = 0
    ended_ns: int = 0

    @property
    def puts(self) -> bool:
        """Whether it puts something in."""
        return self.verb in PUTS[self.kind]

    @property
    def takes(self) -> bool:
        """Whether it takes out what it has seen."""
        return self.verb in TAKES[self.kind]

    def __str__(self) -> str:
        cell = "" if self.cell is None else f" of {self.cell!r}"
        what = f"{self.verb or self.f}{cell}" + ("" if self.what is None else f" {self.what!r}")
        return f"the {what} by process {self.process} at node {self.node} (event {self.begun})"


class Told(msgspec.Struct, frozen=True):
    """The fault injector says: *node* (0: all) from event *begin* to event *end*, on the run's
    clock from *begin_ns* to *end_ns*."""

    kind: str
    node: int
    begin: int
    end: int
    begin_ns: int
    end_ns: int


class Story:
    """A history, read."""

    def __init__(self, name: str, history: Sequence[Event]) -> None:
        self.last = len(history)
        self.last_ns = history[-1].time_ns if history else 0
        self.acts: list[Act] = []
        self.others: list[Operation] = []  # of the log's tier
        self.told = _told(history)
        self._exact = _is_exact(history)
        self._ahead = _ahead(history)
        self._voters = _voters(history)
        with readable(name):
            found = operations(history)
            mine = [each for each in found if each.invoked.f in _MINE]
            observations: dict[int, Act] = {}
            for each in mine:
                for answer in _answers(each):
                    act = _act(len(self.acts), each, answer, observations)
                    self.acts.append(act)
                    if act.f == OBSERVE:
                        observations[each.invoked.value["number"]] = act
            self.others += [each for each in found if each.invoked.f not in _MINE]
            for each in self.others:
                if each.invoked.f not in _OTHERS:
                    raise HistoryError(f"{name} has no operation {each.invoked.f!r:.60}")
        self.nodes = sorted({act.node for act in self.acts})
        with readable(name):
            folded = list(_folded(history))
            #: What each node said of itself at the end.
            self.digests = [
                (answer["node"], (answer["digest"], answer["generation"], answer["frontier"]))
                for each in self.others
                if each.invoked.f == DIGESTS and each.outcome == "ok" and each.completed is not None
                for answer in each.completed.value
            ]
        told: dict[int, dict[int, int]] = {}
        #: Numbers of folds of which different lives were told.
        self.disputed: list[int] = []
        for _at, folds, retired in folded:
            if told.setdefault(folds, retired) != retired:
                self.disputed.append(folds)
        self.folds = Folds(told)
        self._folded = _rising(
            [(at, folds) for at, folds, _retired in folded]
            + [
                (act.ended, act.place[FOLDS])
                for act in self.acts
                if act.place and FOLDS in act.place
            ]
        )

    def folds_before(self, at: int) -> int:
        """How often lives were surely folded before event *at*."""
        place = bisect_left(self._folded, at, key=lambda each: each[0])
        return self._folded[place - 1][1] if place else 0

    def between(self, kind: str, node: int, begin: int, end: int) -> bool:
        """Whether anything of *kind* concerned *node* between two events."""
        return any(
            each.kind == kind and each.node in {0, node} and each.begin <= end and begin <= each.end
            for each in self.told
        )

    def voters(self, act: Act) -> Sequence[int] | None:
        """Whom the node of *act* took for voters all the time; None: others, meanwhile. If nobody
        told, all nodes ever used."""
        told = self._voters.get(act.node)
        if not self._voters:
            return None if any(each.kind == CHANGING for each in self.told) else self.nodes
        if told is None:
            return None
        before = [voters for at, voters in told if at <= act.begun]
        changed = any(act.begun < at <= act.ended for at, _voters in told)
        return None if changed or not before else before[-1]

    def promised(self, write: Act, read: Act) -> bool:
        """Whether *read* has to see *write*, for which it was acknowledged widely before it began.

        Voters that overlap see to that while the two nodes take the same for voters; over a change
        of the voters it holds for what was acknowledged before anybody asked for the change. Who
        lost its disk has forgotten what it confirmed.
        """
        if not write.wide or write.ended > read.begun:
            return False
        if any(self.between(DISK_LOST, node, write.begun, read.ended) for node in self.nodes):
            return False
        voters = self.voters(write)
        if read.wide:
            same = voters is not None and voters == self.voters(read)
            return same or not (
                self.between(CHANGING, 0, write.begun, write.ended)
                or self.between(CHANGING, 0, read.begun, read.ended)
            )
        return write.wide == "strong" and voters is not None and read.node in voters

    def alone(self, act: Act) -> bool:
        """Whether the node of *act* had no other in reach, from its beginning to its end."""
        return any(
            each.kind == ALONE
            and each.node == act.node
            and each.begin <= act.begun
            and act.ended <= each.end
            for each in self.told
        )

    def lost_after(self, node: int, at: int) -> bool:
        """Whether what *node* alone had at event *at* may be gone at the end."""
        return self.lost_between(node, at, self.last)

    def lost_between(self, node: int, begin: int, end: int) -> bool:
        """Whether what *node* alone had at event *begin* may be gone at event *end*."""
        return self.between(DISK_LOST, node, begin, end) or self.between(REMOVED, node, 0, end)

    def certain(self, act: Act) -> Marks | None:
        """What the node of *act* surely held when it answered; None: what its place says."""
        if act.f == FINAL:
            return None
        if not self._exact:
            return {}
        for begin, end, marks in self._ahead.get(act.node, ()):
            if begin <= act.ended and act.begun <= end:
                return marks
        return None


def parse_place(token: str) -> tuple[int, dict[int, int]]:
    """Index and marks of a token.

    Raises:
        HistoryError: it is none.
    """
    try:
        _cluster, position = parse_token(token)
    except TokenError as error:
        raise HistoryError(str(error)) from error
    marks = {actor_of(each.member, each.epoch): each.sequence for each in position.marks}
    return position.index, marks


def _answers(each: Operation) -> list[dict[str, Any] | None]:
    """What it was answered: at the end by several nodes; None: nothing."""
    completed = each.completed
    if completed is None or each.outcome != "ok":
        return [None]
    found: Any = completed.value
    return found if each.invoked.f == FINAL else [found]


def _act(
    number: int,
    each: Operation,
    answer: dict[str, Any] | None,
    observations: Mapping[int, Act],
) -> Act:
    asked, completed = each.invoked.value, each.completed
    after_index, index, wide, shows = 0, 0, "", None
    after: dict[int, int] = {}
    place: dict[int, int] | None = None
    if answer is not None:
        after_index, after = parse_place(answer["after"])
        index, place = parse_place(answer["place"])
        shows = answer.get("shows")
        if asked["level"] in WIDE and not answer.get("unconfirmed"):
            wide = asked["level"]
    seen = asked.get("seen")
    return Act(
        number=number,
        begun=each.invoked_at,
        ended=each.completed_at,
        process=each.invoked.process,
        f=each.invoked.f,
        key=each.invoked.key,
        node=asked["node"] if answer is None else answer.get("node", asked["node"]),
        level=asked["level"],
        kind=asked["kind"],
        outcome=each.outcome,
        verb=asked.get("verb", ""),
        cell=asked.get("cell"),
        what=asked.get("what"),
        after=after,
        place=place,
        after_index=after_index,
        index=index,
        seen=None if seen is None else observations[seen],
        wide=wide,
        shows=shows,
        error="" if completed is None else completed.error or "",
        begun_ns=each.invoked.time_ns,
        ended_ns=each.invoked.time_ns if completed is None else completed.time_ns,
    )


def _told(history: Sequence[Event]) -> list[Told]:
    """What was told of nodes, in the order of beginning."""
    found: list[Told] = []
    begun: dict[tuple[str, int, int], tuple[int, int]] = {}
    last, last_ns = len(history), history[-1].time_ns if history else 0
    for at, event in enumerate(history):
        if event.process != NEMESIS or not isinstance(event.value, dict):
            continue
        value = event.value
        for kind, node in _concerned(event.f, value):
            place = (kind, value.get("id", 0), node)
            if value.get("do") == "begin":
                begun[place] = (at, event.time_ns)
            elif place in begun:
                begin, begin_ns = begun.pop(place)
                found.append(Told(kind, node, begin, at, begin_ns, event.time_ns))
            else:
                found.append(Told(kind, node, at, at, event.time_ns, event.time_ns))
    for (kind, _number, node), (begin, begin_ns) in begun.items():
        found.append(Told(kind, node, begin, last, begin_ns, last_ns))
    return sorted(found, key=lambda each: each.begin)


def _concerned(f: str, value: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What an event says of which nodes."""
    for kind in _MEANS.get(f, (f,)):
        for node in value.get("nodes", [0] if kind in {CHANGING, WATCHED} else []):
            yield kind, node
    if f in _CHANGES:
        yield CHANGING, 0


def _folded(history: Sequence[Event]) -> Iterator[tuple[int, int, dict[int, int]]]:
    """When it was told, how often lives had been folded, and the last one of each member."""
    for at, event in enumerate(history):
        answers: list[dict[str, Any]] = []
        if event.process == NEMESIS and event.f == FOLDED:
            answers = [event.value]
        elif event.type == "ok" and event.f in {LIVES, DIGESTS}:
            answers = event.value
        for answer in answers:
            yield at, answer["folds"], dict(answer["retired"])


def _rising(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The highest number by event, in the order of events."""
    rising: list[tuple[int, int]] = []
    for at, number in sorted(found):
        if not rising or number > rising[-1][1]:
            rising.append((at, number))
    return rising


def _voters(history: Sequence[Event]) -> dict[int, list[tuple[int, Sequence[int]]]]:
    """By node: from which event on it took whom for voters."""
    found: dict[int, list[tuple[int, Sequence[int]]]] = {}
    for at, event in enumerate(history):
        if event.process == NEMESIS and event.f == VOTERS:
            found.setdefault(event.value["nodes"][0], []).append((at, event.value["voters"]))
    return found


def _is_exact(history: Sequence[Event]) -> bool:
    """Whether places say what nodes hold, but for what was told."""
    kinds = {event.f for event in history if event.process == NEMESIS}
    return WATCHED in kinds or not kinds & _CHANGES


def _ahead(history: Sequence[Event]) -> dict[int, list[tuple[int, int, dict[int, int]]]]:
    """By node: from which event to which its place may say too much, and what it surely held."""
    found: dict[int, list[tuple[int, int, dict[int, int]]]] = {}
    begun: dict[int, tuple[int, dict[int, int]]] = {}
    for at, event in enumerate(history):
        if event.process != NEMESIS or event.f != AHEAD:
            continue
        node = event.value["nodes"][0]
        if event.value["do"] == "begin":
            begun[node] = (at, dict(event.value["marks"]))
        elif node in begun:
            begin, marks = begun.pop(node)
            found.setdefault(node, []).append((begin, at, marks))
    for node, (begin, marks) in begun.items():
        found.setdefault(node, []).append((begin, len(history), marks))
    return found

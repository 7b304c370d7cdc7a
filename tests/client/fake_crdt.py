"""What the nodes of ``fake_cluster`` make of CRDT data: a replica in memory each, which hear of one
another only when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from quorate.base.crdt_frames import (
    Contains,
    CrdtAnswer,
    CrdtFailed,
    CrdtRead,
    CrdtWrite,
    CrdtWritten,
    Mark,
    Names,
    Observe,
    Position,
    Question,
    Refusal,
    Rights,
    WatchCrdt,
)
from quorate.base.crdt_operations import KindTag, Remove, Update
from quorate.base.frames import Happened, Watch, Watching
from quorate.crdt.bounded import all_rights, rights
from quorate.crdt.dots import Path, epoch_of, make_actor, member_of
from quorate.crdt.kind import kind_of
from quorate.crdt.kinds import ORMap
from quorate.crdt.maps import place
from quorate.crdt.observing import observe
from quorate.crdt.replica import MemoryReplica
from quorate.crdt.text import updates
from quorate.crdt.values import decode_key, encode_key
from quorate.errors import InsufficientRightsError, QuorateError

MANY = {
    KindTag.G_SET,
    KindTag.TWO_P_SET,
    KindTag.OR_SET,
    KindTag.OR_MAP,
    KindTag.MV_REGISTER,
    KindTag.TEXT,
}


class FakeData:
    """One node's. *page*: items of an answer."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.replica = MemoryReplica(ORMap, make_actor(node, 1))
        self.marks: dict[int, int] = {}  # by member, of its one life
        self.index = 0  # applied
        self.done: dict[tuple[bytes, int], CrdtWritten] = {}
        self.floors: dict[bytes, int] = {}  # by client, what it has acknowledged
        self.executed: list[tuple[bytes, int]] = []  # frames that changed something
        self.unconfirmed: tuple[int, ...] = ()
        self.page = 3
        self.questions_max = 10_000  # of one frame; there is no room for more
        self.meanwhile: Callable[[], None] | None = None  # happens once while a read is answered
        self.watchers: list[tuple[Any, int, str]] = []  # connection, id, name

    @property
    def position(self) -> Position:
        marks = [Mark(member, 1, self.marks[member]) for member in sorted(self.marks)]
        return Position(self.index, tuple(marks))

    def lacks(self, after: Position) -> str:
        """Why a call that is to come after *after* cannot be answered yet."""
        for mark in after.marks:
            if self.marks.get(mark.member, 0) < mark.sequence:
                return f"records of member {mark.member} have not arrived"
        return "" if self.index >= after.index else f"entry {after.index} is not applied"

    def join(self, other: FakeData) -> None:
        """Take over all that *other* has."""
        self.replica.join(other.replica)
        for member, sequence in other.marks.items():
            self.marks[member] = max(sequence, self.marks.get(member, 0))
        self.tell(None)

    def write(self, frame: CrdtWrite) -> CrdtWritten | CrdtFailed:
        name = (frame.client, frame.sequence)
        floor = self.floors[frame.client] = max(
            self.floors.get(frame.client, 0), frame.acknowledged
        )
        self.done = {
            key: self.done[key] for key in self.done if key[0] != frame.client or key[1] > floor
        }
        if frame.sequence <= floor:
            return CrdtFailed(frame.sequence, True, "sequence", "acknowledged already")
        if name not in self.done:
            results = tuple([self._operate(operation) for operation in frame.operations])
            self.marks[self.node] = self.marks.get(self.node, 0) + 1
            self.executed.append(name)
            self.done[name] = CrdtWritten(frame.sequence, self.position, results, self.unconfirmed)
            for each in frame.operations:
                self.tell(each.key if isinstance(each, Update) else each.element)
        return self.done[name]

    def _operate(self, operation: Update | Remove) -> Refusal | None:
        try:
            self.replica.apply(operation, wall_ms=self.node)
        except InsufficientRightsError as error:
            return Refusal(error.code, str(error), (error.needed, error.available))
        except QuorateError as error:
            return Refusal(error.code, str(error))
        return None

    def read(self, frame: CrdtRead) -> CrdtAnswer:
        results: list[list[Any]] = []
        for number, question in enumerate(frame.questions):
            if number >= self.questions_max:
                results.append(["limit-exceeded", "no room"])
                continue
            try:
                results.append([self._answer(question)])
            except QuorateError as error:
                results.append([error.code, str(error)])
        raw = msgspec.Raw(msgspec.msgpack.encode(results))
        answer = CrdtAnswer(frame.id, self.position, raw)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return answer

    def _answer(self, question: Question) -> Any:
        view = self.replica.state
        if isinstance(question, Names):
            names = [decode_key(each) for each in view.branches(())]
            found = [
                [name, [kind[0] for kind in view.branches((encode_key(name),))]]
                for name in names
                if name.startswith(question.prefix)
            ]
            return self._paged(found, question.start)
        kind_tag = getattr(question, "kind", KindTag.BOUNDED_COUNTER)
        if isinstance(question, Rights) and question.within:
            kind_tag = KindTag.OR_MAP
        kind, prefix = self._place(question.name, kind_tag, question.within)
        if isinstance(question, Rights):
            shares = [
                [member_of(each), epoch_of(each), amount]
                for each, amount in {
                    make_actor(2, 1): 0,
                    **all_rights(view, prefix),
                }.items()
            ]
            return [rights(view, prefix, self.replica.actor), shares]
        if isinstance(question, Contains):
            return question.element in kind.value(view, prefix)
        if isinstance(question, Observe):
            return observe(kind, view, prefix, key=question.element)
        if kind.tag == KindTag.OR_MAP:
            return self._paged(self._items(prefix), question.start)
        if kind.tag == KindTag.TEXT:
            return self._paged([list(each) for each in updates(view, prefix)], question.start)
        value = kind.value(view, prefix)
        if kind.tag == KindTag.MV_REGISTER:
            return [value, b""]
        if kind.tag in MANY:
            return self._paged(sorted(value, key=repr), question.start)
        return value

    def _place(self, name: str, kind: int, within: Any) -> tuple[Any, Path]:
        prefix: Path = ()
        found: Any = ORMap
        for key, tag in ((name, kind), *within):
            found = kind_of(tag)
            prefix = place(key, found, prefix)
        return found, prefix

    def _items(self, prefix: Path) -> list[list[Any]]:
        view = self.replica.state
        found = []
        for key in view.branches(prefix):
            for tag in view.branches((*prefix, key)):
                kind, below = kind_of(tag[0]), (*prefix, key, tag)
                if kind.present(view, below):
                    value = None if kind.tag in MANY else kind.value(view, below)
                    found.append([decode_key(key), tag[0], value])
        return found

    def _paged(self, items: list[Any], start: bytes) -> list[Any]:
        begin = int(start or b"0")
        end = begin + self.page
        return [items[begin:end], b"%d" % end if end < len(items) else b""]

    # --- watches ------------------------------------------------------------------------------

    def watch(self, connection: Any, watch: Watch) -> None:
        name = msgspec.msgpack.decode(watch.request, type=WatchCrdt).name
        self.watchers.append((connection, watch.id, name))
        connection.send(Watching(watch.id, 0))

    def tell(self, name: Any) -> None:
        """Something under *name* changed; None: under any."""
        for connection, number, watched in self.watchers:
            if name is None or name == watched:
                connection.send(Happened(number, 0, msgspec.Raw(msgspec.msgpack.encode([1]))))

"""Small worlds of replicas, and what hypothesis draws them from."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import strategies as st

from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Disable,
    Edit,
    Enable,
    Increment,
    Operation,
    Remove,
    Transfer,
    Update,
)
from quorate.crdt.delta import Delta
from quorate.crdt.dots import Path, make_actor
from quorate.crdt.kind import KINDS, Kind
from quorate.crdt.kinds import ORMap, ORSet
from quorate.crdt.maps import place
from quorate.crdt.replica import MemoryReplica
from quorate.crdt.text import updates
from quorate.crdt.view import View
from quorate.errors import QuorateError

ALL = [KINDS[tag] for tag in sorted(KINDS)]
REPLICAS = 3

ELEMENTS = st.sampled_from(["a", "b", 3, b"c", ("x", 1)])
VALUES = st.sampled_from([None, 0, 1, "v", b"w", 1.5, [1, "x"], {"k": True}])
AMOUNTS = st.integers(1, 5)
UPDATES = st.sampled_from([b"t", b"u", b"\x00v"])
#: In place of the names that an edit replaces: all that its replica has, see ``resolved``.
ALL_NAMES = (b"all",)


def operations(
    kind: type[Kind], depth: int = 1, *, but: tuple[type[Kind], ...] = ()
) -> st.SearchStrategy[Operation]:
    """Operations that *kind* has; maps nest *depth* deep, with no data of the kinds *but*."""
    match kind.name:
        case "GCounter":
            return st.one_of(st.builds(Increment, AMOUNTS), st.just(Clear()))
        case "PNCounter":
            moves = [st.builds(Increment, AMOUNTS), st.builds(Decrement, AMOUNTS)]
            return st.one_of(*moves, st.just(Clear()))
        case "BoundedCounter":
            gifts = st.builds(Transfer, st.integers(1, REPLICAS), st.just(1), AMOUNTS)
            return st.one_of(st.builds(Increment, AMOUNTS), st.builds(Decrement, AMOUNTS), gifts)
        case "LWWRegister" | "MVRegister":
            return st.one_of(st.builds(Assign, VALUES), st.just(Clear()))
        case "GSet":
            return st.one_of(st.builds(Add, ELEMENTS), st.just(Clear()))
        case "ORSet" | "TwoPSet":
            changes = [st.builds(Add, ELEMENTS), st.builds(Remove, ELEMENTS)]
            return st.one_of(*changes, st.just(Clear()))
        case "EnableWinsFlag" | "DisableWinsFlag":
            return st.sampled_from([Enable(), Disable(), Clear()])
        case "Text":
            edits = st.builds(Edit, UPDATES, st.sampled_from([(), (), ALL_NAMES]))
            return st.one_of(edits, edits, edits, st.just(Clear()))
        case _:
            return map_operations(depth, but)


def resolved(operation: Operation, view: View, prefix: Path = ()) -> Operation:
    """*operation* with the names of the updates that stand at *view* below *prefix*, if it is an
    edit that replaces all."""
    if isinstance(operation, Update):
        below = place(operation.key, KINDS[operation.kind], prefix)
        inner = resolved(operation.operation, view, below)
        return Update(operation.key, operation.kind, inner)
    if isinstance(operation, Edit) and operation.replaces == ALL_NAMES:
        return Edit(operation.update, tuple([name for name, _update in updates(view, prefix)]))
    return operation


def map_operations(depth: int, but: tuple[type[Kind], ...]) -> st.SearchStrategy[Operation]:
    """Operations of maps, with every kind under few keys."""
    below = [kind for kind in ALL if (kind is not ORMap or depth) and kind not in but]
    updates = st.sampled_from(below).flatmap(
        lambda kind: st.builds(
            Update,
            st.sampled_from(["k", "l"]),
            st.just(int(kind.tag)),
            operations(kind, depth - 1, but=but),
        )
    )
    removals = st.builds(Remove, st.sampled_from(["k", "l"]))
    return st.one_of(updates, updates, updates, removals, st.just(Clear()))


class Step(NamedTuple):
    """One thing that happens: replica *at* carries *operation* out, or takes in what is known to
    *other*, or, with *old*, the delta that came out of that many steps ago."""

    at: int
    other: int
    operation: Operation | None
    old: int
    wall_ms: int


def steps(kind: type[Kind], length: int = 14) -> st.SearchStrategy[list[Step]]:
    """What may happen among the replicas."""
    one = st.builds(
        Step,
        st.integers(0, REPLICAS - 1),
        st.integers(0, REPLICAS - 1),
        st.one_of(st.none(), operations(kind), operations(kind)),
        st.integers(0, 6),
        st.integers(0, 3),
    )
    return st.lists(one, max_size=length)


class World:
    """Replicas of one kind, and every delta that they made."""

    def __init__(self, kind: type[Kind]) -> None:
        self.kind = kind
        self.replicas = [MemoryReplica(kind, make_actor(n + 1, 1)) for n in range(REPLICAS)]
        self.deltas: list[Delta] = []

    def take(self, step: Step) -> None:
        replica = self.replicas[step.at]
        if step.operation is not None:
            try:
                operation = resolved(step.operation, replica.state)
                delta = replica.apply(operation, wall_ms=step.wall_ms)
            except QuorateError:
                return  # refused: says so, and changes nothing
            self.deltas.append(delta)
        elif step.old and step.old <= len(self.deltas):
            self.changed(replica, replica.join(self.deltas[-step.old]))
        else:
            self.changed(replica, replica.join(self.replicas[step.other]))

    def changed(self, replica: MemoryReplica, paths: list[Any]) -> None:
        delta = replica.tidy(paths)
        if delta is not None:
            self.deltas.append(delta)

    def pieces(self) -> list[Delta]:
        """Everything that there is to join: deltas, and whole replicas."""
        return self.deltas + [replica.state.copy().as_delta() for replica in self.replicas]


def world(kind: type[Kind], script: list[Step]) -> World:
    """What *script* leads to."""
    made = World(kind)
    for step in script:
        made.take(step)
    return made


def pair(kind: type[Kind] = ORSet) -> tuple[MemoryReplica, MemoryReplica]:
    """Two replicas that know nothing yet."""
    return MemoryReplica(kind, make_actor(1, 1)), MemoryReplica(kind, make_actor(2, 1))


def sync(*replicas: MemoryReplica) -> None:
    """Everybody learns everything."""
    for _round in range(2):
        for one in replicas:
            for other in replicas:
                if one is not other:
                    one.join(other)

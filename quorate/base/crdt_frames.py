"""Frames between clients and nodes for CRDT data, and positions in what the nodes tell each other.

A node holds all CRDT data as one map by name, so every operation is one on that map: ``Update`` of
a name, or ``Remove`` of all that is under it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from quorate.base.crdt_operations import Remove, Update

CLIENT_BYTES: Final = 16  # of the random id that a client keeps for as long as it lives


class Mark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All records of life *epoch* of *member* up to *sequence*. With both 0: that lives were folded
    away so often, of which all is there that they did, and that no mark names any more."""

    member: int
    epoch: int
    sequence: int


class Position(msgspec.Struct, frozen=True, array_like=True):
    """How much somebody has seen: of the log up to entry *index*, and of CRDT data the records
    that *marks* names, each life at most once, in order."""

    index: int = 0
    marks: tuple[Mark, ...] = ()


NOWHERE: Final = Position()


class CrdtWrite(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Operations of one client, coalesced over one loop turn, each carried out or refused by
    itself.

    *sequence* grows with every such frame of *client*, and names it for ever at this node: a retry
    carries the same operations under the same number. *acknowledged*: every answer up to here has
    arrived. *level*: an index into ``base.levels.LEVELS``; when to answer. *after*: not before
    the node has come so far. *again*: it was sent before, to an earlier process of this node, and
    got no answer.
    """

    client: bytes
    sequence: int
    acknowledged: int
    level: int
    operations: tuple[Update | Remove, ...]
    after: Position = NOWHERE
    again: bool = False


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """Why one operation or question was refused; *code* names an error class. *numbers*: of
    ``InsufficientRightsError``, how many are needed and available."""

    code: str
    message: str
    numbers: tuple[int, ...] = ()


class CrdtWritten(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """The operations are durable, and as widely as the level says. *results*: one for each, None or
    why it was refused. *position*: holds the operations, and all that they were made on top of.
    *unconfirmed*: members that the level asked for and that have not confirmed in time."""

    sequence: int
    position: Position
    results: tuple[Refusal | None, ...]
    unconfirmed: tuple[int, ...] = ()


class Value(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What is under *name*, of kind *kind*, at the place in nested maps that *within* leads to by
    (key, kind of what is there). The answer, see ``docs/protocol.md``, is by kind: an integer, a
    bool, any value, or [items, rest] of what has many: items of a set are elements, of an
    MVRegister values, of a text [name, update], of a map [key, kind, value], with None in place of
    what may have many itself, and one item for each kind if there are several under a key.
    *rest*: ``start`` of the next page, b"" at the end."""

    name: str
    kind: int
    within: tuple[tuple[Any, int], ...] = ()
    start: bytes = b""


class Contains(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Whether the set or map there has *element*."""

    name: str
    kind: int
    element: Any
    within: tuple[tuple[Any, int], ...] = ()


class Observe(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A token of what is there now, or of *element* alone, for a removal of just that."""

    name: str
    kind: int
    element: Any = None
    within: tuple[tuple[Any, int], ...] = ()


class Names(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """[[name, [kinds]], ...] and the rest, as for ``Value``, of the names with *prefix*."""

    prefix: str = ""
    start: bytes = b""


class Rights(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Of a bounded counter: [how much this node may take off, [[member, epoch, how much], ...]]."""

    name: str
    within: tuple[tuple[Any, int], ...] = ()


Question = Value | Contains | Observe | Names | Rights


class CrdtRead(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Questions of one client, answered from one state. *level*, *after*: as for a write."""

    id: int
    level: int
    questions: tuple[Question, ...]
    after: Position = NOWHERE


class CrdtAnswer(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """*results*: an array, of [answer] or [code, message] for each question."""

    id: int
    position: Position
    results: msgspec.Raw


class CrdtFailed(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """No answer to a frame as a whole; *id*: of the read, or the sequence of the write; *code*
    names an error class, whose ``definite`` says whether a write may have happened."""

    id: int
    write: bool
    code: str
    message: str
    retry_after_ms: int = 0


class WatchCrdt(msgspec.Struct, frozen=True, array_like=True):
    """The request of a ``Watch`` of machine ``CRDT_WATCH``: tell when something under *name*
    changed; the event is the number of changes this node has made so far, and several changes may
    be told as one."""

    name: str


#: The name under which CRDT data is watched, where others watch machines.
CRDT_WATCH: Final = "crdt"

"""How a replica reaches the other members, and what passes between them besides consensus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from quorate.base.types import LogIndex, NodeId
from quorate.consensus.messages import Message


class StateDigest(msgspec.Struct, frozen=True, array_like=True, tag=40):
    """Rolling hash of the sender's applied state after *index*: rides behind every heartbeat and
    every answer to one, so that replicas that differ learn of it within one interval. *watched*:
    clients watch at the sender, so it wants to hear at once of what is committed."""

    sender: NodeId
    index: LogIndex
    state_hash: bytes
    watched: bool = False


class AppliedRequest(msgspec.Struct, frozen=True, array_like=True, tag=41):
    """A leader asks for a ``StateDigest`` as soon as the receiver has applied entry *index*: a
    client waits until every voter has."""

    sender: NodeId
    index: LogIndex


class CrdtRecord(msgspec.Struct, frozen=True, array_like=True, tag=42):
    """The record *sequence* of a life (see ``converging.records``): an encoded closed delta, whose
    cells stand where they do since folding number *generation*. *after*: (actor, sequence) of the
    records of others that its author had joined, as far as its record before does not name them."""

    sender: NodeId
    generation: int
    actor: int
    sequence: int
    delta: bytes
    after: tuple[tuple[int, int], ...] = ()


class CrdtKnown(msgspec.Struct, frozen=True, array_like=True, tag=43):
    """The sender has these records, (actor, sequence) in order, joined and on its disk. *whole*:
    and none but these. *asks*: not 0: answer with all of yours, and this number as *answers*.
    *deaf*: it would drop records for now."""

    sender: NodeId
    generation: int
    frontier: tuple[tuple[int, int], ...]
    whole: bool = False
    asks: int = 0
    answers: int = 0
    deaf: bool = False


class CrdtGone(msgspec.Struct, frozen=True, array_like=True, tag=44):
    """The sender has no longer the record *sequence* of *actor*, which comes next for the receiver,
    who has to compare ranges with it instead."""

    sender: NodeId
    actor: int
    sequence: int = 0


class CrdtBegin(msgspec.Struct, frozen=True, array_like=True, tag=45):
    """The sender wants to pull from the receiver (``converging.reconciling``), in a *session* whose
    number it drew. To be answered with ``CrdtBegun``, as all that follows with what belongs to it,
    or with ``CrdtEnd``. Whatever is lost is asked for again."""

    sender: NodeId
    session: int


class CrdtBegun(msgspec.Struct, frozen=True, array_like=True, tag=46):
    """What the sender had when the session began: its frontier, its causal context, encoded, and by
    member the last life that was folded away."""

    sender: NodeId
    session: int
    generation: int
    frontier: tuple[tuple[int, int], ...]
    context: bytes
    retired: tuple[tuple[int, int], ...]


class CrdtCompare(msgspec.Struct, frozen=True, array_like=True, tag=47):
    """Question *number* of a session: digests of some ranges from key *start* on."""

    sender: NodeId
    session: int
    number: int
    start: bytes


class CrdtRange(msgspec.Struct, frozen=True, array_like=True):
    """The elements before key *end* (None: up to the last), from where the range before it ended:
    how many, and the sum of their digests (``crdt.digest``)."""

    end: bytes | None
    count: int
    digest: bytes


class CrdtRanges(msgspec.Struct, frozen=True, array_like=True, tag=49):
    """The answer to ``CrdtCompare``: one range behind the other, all of about the same size."""

    sender: NodeId
    session: int
    number: int
    ranges: tuple[CrdtRange, ...]


class CrdtFetch(msgspec.Struct, frozen=True, array_like=True, tag=50):
    """Question *number* of a session, about the elements from key *start* on and before *end*. With
    *cells*, for a ``CrdtSketch`` of so many; else for ``CrdtElements``: those with these
    *fingerprints*, one behind the other, or all if there are none."""

    sender: NodeId
    session: int
    number: int
    start: bytes
    end: bytes | None
    cells: int = 0
    fingerprints: bytes = b""


class CrdtSketch(msgspec.Struct, frozen=True, array_like=True, tag=51):
    """The elements of a range: how many, the sum of their digests, and their ``crdt.sketch``; b"":
    they have become too many for that."""

    sender: NodeId
    session: int
    number: int
    count: int
    digest: bytes
    cells: bytes


class CrdtElements(msgspec.Struct, frozen=True, array_like=True, tag=52):
    """The elements that were asked for, key and leaf, as far as they lie before key *end*; the
    sender has to be asked again for the rest. *frontier*: what there is more of than when the
    session began, and may show in these elements."""

    sender: NodeId
    session: int
    number: int
    generation: int
    end: bytes | None
    elements: tuple[tuple[bytes, bytes], ...]
    frontier: tuple[tuple[int, int], ...] = ()


class CrdtEnd(msgspec.Struct, frozen=True, array_like=True, tag=53):
    """The session is over; *why* it was ended by the one that serves, "" by the one that pulls."""

    sender: NodeId
    session: int
    why: str = ""


class LifeRequest(msgspec.Struct, frozen=True, array_like=True, tag=48):
    """The sender's process, which drew *nonce*, asks the leader for a life: for the next, or, with
    *epoch*, for that one, which it has begun by itself (``converging.lives``), and which may be
    *over*."""

    sender: NodeId
    nonce: int
    epoch: int = 0
    over: bool = False


#: What one that pulls says, and one that serves; ``CrdtEnd`` may come from both.
CrdtPull = CrdtBegin | CrdtCompare | CrdtFetch
CrdtServed = CrdtBegun | CrdtRanges | CrdtSketch | CrdtElements | CrdtEnd
#: What is for the second tier.
CrdtFrame = CrdtRecord | CrdtKnown | CrdtGone | CrdtPull | CrdtServed

#: What is for the replica.
ReplicaFrame = Message | StateDigest | AppliedRequest
#: What is no message of the core.
Aside = StateDigest | AppliedRequest | CrdtFrame | LifeRequest
PeerFrame = Message | Aside


class Transport(Protocol):
    """Fire and forget; the core copes with loss, delay, repetition and reordering."""

    def send(self, target: NodeId, frame: PeerFrame) -> None:
        """Queue *frame*, or drop it if there is no connection or its queue is full."""
        ...

    def set_members(self, addresses: Mapping[NodeId, str]) -> None:
        """Keep a connection to each of these, and to nobody else."""
        ...


class NullTransport:
    """For a node that is alone."""

    def send(self, target: NodeId, frame: PeerFrame) -> None:
        """There is nobody."""

    def set_members(self, addresses: Mapping[NodeId, str]) -> None:
        """Nor will there be."""

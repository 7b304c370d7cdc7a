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
    cells stand where they do since folding number *generation*."""

    sender: NodeId
    generation: int
    actor: int
    sequence: int
    delta: bytes


class CrdtKnown(msgspec.Struct, frozen=True, array_like=True, tag=43):
    """The sender has these records, (actor, sequence) in order, joined and on its disk. *whole*:
    and none but these. *asks*: not 0: answer with all of yours, and this number as *answers*."""

    sender: NodeId
    generation: int
    frontier: tuple[tuple[int, int], ...]
    whole: bool = False
    asks: int = 0
    answers: int = 0


class CrdtGone(msgspec.Struct, frozen=True, array_like=True, tag=44):
    """The sender has no longer the records of *actor* that come next for the receiver, who has to
    compare ranges with it instead."""

    sender: NodeId
    actor: int


class LifeRequest(msgspec.Struct, frozen=True, array_like=True, tag=48):
    """The sender's process, which drew *nonce*, asks the leader for a life: for the next, or, with
    *epoch*, for that one, which it has begun by itself (``converging.lives``)."""

    sender: NodeId
    nonce: int
    epoch: int = 0


#: What is for the second tier.
CrdtFrame = CrdtRecord | CrdtKnown | CrdtGone

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

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


#: What is no message of the core.
Aside = StateDigest | AppliedRequest
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

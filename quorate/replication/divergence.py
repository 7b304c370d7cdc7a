"""Replicas that applied the same entry must have the same rolling hash; if not, ring the bell."""

from __future__ import annotations

import logging
from collections import OrderedDict

from quorate.base.limits import MEMBERS_MAX
from quorate.base.types import LogIndex, NodeId
from quorate.replication.machines import STATE_HASH_BYTES
from quorate.replication.transport import StateDigest

_log = logging.getLogger("quorate.divergence")

#: Applied entries whose hash is remembered: a follower this far behind is compared later.
HASHES_KEPT = 16_384
ALARMS_MAX = 64


class DivergenceWatch:
    """Compares the digests that come with heartbeats with the own history."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[LogIndex, bytes] = OrderedDict()
        self._ahead: dict[NodeId, StateDigest] = {}
        self.alarms: list[str] = []
        self.compared = 0

    def applied(self, index: LogIndex, state_hash: bytes) -> None:
        """The own state after *index*."""
        self._hashes[index] = state_hash
        if len(self._hashes) > HASHES_KEPT:
            self._hashes.popitem(last=False)
        if self._ahead:
            for digest in [d for d in self._ahead.values() if d.index <= index]:
                del self._ahead[digest.sender]
                self._compare(digest)

    def reset(self, index: LogIndex, state_hash: bytes) -> None:
        """The state came from a checkpoint or a snapshot."""
        self._hashes.clear()
        self._hashes[index] = state_hash
        self._ahead.clear()

    def on_digest(self, digest: StateDigest, applied: LogIndex) -> None:
        """A peer's word; kept until the own state has come as far. One that waits is not replaced
        by a later one: a member that is always a little behind would never compare any."""
        if len(digest.state_hash) != STATE_HASH_BYTES:
            return  # not of this protocol; an alarm about it would say nothing
        if digest.index <= applied:
            self._compare(digest)
        elif digest.sender in self._ahead or len(self._ahead) < MEMBERS_MAX:
            self._ahead.setdefault(digest.sender, digest)

    def _compare(self, digest: StateDigest) -> None:
        own = self._hashes.get(digest.index)
        if own is None:
            return
        self.compared += 1
        if own == digest.state_hash or len(self.alarms) >= ALARMS_MAX:
            return
        alarm = (
            f"state differs from node {digest.sender} after entry {digest.index}: "
            f"{own.hex()} here, {digest.state_hash.hex()} there; a machine is not deterministic, "
            "or memory or a disk is damaged; compare the nodes, then remove the one that is wrong "
            "and add it again empty, under a new id"
        )
        if alarm not in self.alarms:
            self.alarms.append(alarm)
            _log.critical("%s", alarm)

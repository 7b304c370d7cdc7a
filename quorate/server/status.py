"""Everything an operator may want to see of a node, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from quorate.base.version import VERSION
from quorate.replication.registry import describe
from quorate.server.clients import describe_members

if TYPE_CHECKING:
    from quorate.server.node import Node


def node_status(node: Node) -> dict[str, Any]:
    """The answer to the administrative call "status" on a started node."""
    parts, machines = node.parts, node.machines
    replica, identity = parts.replica, parts.gate.identity
    core = replica.core.status()
    return {
        "node": identity.node,
        "cluster": identity.cluster,
        "incarnation": identity.incarnation,
        "version": VERSION,
        "address": node.address,
        "role": core.role.value,
        "term": core.term,
        "leader": core.leader,
        "commit": core.commit,
        "applied": replica.applied,
        "last_index": core.last_index,
        "persisted": core.persisted,
        "floor": core.floor,
        "ready": replica.ready,
        "members": [
            {"node": member.node, "address": member.address, "role": member.role}
            for member in describe_members(core.membership)
        ],
        "followers": [msgspec.to_builtins(follower) for follower in core.followers],
        "connected": parts.peers.connected(),
        "problems": {str(other): text for other, text in parts.peers.problems().items()},
        "alarms": list(replica.divergence.alarms),
        "read_only": replica.read_only,
        "sessions": machines.sessions.live_count,
        "clients": len(parts.clients),
        "machines": describe(machines.registry),
        "keys": node.kv_machine.key_count,
        "revision": node.kv_machine.revision,
        "checkpoint": parts.checkpointer.statistics().last_index,
        "log_bytes": parts.log.size_bytes(),
        "store_bytes": parts.store.size_bytes(),
        "state_hash": machines.state_hash.hex(),
        "crdt": parts.converging.describe(),
        "cluster_time_ms": machines.time_ms,
        "uptime_s": round(node.uptime_s, 3),
        "resident_bytes": node.platform.resident_bytes(),
    }

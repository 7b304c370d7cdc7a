"""Who a node is, and whom it lets in: cluster id, incarnations, and the checks of a hello."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from quorate.base.frames import ROLE_CLIENT, WIRE_VERSION, Hello
from quorate.base.types import NodeId
from quorate.errors import ConfigError, RefusedError
from quorate.server.config import NodeConfig
from quorate.server.platform import Platform
from quorate.storage.directory import DataDirectory, Identity


def founding_cluster_id(name: str, founders: Mapping[int, str], incarnation: str) -> str:
    """The id of a new cluster, "name-hash": founders that were given the same list come to the
    same one; a node that founds alone takes its own incarnation, so that two of them never meet."""
    if len(founders) == 1:
        seed = incarnation
    else:
        seed = ",".join(f"{node}={founders[node]}" for node in sorted(founders))
    return f"{name}-{hashlib.blake2b(f'{name}:{seed}'.encode(), digest_size=8).hexdigest()}"


def open_identity(
    directory: DataDirectory, config: NodeConfig, joined: str, platform: Platform
) -> Identity:
    """Read whose data this is, or write it into an empty directory. *joined*: the id of the
    cluster that a new node joins, "" for one that founds its own.

    Raises:
        ConfigError: the data belongs to another node or another cluster.
    """
    identity = directory.identity()
    if identity is None:
        incarnation = platform.new_incarnation()
        identity = Identity(
            cluster=joined or founding_cluster_id(config.cluster, config.founders, incarnation),
            node=NodeId(config.node_id),
            incarnation=incarnation,
            created_ms=platform.clock.wall_ms(),
        )
        directory.write_identity(identity)
        return identity
    if identity.node != config.node_id:
        raise ConfigError(
            f"{directory.path} holds the data of node {identity.node}, not of node "
            f"{config.node_id}: correct node_id, or give this node a directory of its own"
        )
    if identity.cluster.rpartition("-")[0] != config.cluster:
        raise ConfigError(
            f"{directory.path} holds data of cluster {identity.cluster!r}, but the configuration "
            f"says {config.cluster!r}: correct one of them"
        )
    return identity


class Gate(msgspec.Struct):
    """Decides about the hello of an incoming connection, and about a welcome that came back."""

    identity: Identity

    def check(self, hello: Hello) -> None:
        """Version and cluster, for any role.

        Raises:
            RefusedError: with the sentence for the other side.
        """
        if hello.version > WIRE_VERSION:
            raise RefusedError(
                f"wire version {hello.version} is newer than this node's {WIRE_VERSION}: "
                "upgrade this node first"
            )
        if hello.version < 1:
            raise RefusedError(f"wire version {hello.version} does not exist")
        if hello.cluster != self.identity.cluster and (hello.cluster or hello.role != ROLE_CLIENT):
            raise RefusedError(
                f"this is node {self.identity.node} of cluster {self.identity.cluster!r}, not of "
                f"{hello.cluster!r}: check the address"
            )

    def check_member(self, node: int, incarnation: str, pinned: str) -> None:
        """A caller (or callee) that says it is member *node*.

        Raises:
            RefusedError: it has this node's number, or its number belongs to other data.
        """
        if node == self.identity.node:
            raise RefusedError(
                f"node {node} is this node itself: two nodes were given the same number"
            )
        if pinned and pinned != incarnation:
            raise RefusedError(
                f"node {node} is known under incarnation {pinned}, not {incarnation}: its data "
                "directory was wiped or replaced, so it has forgotten its votes; remove the member "
                "and add it again under a number never used before"
            )

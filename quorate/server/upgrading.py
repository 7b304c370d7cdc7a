"""Which versions of its machines the members' code has, and the entries that put one in force.

Each member says in its welcome what its code has; the leader, which dials all of them, knows. A
machine that is new comes into force by itself as soon as a majority of the voters and every
connected member has it. A version that is newer than the one in force waits for an operator
(``db.upgrade``), and for every member: one that lacks it would have to stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from quorate.base.frames import Run, Submit, SubmitFailed, SubmitReply
from quorate.base.results import Failure
from quorate.base.types import NodeId
from quorate.errors import (
    NotLeaderError,
    OutcomeUnknownError,
    QuorateError,
    UnknownMachineError,
    UpgradeError,
    error_from_code,
)
from quorate.replication.proposals import SubmitAnswer
from quorate.replication.registry import NOT_IN_FORCE, InForce, Registry, SetVersion, VersionMachine
from quorate.replication.replica import Replica

_logger = logging.getLogger("quorate.upgrading")

UPGRADE_TIMEOUT_S: Final = 10.0
#: How long members that were just started may take to connect.
CONNECT_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.02

_decode_results: Final = msgspec.msgpack.Decoder(tuple[tuple[InForce | Failure]]).decode


class Upgrades:
    """*connected*: members that this node can send to now."""

    def __init__(self, replica: Replica, connected: Callable[[], list[NodeId]]) -> None:
        self._replica = replica
        self._connected = connected
        self._told: dict[NodeId, Mapping[str, int]] = {}
        self._bringing: dict[str, None] = {}

    @property
    def _registry(self) -> Registry:
        return self._replica.machines.registry

    def told(self, node: NodeId, versions: Mapping[str, int]) -> None:
        """Member *node* has said what its code has."""
        self._told[node] = versions

    # --- machines that are new ------------------------------------------------------------------

    def tend(self) -> None:
        """On a leader that has committed an entry of its term: bring in what is new."""
        registry = self._registry
        new = {
            name: version
            for name, version in registry.code_versions().items()
            if name not in registry.in_force and name not in self._bringing
        }
        if not new:
            return
        own = self._replica.node_id
        voters = self._replica.core.state.membership.voters
        theirs = {
            node: self._told.get(node, {})
            for node in self._connected()
            if node in self._replica.core.state.membership.members()
        }
        for name, version in new.items():
            lacking = [node for node, versions in theirs.items() if name not in versions]
            having = [own, *(node for node in theirs if node not in lacking)]
            if lacking or 2 * sum(node in voters for node in having) <= len(voters):
                continue
            least = min([version, *(theirs[node][name] for node in having if node != own)])
            self._bring(name, least)

    def _bring(self, name: str, version: int) -> None:
        def sink(answer: SubmitAnswer) -> None:
            self._bringing.pop(name, None)
            if isinstance(answer, SubmitFailed):
                _logger.info("machine %s is not in force yet: %s", name, answer.message)

        try:
            self._replica.submit(_submission(name, version), sink)
            self._bringing[name] = None
        except QuorateError as error:
            _logger.info("machine %s is not in force yet: %s", name, error)

    # --- an operator's upgrade ------------------------------------------------------------------

    async def upgrade(self, name: str) -> dict[str, Any]:
        """Raise machine *name* to the highest version that every member's code has.

        Raises:
            NotLeaderError: this node does not lead.
            UnknownMachineError: it has no such machine.
            UpgradeError: a member's code, or its silence, stands in the way; nothing happened.
            OutcomeUnknownError: the entry was proposed, and not seen to be committed.
        """
        replica, registry = self._replica, self._registry
        if not replica.is_leader:
            raise NotLeaderError(f"node {replica.node_id} does not lead; node {replica.leader} may")
        code = registry.code_versions().get(name)
        if code is None:
            raise UnknownMachineError(f"node {replica.node_id} has no machine {name[:64]!r}")
        await self._all_connected()
        have = self._every_member(name)
        before, target = registry.version(name), min(have.values())
        behind = {node: has for node, has in have.items() if has < max(have.values())}
        if target <= before and behind:
            names = ", ".join(f"node {node} ({_version(has)})" for node, has in behind.items())
            raise UpgradeError(
                f"machine {name!r} stays at version {before}: the code of these members has no "
                f"later one: {names}; install version {max(have.values())} there, start them again"
                ", and then upgrade"
            )
        if target > before:
            before = await self._set(name, target)
        return {
            "machine": name,
            "version": registry.version(name),
            "before": before,
            "behind": {str(node): has for node, has in behind.items()},
        }

    async def _all_connected(self) -> None:
        """Until they are, or for as long as a restarted member may need."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + CONNECT_TIMEOUT_S
        while self._silent() and loop.time() < end_s:  # noqa: ASYNC110  links come and go
            await asyncio.sleep(POLL_S)

    def _silent(self) -> list[NodeId]:
        connected = [self._replica.node_id, *self._connected()]
        members = self._replica.core.state.membership.members()
        return [node for node in members if node not in connected]

    def _every_member(self, name: str) -> dict[NodeId, int]:
        """The version in each member's code, 0 where there is no such machine."""
        replica = self._replica
        members = replica.core.state.membership.members()
        silent = self._silent()
        if silent:
            names = ", ".join(f"node {node}" for node in silent)
            raise UpgradeError(
                f"machine {name!r} is not upgraded: nobody knows what code these members have, as "
                f"they are not connected: {names}; start them, or remove them"
            )
        own = self._registry.code_versions()[name]
        return {
            node: own if node == replica.node_id else self._told.get(node, {}).get(name, 0)
            for node in members
        }

    async def _set(self, name: str, version: int) -> int:
        """Propose the version, and wait; the one before."""
        done: asyncio.Future[SubmitAnswer]
        done = asyncio.get_running_loop().create_future()

        def sink(answer: SubmitAnswer) -> None:
            if not done.done():
                done.set_result(answer)

        self._replica.submit(_submission(name, version), sink)
        try:
            answer = await asyncio.wait_for(done, UPGRADE_TIMEOUT_S)
        except TimeoutError as error:
            raise OutcomeUnknownError(
                f"version {version} of machine {name!r} was proposed, and not seen to be committed"
            ) from error
        if isinstance(answer, SubmitFailed):
            raise error_from_code(answer.code, answer.message)
        if not isinstance(answer, SubmitReply):
            raise OutcomeUnknownError(f"version {version} of machine {name!r} is in one log only")
        ((result,),) = _decode_results(answer.results)
        if isinstance(result, Failure):
            raise UpgradeError(
                f"machine {name!r} stays as it was: it could not be converted: {result.message}"
            )
        return result.before


def _submission(name: str, version: int) -> Submit:
    items = msgspec.msgpack.encode([SetVersion(name, version)])
    return Submit(0, 0, 0, (Run(VersionMachine.name, msgspec.Raw(items)),))


def _version(has: int) -> str:
    return "no such machine" if has == NOT_IN_FORCE else f"version {has}"

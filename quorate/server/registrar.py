"""What only a leader may record in the log: incarnations of members, its own new address, and which
machines are in force."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from quorate.base.frames import Run, Submit, SubmitFailed
from quorate.base.types import NodeId, Term
from quorate.consensus.events import ChangeMembership
from quorate.consensus.membership import ChangeKind, MemberChange
from quorate.consensus.output import Role
from quorate.errors import QuorateError
from quorate.replication.cluster import ClusterMachine, Pin
from quorate.replication.proposals import SubmitAnswer
from quorate.replication.replica import Replica
from quorate.server.upgrading import Upgrades
from quorate.storage.directory import Identity

_logger = logging.getLogger("quorate.registrar")


class Registrar:
    """*address*: how others reach this node."""

    def __init__(
        self,
        identity: Identity,
        address: str,
        machine: ClusterMachine,
        replica: Replica,
        upgrades: Upgrades,
    ) -> None:
        self._identity = identity
        self._address = address
        self._machine = machine
        self._replica = replica
        self._shown: dict[NodeId, str] = {identity.node: identity.incarnation}
        self._upgrades = upgrades
        self._pinning = False
        self._tended_term = Term(0)

    def on_applied(self) -> None:
        """Called after every applied slice: a new leader records its members at once, with its
        first entry. Until it has, a member that was wiped passes for the one it was."""
        state = self._replica.core.state
        if state.term == self._tended_term or state.role is not Role.LEADER:
            return
        if state.log.term_at(state.commit) == state.term:
            self._tended_term = state.term
            asyncio.get_running_loop().call_soon(self.tend)  # the core may be amid a step

    def shown(self, node: NodeId, incarnation: str) -> None:
        """Member *node* keeps its data under *incarnation*, as it has shown in a handshake."""
        self._shown[node] = incarnation

    def tend(self) -> None:
        """Record what is not recorded yet; harmless on a node that does not lead."""
        replica = self._replica
        state = replica.core.state
        if not replica.is_leader or replica.stopped:
            return
        if state.log.term_at(state.commit) != state.term:
            return
        own = state.membership.address(self._identity.node)
        if own is not None and own != self._address and not state.membership.joint:
            change = MemberChange(ChangeKind.ADDRESS, self._identity.node, self._address)
            replica.step(ChangeMembership((change,)))
        members = state.membership.members()
        pins = [
            Pin(node, incarnation)
            for node, incarnation in sorted(self._shown.items())
            if node in members and not self._machine.incarnation(node)
        ]
        if pins and not self._pinning:
            self._pin(pins)
        self._upgrades.tend()

    def _pin(self, pins: list[Pin]) -> None:
        run = Run(ClusterMachine.name, msgspec.Raw(msgspec.msgpack.encode(pins)))

        def sink(answer: SubmitAnswer) -> None:
            self._pinning = False
            if isinstance(answer, SubmitFailed):
                _logger.info("members not pinned yet: %s", answer.message)

        try:
            self._replica.submit(Submit(0, 0, 0, (run,)), sink)
            self._pinning = True
        except QuorateError as error:
            _logger.info("members not pinned yet: %s", error)

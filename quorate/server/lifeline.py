"""How a node gets a life from the log, whoever leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorate.errors import CommandError
from quorate.replication.converging.lives import Adopt, Begin, Begun

if TYPE_CHECKING:
    from quorate.server.node import Node


class Lifeline:
    """The log's word on the lives of *node*."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._nonce = node._random.getrandbits(63)

    async def begin(self) -> int:
        """Begin the next life; returns its epoch.

        Raises:
            QuorateError: the log was not reached; a life may have begun that nobody will use.
        """
        machine = self._node.db.machine("lives", Begun)
        begun: Begun = await machine.execute(Begin(self._node.node_id, self._nonce))
        return begun.epoch

    async def adopt(self, epoch: int) -> bool:
        """Have the log admit life *epoch*; False: it knows a later one.

        Raises:
            QuorateError: the log was not reached.
        """
        machine = self._node.db.machine("lives", Begun)
        try:
            await machine.execute(Adopt(self._node.node_id, epoch, self._nonce))
        except CommandError:
            return False
        return True

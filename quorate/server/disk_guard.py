"""Watches the free space of a node's disk, and turns the node read-only before it runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from quorate.base.limits import MIB
from quorate.errors import StorageError
from quorate.replication.replica import Replica

_logger = logging.getLogger("quorate.disk")

#: Free space must exceed the reserve by this factor before a read-only node takes writes again.
RESERVE_HYSTERESIS: Final = 1.25


class DiskGuard:
    """*free_bytes*: asks the disk. *reserve_mib*: what must stay free on it. *on_failure*: the disk
    cannot even be asked."""

    def __init__(
        self,
        free_bytes: Callable[[], int],
        reserve_mib: int,
        replica: Replica,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.reserve_mib = reserve_mib
        self._free_bytes = free_bytes
        self._replica = replica
        self._on_failure = on_failure

    def look(self) -> None:
        """Compare the free space with the reserve; called every half second."""
        try:
            free_bytes = self._free_bytes()
        except OSError as error:
            self._on_failure(StorageError(f"the data directory cannot be read: {error}"))
            return
        reserve_bytes = self.reserve_mib * MIB
        if free_bytes < reserve_bytes:
            self.full(
                f"{free_bytes // MIB} MiB are free on the disk of node {self._replica.node_id}, "
                f"less than the reserve of {self.reserve_mib} MiB"
            )
        elif self._replica.read_only and free_bytes > reserve_bytes * RESERVE_HYSTERESIS:
            _logger.warning("node %d takes writes again", self._replica.node_id)
            self._replica.read_only = ""

    def full(self, reason: str) -> None:
        """Take no more writes that grow the state."""
        if not self._replica.read_only:
            _logger.error("node %d is read-only: %s", self._replica.node_id, reason)
        self._replica.read_only = (
            f"{reason}; deletes still work: free space, or move the leadership"
        )

"""All mutants, by room. A new one is an entry in its room's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from jepsen_like.mutants import (
    client,
    converging,
    coordination,
    elections,
    flowing,
    membership,
    queueing,
    reads,
    replicating,
    sessions,
    snapshots,
    storage,
)
from jepsen_like.mutants.mutant import Mutant

#: By what they are about; each file has its ``MUTANTS``.
ROOMS: Final[Mapping[str, tuple[Mutant, ...]]] = {
    "elections": elections.MUTANTS,
    "replicating": replicating.MUTANTS,
    "reads": reads.MUTANTS,
    "membership": membership.MUTANTS,
    "snapshots": snapshots.MUTANTS,
    "storage": storage.MUTANTS,
    "sessions": sessions.MUTANTS,
    "client": client.MUTANTS,
    "coordination": coordination.MUTANTS,
    "converging": converging.MUTANTS,
    "queueing": queueing.MUTANTS,
    "flowing": flowing.MUTANTS,
}

MUTANTS: Final = tuple(mutant for room in ROOMS.values() for mutant in room)

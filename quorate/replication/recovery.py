"""From what is on disk to a member that can take part: log, checkpoint, and how they fit.

The checkpoint must lie within the log or at its edge. Where it does not, something was lost, and
the node refuses to start rather than vote with a hole in its memory; with one exception: a crash
between swapping in a snapshot and resetting the log to it, which the store's ``installed`` marks.
"""

from __future__ import annotations

from random import Random

import msgspec

from quorate.base.limits import ENTRY_BYTES_MAX
from quorate.base.types import BEFORE_FIRST, NO_NODE, LogIndex, Term
from quorate.consensus.config import CoreConfig
from quorate.consensus.core import Core
from quorate.consensus.membership import (
    Membership,
    MembershipHistory,
    decode_membership,
    encode_membership,
)
from quorate.consensus.messages import Entry, EntryId, EntryKind, HardState
from quorate.errors import LogCorruptionError, StoreCorruptionError
from quorate.storage.interfaces import EntryMeta, LogStore, RecoveredLog, StateStore, StoreMeta


class SavedMembership(msgspec.Struct, frozen=True, array_like=True):
    """What ``StoreMeta.membership`` holds: the configuration in force, and its entry's index."""

    index: LogIndex
    membership: Membership


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SavedMembership)

NOBODY = Membership(voters=())


def encode_saved_membership(index: LogIndex, membership: Membership) -> bytes:
    """What the store keeps; ``decode_saved_membership`` reads it."""
    return _encoder.encode(SavedMembership(index, membership))


def decode_saved_membership(data: bytes) -> SavedMembership:
    """Raises StoreCorruptionError, never a msgspec exception."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise StoreCorruptionError(
            f"the checkpoint's membership does not decode: {error}"
        ) from error


class Recovered(msgspec.Struct, frozen=True):
    """A core in the state the disk vouches for, and where the machines' state ends."""

    core: Core
    applied: EntryId
    meta: StoreMeta | None


def bootstrap(log: LogStore, membership: Membership) -> RecoveredLog:
    """Write the first configuration as entry 1 of term 1, on every founding member alike, so that
    logs agree from their first entry on. Returns what the log now holds."""
    payload = encode_membership(membership)
    entry = Entry(LogIndex(1), Term(1), int(EntryKind.MEMBERSHIP), payload)
    hard_state = HardState(Term(1), NO_NODE, LogIndex(1))
    log.append([entry], hard_state)
    return RecoveredLog(
        hard_state=hard_state,
        floor=EntryId(BEFORE_FIRST, Term(0)),
        metas=[EntryMeta(entry.term, entry.kind, len(payload))],
    )


def recover(
    log: LogStore, store: StateStore, config: CoreConfig, random: Random, found: Membership | None
) -> Recovered:
    """Open both, check that they fit, and build the core. Blocks.

    *found*: the first configuration, for a founding member whose disk is empty; None for a
    member that joins, which waits until a leader sends it the log.

    Raises:
        LogCorruptionError, StoreCorruptionError: entries are missing between the two, or damaged.
    """
    recovered = log.recover()
    meta = store.meta()
    fresh = meta is None and not recovered.metas and recovered.floor.index == BEFORE_FIRST
    if fresh and found is not None and recovered.hard_state.term == 0:
        recovered = bootstrap(log, found)
    applied = meta.applied if meta is not None else EntryId(BEFORE_FIRST, Term(0))
    recovered = _fit(log, recovered, meta, applied)
    history = _membership_history(log, recovered, meta, applied)
    hard = recovered.hard_state
    core = Core(
        config,
        random,
        hard_state=HardState(hard.term, hard.vote, LogIndex(max(hard.commit, applied.index))),
        floor=recovered.floor,
        terms=[entry.term for entry in recovered.metas],
        sizes_bytes=[entry.size_bytes for entry in recovered.metas],
        members=history,
    )
    return Recovered(core, applied, meta)


def _term_at(recovered: RecoveredLog, index: LogIndex) -> Term | None:
    at = index - recovered.floor.index
    if at == 0:
        return recovered.floor.term
    return recovered.metas[at - 1].term if 0 < at <= len(recovered.metas) else None


def _fit(
    log: LogStore, recovered: RecoveredLog, meta: StoreMeta | None, applied: EntryId
) -> RecoveredLog:
    """The log must continue the checkpoint."""
    if meta is not None and meta.installed is not None:
        floor = meta.installed
        if floor.index > recovered.floor.index and _term_at(recovered, floor.index) != floor.term:
            hard = recovered.hard_state
            hard = HardState(
                Term(max(hard.term, floor.term)),
                hard.vote if hard.term >= floor.term else NO_NODE,
                floor.index,
            )
            log.reset(floor, hard)
            return RecoveredLog(hard_state=hard, floor=floor, metas=[])
    last = recovered.floor.index + len(recovered.metas)
    if recovered.hard_state.commit > last:
        raise LogCorruptionError(
            f"entry {recovered.hard_state.commit} was committed, but the log ends at {last}; empty "
            "this node's data directory, remove the member and add it again under a new id"
        )
    if applied.index < recovered.floor.index:
        raise StoreCorruptionError(
            f"the checkpoint ends at entry {applied.index}, but the log begins after "
            f"{recovered.floor.index}: entries between them are lost; empty this node's data "
            "directory, remove the member and add it again under a new id"
        )
    if _term_at(recovered, applied.index) != applied.term:
        raise LogCorruptionError(
            f"the checkpoint includes entry {applied.index} of term {applied.term}, which the log "
            f"does not hold (it ends at {recovered.floor.index + len(recovered.metas)}); empty "
            "this node's data directory, remove the member and add it again under a new id"
        )
    return recovered


def _membership_history(
    log: LogStore, recovered: RecoveredLog, meta: StoreMeta | None, applied: EntryId
) -> MembershipHistory:
    if meta is None:
        history = MembershipHistory(NOBODY, BEFORE_FIRST)
    else:
        saved = decode_saved_membership(meta.membership)
        history = MembershipHistory(saved.membership, saved.index)
    for at, entry_meta in enumerate(recovered.metas):
        index = LogIndex(recovered.floor.index + 1 + at)
        if entry_meta.kind == EntryKind.MEMBERSHIP and index > max(applied.index, history.index):
            entry = log.read(index, index, ENTRY_BYTES_MAX)[0]
            history.append(index, decode_membership(entry.payload))
    return history

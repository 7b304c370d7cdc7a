"""What a disk may hold when a member starts: fits, misfits, and every crash of an install."""

from __future__ import annotations

from random import Random

import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.config import CoreConfig
from quorate.consensus.membership import Membership, encode_membership
from quorate.consensus.messages import Entry, EntryId, EntryKind, HardState
from quorate.errors import LogCorruptionError, StoreCorruptionError
from quorate.replication.recovery import (
    Recovered,
    bootstrap,
    decode_saved_membership,
    encode_saved_membership,
    recover,
)
from quorate.storage.interfaces import StoreMeta
from quorate.storage.memory_log import MemoryLogStore
from quorate.storage.memory_store import MemoryImage, MemoryStateStore
from tests.replication.driving import ME, entry, three

ALONE = Membership(voters=(ME,), addresses=((ME, "n1:1"),))


def eid(index: int, term: int) -> EntryId:
    return EntryId(LogIndex(index), Term(term))


def hard(term: int, vote: int = 0, commit: int = 0) -> HardState:
    return HardState(Term(term), NodeId(vote), LogIndex(commit))


def log_of(
    *terms: int,
    floor: tuple[int, int] = (0, 0),
    state: HardState | None = None,
    lost: int = 0,
) -> MemoryLogStore:
    """*lost*: so many entries are committed and, against all promises, gone."""
    log = MemoryLogStore()
    log.recover()
    if floor[0]:
        log.reset(eid(*floor), hard(floor[1]))
    entries = [entry(floor[0] + 1 + at, term) for at, term in enumerate(terms)]
    log.append(entries, state or hard(max((floor[1], *terms))))
    if lost:
        log._hard_state = hard(terms[-1], commit=len(terms) + lost)
    log.close()
    return log


def meta_of(applied: tuple[int, int], installed: tuple[int, int] | None = None) -> StoreMeta:
    return StoreMeta(
        applied=eid(*applied),
        time_ms=0,
        membership=encode_saved_membership(LogIndex(1), three()),
        state_hash=bytes(8),
        installed=None if installed is None else eid(*installed),
    )


def store_of(meta: StoreMeta | None) -> MemoryStateStore:
    store = MemoryStateStore(MemoryImage())
    if meta is not None:
        store.checkpoint(meta, {})
    return store


def start(
    log: MemoryLogStore, meta: StoreMeta | None = None, found: Membership | None = None
) -> Recovered:
    return recover(log, store_of(meta), CoreConfig(node_id=ME), Random(1), found)


def test_a_founder_writes_the_first_configuration_once() -> None:
    log = MemoryLogStore()
    first = start(log, found=three())
    assert first.core.state.membership == three()
    assert (first.core.state.commit, first.core.state.log.last_index, first.applied) == (
        1, 1, eid(0, 0),
    )  # fmt: skip
    log.close()
    again = start(log, found=ALONE)  # what is on disk counts
    assert again.core.state.membership == three()
    assert again.core.state.log.last_index == 1


def test_who_joins_waits_for_a_leader() -> None:
    core = start(MemoryLogStore()).core
    assert core.state.membership.members() == ()
    assert not core.state.promotable()


def test_a_disk_that_knows_a_term_is_not_founded_again() -> None:
    log = log_of(state=hard(3, vote=2))
    core = start(log, found=three()).core
    assert core.state.membership.members() == ()
    assert (core.state.term, core.state.vote) == (3, 2)


def test_the_log_continues_the_checkpoint() -> None:
    log = log_of(2, 2, 3, 3, floor=(4, 2), state=hard(5, vote=3, commit=6))
    for applied in ((4, 2), (6, 2), (7, 3), (8, 3)):
        found = start(log, meta_of(applied))
        state = found.core.state
        assert (found.applied, state.log.floor) == (eid(*applied), eid(4, 2))
        assert (state.commit, state.term, state.vote) == (max(6, applied[0]), 5, 3)
        assert state.persisted == state.log.last_index == 8
        log.close()


@pytest.mark.parametrize(
    ("log", "meta", "error"),
    [
        pytest.param(log_of(3, floor=(4, 2)), meta_of((3, 2)), StoreCorruptionError, id="hole"),
        pytest.param(log_of(3, floor=(4, 2)), None, StoreCorruptionError, id="store lost"),
        pytest.param(log_of(1, 1), meta_of((3, 1)), LogCorruptionError, id="tail lost"),
        pytest.param(log_of(1, 2), meta_of((2, 1)), LogCorruptionError, id="other term"),
        pytest.param(log_of(), meta_of((2, 1)), LogCorruptionError, id="log lost"),
        pytest.param(log_of(3, floor=(4, 2)), meta_of((4, 1)), LogCorruptionError, id="floor"),
        pytest.param(log_of(1, 1, lost=1), None, LogCorruptionError, id="committed lost"),
        pytest.param(
            log_of(3, floor=(9, 3)), meta_of((5, 2), (5, 2)), StoreCorruptionError,
            id="an old mark excuses no hole",
        ),
    ],
)  # fmt: skip
def test_a_misfit_is_refused_with_a_way_out(
    log: MemoryLogStore, meta: StoreMeta | None, error: type[Exception]
) -> None:
    with pytest.raises(error, match="add it again under a new id"):
        start(log, meta)
    log.close()


OLD_LOGS = {
    "shorter": (2, 2),
    "other terms": (2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2),
    "nothing": (),
}


@pytest.mark.parametrize("name", OLD_LOGS)
@pytest.mark.parametrize("vote", [0, 2])
@pytest.mark.parametrize("term", [2, 7])
def test_a_crash_between_swap_and_reset_is_mended(name: str, vote: int, term: int) -> None:
    """The snapshot ends at entry 9 of term 5."""
    log = log_of(*OLD_LOGS[name], state=hard(term, vote=vote, commit=min(2, len(OLD_LOGS[name]))))
    meta = meta_of((9, 5), (9, 5))
    for _ in range(2):  # a second crash right after the mending finds it mended
        found = start(log, meta)
        state = found.core.state
        assert state.log.floor == eid(9, 5)
        assert (state.log.last_index, state.commit, found.applied) == (9, 9, eid(9, 5))
        assert state.membership == three()
        # A vote of this member in a term that has not passed is kept.
        assert (state.term, state.vote) == ((7, vote) if term == 7 else (5, 0))
        log.close()


def test_a_crash_after_the_reset_or_later_keeps_what_was_appended_since() -> None:
    log = log_of(5, 6, floor=(9, 5))
    state = start(log, meta_of((9, 5), (9, 5))).core.state
    assert (state.log.floor, state.log.last_index) == (eid(9, 5), 11)


def test_a_crash_before_the_swap_finds_the_old_state() -> None:
    log = log_of(2, 2, 2, state=hard(2, commit=2))
    state = start(log, meta_of((2, 2))).core.state
    assert (state.log.last_index, state.commit) == (3, 2)


def test_a_log_that_holds_the_snapshots_last_entry_is_kept() -> None:
    log = log_of(*[5] * 12, state=hard(5, commit=3))
    state = start(log, meta_of((9, 5), (9, 5))).core.state
    assert (state.log.floor.index, state.log.last_index, state.commit) == (0, 12, 9)


def test_configurations_after_the_checkpoint_come_from_the_log() -> None:
    log = MemoryLogStore()
    log.recover()
    bootstrap(log, three())

    def change(index: int, membership: Membership) -> Entry:
        payload = encode_membership(membership)
        return Entry(LogIndex(index), Term(1), int(EntryKind.MEMBERSHIP), payload)

    log.append([change(2, ALONE), entry(3, 1), change(4, three())], None)
    for applied, membership in ((None, three()), ((1, 1), three()), ((4, 1), three())):
        log.close()
        meta = None if applied is None else meta_of(applied)
        members = start(log, meta).core.state.members
        assert members.current == membership
        if applied is None:
            assert [members.at(LogIndex(at)) for at in (1, 2, 3, 4)] == [
                three(), ALONE, ALONE, three(),
            ]  # fmt: skip


def test_a_damaged_membership_is_named() -> None:
    with pytest.raises(StoreCorruptionError, match="membership"):
        decode_saved_membership(b"\xc1")

"""When a member applies what is committed: at once where somebody waits, else some together."""

from __future__ import annotations

import asyncio

from quorate.base.frames import SubmitReply
from quorate.base.types import LogIndex, Term
from quorate.replication.applying import GATHERED_BYTES, GATHERED_ENTRIES
from tests.replication.driving import (
    Rig,
    batch_entry,
    counts,
    entry,
    hit,
    how_many,
    turns,
    virtually,
)

TICK_S = 0.01


async def following(*tags: str) -> Rig:
    """A member that has applied the first entry, and has an entry for each of *tags* on disk."""
    rig = Rig(prompt=True)
    entries = [batch_entry(at, 2, hit(tag)) for at, tag in enumerate(tags, 3)]
    rig.append(entry(2, 2), *entries, prev=(1, 1), term=2, commit=2)
    await rig.settle()
    assert rig.replica.applied == 2
    return rig


def test_a_little_that_nobody_waits_for_is_applied_with_the_next_tick() -> None:
    async def main() -> None:
        rig = await following("a", "b")
        rig.heartbeat(2, commit=4)
        await turns(10)
        assert rig.replica.applied == 2
        rig.replica.start()
        await asyncio.sleep(2 * TICK_S)
        assert rig.replica.applied == 4
        rig.replica.stop()

    virtually(main())


def test_what_has_become_more_is_applied_at_once() -> None:
    async def main() -> None:
        rig = await following(*"abcdefgh"[:GATHERED_ENTRIES])
        rig.heartbeat(2, commit=1 + GATHERED_ENTRIES)
        await turns(10)
        assert rig.replica.applied == 2
        rig.heartbeat(2, commit=2 + GATHERED_ENTRIES)
        await turns(10)
        assert rig.replica.applied == 2 + GATHERED_ENTRIES
        large = await following("a", "x" * GATHERED_BYTES)
        large.heartbeat(2, commit=4)
        await turns(10)
        assert large.replica.applied == 4

    virtually(main())


def test_whoever_looks_sees_what_was_left() -> None:
    async def main() -> None:
        rig = await following("a", "b")
        rig.heartbeat(2, commit=4)
        rig.query(linearizable=False)
        assert [counts(each) for each in rig.reads] == [[2]]

    virtually(main())


def test_a_read_that_waits_is_answered_as_soon_as_its_entry_is_committed() -> None:
    async def main() -> None:
        rig = await following("a", "b")
        query = how_many(1, linearizable=False)
        rig.replica.query(type(query)(1, query.runs, linearizable=False, after=4), rig.reads.append)
        rig.heartbeat(2, commit=4)
        await turns()
        assert [counts(each) for each in rig.reads] == [[2]]

    virtually(main())


def test_answers_leave_before_the_entry_is_finished() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        seen: list[tuple[int, bytes]] = []
        rig.replica.on_answered(
            lambda: seen.append((len(rig.answers), rig.machines.state_hash)),
        )
        before = rig.machines.state_hash
        rig.submit("a", sequence=1)
        rig.submit("b", sequence=2)
        await turns()
        rig.disk.drain()
        rig.ack(rig.state.log.last_index)
        assert seen == [(2, before)]
        assert all(isinstance(each, SubmitReply) for each in rig.answers)
        assert rig.machines.state_hash != before

    virtually(main())


def test_a_deposed_leader_applies_at_once_what_its_clients_wait_for() -> None:
    async def main() -> None:
        rig = Rig()
        await rig.lead()
        rig.submit("a")
        await turns()
        rig.disk.drain()
        index, term = rig.state.log.last_index, rig.state.term
        rig.heartbeat(term + 1)
        rig.append(entry(index + 1, term + 1), prev=(index, term), term=term + 1, commit=index + 1)
        rig.disk.drain()
        await turns()
        assert len(rig.answers) == 1
        assert rig.replica.applied == LogIndex(index + 1)
        assert rig.state.term == Term(term + 1)

    virtually(main())

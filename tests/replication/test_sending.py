"""From orders to append requests: in order, whole, and never what the leader does not hold."""

from __future__ import annotations

import pytest

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.events import Compacted
from quorate.consensus.messages import AppendRequest, Entry, EntryId
from quorate.consensus.output import SendAppend
from quorate.errors import InvariantViolationError, LogCorruptionError
from quorate.replication import sending as module
from tests.replication.driving import ME, THREE, TWO, Rig, entry, virtually

TERM = Term(2)


class Desk(Rig):
    """Entries 2 to 10 of term 2 in the file; in memory those from *cached* on."""

    def __init__(self, cached: int = 6) -> None:
        super().__init__()
        self.append(*[entry(at, 2, b"x") for at in range(2, 11)], prev=(1, 1), term=2, commit=5)
        self.replica._cache._drop(LogIndex(cached - 1), 0)
        assert self.replica._cache.first_index == cached
        self.disk.drain()
        self.net.sent.clear()
        self.sender = self.replica._sender

    def order(self, first: int, last: int, target: NodeId = TWO, term: int = 2) -> None:
        self.sender.send(
            SendAppend(
                term=Term(term),
                sender=ME,
                target=target,
                prev_index=LogIndex(first - 1),
                prev_term=TERM if first > 2 else Term(1),
                last_index=LogIndex(last),
                commit=LogIndex(3),
                round=4,
            )
        )

    def sent(self, target: NodeId = TWO) -> list[tuple[int, list[int]]]:
        found = [each for each in self.net.sent if getattr(each, "target", 0) == target]
        self.net.sent = [each for each in self.net.sent if each not in found]
        for each in found:
            assert isinstance(each, AppendRequest)
            assert (each.commit, each.round, each.term) == (3, 4, TERM)
            assert each.prev_term == (2 if each.prev_index > 1 else 1)
        return [
            (each.prev_index, [e.index for e in each.entries])
            for each in found
            if isinstance(each, AppendRequest)
        ]


def test_orders_behind_a_read_wait_for_it_and_other_followers_do_not() -> None:
    async def main() -> None:
        desk = Desk()
        desk.order(4, 7)
        desk.order(8, 9)
        desk.order(10, 9)  # an empty one
        desk.order(8, 8, THREE)
        assert desk.sent() == []
        assert desk.sent(THREE) == [(7, [8])]
        desk.reader.drain()
        assert desk.sent() == [(3, [4, 5]), (5, [6, 7]), (7, [8, 9]), (9, [])]
        desk.order(10, 10)
        assert desk.sent() == [(9, [10])]  # nothing is left behind

    virtually(main())


def test_orders_of_an_ended_leadership_are_forgotten() -> None:
    async def main() -> None:
        desk = Desk()
        desk.order(4, 5)
        desk.order(6, 7)
        desk.heartbeat(3)
        desk.reader.drain()
        assert desk.sent() == []
        assert not desk.sender._fetching

    virtually(main())


def test_entries_cut_meanwhile_end_the_queue_and_the_core_finds_out() -> None:
    async def main() -> None:
        desk = Desk()
        desk.order(3, 4)
        desk.order(5, 6)
        desk.log.cut(EntryId(LogIndex(4), TERM))
        desk.reader.drain()
        assert desk.sent() == []
        assert not desk.failures
        desk.order(6, 6)
        assert desk.sent() == [(5, [6])]

    virtually(main())


def test_a_cut_after_the_read_does_no_harm() -> None:
    async def main() -> None:
        desk = Desk()
        desk.order(3, 4)
        report = desk.reader.work()
        floor = EntryId(LogIndex(5), TERM)
        desk.log.cut(floor)
        desk.replica.compacted(floor)
        assert desk.state.log.floor == floor
        report()
        assert desk.sent() == [(2, [3, 4])]
        assert not desk.failures
        assert Compacted(floor).floor == floor

    virtually(main())


def test_a_damaged_log_stops_the_node() -> None:
    async def main() -> None:
        desk = Desk()
        desk.order(3, 4)
        desk.reader.error = LogCorruptionError("damaged")
        desk.reader.step()
        assert [type(each) for each in desk.failures] == [LogCorruptionError]
        assert desk.sent() == []

    virtually(main())


@pytest.mark.parametrize("wrong", [entry(4, 1), entry(5, 2)])
def test_entries_that_are_not_the_leaders_own_never_leave(wrong: Entry) -> None:
    async def main() -> None:
        desk = Desk()
        desk.log.read = lambda *_: [wrong]  # type: ignore[method-assign]
        desk.order(4, 5)
        desk.reader.step()
        assert [type(each) for each in desk.failures] == [InvariantViolationError]
        assert desk.sent() == []

    virtually(main())


def test_a_slow_read_does_not_pile_up_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORDERS_WAITING_MAX", 3)

    async def main() -> None:
        desk = Desk()
        for at in range(2, 11):
            desk.order(at, at)
        desk.reader.drain()
        assert [entries for _, entries in desk.sent()] == [[2], [3], [4]]

    virtually(main())


def test_a_stopped_sender_is_silent() -> None:
    async def main() -> None:
        desk = Desk()
        desk.order(4, 5)
        desk.replica.stop()
        desk.reader.drain()
        desk.order(7, 8)
        assert desk.sent() == []

    virtually(main())

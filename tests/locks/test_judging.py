"""The holder's own judgement, against a cluster that is as slow and wrong as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from jepsen_like.simulation.loop import VirtualLoop
from quorate.base.lease_commands import GrantLease, LeaseGranted, LeaseRevoked, LeasesRenewed
from quorate.base.lock_commands import Release, Released
from quorate.client.claims import Desk
from quorate.client.codec import MachineCodec
from quorate.client.leases import Keeper, Lease
from quorate.client.watching import Watches
from quorate.errors import UnavailableError

TTL_S = 10.0


class Slow:
    """Stands in for a ``Database``. *answer*: what each command comes to, after how long."""

    timeout = 60.0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.watches = Watches(self.loop.time, lambda: None, iter(range(1, 1000)).__next__)
        self.sent: list[tuple[float, object]] = []
        self.delay_s = 0.0
        self.answer: Callable[[Any], object] = self.fine

    def fine(self, command: Any) -> object:
        match command:
            case GrantLease():
                return LeaseGranted(1, 0)
            case Release():
                return Released(0)
        if hasattr(command, "leases"):
            return LeasesRenewed(())
        return LeaseRevoked(1, existed=True)

    def codec(self, name: str, result_type: Any) -> MachineCodec:
        return MachineCodec(name, result_type)

    def submit(self, codec: MachineCodec, item: object, timeout: float, /) -> Any:
        self.sent.append((self.loop.time(), item))
        return self.loop.create_task(self._answered(self.delay_s, item))

    ask = submit

    async def _answered(self, delay_s: float, item: object) -> object:
        answer = self.answer(item)
        await asyncio.sleep(delay_s)
        if isinstance(answer, Exception):
            raise answer
        return answer


def on_virtual_time(story: Callable[[Slow], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        try:
            await story(Slow())
        finally:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(whole())
    finally:
        loop.close()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def granted(slow: Slow) -> Lease:
    return await Lease(Keeper(slow), int(TTL_S * 1000), "").grant()


def test_a_lease_is_good_from_when_its_grant_was_sent() -> None:
    async def story(slow: Slow) -> None:
        slow.delay_s = 4.0
        began = _now()
        lease = await granted(slow)
        assert lease.good_until == pytest.approx(began + 9.0)
        slow.answer = lambda _command: UnavailableError("gone")
        await lease.lost
        assert _now() == pytest.approx(began + 9.0, abs=0.01)

    on_virtual_time(story)


def test_a_lease_is_good_from_when_its_renewal_was_sent() -> None:
    async def story(slow: Slow) -> None:
        lease = await granted(slow)
        slow.delay_s = 3.0
        await asyncio.sleep(TTL_S / 3 + 3.1)
        ((sent_at, _),) = [each for each in slow.sent if hasattr(each[1], "leases")][:1]
        assert lease.good_until == pytest.approx(sent_at + 9.0)

    on_virtual_time(story)


def test_what_was_seen_to_be_over_does_not_come_back() -> None:
    """The answer to a renewal is read in the turn after the process was stopped, before timers."""

    async def story(slow: Slow) -> None:
        lease = await granted(slow)
        lease._good_until = _now()
        assert not lease.alive
        lease.renewed(_now())
        assert not lease.alive
        assert lease.lost.is_set()

    on_virtual_time(story)


def test_a_renewal_that_says_gone_ends_it_at_once() -> None:
    async def story(slow: Slow) -> None:
        lease = await granted(slow)
        began = _now()
        slow.answer = lambda command: (
            LeasesRenewed((1,)) if hasattr(command, "leases") else slow.fine(command)
        )
        assert await lease.lost == "has ended"
        assert _now() - began == pytest.approx(TTL_S / 3, abs=0.01)

    on_virtual_time(story)


def test_renewals_that_fail_are_tried_again_and_again() -> None:
    async def story(slow: Slow) -> None:
        lease = await granted(slow)
        failures = 12

        def answer(command: object) -> object:
            nonlocal failures
            failures -= 1
            return UnavailableError("no leader") if failures >= 0 else slow.fine(command)

        slow.answer = answer
        await asyncio.sleep(2 * TTL_S)
        assert lease.alive
        slow.answer = lambda _command: UnavailableError("for ever")
        began = _now()
        await lease.lost
        assert _now() - began <= 0.9 * TTL_S
        assert len(slow.sent) < 100

    on_virtual_time(story)


def test_what_is_to_be_taken_back_is_tried_until_answered() -> None:
    async def story(slow: Slow) -> None:
        lease = await granted(slow)
        desk = Desk(lease._keeper, lease)
        failures = 5

        def answer(command: object) -> object:
            nonlocal failures
            if isinstance(command, Release):
                failures -= 1
                if failures >= 0:
                    return UnavailableError("no leader")
            return slow.fine(command)

        slow.answer = answer
        codec = cast("MachineCodec", None)
        await desk.take_back(codec, Release(b"l", 1, 1))
        assert failures == -1

    on_virtual_time(story)

"""Leases, kept alive for as long as somebody holds them, and judged by their holder itself.

One task per handle renews all its leases, in one command per interval. That the cluster has renewed
a lease is good for its time to live from the moment at which the command was *sent*, less a margin
for clocks that run at different speeds: so the holder knows that a lease may have ended before
anybody else is given what was bound to it, even if it can reach no node, or was not running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from math import inf
from typing import Any, Final, Protocol, Self

import msgspec

from quorate.base.lease_commands import (
    LEASE_MACHINE,
    LEASE_NAME_MAX,
    GrantLease,
    LeaseEnded,
    LeaseInfo,
    LeaseQuery,
    LeaseResult,
    RenewLeases,
    RevokeLease,
    WatchLeases,
)
from quorate.base.limits import LEASE_BATCH_MAX, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN
from quorate.client.clocks import clock_of
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.losing import Guard, Loss, set_loss, watch_loss
from quorate.client.settings import CLOSE_TIMEOUT_S
from quorate.client.watching import Subscription, Watches
from quorate.errors import (
    ClosedError,
    InvalidArgumentError,
    LeaseLostError,
    LimitExceededError,
    NotHeldError,
    QuorateError,
)

#: Part of a lease's time that the holder does not count on. Clocks of computers differ by less than
#: 0.1 %; ten times a hundredth leaves room for a leader that was slow to note the time.
DRIFT_MARGIN: Final = 0.1
#: Renewals in the time that a lease lives: two may be lost.
RENEWALS_PER_TTL: Final = 3
RENEW_TIMEOUT_S_MIN: Final = 0.05
RETRY_S_MIN: Final = 0.02  # between attempts that failed at once; grows by doubling
RETRY_S_MAX: Final = 0.5
LEASE_TTL_S_DEFAULT: Final = 10.0  # of leases and locks: a few elections, and soon enough
HELD_LEASES_MAX: Final = 20_000  # of one handle: as many as it may watch

_decode_ended: Final = msgspec.msgpack.Decoder(list[LeaseEnded]).decode
_logger = logging.getLogger(__name__)


class LeasePlans(Protocol):
    """What leases and locks need of a ``Database``."""

    @property
    def timeout(self) -> float: ...
    @property
    def watches(self) -> Watches: ...
    def codec(self, name: str, result_type: Any) -> MachineCodec: ...  # noqa: ANN401
    def submit(self, codec: MachineCodec, item: object, timeout: float, /) -> AnyFuture: ...
    def ask(self, codec: MachineCodec, item: object, timeout: float, /) -> AnyFuture: ...


def check_ttl(ttl: float) -> int:
    """A time to live in seconds as milliseconds.

    Raises:
        InvalidArgumentError: it is none that a lease can have.
    """
    given: object = ttl
    low, high = LEASE_TTL_MS_MIN / 1000, LEASE_TTL_MS_MAX / 1000
    if isinstance(given, int | float) and low <= given <= high:
        return round(given * 1000)
    raise InvalidArgumentError(f"a ttl is {low:g} to {high:g} seconds, not {ttl!r}")


class Lease:
    """A promise of the cluster that stands as long as it is kept alive, which happens by itself.
    Made by ``Database.lease``; ``async with`` grants it and gives it back."""

    def __init__(self, keeper: Keeper, ttl_ms: int, name: str) -> None:
        self._keeper = keeper
        self._name = name
        self._clock = keeper.clock
        self._good_until = -inf  # by our clock; the holder's own judgement
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch: Subscription | None = None
        self.ttl_ms = ttl_ms
        self.id = 0  #: 0 before it is granted; never given out again
        #: Set when it is over and was not given back: await it, or ask.
        self.lost = Loss()

    # --- life -----------------------------------------------------------------------------------

    async def grant(self) -> Self:
        """Have the cluster grant it; ``async with`` does this.

        Raises:
            OverloadedError: the cluster has as many leases as it may, or this handle has.
            QuorateError: as any write.
        """
        if self.id or self._over:
            raise InvalidArgumentError("a lease is granted once; make another one")
        sent_at = self._clock()
        self.id = await self._keeper.grant(self)
        self.renewed(sent_at)
        try:
            self._watch = self._keeper.watch(self.id, self._on_events)
        except BaseException:
            self._keeper.give_up(self)
            raise
        return self

    async def revoke(self) -> bool:
        """Give it back, with all that is bound to it. False: it had ended before.

        Raises:
            QuorateError: as any write. The lease is not kept alive any more in any case.
        """
        if not self.id:
            raise NotHeldError("the lease was never granted")
        self._finish()
        existed: bool = await self._keeper.revoke(self.id)
        return existed

    async def __aenter__(self) -> Self:
        return await self.grant()

    async def __aexit__(self, *_exception: object) -> None:
        if not self._over:
            # Unreachable nodes are no reason to fail: nobody renews it any more.
            self._finish()
            await self._keeper.revoke_soon(self.id)

    # --- how it stands --------------------------------------------------------------------------

    @property
    def ttl(self) -> float:
        """Seconds for which it stands, from each renewal."""
        return self.ttl_ms / 1000

    @property
    def alive(self) -> bool:
        """Whether it surely stands at this moment: looked at anew each time, so that a process
        that was stopped sees it at once. False does not come back to True."""
        return not self._over and self._clock() < self._good_until

    @property
    def good_for(self) -> float:
        """Seconds for which it surely stands, whatever happens; 0 if it may have ended."""
        return 0.0 if self._over else max(self._good_until - self._clock(), 0.0)

    async def time_to_live(self, *, timeout: float | None = None) -> float:
        """Seconds until it ends if nobody renews it, as the cluster has it.

        Raises:
            LeaseExpiredError: it has ended.
            QuorateError: as any read.
        """
        info: LeaseInfo = await self._keeper.ask(LeaseQuery(self.id), timeout)
        return info.remaining_ms / 1000

    def on_lost(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call *callback* on the loop when it is lost; at once if it is. Returns what undoes it."""
        return watch_loss(self.lost, callback)

    def guard(self) -> Guard:
        """``async with lease.guard():`` the body is cancelled when the lease is lost, and
        ``LeaseLostError`` raised."""
        return Guard(self)

    def loss_error(self) -> LeaseLostError:
        """What to raise once it does not stand."""
        return LeaseLostError(f"lease {self.id} {self.lost.reason or _LAPSED}")

    def __repr__(self) -> str:
        return f"<Lease {self.id}, {self.ttl:g} s, {'alive' if self.alive else 'over'}>"

    # --- from the keeper ------------------------------------------------------------------------

    @property
    def good_until(self) -> float:
        """By the keeper's clock."""
        return self._good_until

    def renewed(self, sent_at: float) -> None:
        """A command sent at *sent_at* has renewed it."""
        if self._over:
            return
        if self._timer is not None and self._clock() >= self._good_until:
            self.end(_LAPSED)  # too late: somebody may have seen that it was over
            return
        self._good_until = max(self._good_until, sent_at + self.ttl * (1 - DRIFT_MARGIN))
        self._look_again()

    def _look_again(self) -> None:
        if self._timer is None and not self._over:
            loop = asyncio.get_running_loop()
            left_s = max(self._good_until - self._clock(), 0.0)
            self._timer = loop.call_later(left_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._clock() >= self._good_until:
            self.end(_LAPSED)
        else:
            self._look_again()

    def _on_events(self, _index: int, events: msgspec.Raw) -> None:
        for event in _decode_ended(events):
            if event.lease == self.id:
                self.end("was revoked" if event.revoked else "has run out")

    def end(self, reason: str) -> None:
        """It is lost."""
        if not self._over:
            self._finish()
            if reason is _LAPSED:
                self._keeper.give_up(self)
            set_loss(self.lost, reason)

    def _finish(self) -> None:
        """It is over, lost or given back."""
        self._over = True
        self._keeper.drop(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.close()


_LAPSED: Final = "was not renewed in time, and may have ended"


class Keeper:
    """Keeps all leases of a handle alive. *plans*: the handle."""

    def __init__(self, plans: LeasePlans) -> None:
        self.plans = plans
        self._codec = plans.codec(LEASE_MACHINE, LeaseResult)
        self._loop = asyncio.get_running_loop()
        self._leases: dict[int, Lease] = {}
        self._renewed_at = -inf  # when the last renewal of all was sent
        self._shortest_s = inf  # no ttl is shorter
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.clock = clock_of(self._loop)

    # --- for leases -----------------------------------------------------------------------------

    async def grant(self, lease: Lease) -> int:
        """The id that the cluster gave *lease*, which is kept alive from now on."""
        self.check_open()
        if len(self._leases) >= HELD_LEASES_MAX:
            raise LimitExceededError(f"one handle holds up to {HELD_LEASES_MAX} leases")
        command = GrantLease(lease.ttl_ms, lease._name)  # noqa: SLF001
        granted = await self.plans.submit(self._codec, command, self.plans.timeout)
        found: int = granted.lease
        if self._closed:
            raise ClosedError("the handle was closed")
        self._leases[found] = lease
        self._shortest_s = min(self._shortest_s, lease.ttl)
        if self._runner is None:
            self._renewed_at = self.clock()
            self._runner = self.errand(self._keep())
        self._changed.set()
        return found

    async def revoke(self, lease: int) -> bool:
        """See ``Lease.revoke``."""
        result = await self.plans.submit(self._codec, RevokeLease(lease), self.plans.timeout)
        existed: bool = result.existed
        return existed

    async def revoke_soon(self, lease: int) -> None:
        """Revoke, and wait for that a short time only; it goes on behind."""
        with contextlib.suppress(TimeoutError, QuorateError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.shield(self.errand(self.revoke(lease)))

    def give_up(self, lease: Lease) -> None:
        """Its holder lets go of it: what is bound to it need not wait for its end."""
        if lease.id and not self._closed:
            self.errand(self.revoke(lease.id))

    async def ask(self, query: object, timeout: float | None) -> Any:  # noqa: ANN401
        """A query of the lease machine."""
        return await self.plans.ask(self._codec, query, timeout or self.plans.timeout)

    def watch(self, lease: int, on_events: Callable[[int, msgspec.Raw], None]) -> Subscription:
        """Hear of the end of *lease*."""
        # If the watch fails for good, the next renewal tells.
        return self.plans.watches.open(
            LEASE_MACHINE, lambda: WatchLeases((lease,)), _pass_over, on_events, _pass_over
        )

    def drop(self, lease: Lease) -> None:
        """It is over: no longer renewed."""
        self._leases.pop(lease.id, None)
        self._changed.set()

    def errand(self, what: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Something to be done behind everybody's back; its failure is of no consequence."""
        task = self._loop.create_task(what, name="quorate-lease-errand")
        self._errands.add(task)
        task.add_done_callback(self._errand_done)
        return task

    def _errand_done(self, task: asyncio.Task[Any]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            level = logging.DEBUG if isinstance(error, QuorateError) else logging.ERROR
            _logger.log(level, "an errand failed: %s", error, exc_info=error)

    def check_open(self) -> None:
        """Raises ClosedError."""
        if self._closed:
            raise ClosedError("the handle was closed")

    async def close(self) -> None:
        """Everything that is held is given back, if that is quickly done."""
        self._closed = True
        leases = list(self._leases.values())
        for lease in leases:
            lease.end("went with the handle, which was closed")
        if self._runner is not None:
            self._runner.cancel()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    revokes = [self.revoke(lease.id) for lease in leases]
                    await asyncio.gather(*revokes, return_exceptions=True)
        finally:
            for task in self._errands:
                task.cancel()

    # --- keeping alive --------------------------------------------------------------------------

    async def _keep(self) -> None:
        retry_s = 0.0
        while True:
            self._changed.clear()
            await self._pause(retry_s)
            if not self._leases:
                self._runner = None
                return
            if retry_s == 0.0 and self._due_in() > 0:
                continue
            sent_at = self.clock()
            try:
                await self._renew(sent_at)
            except QuorateError as error:
                _logger.info("leases were not renewed: %s", error)
                retry_s = min(max(2 * retry_s, RETRY_S_MIN), RETRY_S_MAX)
            else:
                self._renewed_at = sent_at
                self._shortest_s = min((each.ttl for each in self._leases.values()), default=inf)
                retry_s = 0.0

    async def _pause(self, retry_s: float) -> None:
        """Until the next renewal is due, or the leases change."""
        if retry_s:
            await asyncio.sleep(retry_s)
            return
        due_in = self._due_in()
        if due_in > 0 and self._leases:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_in):
                    await self._changed.wait()

    def _due_in(self) -> float:
        """Seconds until the next renewal."""
        return self._renewed_at + self._shortest_s / RENEWALS_PER_TTL - self.clock()

    async def _renew(self, sent_at: float) -> None:
        first = min(lease.good_until for lease in self._leases.values())
        timeout_s = min(max(first - sent_at, RENEW_TIMEOUT_S_MIN), self.plans.timeout)
        plans, codec = self.plans, self._codec
        parts = list(_batched(list(self._leases)))
        waits = [plans.submit(codec, RenewLeases(part), timeout_s) for part in parts]
        results = await asyncio.gather(*waits, return_exceptions=True)
        failed: BaseException | None = None
        for part, result in zip(parts, results, strict=True):
            if isinstance(result, BaseException):
                failed = result
                continue
            for lease in result.gone:
                if lease in self._leases:
                    self._leases[lease].end("has ended")
            for lease in part:
                if lease in self._leases:
                    self._leases[lease].renewed(sent_at)
        if failed is not None:
            raise failed


def _batched(leases: list[int]) -> Iterator[tuple[int, ...]]:
    rest = iter(leases)
    while part := tuple(islice(rest, LEASE_BATCH_MAX)):
        yield part


def _pass_over(_news: object) -> None:
    return None


def check_name(name: str) -> str:
    """A lease's name, to show.

    Raises:
        InvalidArgumentError: not a string, or too long.
    """
    given: object = name
    if not isinstance(given, str) or len(given) > LEASE_NAME_MAX:
        raise InvalidArgumentError(f"a lease's name has up to {LEASE_NAME_MAX} characters")
    return given

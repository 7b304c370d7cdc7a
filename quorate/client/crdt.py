"""Handles of CRDT data: counters, registers, flags and sets that every node takes writes for.

They are made by ``Database.counter``, ``set``, ``register``, ``flag``, ``map`` and ``crdt``, on a
handle or a view; making one touches no network. Every call takes

* *timeout*, in seconds, instead of the handle's own;
* *level*: "eventual", "causal" (the default), "quorum" or "strong", see ``docs/consistency.md``;
* *receipt*: a ``Receipt``, which is told what the call got.

A write returns nothing: what it comes to depends on what others do meanwhile. Every call may raise

* ``NotSentError``, ``UnavailableError``, ``OverloadedError``, ``ClosedError``, and ``CrdtError``
  for what this kind of data does not allow: surely without effect;
* ``DeadlineExceededError``, ``OutcomeUnknownError``: a write may have happened, or may yet;
* ``UnconfirmedError``: a "quorum" or "strong" write has happened on one node, and those that it
  names have not confirmed it in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from quorate.base.crdt_frames import Rights as AskRights
from quorate.base.crdt_operations import (
    Add,
    Assign,
    Clear,
    Decrement,
    Disable,
    Enable,
    Increment,
    KindTag,
    Operation,
    Remove,
    Transfer,
)
from quorate.base.levels import Level
from quorate.client.crdt_calls import CrdtScope, Place
from quorate.client.crdt_values import Key, as_key, check_amount, check_key, check_value
from quorate.client.crdt_watch import PAUSE_S_DEFAULT, Watch
from quorate.client.levels import Receipt
from quorate.errors import CrdtError, InvalidArgumentError, QuorateError

T = TypeVar("T")


class Data(Generic[T]):
    """Base of all handles. *place*: where the data is; *scope*: how calls are made."""

    __slots__ = ("_place", "_scope")

    kind: ClassVar[KindTag]  #: what stands for this kind on the wire

    def __init__(self, place: Place, scope: CrdtScope) -> None:
        self._place = place
        self._scope = scope

    @property
    def name(self) -> str:
        """Under which it stands, or the map that it is in."""
        return self._place.name

    @property
    def keys_to_it(self) -> tuple[Any, ...]:
        """The keys that lead to it, of a map within ``name``; none if it stands by itself."""
        return tuple([key for key, _kind in self._place.within])

    def _write(
        self,
        operation: Operation,
        level: Level | None,
        receipt: Receipt | None,
        timeout: float | None,
    ) -> Awaitable[None]:
        return self._scope.write(self._place.update(operation), level, receipt, timeout)

    def _ask_value(
        self, level: Level | None, receipt: Receipt | None, timeout: float | None
    ) -> Awaitable[Any]:
        return self._scope.read(self._place.value(), level, receipt, timeout)

    async def _pages(
        self,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[list[Any]]:
        """The items of what has many, as they come over the wire; each page takes *timeout*."""
        start = b""
        while True:
            question = self._place.value(start)
            items, start = await self._scope.read(question, level, receipt, timeout)
            yield items
            if not start:
                return

    async def value(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> T:
        """What it comes to, of all that the node has seen."""
        found: T = await self._ask_value(level, receipt, timeout)
        return found

    def watch(self, *, pause: float = PAUSE_S_DEFAULT) -> Watch[T]:
        """``async with data.watch() as values: async for value in values``: its value now, and then
        whenever it has changed, the last one for certain. *pause*: seconds between two at least.
        What the connected node has: as ``causal`` says, or ``eventual`` on such a view.
        """
        scope = self._scope
        return Watch(
            lambda: scope.client.watches,
            self._place.name,
            lambda: self.value(level=scope.level_of_watches),
            scope.timeout,
            pause,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._place!r}>"


class _Clearable(Data[T]):
    __slots__ = ()

    async def clear(
        self,
        *,
        observed: bytes | None = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Back to the beginning, as far as the node has seen it, or as ``observe`` has."""
        await self._write(Clear(observed), level, receipt, timeout)

    async def observe(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """A token of all that is here now, for ``clear``."""
        token: bytes = await self._scope.read(self._place.observe(None), level, receipt, timeout)
        return token


# --- counters -------------------------------------------------------------------------------------


class GCounter(_Clearable[int]):
    """A counter that goes up. Increments of all nodes add up, each once."""

    __slots__ = ()

    kind = KindTag.G_COUNTER

    async def increment(
        self,
        by: int = 1,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Raise it by *by*, once, however often the call has to be sent."""
        await self._write(Increment(check_amount(by)), level, receipt, timeout)


class PNCounter(GCounter):
    """A counter that goes up and down."""

    __slots__ = ()

    kind = KindTag.PN_COUNTER

    async def decrement(
        self,
        by: int = 1,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Lower it by *by*, once."""
        await self._write(Decrement(check_amount(by)), level, receipt, timeout)


class Share(NamedTuple):
    """How far the life *epoch* of *member* may lower a bounded counter."""

    member: int
    epoch: int
    amount: int


class Rights(NamedTuple):
    """Of a bounded counter: how far the connected node may lower it, and how far each."""

    here: int
    shares: tuple[Share, ...]


class BoundedCounter(Data[int]):
    """A counter that never falls below zero: stock, seats, budgets. A node lowers it only as far as
    it has *rights*, which come with increments made there and by transfers."""

    __slots__ = ()

    kind = KindTag.BOUNDED_COUNTER

    async def increment(
        self,
        by: int = 1,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Raise it by *by*; the node that takes the write has the rights to as much."""
        await self._write(Increment(check_amount(by)), level, receipt, timeout)

    async def decrement(
        self,
        by: int = 1,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Lower it by *by*.

        Raises:
            InsufficientRightsError: the node has rights to less, ``error.available``.
        """
        await self._write(Decrement(check_amount(by)), level, receipt, timeout)

    async def transfer(
        self,
        member: int,
        amount: int,
        *,
        epoch: int | None = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Give rights to *amount* of the connected node's to *member*. *epoch*: to that life of it;
        None: to its present one.

        Raises:
            InsufficientRightsError: the node has rights to less, ``error.available``.
            CrdtError: *member* has no life that is known here.
        """
        check_amount(amount)
        if type(member) is not int or member < 1:
            raise InvalidArgumentError(f"a member is a number above 0, not {member!r}")
        if epoch is None:
            known = (await self.rights(timeout=timeout)).shares
            epoch = max((share.epoch for share in known if share.member == member), default=None)
        if epoch is None:
            raise CrdtError(
                f"the connected node knows no life of member {member}: transfer when it has begun"
            )
        await self._write(Transfer(member, epoch, amount), level, receipt, timeout)

    async def rights(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Rights:
        """Who may lower it how far, as the node has heard."""
        question = AskRights(self._place.name, self._place.within)
        here, shares = await self._scope.read(question, level, receipt, timeout)
        return Rights(here, tuple([Share(*share) for share in shares]))


# --- registers ------------------------------------------------------------------------------------


class LWWRegister(_Clearable[Any]):
    """One value, whatever MessagePack holds. Of two that were written at the same time, without one
    having seen the other, the one with the later stamp stays. None: nothing was written."""

    __slots__ = ()

    kind = KindTag.LWW_REGISTER

    async def assign(
        self,
        value: Any,  # noqa: ANN401
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write *value*, over all that the node has seen."""
        await self._write(Assign(check_value(value)), level, receipt, timeout)


class MVRegister(_Clearable[list[Any]]):
    """As ``LWWRegister``, but of values written at the same time all stay, until somebody who has
    seen them writes again."""

    __slots__ = ()

    kind = KindTag.MV_REGISTER

    async def assign(
        self,
        value: Any,  # noqa: ANN401
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Write *value*, over all that the node has seen."""
        await self._write(Assign(check_value(value)), level, receipt, timeout)

    async def value(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """All values that stand, in a fixed order."""
        return [item async for page in self._pages(level, receipt, timeout) for item in page]


# --- flags ----------------------------------------------------------------------------------------


class EnableWinsFlag(_Clearable[bool]):
    """On or off, off at first. Of enabling and disabling at the same time, enabling wins."""

    __slots__ = ()

    kind = KindTag.ENABLE_WINS_FLAG

    async def enable(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Switch it on."""
        await self._write(Enable(), level, receipt, timeout)

    async def disable(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Switch it off."""
        await self._write(Disable(), level, receipt, timeout)


class DisableWinsFlag(EnableWinsFlag):
    """On or off, on at first. Of enabling and disabling at the same time, disabling wins."""

    __slots__ = ()

    kind = KindTag.DISABLE_WINS_FLAG


# --- sets -----------------------------------------------------------------------------------------


class GSet(_Clearable[frozenset[Any]]):
    """A set to which elements are added. They are strings, bytes, integers and tuples of these, up
    to 4 KiB; there may be millions."""

    __slots__ = ()

    kind = KindTag.G_SET

    async def add(
        self,
        *elements: Key,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Put one element in, or several: each is an operation of its own, all leave together. If
        some are refused, the others are in, and the first refusal is raised."""
        if len(elements) == 1:
            await self._write(Add(check_key(elements[0])), level, receipt, timeout)
        else:
            operations = [Add(check_key(element)) for element in elements]
            await self._write_all(operations, level, receipt, timeout)

    async def _write_all(
        self,
        operations: Sequence[Operation],
        level: Level | None,
        receipt: Receipt | None,
        timeout: float | None,
    ) -> None:
        calls: list[Awaitable[None]] = []
        outcomes: list[object] = []
        try:
            calls.extend(self._write(each, level, receipt, timeout) for each in operations)
        except QuorateError as error:  # those before are on their way
            outcomes.append(error)
        outcomes += await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def contains(
        self,
        element: Key,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Whether *element* is in it."""
        question = self._place.contains(element)
        found: bool = await self._scope.read(question, level, receipt, timeout)
        return found

    async def value(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> frozenset[Any]:
        """All elements. Many come page by page, each from the state of its moment: what is added
        or removed meanwhile may be there or not."""
        pages = self._pages(level, receipt, timeout)
        return frozenset([as_key(element) async for page in pages for element in page])

    async def count(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many elements there are; they are counted page by page, as ``value`` reads them."""
        total = 0
        async for page in self._pages(level, receipt, timeout):
            total += len(page)
        return total

    async def members(
        self, *, level: Level | None = None, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """``async for element in data.members()``: the elements in order, without holding more than
        a page of them."""
        async for page in self._pages(level, None, timeout):
            for element in page:
                yield as_key(element)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.members()


class _RemovableSet(GSet):
    __slots__ = ()

    async def remove(
        self,
        element: Key,
        *,
        observed: bytes | None = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take *element* out, as far as the node has seen it added; with *observed*, a token of
        ``observe``, as far as that has, and what was added since stays.

        Raises:
            NotObservedError: the node has not seen yet what *observed* speaks of.
        """
        await self._write(Remove(check_key(element), observed), level, receipt, timeout)

    async def observe(
        self,
        element: Key | None = None,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """A token of what is known of *element* now, for ``remove``; without, one of all that is
        here, for ``clear``."""
        question = self._place.observe(element)
        token: bytes = await self._scope.read(question, level, receipt, timeout)
        return token


class ORSet(_RemovableSet):
    """A set. A removal takes what its author had seen: of adding and removing an element at the
    same time, adding wins."""

    __slots__ = ()

    kind = KindTag.OR_SET


class TwoPSet(_RemovableSet):
    """A set whose elements are added once and removed once: what was removed never comes back."""

    __slots__ = ()

    kind = KindTag.TWO_P_SET

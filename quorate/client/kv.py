"""The key-value store, as ``db.kv``: typed calls that coalesce by themselves.

Calls made in one turn of the loop leave in one frame, whoever makes them: there is no pipeline to
open. Keys and values are bytes; a ``str`` is taken as its UTF-8 encoding; what comes back is
bytes. Every call takes

* *timeout*, in seconds, instead of the handle's own;
* *level*: "strong", "quorum" (the default), "causal" or "eventual", see ``docs/consistency.md``. At
  "eventual" a write is over before its result is known, and comes to ``Accepted`` instead;
* *receipt*: a ``Receipt``, which is told what the call got;
* *fence*, if it writes: a grant of a lock or election, or several. The write is refused with
  ``FencedError`` if one of them has ended.

Every call may raise, besides what it names itself:

* ``NotSentError``, ``OverloadedError``, ``ClosedError``: surely without effect;
* ``DeadlineExceededError``, ``OutcomeUnknownError``, ``SessionExpiredError``: a write may have
  happened, or may yet (``error.definite`` is False);
* ``UnconfirmedError``: a "strong" write has happened, and some member has not confirmed it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final, Literal, overload

from quorate.base.fencing import Fence
from quorate.base.kv_commands import (
    Compare,
    CompareAndSet,
    CompareAndSetResult,
    DeleteResult,
    Get,
    GetResult,
    IncrementResult,
    KeyValue,
    KvResult,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Status,
    StatusResult,
    Txn,
    TxnResult,
)
from quorate.base.levels import Accepted, CertainLevel, Level
from quorate.base.limits import KEY_BYTES_MAX, TXN_OPERATIONS_MAX, VALUE_BYTES_MAX
from quorate.client import operations as ops
from quorate.client.codec import AnyFuture, MachineCodec
from quorate.client.kv_watch import Watch
from quorate.client.levels import Receipt, Scope
from quorate.client.operations import Bytes, Granted, Leased
from quorate.client.settings import check_timeout
from quorate.errors import InvalidArgumentError, LimitExceededError

KV_MACHINE: Final = "kv"
SCAN_PAGE_KEYS: Final = 1000  # keys per query of ``scan``


def _finish_get(future: AnyFuture, result: GetResult) -> None:
    future.set_result(result.item)


#: One for all handles: calls share a segment only if they share a codec.
_CODEC: Final = MachineCodec(KV_MACHINE, KvResult, {GetResult: _finish_get})

Fences = Fence | Granted | Iterable[Fence | Granted] | None
Plan = Callable[[MachineCodec, object, float], AnyFuture]


class Kv:
    """See the module. Made by ``Database``: *submit* and *ask* plan commands and linearizable
    queries, *scope* makes the calls that want something else."""

    __slots__ = ("_ask", "_plain", "_scope", "_submit", "_timeout")

    def __init__(self, submit: Plan, ask: Plan, scope: Scope, timeout: float) -> None:
        self._submit = submit
        self._ask = ask
        self._scope = scope
        self._plain = scope.plain
        self._timeout = timeout

    def bind(self, submit: Plan, ask: Plan) -> None:
        """Use these from now on; for ``Database``."""
        self._submit = submit
        self._ask = ask

    # --- one key -------------------------------------------------------------------------------

    @overload
    async def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        previous: bool = False,
        lease: int | Leased = 0,
        fence: Fences = None,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    async def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        previous: bool = False,
        lease: int | Leased = 0,
        fence: Fences = None,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> PutResult: ...
    async def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        previous: bool = False,
        lease: int | Leased = 0,
        fence: Fences = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> PutResult | Accepted:
        """Set *key* to *value*; with *previous*, the result shows what was there. *lease*: the key
        goes when that lease ends; without, it belongs to none from now on.

        Raises:
            LeaseExpiredError: the lease does not stand.
        """
        if (
            type(key) is not bytes
            or type(value) is not bytes
            or not key
            or len(key) > KEY_BYTES_MAX
            or len(value) > VALUE_BYTES_MAX
        ):
            key, value = ops.as_key(key), ops.as_value(value)
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        command = Put(key, value, previous, ops.as_lease(lease) if lease != 0 else 0)
        result: PutResult | Accepted
        if level is None and receipt is None and fence is None and self._plain:
            result = await self._submit(_CODEC, command, wait_s)
        else:
            checked = ops.fenced(command, fence)
            result = await self._scope.write(_CODEC, checked, wait_s, level, receipt)
        return result

    async def get(
        self,
        key: Bytes,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """The value and revisions of *key*, None if there is no such key."""
        item: KeyValue | None = await self._read(Get(ops.as_key(key)), level, receipt, timeout)
        return item

    @overload
    async def delete(
        self,
        key: Bytes,
        *,
        previous: bool = False,
        fence: Fences = None,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    async def delete(
        self,
        key: Bytes,
        *,
        previous: bool = False,
        fence: Fences = None,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> DeleteResult: ...
    async def delete(
        self,
        key: Bytes,
        *,
        previous: bool = False,
        fence: Fences = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> DeleteResult | Accepted:
        """Remove *key*; ``count`` of the result is 0 if there was none."""
        result: DeleteResult | Accepted = await self._do(
            ops.fenced(ops.delete(key, previous=previous), fence), level, receipt, timeout
        )
        return result

    @overload
    async def compare_and_set(
        self,
        key: Bytes,
        expected: Bytes | int | None,
        value: Bytes | None,
        *,
        lease: int | Leased = 0,
        fence: Fences = None,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    async def compare_and_set(
        self,
        key: Bytes,
        expected: Bytes | int | None,
        value: Bytes | None,
        *,
        lease: int | Leased = 0,
        fence: Fences = None,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> CompareAndSetResult: ...
    async def compare_and_set(
        self,
        key: Bytes,
        expected: Bytes | int | None,
        value: Bytes | None,
        *,
        lease: int | Leased = 0,
        fence: Fences = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> CompareAndSetResult | Accepted:
        """Set *key* to *value* (None: remove it) if it is as *expected*: a value, or the revision
        that last modified it, or None for "there is no such key". *lease*: as for ``put``."""
        command = CompareAndSet(
            ops.as_key(key),
            None if value is None else ops.as_value(value),
            _as_expected(expected),
            ops.as_lease(lease),
        )
        result: CompareAndSetResult | Accepted = await self._do(
            ops.fenced(command, fence), level, receipt, timeout
        )
        return result

    @overload
    async def increment(
        self,
        key: Bytes,
        delta: int = 1,
        *,
        fence: Fences = None,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    async def increment(
        self,
        key: Bytes,
        delta: int = 1,
        *,
        fence: Fences = None,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> IncrementResult: ...
    async def increment(
        self,
        key: Bytes,
        delta: int = 1,
        *,
        fence: Fences = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> IncrementResult | Accepted:
        """Add *delta* to the decimal number that *key* holds as text; a missing key counts as 0.

        Raises:
            CommandError: the value is no such number, or the sum leaves 64 bits.
        """
        command = ops.fenced(ops.increment(key, delta), fence)
        result: IncrementResult | Accepted = await self._do(command, level, receipt, timeout)
        return result

    # --- many keys -----------------------------------------------------------------------------

    async def range(
        self,
        start: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        limit: int = 0,
        reverse: bool = False,
        keys_only: bool = False,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> RangeResult:
        """Keys in order: from *start* up to but not including *end*, or all with *prefix*. If
        ``more`` is set in the result, it ends before the range does; ``scan`` goes on by itself.
        """
        query = ops.span(
            start, end, prefix=prefix, limit=limit, reverse=reverse, keys_only=keys_only
        )
        result: RangeResult = await self._read(query, level, receipt, timeout)
        return result

    async def count(
        self,
        start: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many keys there are in a range named as in ``range``."""
        query = ops.span(start, end, prefix=prefix, count_only=True)
        result: RangeResult = await self._read(query, level, receipt, timeout)
        return result.count

    async def scan(
        self,
        start: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        keys_only: bool = False,
        page: int = SCAN_PAGE_KEYS,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[KeyValue]:
        """Every key of a range of any size, in order, *page* keys per query. Each page is read
        from one state, but later pages from later states. *timeout* is that of one page."""
        async for items in self.pages(
            start,
            end,
            prefix=prefix,
            keys_only=keys_only,
            page=page,
            level=level,
            receipt=receipt,
            timeout=timeout,
        ):
            for item in items:
                yield item

    async def pages(
        self,
        start: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        keys_only: bool = False,
        page: int = SCAN_PAGE_KEYS,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[tuple[KeyValue, ...]]:
        """As ``scan``, page by page."""
        query = ops.span(start, end, prefix=prefix, limit=page, keys_only=keys_only)
        if page == 0:
            raise InvalidArgumentError("a page has at least one key")
        if query.prefix:
            query = Range(query.start, after_prefix(query.start), limit=page, keys_only=keys_only)
        while True:
            found: RangeResult = await self._read(query, level, receipt, timeout)
            if found.items:
                yield found.items
            if not found.more or not found.items:
                return
            query = Range(found.items[-1].key + b"\0", query.end, limit=page, keys_only=keys_only)

    @overload
    async def delete_range(
        self,
        start: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        limit: int = 0,
        previous: bool = False,
        fence: Fences = None,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    async def delete_range(
        self,
        start: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        limit: int = 0,
        previous: bool = False,
        fence: Fences = None,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> DeleteResult: ...
    async def delete_range(
        self,
        start: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        limit: int = 0,
        previous: bool = False,
        fence: Fences = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> DeleteResult | Accepted:
        """Remove a range named as in ``range``. *limit* 0: all of it, and the command is refused
        if that is more than ``RANGE_LIMIT_MAX`` keys; otherwise at most so many, and ``more`` of
        the result says whether some are left."""
        command = ops.delete_span(start, end, prefix=prefix, limit=limit, previous=previous)
        result: DeleteResult | Accepted = await self._do(
            ops.fenced(command, fence), level, receipt, timeout
        )
        return result

    @overload
    async def txn(
        self,
        compare: Iterable[Compare] = (),
        *,
        then: Iterable[Operation] = (),
        otherwise: Iterable[Operation] = (),
        fence: Fences = None,
        level: Literal["eventual"],
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> Accepted: ...
    @overload
    async def txn(
        self,
        compare: Iterable[Compare] = (),
        *,
        then: Iterable[Operation] = (),
        otherwise: Iterable[Operation] = (),
        fence: Fences = None,
        level: CertainLevel | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> TxnResult: ...
    async def txn(
        self,
        compare: Iterable[Compare] = (),
        *,
        then: Iterable[Operation] = (),
        otherwise: Iterable[Operation] = (),
        fence: Fences = None,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> TxnResult | Accepted:
        """If all of *compare* hold, do *then*, else *otherwise*: all or nothing, in order, under
        one revision. Conditions and operations come from ``quorate.ops``.

        Raises:
            InvalidArgumentError: a branch writes a key twice, or writes and deletes it.
            LimitExceededError: more than ``TXN_OPERATIONS_MAX`` conditions or operations.
        """
        parts = (tuple(compare), tuple(then), tuple(otherwise))
        for part, what, kind in zip(
            parts,
            ("conditions", "operations", "operations"),
            (Compare, Operation, Operation),
            strict=True,
        ):
            _check_part(part, what, kind)
        command = ops.fenced(Txn(*parts), fence)
        result: TxnResult | Accepted = await self._do(command, level, receipt, timeout)
        return result

    def watch(
        self,
        key: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        start: Bytes | None = None,
        end: Bytes | None = None,
        start_revision: int | None = None,
        previous: bool = False,
        puts: bool = True,
        deletes: bool = True,
        silence: float | None = None,
    ) -> Watch:
        """Everything that becomes of one key, of all with a prefix, or of a range, in order::

            async with db.kv.watch(prefix="config/") as watch:
                async for event in watch:
                    print(event.type, event.key, event.value)

        *start_revision*: from this one on, which may be past or yet to come; None: from now on.
        *previous*: events show what was there before. *puts*, *deletes*: which events to tell.
        *silence*: raise ``UnavailableError`` when no node was heard of for so many seconds; None:
        wait for ever. See ``docs/watches.md``.
        """
        request = ops.watched(
            key, prefix, start, end, start_revision, previous=previous, puts=puts, deletes=deletes
        )
        return Watch(self._scope.watches, self._revision_now, request, self._timeout, silence)

    async def _revision_now(self, timeout: float) -> int:
        status: StatusResult = await self._ask(_CODEC, Status(), timeout)
        return status.revision

    async def statistics(
        self,
        *,
        level: Level | None = None,
        receipt: Receipt | None = None,
        timeout: float | None = None,
    ) -> StatusResult:
        """The store's revision and number of keys."""
        result: StatusResult = await self._read(Status(), level, receipt, timeout)
        return result

    def _do(
        self, command: object, level: Level | None, receipt: Receipt | None, timeout: float | None
    ) -> Awaitable[Any]:
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        if level is None and receipt is None and self._plain:
            return self._submit(_CODEC, command, wait_s)
        return self._scope.write(_CODEC, command, wait_s, level, receipt)

    def _read(
        self, query: object, level: Level | None, receipt: Receipt | None, timeout: float | None
    ) -> Awaitable[Any]:
        wait_s = self._timeout if timeout is None else check_timeout(timeout)
        if level is None and receipt is None and self._plain:
            return self._ask(_CODEC, query, wait_s)
        return self._scope.read(_CODEC, query, wait_s, level, receipt)


def after_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with *prefix*; None if there can be none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


def _as_expected(expected: Bytes | int | None) -> bytes | int | None:
    if expected is None:
        return None
    if isinstance(expected, int):
        return ops.as_integer(expected, "an expected revision")
    return ops.as_value(expected)


def _check_part(part: tuple[Any, ...], what: str, kind: Any) -> None:  # noqa: ANN401
    if len(part) > TXN_OPERATIONS_MAX:
        raise LimitExceededError(
            f"a transaction has up to {TXN_OPERATIONS_MAX} {what} in one place, not {len(part)}"
        )
    for item in part:
        if not isinstance(item, kind):
            raise InvalidArgumentError(
                f"{item!r} is not one of the {what} of a transaction; make them with quorate.ops"
            )

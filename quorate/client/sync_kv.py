"""The key-value store without ``await``: every call is that of the asynchronous ``Kv``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from quorate.base.kv_commands import KeyValue
from quorate.base.kv_watch import KeyEvent, KeyEvents
from quorate.client import kv as asynchronous
from quorate.client.kv_watch import Watch as AsyncWatch
from quorate.client.settings import check_timeout

P = ParamSpec("P")
T = TypeVar("T")

#: Runs what it is given on the loop of the asynchronous twin, whose ``Kv`` it hands in.
OnKv = Callable[[Callable[[asynchronous.Kv], Coroutine[Any, Any, Any]]], Any]


def _twin(
    method: Callable[Concatenate[asynchronous.Kv, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Kv, P], T]:
    def call(self: Kv, /, *args: P.args, **kwargs: P.kwargs) -> T:
        places: Any = [listed(item) for item in args]
        named: Any = {name: listed(item) for name, item in kwargs.items()}
        result: T = self._run(lambda kv: method(kv, *places, **named))
        return result

    functools.update_wrapper(call, method)
    return call


def _scanning(
    method: Callable[Concatenate[asynchronous.Kv, P], AsyncIterator[KeyValue]],
    by_pages: Callable[Concatenate[asynchronous.Kv, P], AsyncIterator[tuple[KeyValue, ...]]],
) -> Callable[Concatenate[Kv, P], Iterator[KeyValue]]:
    """A generator of this thread over the pages that are fetched on the loop."""

    def scan(self: Kv, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[KeyValue]:
        async def begin(kv: asynchronous.Kv) -> AsyncIterator[tuple[KeyValue, ...]]:
            return by_pages(kv, *args, **kwargs)

        pages: AsyncIterator[tuple[KeyValue, ...]] = self._run(begin)

        async def turn(_kv: asynchronous.Kv) -> tuple[KeyValue, ...]:
            async for page in pages:
                return page
            return ()

        while items := self._run(turn):
            yield from items

    functools.update_wrapper(scan, method)
    return scan


def _watching(
    method: Callable[Concatenate[asynchronous.Kv, P], AsyncWatch],
) -> Callable[Concatenate[Kv, P], Watch]:
    def watch(self: Kv, /, *args: P.args, **kwargs: P.kwargs) -> Watch:
        async def make(kv: asynchronous.Kv) -> AsyncWatch:
            return method(kv, *args, **kwargs)

        return Watch(self._run(make), self._run)

    functools.update_wrapper(watch, method)
    return watch


class Watch:
    """As the asynchronous ``Watch``, without ``await``. For one thread at a time; another may close
    it, which ends the iteration."""

    def __init__(self, twin: AsyncWatch, run: OnKv) -> None:
        self._twin = twin
        self._run = run
        self._batches: deque[KeyEvents] = deque()
        self._part: deque[KeyEvent] = deque()
        self._given = 0

    def __enter__(self) -> Self:
        self._run(lambda _kv: self._twin.__aenter__())
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """As ``Watch.close``."""
        self._run(lambda _kv: self._twin.close())

    @property
    def revision(self) -> int:
        """As ``Watch.revision``."""
        return self._given if self._batches or self._part else self._twin.revision

    def __iter__(self) -> Iterator[KeyEvent]:
        return self

    def __next__(self) -> KeyEvent:
        """As ``Watch.__anext__``."""
        if not self._part:
            self._part.extend(self._next(None).events)
        event = self._part.popleft()
        if not self._part:
            self._given = event.mod_revision
        return event

    def batches(self) -> Iterator[KeyEvents]:
        """As ``Watch.batches``."""
        with contextlib.suppress(StopIteration):
            while True:
                yield self._next_batch(None)

    def wait(self, timeout: float) -> KeyEvents | None:
        """What the next revision did, if there is one within *timeout* seconds."""
        try:
            return self._next_batch(check_timeout(timeout))
        except TimeoutError:
            return None

    def progress(self, *, timeout: float | None = None) -> int:
        """As ``Watch.progress``."""
        revision: int = self._run(lambda _kv: self._twin.progress(timeout=timeout))
        return revision

    def _next_batch(self, timeout: float | None) -> KeyEvents:
        if self._part:
            batch = KeyEvents(self._part[0].mod_revision, tuple(self._part))
            self._part.clear()
        else:
            batch = self._next(timeout)
        self._given = batch.revision
        return batch

    def _next(self, timeout: float | None) -> KeyEvents:
        if not self._batches:
            before = self._given

            async def take(_kv: asynchronous.Kv) -> list[KeyEvents]:
                async with asyncio.timeout(timeout):
                    return await self._twin.take()

            self._given = max(before, self._twin.revision)
            self._batches.extend(self._run(take))
        if not self._batches:
            raise StopIteration
        return self._batches.popleft()


def listed(item: object) -> object:
    """A generator may belong to the thread that calls: it is iterated there."""
    return list(item) if isinstance(item, Iterator) else item


class Kv:
    """As the asynchronous ``Kv``; every call is explained there."""

    def __init__(self, run: OnKv) -> None:
        self._run = run

    put = _twin(asynchronous.Kv.put)
    get = _twin(asynchronous.Kv.get)
    delete = _twin(asynchronous.Kv.delete)
    compare_and_set = _twin(asynchronous.Kv.compare_and_set)
    increment = _twin(asynchronous.Kv.increment)
    range = _twin(asynchronous.Kv.range)
    count = _twin(asynchronous.Kv.count)
    scan = _scanning(asynchronous.Kv.scan, asynchronous.Kv.pages)
    delete_range = _twin(asynchronous.Kv.delete_range)
    txn = _twin(asynchronous.Kv.txn)
    statistics = _twin(asynchronous.Kv.statistics)
    watch = _watching(asynchronous.Kv.watch)

"""The key-value store without ``await``: every call is that of the asynchronous ``Kv``."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from quorate.base.kv_commands import KeyValue
from quorate.client import kv as asynchronous

P = ParamSpec("P")
T = TypeVar("T")

#: Runs what it is given on the loop of the asynchronous twin, whose ``Kv`` it hands in.
OnKv = Callable[[Callable[[asynchronous.Kv], Coroutine[Any, Any, Any]]], Any]


def _twin(
    method: Callable[Concatenate[asynchronous.Kv, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Kv, P], T]:
    def call(self: Kv, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # A generator may belong to this thread: it is iterated here.
        listed: Any = [_listed(item) for item in args]
        named: Any = {name: _listed(item) for name, item in kwargs.items()}
        result: T = self._run(lambda kv: method(kv, *listed, **named))
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


def _listed(item: object) -> object:
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

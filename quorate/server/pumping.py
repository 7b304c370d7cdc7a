"""Many calls outstanding, in a bounded number: how loaders keep a pipelined client busy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


async def pump(
    items: Iterator[T], work: Callable[[T], Awaitable[None]], *, outstanding: int
) -> None:
    """Call *work* for each of *items*, up to *outstanding* at once; begun in their order.

    Raises:
        Exception: the first that *work* or *items* raised; the calls under way were cancelled.
    """

    async def worker() -> None:
        for item in items:
            await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(outstanding)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

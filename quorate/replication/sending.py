"""Fills the entries into what the core wants sent: from memory, or, for a slow follower, from disk.

The core orders "entries 7 to 90 to node 3" and pipelines the next order at once; a follower that
reads from the file must still get them in that order, so the rest queues behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from quorate.base.invariants import must
from quorate.base.limits import MIB
from quorate.base.types import LogIndex, NodeId
from quorate.consensus.messages import AppendRequest, Entry
from quorate.consensus.output import SendAppend
from quorate.consensus.state import State
from quorate.replication.disk import JobRunner
from quorate.replication.log_cache import LogCache
from quorate.replication.transport import Transport
from quorate.storage.interfaces import LogStore

#: Payload bytes of one read; an order is never larger (``CoreConfig.append_bytes_max``, one entry).
READ_BYTES_MAX = 16 * MIB


class AppendSender:
    """Turns ``SendAppend`` orders into ``AppendRequest`` messages, in order for each follower."""

    def __init__(
        self,
        state: State,
        log: LogStore,
        cache: LogCache,
        runner: JobRunner,
        transport: Transport,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._state = state
        self._log = log
        self._cache = cache
        self._runner = runner
        self._transport = transport
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        #: Orders behind a read, by follower; bounded by the core's inflight limits.
        self._fetching: dict[NodeId, deque[SendAppend]] = {}
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def send(self, order: SendAppend) -> None:
        """Send it now, or as soon as what was ordered before it and its entries are there."""
        queue = self._fetching.get(order.target)
        if queue is not None:
            queue.append(order)
            return
        entries = self._cached(order)
        if entries is not None:
            self._send_filled(order, entries)
        else:
            self._fetching[order.target] = deque((order,))
            self._fetch_next(order.target)

    def _cached(self, order: SendAppend) -> tuple[Entry, ...] | None:
        if order.last_index == order.prev_index:
            return ()
        return self._cache.slice(LogIndex(order.prev_index + 1), order.last_index)

    def _fetch_next(self, target: NodeId) -> None:
        queue = self._fetching[target]
        while queue and queue[0].term != self._state.term:
            queue.popleft()  # of a leadership that has ended
        if not queue or self._stopped:
            del self._fetching[target]
            return
        order = queue[0]
        cached = self._cached(order)
        if cached is not None:
            self._send_filled(queue.popleft(), cached)
            self._loop.call_soon(self._fetch_next, target)
            return
        first = LogIndex(order.prev_index + 1)

        def done(entries: list[Entry] | None, error: BaseException | None) -> None:
            if isinstance(error, KeyError):
                queue.clear()  # cut or truncated meanwhile: the core will probe, or send a snapshot
            elif error is not None:
                self._on_failure(error)
                return
            elif entries and queue:
                self._send_filled(queue.popleft(), tuple(entries))
            self._fetch_next(target)

        self._runner.run(lambda: self._log.read(first, order.last_index, READ_BYTES_MAX), done)

    def _send_filled(self, order: SendAppend, entries: tuple[Entry, ...]) -> None:
        if order.term != self._state.term or self._stopped:
            return
        must(
            not entries or entries[0].index == order.prev_index + 1,
            "entries follow prev",
            prev=order.prev_index,
        )
        request = AppendRequest(
            term=order.term,
            sender=order.sender,
            target=order.target,
            prev_index=order.prev_index,
            prev_term=order.prev_term,
            entries=entries,
            commit=order.commit,
            round=order.round,
        )
        self._transport.send(order.target, request)

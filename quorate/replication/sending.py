"""Fills the entries into what the core wants sent: from memory, or, for a slow follower, from disk.

The core orders "entries 7 to 90 to node 3" and pipelines the next order at once; a follower that
reads from the file must still get them in that order, so the rest queues behind it.

The file is asked only for what the cache no longer holds: above that it may still have entries
that were overwritten, and the write of the new ones may be under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

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
#: Orders that wait behind a read for one follower: more than the core has in flight; beyond it
#: they are dropped, as by a network, and the core finds out.
ORDERS_WAITING_MAX = 256


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
        #: Orders behind a read, by follower.
        self._fetching: dict[NodeId, deque[SendAppend]] = {}
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def send(self, order: SendAppend) -> None:
        """Send it now, or as soon as what was ordered before it and its entries are there."""
        queue = self._fetching.get(order.target)
        if queue is not None:
            if len(queue) < ORDERS_WAITING_MAX:
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
        """Go on with what is queued for *target*, until something has to be read."""
        queue = self._fetching[target]
        while queue and not self._stopped:
            order = queue[0]
            if order.term != self._state.term:
                queue.popleft()  # of a leadership that has ended
                continue
            entries = self._cached(order)
            if entries is not None:
                self._send_filled(queue.popleft(), entries)
                continue
            self._read(order)
            return
        del self._fetching[target]

    def _read(self, order: SendAppend) -> None:
        first = LogIndex(order.prev_index + 1)
        last = LogIndex(min(order.last_index, self._cache.first_index - 1))
        must(first <= last, "a leader has what it wants sent", order=order, last=last)

        def done(entries: list[Entry] | None, error: BaseException | None) -> None:
            try:
                self._on_read(order, entries, error)
            except Exception as broken:  # noqa: BLE001 - a broken claim stops the node, not the loop
                self._on_failure(broken)

        self._runner.run(lambda: self._log.read(first, last, READ_BYTES_MAX), done)

    def _on_read(
        self, order: SendAppend, entries: list[Entry] | None, error: BaseException | None
    ) -> None:
        queue = self._fetching[order.target]
        if isinstance(error, KeyError):
            queue.clear()  # cut meanwhile: the core will probe, or send a snapshot
        elif error is not None:
            self._on_failure(error)
            return
        elif entries and queue and queue[0] is order and order.term == self._state.term:
            queue.popleft()
            last = entries[-1]
            if last.index < order.last_index:  # the cache has the rest
                rest = {"prev_index": last.index, "prev_term": last.term}
                queue.appendleft(msgspec.structs.replace(order, **rest))
            self._check(entries)
            self._send_filled(order, tuple(entries))
        self._fetch_next(order.target)

    def _check(self, entries: list[Entry]) -> None:
        """What was read is this leader's log, as far as the core still remembers it."""
        log = self._state.log
        for entry in entries:
            must(
                entry.index < log.floor.index or log.term_at(entry.index) == entry.term,
                "the file holds the log that the core knows",
                entry=(entry.index, entry.term),
                known=log.term_at(entry.index),
            )

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

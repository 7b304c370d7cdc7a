"""Watches: keys under one prefix are written, deleted and changed together, and watchers are told.

A watcher lives as long as its client, and takes what has come a part at a time. Where a client
dies, another goes on from the bookmark; at the end every watcher is brought up to the last
revision, and one more reads the whole history from the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.watch import WatchChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from quorate.base.kv_commands import DeleteResult, Operation
from quorate.base.kv_watch import KeyEvents
from quorate.client import operations as ops
from quorate.client.database import Database
from quorate.client.kv_watch import Watch
from quorate.errors import CompactedError, QuorateError

PREFIX: Final = "watch/"
GROUPS: Final = ("watch/a/", "watch/b/")
KEYS_PER_GROUP: Final = 4
#: A part ends after so long without news, or so many revisions.
PART_S: Final = 0.2
PART_REVISIONS_MAX: Final = 200
#: A command that counts up this key is undone as a whole: it holds no number.
TEXT_KEY: Final = "not-a-number"


class WatchWorkload:
    """*watches*: the share of operations that take a part of a watch."""

    name = "watch"

    def __init__(self, *, watches: float = 0.35) -> None:
        self._watches = watches
        self._written = 0
        #: Bookmarks: what each watcher was told up to, and what it watches.
        self._bookmarks: dict[str, tuple[int, str]] = {}
        self._watchers: dict[int, str] = {}  # by process
        self._begun = 0  # watchers

    async def setup(self, client: Client) -> None:
        await outcome_of(quorate_client(client).database.kv.put(TEXT_KEY, b"text"))

    # --- what is asked ----------------------------------------------------------------------------

    def next(self, random: Random, process: int) -> Invocation:
        if random.random() < self._watches:
            return Invocation("watch", None, self._part_of(random, process))
        keys = [f"{group}{number}" for group in GROUPS for number in range(KEYS_PER_GROUP)]
        chance = random.random()
        count = 1 if chance < 0.6 else random.randint(2, 3)
        changes = [self._change(random, key) for key in random.sample(keys, count)]
        if chance > 0.9:  # a command that is refused in the end, and must not have happened
            changes.append(["increment", TEXT_KEY, None])
        return Invocation("write", None, changes)

    def _change(self, random: Random, key: str) -> list[Any]:
        if random.random() < 0.25:
            return ["delete", key, None]
        self._written += 1
        return ["put", key, self._written]

    def _part_of(self, random: Random, process: int) -> dict[str, Any]:
        """The watcher that the process has; or a new one, or one whose process is gone."""
        if process not in self._watchers:
            taken = set(self._watchers.values())
            left = [name for name in self._bookmarks if name not in taken]
            self._begun += 1
            name = f"w{self._begun}"
            if left and random.random() < 0.5:
                name = random.choice(left)
            self._watchers[process] = name
        name = self._watchers[process]
        keys = self._bookmarks[name][1] if name in self._bookmarks else ""
        return {
            "watcher": name,
            "keys": keys or random.choice((PREFIX, *GROUPS, f"{GROUPS[0]}1")),
            "process": process,
        }

    def last(self) -> Sequence[Invocation]:
        """Every watcher to the last revision; all of it again; and what it comes to."""
        self._bookmarks["whole"] = (0, PREFIX)
        parts = [
            Invocation("watch", None, {"watcher": name, "keys": keys, "process": 0, "last": True})
            for name, (_revision, keys) in self._bookmarks.items()
        ]
        return [*parts, Invocation("read")]

    # --- how it is done ---------------------------------------------------------------------------

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        if invocation.f == "write":
            return await _write(ours.database, invocation.value)
        if invocation.f == "read":
            found = await outcome_of(ours.database.kv.range(prefix=PREFIX), reads=True)
            state = {each.key.decode(): int(each.value) for each in found.items}
            return True, {"revision": found.revision, "state": state}
        live: dict[str, Watch] = ours.kept.setdefault(self.name, {})
        told = False
        try:
            part = await self._watch(ours.database, live, invocation.value)
            told = True
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=True) from error
        finally:
            if not told:  # what it gave out is in no history: it is told again from the bookmark
                watch = live.pop(invocation.value["watcher"], None)
                if watch is not None:
                    await watch.close()
        return True, part

    async def _watch(
        self, database: Database, live: dict[str, Watch], asked: dict[str, Any]
    ) -> dict[str, Any]:
        """A part of a watcher's events, from its bookmark on."""
        name, last = asked["watcher"], asked.get("last", False)
        revision, keys = self._bookmarks.get(name, (-1, asked["keys"]))
        watch = live.get(name)
        # Another client may have gone on with it meanwhile, and come to the end of its history.
        if watch is None or not 0 <= revision <= watch.revision:
            if watch is not None:
                await watch.close()
            watch = live[name] = _new_watch(database, keys, revision + 1)
            await watch.__aenter__()
            if revision < 0:
                revision = watch.revision
        told: list[KeyEvents] = []
        compacted = 0
        try:
            goal = await watch.progress() if last else 0
            async with asyncio.timeout(None if last else PART_S):
                batches = watch.batches()
                while watch.revision < goal if last else len(told) < PART_REVISIONS_MAX:
                    told.append(await anext(batches))
        except CompactedError as error:
            compacted = error.oldest
        except TimeoutError as error:
            if isinstance(error, QuorateError):
                raise
        if compacted:  # it was away for too long; its process begins another
            del live[name]
            self._bookmarks.pop(name, None)
            self._watchers = {who: each for who, each in self._watchers.items() if each != name}
        end = told[-1].revision if compacted and told else watch.revision
        if not compacted:
            self._bookmarks[name] = (end, keys)
        events = [[each.revision, [_shown(event) for event in each.events]] for each in told]
        part = {"watcher": name, "keys": keys, "from": revision + 1, "to": end, "events": events}
        return {**part, "compacted": compacted} if compacted else part

    def check(self, history: Sequence[Event]) -> Verdict:
        return WatchChecker().check(history)


def _new_watch(database: Database, keys: str, start: int) -> Watch:
    """*start* 0: from now on."""
    if keys.endswith("/"):
        return database.kv.watch(prefix=keys, start_revision=start or None, previous=True)
    return database.kv.watch(keys, start_revision=start or None, previous=True)


def _shown(event: Any) -> list[Any]:  # noqa: ANN401  a ``KeyEvent``
    value = int(event.value) if event.type == "put" else None
    previous = None if event.previous is None else int(event.previous.value)
    return [event.type, event.key.decode(), value, previous]


async def _write(database: Database, changes: list[list[Any]]) -> tuple[bool, Any]:
    """All of *changes*, as one command."""
    if len(changes) == 1:
        ((kind, key, value),) = changes
        if kind == "put":
            put = await outcome_of(database.kv.put(key, b"%d" % value))
            return True, {"revision": put.revision, "done": changes}
        deleted = await outcome_of(database.kv.delete(key))
        return True, {"revision": deleted.revision, "done": changes if deleted.count else []}
    result = await outcome_of(database.kv.txn(then=[_operation(*change) for change in changes]))
    done = [
        change
        for change, each in zip(changes, result.results, strict=True)
        if not isinstance(each, DeleteResult) or each.count
    ]
    return True, {"revision": result.revision, "done": done}


def _operation(kind: str, key: str, value: Any) -> Operation:  # noqa: ANN401
    if kind == "put":
        return ops.put(key, b"%d" % value)
    return ops.delete(key) if kind == "delete" else ops.increment(key)

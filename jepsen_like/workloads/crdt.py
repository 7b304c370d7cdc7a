"""Converging data of all kinds, at all levels: each process stays with one node for a while, cut
off or not, and hands what it has seen to others, at other nodes and in the log's tier. Some never
wait for any other node, so that there is somebody who writes wherever a node is cut off."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.crdt.acts import DIGESTS, FINAL, LIVES, WIDE
from jepsen_like.checkers.crdt.checker import CrdtChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.crdt_calls import KINDS, carry_out, observe, show
from jepsen_like.workloads.keys import RotatingKeys
from quorate.base.levels import Level
from quorate.client.database import Database
from quorate.client.levels import Receipt
from quorate.client.views import View
from quorate.errors import QuorateError, UnconfirmedError

#: Tokens and observations that others may still take up.
HANDED_MAX: Final = 30
#: Of one call: longer than a node waits for others to confirm, or for a life from the log, though
#: its clock runs at half its pace.
CALL_S: Final = 4.5
#: Nodes come to hold the same so long after all was healed; what they hold then is looked at.
ALIKE_S: Final = 30.0
POLL_S: Final = 0.1
#: Operations on one name, before another takes its place.
USES: Final = 80
ELEMENTS: Final = 5
AMOUNT_MAX: Final = 1000
#: How often a process goes to another node: seldom, or a node that is down soon has them all.
MOVES: Final = 0.02
KV_KEYS: Final = 2
#: One process of so many never waits for another node than its own, where it stays.
LOCAL_OF: Final = 3

_LEVELS: Final[tuple[tuple[Level, float], ...]] = (
    ("eventual", 0.35), ("causal", 0.35), ("quorum", 0.2), ("strong", 0.1),
)  # fmt: skip


class CrdtWorkload:
    """*kinds*: of data, as in ``checkers.crdt.acts``. *names* of each at a time. *reads*,
    *observes*, *logs*, *asks*: shares of operations that read, observe what is there, go to the
    log's tier, and ask who the members are or what a node has folded. *handed*: of those that begin
    with another's token."""

    name = "crdt"
    #: Of real nodes: enough that some are left to write while others wait for nodes that are down.
    workers: Final = 30
    #: Its histories are told what becomes of nodes.
    follows_nodes: Final = True

    def __init__(
        self,
        *,
        kinds: Sequence[str] = tuple(KINDS),
        names: int = 1,
        reads: float = 0.35,
        observes: float = 0.07,
        logs: float = 0.08,
        asks: float = 0.03,
        handed: float = 0.3,
    ) -> None:
        self._kinds = tuple(kinds)
        self._names = {kind: RotatingKeys(f"{self.name}/{kind}/", names, USES) for kind in kinds}
        self._shares = (reads, observes, logs, asks)
        self._handed_share = handed
        self._number = self._sessions = 0
        self._written = 0
        self._alike_until_s: float | None = None
        self._nodes: list[int] = []
        self._homes: dict[int, int] = {}
        self._handed: deque[str] = deque(maxlen=HANDED_MAX)
        #: Of what was observed: kind, name, cell, the number of the call, the token.
        self._observed: deque[tuple[str, str, Any, int, bytes]] = deque(maxlen=HANDED_MAX)

    async def setup(self, client: Client) -> None:
        """Who is there; a name comes to be by its first use."""
        await self._ask_members(quorate_client(client))

    # --- what is asked ----------------------------------------------------------------------------

    def next(self, random: Random, process: int) -> Invocation:
        self._number += 1
        reads, observes, logs, asks = self._shares
        chance = random.random()
        if chance < asks or not self._nodes:
            asked = "members" if self._number % 2 or not self._nodes else LIVES
            return Invocation(asked, None, {"number": self._number})
        value: dict[str, Any] = {"number": self._number, "process": process, "header": ""}
        alone = process % LOCAL_OF == 0
        if self._handed and not alone and random.random() < self._handed_share:
            value["header"] = random.choice(self._handed)
        levels = [each for each in _LEVELS if not alone or each[0] not in WIDE]
        names, weights = [level for level, _ in levels], [weight for _, weight in levels]
        value["level"] = random.choices(names, weights)[0]
        if chance < asks + logs and not alone:
            return self._next_of_the_log(random, value)
        value["node"] = self._home(random, process)
        kind = value["kind"] = random.choice(self._kinds)
        name = self._names[kind].draw(random)
        if chance < asks + logs + reads:
            return Invocation("read", name, value)
        if chance < asks + logs + reads + observes and kind in {"set", "map"}:
            return Invocation("observe", name, {**value, "cell": self._cell(random, kind)})
        return self._next_write(random, name, value)

    def _next_write(self, random: Random, name: str, value: dict[str, Any]) -> Invocation:
        kind = value["kind"]
        if kind in {"set", "map"} and self._observed and random.random() < 0.15:
            kind, name, cell, seen, _token = random.choice(self._observed)
            verb = "remove" if kind == "set" else "drop"
            return Invocation(
                "write", name, {**value, "kind": kind, "verb": verb, "cell": cell, "seen": seen}
            )
        verb = random.choice(KINDS[kind].verbs)
        cell, what = self._cell(random, kind), None
        if verb == "add" and kind != "set":
            what = random.randint(1, AMOUNT_MAX)
            what = -what if kind == "counter" and random.random() < 0.3 else what
        elif verb == "assign":
            self._written += 1
            what = self._written
        return Invocation("write", name, {**value, "verb": verb, "cell": cell, "what": what})

    def _next_of_the_log(self, random: Random, value: dict[str, Any]) -> Invocation:
        value["level"] = random.choice(("causal", "quorum"))
        key = f"{self.name}-log/{random.randrange(KV_KEYS)}"
        if random.random() < 0.5:
            return Invocation("kv-read", key, value)
        self._written += 1
        return Invocation("kv-write", key, {**value, "value": self._written})

    def _cell(self, random: Random, kind: str) -> str | None:
        return f"e{random.randrange(ELEMENTS)}" if kind in {"set", "map"} else None

    def _home(self, random: Random, process: int) -> int:
        if process % LOCAL_OF == 0:
            return self._nodes[process // LOCAL_OF % len(self._nodes)]
        home = self._homes.get(process)
        if home not in self._nodes or random.random() < MOVES:
            home = self._homes[process] = random.choice(self._nodes)
        return home

    def last(self) -> Sequence[Invocation]:
        """Every name, as every member has it in the end, and then all that it holds."""
        asked: dict[str, Any] = {"number": -1, "level": "strong", "node": 0}
        finals = [
            Invocation(FINAL, name, {**asked, "kind": kind})
            for kind in self._kinds
            for name in self._names[kind].used()
        ]
        return [*finals, Invocation(DIGESTS, None, {"number": -1})]

    # --- how it is done ---------------------------------------------------------------------------

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        f, value = invocation.f, invocation.value
        if f == "members":
            return True, await self._ask_members(ours)
        if f == FINAL:
            return True, await self._look_everywhere(ours, invocation.key, value)
        if f == LIVES:
            status = await outcome_of(ours.database.status(timeout=CALL_S), reads=True)
            return True, [_folded(status["crdt"])]
        if f == DIGESTS:
            return True, await self._compare(ours)
        session, view = self._view(ours, value.get("node", 0), value["process"])
        if value["header"]:
            view.merge(value["header"])
        if f in {"kv-read", "kv-write"}:
            return True, await self._use_log(session, view, invocation)
        level, receipt = value["level"], Receipt()
        before = "" if level == "eventual" else view.token
        answer: dict[str, Any] = {"after": before}
        call = self._call(view, invocation, level, receipt, answer)
        try:
            await call
        except UnconfirmedError as error:
            if not receipt.token:
                raise OutcomeError(f"{error.code}: {error}", definite=False) from error
            answer["unconfirmed"] = True
        except QuorateError as error:
            definite = error.definite or f != "write"
            raise OutcomeError(f"{error.code}: {error}", definite=definite) from error
        answer["place"] = receipt.token
        self._handed.append(receipt.token)
        if f == "observe":
            token: bytes = answer.pop("token")
            place = (value["kind"], invocation.key, value["cell"])
            self._observed.append((*place, value["number"], token))
        return True, answer

    async def _call(
        self,
        view: View,
        invocation: Invocation,
        level: Level,
        receipt: Receipt,
        answer: dict[str, Any],
    ) -> None:
        key, value = invocation.key, invocation.value
        options: dict[str, Any] = {"level": level, "receipt": receipt, "timeout": CALL_S}
        if invocation.f == "read":
            answer["shows"] = await show(view, value["kind"], key, options)
        elif invocation.f == "observe":
            answer["token"] = await observe(view, value["kind"], key, value["cell"], options)
        else:
            seen = value.get("seen")
            token = None if seen is None else self._token(seen)
            await carry_out(view, value["kind"], key, value, token, options)

    def _token(self, seen: int) -> bytes | None:
        return next((token for *_, number, token in self._observed if number == seen), None)

    def _view(self, ours: QuorateClient, node: int, process: int) -> tuple[str, View]:
        """The session of *process* at *node*; 0: with the log, wherever its leader is."""
        views: dict[tuple[int, int], tuple[str, View]] = ours.kept.setdefault(self.name, {})
        place = (process, node)
        if place not in views:
            self._sessions += 1
            database = self._at(ours, node) if node else ours.database
            views[place] = (f"{process}.{self._sessions}", database.at("causal"))
        return views[place]

    def _at(self, ours: QuorateClient, node: int) -> Database:
        """A handle that stays with *node*."""
        return ours.another(f"{self.name}-{node}", node, follow_leader=False, timeout=CALL_S)

    async def _use_log(self, session: str, view: View, invocation: Invocation) -> dict[str, Any]:
        value, receipt = invocation.value, Receipt()
        options: dict[str, Any] = {"level": value["level"], "receipt": receipt, "timeout": CALL_S}
        answer: dict[str, Any] = {"session": session}
        if invocation.f == "kv-read":
            found = await outcome_of(view.kv.get(invocation.key, **options), reads=True)
            answer["value"] = None if found is None else int(found.value)
        else:
            await outcome_of(view.kv.put(invocation.key, b"%d" % value["value"], **options))
        self._handed.append(receipt.token)
        return {**answer, "place": receipt.index}

    async def _ask_members(self, ours: QuorateClient) -> list[int]:
        found = await outcome_of(ours.database.members(timeout=CALL_S), reads=True)
        self._nodes = sorted(member["node"] for member in found["members"])
        return self._nodes

    async def _look_everywhere(
        self, ours: QuorateClient, name: str, value: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """What each member shows."""
        found = []
        for node in await self._ask_members(ours):
            receipt = Receipt()
            view = self._at(ours, node).at("strong")
            options = {"level": "strong", "receipt": receipt, "timeout": CALL_S}
            call = show(view, value["kind"], name, options)
            shown = await outcome_of(call, reads=True)
            found.append({"node": node, "after": "", "place": receipt.token, "shows": shown})
        return found

    async def _compare(self, ours: QuorateClient) -> list[dict[str, Any]]:
        """What each member holds: once all hold the same, or after a while."""
        now_s = asyncio.get_running_loop().time
        if self._alike_until_s is None:
            self._alike_until_s = now_s() + ALIKE_S
        call_until_s = now_s() + CALL_S
        while True:
            found = []
            for node in await self._ask_members(ours):
                call = self._at(ours, node).crdt_digest(timeout=CALL_S)
                told = await outcome_of(call, reads=True)
                same = {name: told[name] for name in ("digest", "generation", "frontier")}
                found.append({"node": node, **same, **_folded(told)})
            alike = all(
                each["digest"] == found[0]["digest"] and each["frontier"] == found[0]["frontier"]
                for each in found
            )
            if alike or now_s() > self._alike_until_s:
                return found
            await asyncio.sleep(POLL_S)
            if now_s() > call_until_s:
                raise OutcomeError("nodes do not hold the same yet", definite=True)

    def check(self, history: Sequence[Event]) -> Verdict:
        return CrdtChecker(self.name).check(history)


def _folded(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a node says of lives that are folded away, as histories have it."""
    retired = sorted([int(member), epoch] for member, epoch in told["retired"].items())
    return {"folds": told["folds"], "retired": retired if told["folds"] else []}


class CrdtCounterWorkload(CrdtWorkload):
    """Counters alone."""

    name = "crdt-counter"

    def __init__(self) -> None:
        super().__init__(kinds=("counter",), names=3)


class CrdtSetWorkload(CrdtWorkload):
    """Sets alone."""

    name = "crdt-set"

    def __init__(self) -> None:
        super().__init__(kinds=("set",), names=3)


class CrdtMapWorkload(CrdtWorkload):
    """Maps of counters, whose keys come and go."""

    name = "crdt-map"

    def __init__(self) -> None:
        super().__init__(kinds=("map",), names=3)

"""Levels of consistency: writes and reads at all four, by sessions that hand each other tokens.

Half of the handles read from followers, so that what a level does not promise is seen, and what it
promises is not had for nothing. Strong writes are followed by a look at every voter's own state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.levels import LevelsChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import QuorateClient, outcome_of, quorate_client
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from quorate.base.levels import Level
from quorate.client.database import Database
from quorate.client.levels import Receipt, parse_token
from quorate.client.views import View
from quorate.errors import QuorateError, UnconfirmedError

#: Tokens that sessions may still take in from each other.
TOKENS_KEPT: Final = 30
#: A look at one node, which may be down, takes no longer.
LOOK_S: Final = 0.3
_WRITES: Final[tuple[tuple[Level, float], ...]] = (
    ("strong", 0.15), ("quorum", 0.35), ("causal", 0.35), ("eventual", 0.15),
)  # fmt: skip
_READS: Final[tuple[tuple[Level, float], ...]] = (
    ("strong", 0.1), ("quorum", 0.2), ("causal", 0.5), ("eventual", 0.2),
)  # fmt: skip


class LevelsWorkload:
    """*keys* of them; *reads*: their share; *tokens*: the share of operations that begin with the
    token of another session."""

    name = "levels"

    def __init__(self, *, keys: int = 3, reads: float = 0.6, tokens: float = 0.3) -> None:
        self._keys = keys
        self._reads = reads
        self._tokens = tokens
        self._written = 0
        self._handles = 0
        self._handed: deque[str] = deque(maxlen=TOKENS_KEPT)

    async def setup(self, client: Client) -> None:
        """Nothing: a key that is not there reads as None."""
        quorate_client(client)

    def next(self, random: Random, process: int) -> Invocation:
        key = f"levels/{random.randrange(self._keys)}"
        token = ""
        if self._handed and random.random() < self._tokens:
            token = random.choice(self._handed)
        value: dict[str, Any] = {"process": process, "header": token}
        value["token"] = parse_token(token)[1].index
        reads = random.random() < self._reads
        levels = _READS if reads else _WRITES
        names, weights = [name for name, _weight in levels], [weight for _name, weight in levels]
        value["level"] = random.choices(names, weights)[0]
        if not reads:
            self._written += 1
            value["value"] = self._written
        return Invocation("read" if reads else "write", key, value)

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        ours = quorate_client(client)
        value = invocation.value
        session, view = self._view(ours, value["process"])
        if value["header"]:
            view.merge(value["header"])
        receipt = Receipt()
        if invocation.f == "read":
            call = view.kv.get(invocation.key, level=value["level"], receipt=receipt)
            found = await outcome_of(call, reads=True)
            shown = None if found is None else int(found.value)
            answer = {"session": session, "place": receipt.index, "value": shown}
        else:
            locals_ = await self._write(ours, view, invocation, receipt)
            place = 0 if receipt.may_be_lost else receipt.index
            answer = {"session": session, "place": place, "locals": locals_}
        if receipt.token:
            self._handed.append(receipt.token)
        return True, answer

    def _view(self, ours: QuorateClient, process: int) -> tuple[str, View]:
        """The session of *process* on this handle."""
        views: dict[int, tuple[str, View]] = ours.kept.setdefault(self.name, {})
        if process not in views:
            self._handles += 1
            database = ours.database
            if self._handles % 2:
                database = ours.another("levels", reads="any", stall_timeout=LOOK_S)
            views[process] = (f"{process}.{self._handles}", database.at("causal"))
        return views[process]

    async def _write(
        self, ours: QuorateClient, view: View, invocation: Invocation, receipt: Receipt
    ) -> list[Any]:
        """What voters showed after a strong write: those whose connection stood all the time."""
        level, text = invocation.value["level"], b"%d" % invocation.value["value"]
        looks: dict[int, tuple[Database, int]] = {}
        if level == "strong":
            looks = await self._voters(ours)
        try:
            await view.kv.put(invocation.key, text, level=level, receipt=receipt)
        except UnconfirmedError as error:
            if receipt.index == 0:
                raise OutcomeError(f"{error.code}: {error}", definite=False) from error
            return []  # it is written, and not everywhere: as good as at quorum
        except QuorateError as error:
            raise OutcomeError(f"{error.code}: {error}", definite=error.definite) from error
        if not looks:
            return []
        still = await self._voters(ours)
        shown = []
        for node, (database, connects) in looks.items():
            found = await _look(database, invocation.key)
            if found is None or node not in still or database.statistics().connects != connects:
                continue
            shown.append([node, *found])
        return shown

    async def _voters(self, ours: QuorateClient) -> dict[int, tuple[Database, int]]:
        """A handle on each voter, with how often it had to connect until now."""
        try:
            members = (await ours.database.members(timeout=LOOK_S))["members"]
        except QuorateError:
            return {}
        found = {}
        for member in members:
            node = member["node"]
            if member["role"] != "voter":
                continue
            database = ours.another(
                f"levels-{node}", node, follow_leader=False, timeout=LOOK_S, connect_timeout=LOOK_S
            )
            if await _look(database, "levels/0") is not None:
                found[node] = (database, database.statistics().connects)
        return found

    def last(self) -> Sequence[Invocation]:
        value = {"process": 0, "header": "", "token": 0, "level": "quorum"}
        return [Invocation("read", f"levels/{number}", value) for number in range(self._keys)]

    def check(self, history: Sequence[Event]) -> Verdict:
        return LevelsChecker().check(history)


async def _look(database: Database, key: str) -> tuple[int, int | None] | None:
    """A node's own state: its place, and what *key* holds; None: it does not answer."""
    receipt = Receipt()
    try:
        found = await database.kv.get(key, level="eventual", receipt=receipt)
    except QuorateError:
        return None
    return receipt.index, None if found is None else int(found.value)

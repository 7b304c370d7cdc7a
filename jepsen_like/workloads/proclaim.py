"""What leaders proclaim, and what observers are told: each leader proclaims one text after another
under its epoch, while others ask for the latest, or follow for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from jepsen_like.checkers.grants import GrantChecker
from jepsen_like.checkers.proclaimed import ProclaimedChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.systems.quorate_client import quorate_client
from jepsen_like.verdict import Verdict, merge
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.holding import HoldingWorkload
from quorate.client.database import Database
from quorate.client.elections import Election, Leader
from quorate.client.locks import Lock
from quorate.errors import QuorateError

#: How long somebody follows who leads and what is proclaimed.
FOLLOW_S: Final = 0.3
#: What a leader proclaims at the end must have reached an observer after so long.
TOLD_S: Final = 5.0
PROCLAIMED_AT_THE_END: Final = 3


class ProclaimWorkload(HoldingWorkload):
    """See the module, and ``HoldingWorkload`` for the parameters."""

    name = "proclaim"

    def __init__(self, *, names: int = 2, looks: float = 0.4) -> None:
        super().__init__(names=names, looks=looks)
        self._campaigns = 0
        self._campaign_of: dict[int, int] = {}  # the latest of each process
        self._said: dict[int, int] = {}  # by campaign: what its leader proclaimed last

    def looks(self) -> tuple[str, ...]:
        return ("inspect", "seen", "follow")

    def next(self, random: Random, process: int) -> Invocation:
        """As of holders. Who campaigns, and what is proclaimed, stands in the invocation: it may
        have come about though nobody heard of it."""
        asked = super().next(random, process)
        if asked.f == "acquire":
            self._campaigns += 1
            self._campaign_of[process] = self._campaigns
            asked.value["side"] = str(self._campaigns)
        elif asked.f == "use":
            campaign = self._campaign_of.get(process, 0)
            self._said[campaign] = self._said.get(campaign, 0) + 1
            asked.value["say"] = [campaign, self._said[campaign]]
        return asked

    def handle(self, database: Database, name: str, ttl_s: float, side: str) -> Lock:
        return database.election(name, _text(int(side or 0), 0), ttl=ttl_s)

    async def use(
        self, database: Database, name: str, handle: Lock, linger_s: float, side: str
    ) -> dict[str, Any]:
        """Proclaim the next text. Raises ``QuorateError``."""
        del database, name
        await asyncio.sleep(linger_s)
        campaign = int(side)
        if not isinstance(handle, Election):
            raise TypeError("candidates have elections")
        await handle.proclaim(_text(campaign, self._said[campaign]))
        return {"said": [campaign, self._said[campaign]]}

    async def look(self, database: Database, f: str, name: str) -> Any:  # noqa: ANN401  by kind
        if f == "seen":
            return _shown(await database.election(name).leader())
        if f == "follow":
            return await _follow(database, name)
        return await super().look(database, f, name)

    # --- the end ----------------------------------------------------------------------------------

    def last(self) -> Sequence[Invocation]:
        """Whoever proclaims something then is heard by who follows."""
        return [*super().last(), *(Invocation("heard", name) for name in self._names)]

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        if invocation.f != "heard":
            return await super().do(client, invocation)
        ours = quorate_client(client)
        try:
            await _heard(ours.database, f"{invocation.key}/heard")
        except (QuorateError, TimeoutError) as error:
            raise OutcomeError(f"nothing was heard: {error!r}", definite=True) from error
        return True, None

    def check(self, history: Sequence[Event]) -> Verdict:
        grants = [each for each in history if each.f not in {"seen", "follow", "heard"}]
        told = ProclaimedChecker(self.name).check(history)
        return merge(self.name, [GrantChecker(self.name).check(grants), told])


def _text(campaign: int, count: int) -> bytes:
    return b"%d %d" % (campaign, count)


def _shown(leader: Leader | None) -> list[int]:
    """Epoch, campaign, and which text of it; of nobody all 0."""
    if leader is None:
        return [0, 0, 0]
    campaign, count = leader.value.split()
    return [leader.epoch, int(campaign), int(count)]


async def _follow(database: Database, name: str) -> list[list[int]]:
    """What one observer was told, in that order."""
    told: list[Leader | None] = []
    async with database.election(name).observe() as leaders:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_S):
                async for leader in leaders:
                    told.append(leader)  # noqa: PERF401  what was told is kept when time is up
    return [_shown(leader) for leader in told]


async def _heard(database: Database, name: str) -> None:
    """Proclaim, and follow it. Raises ``TimeoutError``: nobody was told."""
    leading = database.election(name, _text(0, 0), ttl=1.0)
    await leading.campaign(timeout=TOLD_S)
    try:
        async with asyncio.timeout(TOLD_S), database.election(name).observe() as leaders:
            said = 0
            async for leader in leaders:
                if leader is None or _shown(leader) != [leading.epoch, 0, said]:
                    continue
                if said == PROCLAIMED_AT_THE_END:
                    break
                said += 1
                await leading.proclaim(_text(0, said))
    except Exception:
        await leading.resign()
        raise
    await leading.resign()

"""A bank: transfers between accounts, each one atomic step, and reads of all balances at once."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from jepsen_like.checkers.bank import BankChecker
from jepsen_like.history import Event
from jepsen_like.systems.base import Client, OutcomeError
from jepsen_like.verdict import Verdict
from jepsen_like.workloads.base import Invocation
from jepsen_like.workloads.values import number_of, text_of, without_effect

#: What a transfer fails with that had no effect.
INSUFFICIENT = "insufficient"
CONTENDED = "contended"


class BankWorkload:
    """*accounts* with *balance* each; transfers of at most *amount_max*. A transfer that loses the
    race for its two accounts *attempts* times fails."""

    name = "bank"

    def __init__(
        self,
        *,
        accounts: int = 8,
        balance: int = 20,
        amount_max: int = 5,
        reads: float = 0.4,
        attempts: int = 3,
    ) -> None:
        if accounts < 2:
            raise ValueError(f"transfers need two accounts, not {accounts}")
        self._accounts = [str(number) for number in range(accounts)]
        self._balance = balance
        self._amount_max = amount_max
        self._reads = reads
        self._attempts = attempts

    async def setup(self, client: Client) -> None:
        """Open all accounts in one step, unless that is done: a lost race is as good."""
        keys = [_key(account) for account in self._accounts]
        await client.transact(
            dict.fromkeys(keys, 0), [], dict.fromkeys(keys, text_of(self._balance))
        )

    def next(self, random: Random, process: int) -> Invocation:
        del process
        if random.random() < self._reads:
            return Invocation("read")
        source, target = random.sample(range(len(self._accounts)), 2)
        amount = random.randint(1, self._amount_max)
        return Invocation("transfer", None, {"from": source, "to": target, "amount": amount})

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        if invocation.f == "read":
            keys = [_key(account) for account in self._accounts]
            _true, found = await client.transact({}, keys, {})
            return True, {account: number_of(found[_key(account)], 0) for account in self._accounts}
        source, target = _key(invocation.value["from"]), _key(invocation.value["to"])
        amount = invocation.value["amount"]
        for _attempt in range(self._attempts):
            try:
                _true, found = await client.transact({}, [source, target], {})
                left = (number_of(found[source], 0) or 0) - amount
                right = (number_of(found[target], 0) or 0) + amount
            except OutcomeError as error:
                raise without_effect(error) from error
            if left < 0:
                return False, INSUFFICIENT
            unchanged = {key: found[key].version for key in (source, target)}
            writes = {source: text_of(left), target: text_of(right)}
            if (await client.transact(unchanged, [], writes))[0]:
                return True, invocation.value
        return False, CONTENDED

    def last(self) -> Sequence[Invocation]:
        return [Invocation("read")]

    def check(self, history: Sequence[Event]) -> Verdict:
        return BankChecker(dict.fromkeys(self._accounts, self._balance)).check(history)


def _key(account: str | int) -> str:
    return f"bank/{account}"

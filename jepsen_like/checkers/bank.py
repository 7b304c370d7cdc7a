"""A bank: money moves between accounts, and none is made or lost.

Every read of all accounts has the same total, and no account below zero if that is promised. Each
balance also lies between what the transfers that were surely done by then leave, and what those
that may have been done add or take: a transfer that was acknowledged and then lost keeps the total,
and is found by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jepsen_like.checkers.base import Findings, show, whole_number
from jepsen_like.checkers.bounds import Addition, Bounds
from jepsen_like.checkers.models import NEVER
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation, operations
from jepsen_like.verdict import Verdict


class _Transfer(NamedTuple):
    source: str
    target: str
    amount: int


class BankChecker:
    """For "read" (value: account to balance) and "transfer" (value: ``from``, ``to``, ``amount``).
    *initial*: balances at the start. *negative*: balances may fall below zero."""

    name = "bank"

    def __init__(self, initial: Mapping[str, int], *, negative: bool = False) -> None:
        self._initial = dict(initial)
        self._negative = negative

    def check(self, history: Sequence[Event]) -> Verdict:
        """Unknown if nobody read the balances after the last acknowledged transfer."""
        findings = Findings()
        transfers: list[tuple[Operation, _Transfer]] = []
        reads: list[Operation] = []
        for each in operations(history):
            if each.invoked.f == "transfer":
                transfers.append((each, self._transfer(each)))
            elif each.invoked.f != "read":
                raise HistoryError(
                    f"event {each.invoked_at}: a bank knows 'read' and 'transfer', not "
                    f"{each.invoked.f!r}"
                )
            elif each.outcome == "ok":
                reads.append(each)
        bounds = self._bounds(transfers)
        for read in reads:
            self._check_read(findings, read, bounds)
        done = [each for each, _transfer in transfers if each.outcome == "ok"]
        last_done = max((each.completed_at for each in done), default=-1)
        return findings.verdict(
            self.name,
            proves=any(read.invoked_at > last_done for read in reads),
            accounts=len(self._initial),
            reads=len(reads),
            transfers=len(done),
            unknown_transfers=sum(each.outcome == "info" for each, _transfer in transfers),
        )

    def _transfer(self, operation: Operation) -> _Transfer:
        value = operation.invoked.value
        at = f"event {operation.invoked_at}"
        if not isinstance(value, dict) or not {"from", "to", "amount"} <= value.keys():
            raise HistoryError(f"{at}: a transfer has from, to and amount, not {show(value)}")
        source, target = str(value["from"]), str(value["to"])
        for account in (source, target):
            if account not in self._initial:
                raise HistoryError(f"{at}: there is no account {show(account)}")
        return _Transfer(source, target, whole_number(value["amount"], f"{at}: the amount"))

    def _bounds(self, transfers: list[tuple[Operation, _Transfer]]) -> dict[str, Bounds]:
        additions: dict[str, list[Addition]] = {account: [] for account in self._initial}
        for each, transfer in transfers:
            if each.outcome != "fail":
                end = each.completed_at if each.outcome == "ok" else NEVER
                taken = Addition(-transfer.amount, each.invoked_at, end)
                additions[transfer.source].append(taken)
                additions[transfer.target].append(taken._replace(number=transfer.amount))
        return {
            account: Bounds(balance, additions[account])
            for account, balance in self._initial.items()
        }

    def _check_read(
        self, findings: Findings, read: Operation, bounds: Mapping[str, Bounds]
    ) -> None:
        at = f"the read by process {read.invoked.process} (event {read.invoked_at})"
        balances = self._balances(read)
        if balances.keys() != self._initial.keys():
            findings.add(f"{at} shows the accounts {sorted(balances)}, not {sorted(self._initial)}")
            return
        total = sum(self._initial.values())
        if sum(balances.values()) != total:
            findings.add(
                f"{at} has a total of {sum(balances.values())}, not {total}: {show(balances)}"
            )
        for account, balance in balances.items():
            if balance < 0 and not self._negative:
                findings.add(f"{at} shows account {account} at {balance}, below zero")
            lower, upper = bounds[account].between(read.invoked_at, read.completed_at)
            if not lower <= balance <= upper:
                findings.add(
                    f"{at} shows account {account} at {balance}; the transfers that were done, or "
                    f"may have been, leave it between {lower} and {upper}"
                )

    def _balances(self, read: Operation) -> dict[str, int]:
        value: Any = read.completed.value if read.completed is not None else None
        at = f"event {read.completed_at}"
        if not isinstance(value, dict):
            raise HistoryError(f"{at}: balances are a map of accounts, not {show(value)}")
        return {
            str(account): whole_number(balance, f"{at}: the balance of {account}")
            for account, balance in value.items()
        }

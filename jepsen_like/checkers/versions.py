"""What reads of lists say by themselves: the order in which each list grew, and reads that no
isolation allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jepsen_like.checkers.base import Findings, show
from jepsen_like.checkers.transactions import Step, Transaction
from jepsen_like.errors import HistoryError


class Versions:
    """*writers*: by key and element. *orders*: by key, the elements in the order in which they were
    appended, as far as anybody saw it. *anomalies*: names of what is wrong, with counts."""

    def __init__(self, transactions: Sequence[Transaction], findings: Findings) -> None:
        self._transactions = transactions
        self._findings = findings
        self.anomalies: dict[str, int] = {}
        self.writers: dict[tuple[Any, Any], Transaction] = {}
        self.last_appends: dict[tuple[int, Any], Any] = {}
        self.orders: dict[Any, tuple[Any, ...]] = {}
        self._find_writers()
        self._find_orders()
        for transaction in transactions:
            if transaction.outcome == "ok":
                self._check_inside(transaction)
                for step in transaction.steps:
                    if step.f == "r":
                        self._check_read(transaction, step)

    def found(self, anomaly: str, text: str) -> None:
        """One thing that is wrong."""
        self.anomalies[anomaly] = self.anomalies.get(anomaly, 0) + 1
        self._findings.add(f"{anomaly}: {text}")

    def follows(self, step: Step) -> bool:
        """Whether a read is a beginning of the order of its key."""
        read: tuple[Any, ...] = step.value
        return self.orders.get(step.key, ())[: len(read)] == read

    def _find_writers(self) -> None:
        for transaction in self._transactions:
            for step in transaction.steps:
                if step.f != "append":
                    continue
                if (step.key, step.value) in self.writers:
                    raise HistoryError(
                        f"event {transaction.operation.invoked_at}: {show(step.value)} is appended "
                        f"twice to {show(step.key)}; elements must be unique"
                    )
                self.writers[step.key, step.value] = transaction
                self.last_appends[transaction.number, step.key] = step.value

    def _find_orders(self) -> None:
        """The longest read of each key; any other must be a beginning of it."""
        longest: dict[Any, tuple[Transaction, Step]] = {}
        reads = [
            (transaction, step)
            for transaction in self._transactions
            for step in transaction.steps
            if step.f == "r" and step.value is not None
        ]
        for transaction, step in reads:
            best = longest.get(step.key)
            if best is None or len(step.value) > len(best[1].value):
                longest[step.key] = (transaction, step)
        self.orders = {key: step.value for key, (_transaction, step) in longest.items()}
        for transaction, step in reads:
            if not self.follows(step):
                other = longest[step.key]
                self.found(
                    "incompatible-order",
                    f"{transaction} read {show(step.key)} as {show(list(step.value))}, and "
                    f"{other[0]} as {show(list(other[1].value))}: neither is a beginning of the "
                    "other",
                )

    def _check_inside(self, transaction: Transaction) -> None:
        """A transaction sees what it read before, and its own appends after that."""
        known: dict[Any, tuple[Any, ...]] = {}
        own: dict[Any, tuple[Any, ...]] = {}
        for step in transaction.steps:
            if step.f == "append":
                own[step.key] = (*own.get(step.key, ()), step.value)
                continue
            appended = own.get(step.key, ())
            before = known.get(step.key)
            expected = None if before is None else before + appended
            right = (
                step.value == expected
                if expected is not None
                else step.value[len(step.value) - len(appended) :] == appended
            )
            if not right:
                wanted = (
                    show(list(expected))
                    if expected is not None
                    else f"a list that ends with {show(list(appended))}"
                )
                self.found(
                    "internal",
                    f"{transaction} read {show(step.key)} as {show(list(step.value))}; after its "
                    f"own earlier steps it should be {wanted}",
                )
            known[step.key], own[step.key] = step.value, ()

    def _check_read(self, reader: Transaction, step: Step) -> None:
        where = f"{reader} read {show(step.key)} as {show(list(step.value))}"
        seen = set()
        for element in step.value:
            if element in seen:
                self.found("duplicate-elements", f"{where}: {show(element)} is there twice")
            seen.add(element)
            writer = self.writers.get((step.key, element))
            if writer is None:
                self.found("garbage", f"{where}: nobody appended {show(element)}")
            elif writer.outcome == "fail":
                self.found("G1a", f"{where}: {show(element)} is from {writer}, which was aborted")
            elif writer.operation.invoked_at > reader.operation.completed_at:
                self.found(
                    "future-read", f"{where}: {writer} appended {show(element)} only afterwards"
                )
        if not step.value:
            return
        writer = self.writers.get((step.key, step.value[-1]))
        if writer is None or writer.number == reader.number:
            return
        last = self.last_appends[writer.number, step.key]
        if last != step.value[-1]:
            self.found(
                "G1b",
                f"{where}: that is an intermediate state of {writer}, which went on to append "
                f"{show(last)}",
            )


#: Anomalies that this module finds, the worst first.
DIRECT: Final = (
    "duplicate-elements",
    "incompatible-order",
    "garbage",
    "future-read",
    "internal",
    "G1a",
    "G1b",
)

"""Transactions over lists, as they stand in a history: steps ``["append", key, element]`` and
``["r", key, list]``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from jepsen_like.checkers.base import freeze, show
from jepsen_like.errors import HistoryError
from jepsen_like.history import Event, Operation


class Step(NamedTuple):
    """*f*: "append" with the element as *value*, or "r" with the list of elements, None if it is
    not known. Keys and elements are frozen."""

    f: Literal["append", "r"]
    key: Any
    value: Any


class Transaction(NamedTuple):
    """*number*: its place among all. Reads of one that was not acknowledged are not known."""

    number: int
    steps: tuple[Step, ...]
    operation: Operation

    @property
    def outcome(self) -> str:
        """As that of an operation: "ok", "fail" or "info"."""
        return self.operation.outcome

    def __str__(self) -> str:
        invoked = self.operation.invoked
        return f"T{self.number} (process {invoked.process}, event {self.operation.invoked_at})"

    def told(self) -> str:
        """With its steps."""
        steps = "; ".join(
            f"append {show(step.value)} to {show(step.key)}"
            if step.f == "append"
            else f"read {show(step.key)} = {'?' if step.value is None else show(list(step.value))}"
            for step in self.steps
        )
        return f"{self}: {steps}"


def transactions(found: Iterable[Operation]) -> list[Transaction]:
    """Read them from operations.

    Raises:
        HistoryError: one of them is no transaction over lists; the text names the event.
    """
    result = []
    for number, operation in enumerate(found):
        invoked, completed = operation.invoked, operation.completed
        if invoked.f != "txn":
            raise HistoryError(
                f"event {operation.invoked_at}: transactions are 'txn', not {invoked.f!r}"
            )
        steps = _steps(invoked, operation.invoked_at)
        if completed is not None and completed.type == "ok":
            done = _steps(completed, operation.completed_at)
            if [_asked(step) for step in steps] != [_asked(step) for step in done]:
                raise HistoryError(
                    f"event {operation.completed_at}: other steps than those of event "
                    f"{operation.invoked_at}"
                )
            steps = done
        else:
            steps = tuple(step._replace(value=None) if step.f == "r" else step for step in steps)
        result.append(Transaction(number, steps, operation))
    return result


def _asked(step: Step) -> tuple[Any, ...]:
    return (step.f, step.key, step.value if step.f == "append" else None)


def _steps(event: Event, at: int) -> tuple[Step, ...]:
    if not isinstance(event.value, list | tuple):
        raise HistoryError(f"event {at}: a transaction is a list of steps, not {show(event.value)}")
    return tuple(_step(each, at) for each in event.value)


def _step(raw: Any, at: int) -> Step:  # noqa: ANN401  checked here
    if not isinstance(raw, list | tuple) or len(raw) != 3 or raw[0] not in ("append", "r"):
        raise HistoryError(f"event {at}: {show(raw)} is neither an append nor a read of a list")
    f, key, value = raw
    if f == "append":
        return Step("append", freeze(key), freeze(value))
    if value is not None and not isinstance(value, list | tuple):
        raise HistoryError(f"event {at}: a list was read as {show(value)}")
    elements = None if value is None else tuple(freeze(each) for each in value)
    return Step("r", freeze(key), elements)

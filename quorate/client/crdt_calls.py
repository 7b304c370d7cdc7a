"""How calls for CRDT data are made: what they speak of, at which level, in which session."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Protocol

from quorate.base.crdt_frames import NOWHERE, Contains, Observe, Question, Value
from quorate.base.crdt_operations import KindTag, Operation, Remove, Update
from quorate.base.levels import CAUSAL, EVENTUAL, Level, check_level
from quorate.base.limits import CRDT_NESTING_MAX
from quorate.client.crdt_client import CrdtClient
from quorate.client.crdt_values import check_key
from quorate.client.crdt_writer import Terms
from quorate.client.levels import Plans, Receipt, Seen
from quorate.client.settings import check_timeout
from quorate.errors import LimitExceededError

#: The level of calls on a plain handle that do not name one. What a node that is cut off can give:
#: durable there, and seen there by whoever wrote it.
CRDT_LEVEL_DEFAULT: Final[Level] = CAUSAL


class Converges(Plans, Protocol):
    """What makes calls for CRDT data possible: ``Database``."""

    @property
    def timeout(self) -> float: ...
    @property
    def converging(self) -> CrdtClient: ...


class CrdtScope:
    """Calls at *level* unless they say otherwise, in the session *seen*; None: that of the handle,
    which all calls on it share that belong to no view."""

    __slots__ = ("_level", "_plans", "_seen", "_terms")

    def __init__(
        self, plans: Converges, level: Level = CRDT_LEVEL_DEFAULT, seen: Seen | None = None
    ) -> None:
        self._plans = plans
        self._level: Level = level
        self._seen = seen
        self._terms: dict[Level | None, Terms] = {}

    @property
    def client(self) -> CrdtClient:
        """What the calls go through."""
        return self._plans.converging

    @property
    def timeout(self) -> float:
        """Of calls that do not name one, in seconds."""
        return self._plans.timeout

    @property
    def level_of_watches(self) -> Level:
        """What is read because it changed: of the connected node, and never older than before."""
        return EVENTUAL if self._level == EVENTUAL else CAUSAL

    def write(
        self,
        operation: Update | Remove,
        level: Level | None,
        receipt: Receipt | None,
        timeout: float | None,
    ) -> Awaitable[None]:
        """One operation."""
        terms = self._at(level)
        wait_s = self._plans.timeout if timeout is None else check_timeout(timeout)
        if receipt is not None:
            receipt.fill(None, "", NOWHERE)
        if terms.seen.in_doubt:
            return self._write_checked(operation, wait_s, terms, receipt)
        return self._plans.converging.write(operation, wait_s, terms, receipt)

    def read(
        self,
        question: Question,
        level: Level | None,
        receipt: Receipt | None,
        timeout: float | None,
    ) -> Awaitable[Any]:
        """One question."""
        terms = self._at(level)
        wait_s = self._plans.timeout if timeout is None else check_timeout(timeout)
        if receipt is not None:
            receipt.fill(None, "", NOWHERE)
        if terms.seen.in_doubt:
            return self._read_checked(question, wait_s, terms, receipt)
        return self._plans.converging.read(question, wait_s, terms, receipt)

    def _at(self, level: Level | None) -> Terms:
        try:
            return self._terms.get(level) or self._new_terms(level)
        except TypeError:  # no key of a dict, so no level
            return self._new_terms(level)

    def _new_terms(self, level: Level | None) -> Terms:
        chosen = self._level if level is None else check_level(level)
        seen = self._plans.converging.seen if self._seen is None else self._seen
        self._terms[level] = terms = Terms(chosen, seen)
        return terms

    async def _write_checked(
        self, operation: Update | Remove, wait_s: float, terms: Terms, receipt: Receipt | None
    ) -> None:
        wait_s = await terms.seen.check(self._plans, wait_s)
        await self._plans.converging.write(operation, wait_s, terms, receipt)

    async def _read_checked(
        self, question: Question, wait_s: float, terms: Terms, receipt: Receipt | None
    ) -> Any:  # noqa: ANN401  the answer
        wait_s = await terms.seen.check(self._plans, wait_s)
        return await self._plans.converging.read(question, wait_s, terms, receipt)


class Place:
    """Where data is: under *name*, of *kind*, and then *within* maps by (key, kind below it)."""

    __slots__ = ("kind", "name", "within")

    def __init__(self, name: str, kind: int, within: tuple[tuple[Any, int], ...] = ()) -> None:
        self.name = name
        self.kind = kind
        self.within = within

    def below(self, key: Any, kind: KindTag) -> Place:  # noqa: ANN401  a key
        """The data of *kind* under *key* of the map here.

        Raises:
            InvalidArgumentError: *key* can be no key.
            LimitExceededError: it is nested too deep.
        """
        if len(self.within) + 2 > CRDT_NESTING_MAX:
            raise LimitExceededError(f"maps are nested up to {CRDT_NESTING_MAX} levels deep")
        return Place(self.name, self.kind, (*self.within, (check_key(key), int(kind))))

    def update(self, operation: Operation) -> Update:
        """*operation*, here."""
        for key, kind in reversed(self.within):
            operation = Update(key, kind, operation)
        return Update(self.name, self.kind, operation)

    def value(self, start: bytes = b"") -> Value:
        """Asks what is here, page by page if it is much."""
        return Value(self.name, self.kind, self.within, start)

    def contains(self, element: Any) -> Contains:  # noqa: ANN401  a key
        """Asks whether *element* is in the set or map here."""
        return Contains(self.name, self.kind, check_key(element), self.within)

    def observe(self, element: Any) -> Observe:  # noqa: ANN401  a key, or None
        """Asks for a token of what is here, or of *element*."""
        key = None if element is None else check_key(element)
        return Observe(self.name, self.kind, key, self.within)

    def __repr__(self) -> str:
        keys = "".join(f"[{key!r}]" for key, _kind in self.within)
        return f"{self.name!r}{keys}"

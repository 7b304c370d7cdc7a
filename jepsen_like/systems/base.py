"""What a system under test must offer: a client with the few operations that all workloads use.

A system that lacks one raises ``UnsupportedError``, and workloads that need it are refused before
the run. Every call runs on asyncio, in virtual or in real time, and takes its deadline from the
client that was made for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from jepsen_like.errors import JepsenLikeError


class OutcomeError(Exception):
    """The system answered with an error. *definite*: the operation surely had no effect."""

    def __init__(self, text: str, *, definite: bool) -> None:
        super().__init__(text)
        self.definite = definite


class UnsupportedError(JepsenLikeError):
    """The system has no such operation."""


class Versioned(NamedTuple):
    """A value with the version that ``transact`` compares; (None, 0) if there is none."""

    value: bytes | None
    version: int


class Client(Protocol):
    """One client of the system. All raise ``OutcomeError`` and nothing else of the system's."""

    async def get(self, key: str) -> Versioned:
        """Linearizable."""
        ...

    async def put(self, key: str, value: bytes) -> None: ...

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        """Put *value* if *key* holds *expected* (None: is not there); whether it did."""
        ...

    async def add(self, key: str, number: int) -> int:
        """Add to the whole number under *key* (not there: 0), as one command; the new number."""
        ...

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        """In one atomic step: if every key of *expected* has that version, put *writes*; and give
        back what *reads* held after it. (False, {}) if a version differs."""
        ...

    async def close(self) -> None: ...

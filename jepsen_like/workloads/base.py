"""What a workload is: a generator of operations, how a client does them, and their checker.

One class in one file. The same object runs on virtual time and against real processes: it uses no
clock but that of the loop it runs on, and no randomness but the ``Random`` that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

import msgspec

from jepsen_like.history import Event
from jepsen_like.systems.base import Client
from jepsen_like.verdict import Verdict


class Invocation(msgspec.Struct, frozen=True):
    """What a client is asked to do next: the fields of the event that records it."""

    f: str
    key: Any = None
    value: Any = None


class Workload(Protocol):
    """See the module. *name*: as on the command line."""

    name: str

    async def setup(self, client: Client) -> None:
        """Before the first operation; run again after an ``OutcomeError``, so idempotent."""
        ...

    def next(self, random: Random, process: int) -> Invocation:
        """The next operation of *process*."""
        ...

    async def do(self, client: Client, invocation: Invocation) -> tuple[bool, Any]:
        """Carry it out: (True, value) completes it as ``ok`` with that value, (False, value) as
        ``fail``: done, and to no effect (a comparison that did not hold).

        Raises:
            OutcomeError: recorded as ``fail`` if definite, else as ``info``.
        """
        ...

    def last(self) -> Sequence[Invocation]:
        """What is asked once all faults are healed, each until it is answered (final reads)."""
        ...

    def check(self, history: Sequence[Event]) -> Verdict: ...

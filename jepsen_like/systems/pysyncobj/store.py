"""The replicated object under test, written as users of PySyncObj write theirs.

The kit's dictionary with versions, and the library's own set, list and lock manager beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pysyncobj
import pysyncobj.batteries

from jepsen_like.systems.pysyncobj.dictionary import Dictionary
from jepsen_like.systems.pysyncobj.lineage import NOTHING
from jepsen_like.systems.pysyncobj.patches import OnlookerError

Callback = Callable[[Any, int], None]


class Onlooker(Protocol):
    """Who is told what happens inside."""

    def executes(self, content: bytes) -> None:
        """A command begins to be executed."""
        ...

    def asked(self, content: bytes) -> None:
        """A command is handed to the library."""
        ...

    def answered(self, asked: bytes, error: int) -> None:
        """The callback of a command is about to be called."""
        ...


@contextlib.contextmanager
def honest() -> Iterator[None]:
    """What fails here is the kit, and nobody may take it for the library."""
    try:
        yield
    except Exception as error:
        raise OnlookerError(repr(error)) from error


class Store(pysyncobj.SyncObj, Dictionary):  # type: ignore[misc]  # the package has no types
    """One member's object. *tag*, in each command, makes it unlike all others."""

    def __init__(
        self,
        onlooker: Onlooker,
        node: Any,  # noqa: ANN401
        others: Sequence[Any],
        conf: Any,  # noqa: ANN401
        transport: Any,  # noqa: ANN401
        lock_timeout_s: float,
    ) -> None:
        self.onlooker = onlooker
        self.set = pysyncobj.batteries.ReplSet()
        self.list = pysyncobj.batteries.ReplList()
        # What the library's lock manager replicates; its thread is the simulation's work.
        self.locks = pysyncobj.batteries._ReplLockManagerImpl(lock_timeout_s)  # noqa: SLF001
        consumers = [self.set, self.list, self.locks]
        super().__init__(node, others, conf, consumers=consumers, transport=transport)
        # What is set from here on is the state: the library puts it into snapshots.
        self.data = {}
        #: Names the commands that made this state, see ``lineage``.
        self.head = NOTHING

    def _applyCommand(  # noqa: N802
        self,
        command: bytes,
        callback: Any,  # noqa: ANN401
        commandType: int | None = None,  # noqa: N803
    ) -> None:
        asked = command if commandType is None else bytes([commandType]) + command
        if not isinstance(callback, tuple):  # a tuple: asked for by another member
            self.onlooker.asked(asked)
        if callback is None or isinstance(callback, tuple):
            super()._applyCommand(command, callback, commandType)
            return

        def answer(result: object, error: int) -> None:
            with honest():
                self.onlooker.answered(asked, error)
                callback(result, error)

        super()._applyCommand(command, answer, commandType)

    def _SyncObj__doApplyCommand(self, command: bytes) -> Any:  # noqa: ANN401, N802
        with honest():
            self.onlooker.executes(command)
        return super()._SyncObj__doApplyCommand(command)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def get(self, tag: int, key: str) -> tuple[bytes | None, int]:
        """A read through the log."""
        del tag
        return self.do_get(key)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def put(self, tag: int, key: str, value: bytes) -> None:
        """Set a key."""
        del tag
        self.do_put(key, value)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def compare_and_set(self, tag: int, key: str, expected: bytes | None, value: bytes) -> bool:
        """Set a key if it holds what is expected."""
        del tag
        return self.do_compare_and_set(key, expected, value)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def add(self, tag: int, key: str, number: int) -> int:
        """Add to a number."""
        del tag
        return self.do_add(key, number)

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def transact(
        self, tag: int, expected: dict[str, int], reads: list[str], writes: dict[str, bytes]
    ) -> tuple[bool, dict[str, tuple[bytes | None, int]]]:
        """Compare versions, write, and read."""
        del tag
        return self.do_transact(expected, reads, writes)

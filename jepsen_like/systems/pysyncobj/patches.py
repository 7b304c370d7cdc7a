"""What is replaced in the library's modules while a run lasts: clock, chance, journal, sockets.

Nothing of the package is edited; every name is put back afterwards. One run at a time per process.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, Final, Protocol
from unittest import mock

import pysyncobj.batteries
import pysyncobj.journal
import pysyncobj.syncobj
from pysyncobj.journal import Journal

from jepsen_like.systems.pysyncobj.watch import Entry

#: A reading of the clock takes this long, so that loops which wait for time to pass end.
CLOCK_READING_S: Final = 1e-6
#: And to send a message: to encode and compress it, and a system call.
SENDING_S: Final = 1e-4
#: The library's mark of an entry that changes the membership.
MEMBERSHIP_TYPE: Final = 2


class KilledError(BaseException):
    """The process dies here: nothing of the library may catch it, and nothing runs after it."""


class OnlookerError(BaseException):
    """A mistake of the kit's own: it must not pass for one of the library."""


class Host(Protocol):
    """What the journal of a member needs of the one who runs it."""

    def before_write(self) -> None:
        """A write to the journal's file begins; may raise ``KilledError``."""
        ...

    def synced(self) -> None:
        """The library has asked the system to put the file on the disk."""
        ...


class VirtualClock:
    """Time as the member that is running now sees it. Set by whoever runs the members."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.wall_offset_s = 0.0
        #: Whose step it is.
        self.host: Host | None = None
        self._spent_s = 0.0

    def enter(self, now_s: float, wall_offset_s: float, host: Host) -> None:
        """A step of a member begins."""
        self.now_s, self.wall_offset_s, self.host = now_s, wall_offset_s, host
        self._spent_s = 0.0

    def monotonic(self) -> float:
        """In place of ``pysyncobj.monotonic``."""
        self._spent_s += CLOCK_READING_S
        return self.now_s + self._spent_s

    def sent(self) -> None:
        """The member has sent a message."""
        self._spent_s += SENDING_S

    def time(self) -> float:
        """In place of ``time.time``: the wall clock, of which members may differ."""
        return 1e9 + self.monotonic() + self.wall_offset_s

    def sleep(self, _seconds: float) -> None:
        """Nobody sleeps in a single thread."""


class WatchedJournal(Journal):  # type: ignore[misc]  # the package has no types
    """The library's own journal, with a memory of what a step cut off its end."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401
        self.inner = inner
        self.cut: list[Entry] = []
        #: Called with the term and the candidate of every vote, that for oneself included.
        self.on_vote: Callable[[int, str], None] = lambda _term, _candidate: None

    def add(self, command: bytes, idx: int, term: int) -> None:
        self.inner.add(command, idx, term)

    def clear(self) -> None:
        self.inner.clear()

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803
        self.cut.extend(entry_of(each) for each in self.inner[entryFrom:])
        self.inner.deleteEntriesFrom(entryFrom)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        self.inner.deleteEntriesTo(entryTo)

    def __getitem__(self, item: Any) -> Any:  # noqa: ANN401
        return self.inner[item]

    def __len__(self) -> int:
        return len(self.inner)

    def _destroy(self) -> None:
        self.inner._destroy()  # noqa: SLF001

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        self.inner.setRaftCommitIndex(raftCommitIndex)

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return int(self.inner.getRaftCommitIndex())

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        self.inner.setCurrentTerm(term, votedForNodeId)
        if votedForNodeId is not None:
            self.on_vote(term, votedForNodeId)

    def getCurrentTerm(self) -> int:  # noqa: N802
        return int(self.inner.getCurrentTerm())

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        found: str | None = self.inner.getVotedForNodeId()
        return found

    def onOneSecondTimer(self) -> None:  # noqa: N802
        self.inner.onOneSecondTimer()


def entry_of(stored: Sequence[Any]) -> Entry:
    """An entry of a log from the library's (command, index, term)."""
    content = bytes(stored[0])
    return Entry(stored[1], stored[2], content, content[:1] == bytes([MEMBERSHIP_TYPE]))


class IdlePoller:
    """There are no sockets to wait for."""

    def subscribe(self, descr: int, callback: object, eventMask: int) -> None:  # noqa: N803
        """Nothing."""

    def unsubscribe(self, descr: int) -> None:
        """Nothing."""

    def poll(self, timeout: float) -> None:
        """Nothing."""


class _Warnings(logging.Handler):
    """The library's own complaints, for the trace."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().splitlines()[0]
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        self._note(f"log: {text}")


@contextmanager
def _logged(note: Callable[[str], None]) -> Iterator[None]:
    logger, handler = logging.getLogger("pysyncobj"), _Warnings(note)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def patched(clock: VirtualClock, random: Random, note: Callable[[str], None]) -> Iterator[None]:
    """*note* gets what the library logs."""
    make_journal = pysyncobj.journal.createJournal

    def create_journal(name: str | None = None) -> WatchedJournal:
        return WatchedJournal(make_journal(name))

    class MortalFile(pysyncobj.journal.ResizableFile):  # type: ignore[misc]  # no types
        """The journal's file, at each of whose writes the process may die."""

        def write(self, offset: int, values: bytes) -> None:
            if clock.host is not None:
                clock.host.before_write()
            super().write(offset, values)

        def flush(self) -> None:
            super().flush()
            if clock.host is not None:
                clock.host.synced()

    def synced(real: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(file: Any) -> None:  # noqa: ANN401
            real(file)
            if clock.host is not None:
                clock.host.synced()

        return call

    syncobj, chance = pysyncobj.syncobj, SimpleNamespace(random=random.random)
    with ExitStack() as stack:
        for module, name, replacement in (
            (syncobj, "monotonicTime", clock.monotonic),
            (syncobj, "random", chance),
            (syncobj, "time", clock),
            (syncobj, "createPoller", lambda _kind: IdlePoller()),
            (syncobj, "PIPE_NOTIFIER_ENABLED", False),
            (syncobj, "createJournal", create_journal),
            (pysyncobj.journal, "ResizableFile", MortalFile),
            (pysyncobj.batteries, "time", clock),
            (os, "fsync", synced(os.fsync)),
            (os, "fdatasync", synced(os.fdatasync)),
        ):
            stack.enter_context(mock.patch.object(module, name, replacement))
        stack.enter_context(_logged(note))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files to be closed by chance
        yield
        gc.collect()

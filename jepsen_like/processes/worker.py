"""``python -m jepsen_like.processes.worker SETTINGS``: one worker of tasks as a process of its own.

It keeps a diary: a line of JSON for each attempt that begins or ends, for each completion that it
was told was taken, and for each number that it is registered under. A line is with the kernel
before the worker goes on, so it outlives SIGKILL; the power does not fail in these runs. The
process dies with the harness that started it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from jepsen_like.processes.parent import die_with_parent
from quorate.client.database import connect
from quorate.client.task_post import Counts
from quorate.client.task_worker import Worker
from quorate.errors import QuorateError

#: By name of the workload: the module whose ``app(tell, hasty)`` makes what a worker runs.
APPS: Final = {
    "queue": "jepsen_like.workloads.queue_work",
    "workflow": "jepsen_like.workloads.workflow_work",
}
ERROR_PAUSE_S: Final = 0.2
#: For what runs when the worker is told to go.
GRACE_S: Final = 1.0
RETRY_S: Final = 0.2

Line = Sequence[Any]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """*app*: of ``APPS``. *nodes*: addresses. *options*: of ``Worker``. *hasty*: a bug on purpose,
    tasks are told to be done before they have run."""

    app: str
    nodes: list[str]
    diary: str
    timeout_s: float
    options: dict[str, Any]
    hasty: bool = False


class Diary:
    """Lines in a file, each with the time, on the one clock of this machine, before it."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, line: Line) -> None:
        """On return the kernel has it."""
        os.write(self._file, json.dumps([time.monotonic_ns(), *line]).encode() + b"\n")

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)


def read_diary(path: Path) -> list[list[Any]]:
    """Its lines, as far as they are whole: the last one may have been cut short by a kill."""
    try:
        text = path.read_bytes()
    except OSError:
        return []
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


class DiaryCounts(Counts):
    """Of a worker, who writes down at once what it was told was taken, and what was not."""

    __slots__ = ("_diary",)

    def __init__(self, diary: Diary) -> None:
        self._diary = diary
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401  of any attribute
        if name in _WRITTEN:
            more = value - getattr(self, name, 0)
            if more:
                self._diary.tell([_WRITTEN[name], more])
        super().__setattr__(name, value)


#: Counts that are written down, and the line that tells of one more.
_WRITTEN: Final = {"done": "taken", "stale": "stale"}


async def work(settings: Settings) -> None:
    """Until SIGTERM: then it drains."""
    diary = Diary(settings.diary)
    app = importlib.import_module(APPS[settings.app]).app(diary.tell, hasty=settings.hasty)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    while not told.is_set():
        # A handle that could not be opened is closed for good, and so is its worker.
        database = connect(settings.nodes, timeout=settings.timeout_s)
        worker = Worker(database, app, error_pause=ERROR_PAUSE_S, **settings.options)
        worker.counts = DiaryCounts(diary)
        try:
            async with database, worker:
                diary.tell(["hired", worker.id])
                await told.wait()
                await worker.drain(GRACE_S)
        except QuorateError as error:
            print(f"{error.code}: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(RETRY_S)
    diary.close()


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    die_with_parent()
    asyncio.run(work(msgspec.json.decode(arguments[0], type=Settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Several worker processes under one: ``quorate worker --processes N``, for tasks that compute.

The processes are told to drain by the one that began them: by SIGTERM or, should it die, by the end
of their standard input; no signal of the terminal reaches them. One that dies is begun again. If it
keeps ending soon after it began, the others drain, and its status is that of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from quorate.server.cli_common import Exit
from quorate.server.running import send_signal

PROCESSES_MAX: Final = 256
#: Whoever ends so soon after it began, so often in a row, will not do better.
SOON_S: Final = 10.0
SOON_TIMES_MAX: Final = 5
#: Before a process that ended is begun again, doubled each time that it ends soon.
PAUSE_S: Final = 0.1

_logger = logging.getLogger(__name__)


class Crew:
    """*count* processes of one *command* line. *again*: one that ends well is begun again, too.

    ``run`` until all have ended; ``stop`` has them drain.
    """

    def __init__(self, command: Sequence[str], count: int, *, again: bool) -> None:
        self._command = list(command)
        self._count = count
        self._again = again
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._status = int(Exit.OK)

    async def run(self) -> int:
        """Until all have ended; the status of the first one that could not go on, or else 0."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._count):
                    group.create_task(self._keep(number))
        finally:
            self.kill()
        return self._status

    def stop(self) -> None:
        """Have all drain."""
        self._stopping.set()
        for process in self._running.values():
            send_signal(process, signal.SIGTERM)

    def kill(self) -> None:
        """All of them, at once."""
        for process in self._running.values():
            send_signal(process, signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        """Have one process, again and again."""
        soon = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._run_one(number)
            if self._stopping.is_set():
                if status != -signal.SIGTERM:  # else it had not come to take any task yet
                    self._end(status)
                return
            if status == Exit.OK:
                if not self._again:
                    return
                soon = 0
                continue
            soon = soon + 1 if time.monotonic() - began < SOON_S else 0
            if status == Exit.USAGE or soon >= SOON_TIMES_MAX:
                _logger.error("worker process %d ends with %d: so do the others", number, status)
                self._end(status)
                self.stop()
                return
            _logger.warning("worker process %d ended with %d; another one begins", number, status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), PAUSE_S * 2**soon)

    def _end(self, status: int) -> None:
        """As a shell has it: whoever died of a signal has 128 and its number."""
        self._status = self._status or (128 - status if status < 0 else status)

    async def _run_one(self, number: int) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,  # it ends with this process, whatever that dies of
            env=_environment(),
            start_new_session=True,
        )
        self._running[number] = process
        if self._stopping.is_set():
            self.stop()
        try:
            return await process.wait()
        finally:
            if process.returncode is not None:
                del self._running[number]


def own_command(arguments: Sequence[str]) -> list[str]:
    """The command line that has this very package, in this interpreter, run with *arguments*."""
    return [sys.executable, "-m", "quorate", *arguments]


def _environment() -> dict[str, str]:
    # The package may run from a source tree that only this process's path knows.
    root = str(Path(__file__).resolve().parents[2])
    known = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known)}

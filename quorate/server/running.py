"""Runs a program as long as it may run, and makes sure that it does not run longer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

#: Statuses of programs that could not be started, as shells have them.
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
_SIGNALLED: Final = 128  # and the number of the signal that ended it
#: Passed on to the program, which knows better what to do with them.
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Program:
    """A program that runs under something that may be lost."""

    def __init__(self, process: asyncio.subprocess.Process, *, grouped: bool) -> None:
        self._process = process
        self._grouped = grouped

    @classmethod
    async def start(cls, command: Sequence[str], more: Mapping[str, str]) -> Program:
        """Start *command* with *more* in its environment.

        On a terminal it shares the group of this process, so that it can read and be interrupted
        there. Otherwise it begins a group of its own, so that whatever it starts is stopped with
        it.

        Raises:
            OSError: it cannot be started.
        """
        grouped = not sys.stdin.isatty()
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **more}, start_new_session=grouped
        )
        return cls(process, grouped=grouped)

    async def wait(self) -> int:
        """Its exit status, as a shell has it; meanwhile signals to this process are its own."""
        with self._passing_signals():
            return _status(await self._process.wait())

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, and SIGKILL *grace_s* seconds later."""
        self.send(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        self.send(signal.SIGKILL)  # also what it has left behind, if it has a group
        await self._process.wait()

    def send(self, number: int) -> None:
        """A signal, to its group if it has one."""
        if not self._grouped:
            send_signal(self._process, number)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    @contextlib.contextmanager
    def _passing_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        # A terminal sends its interrupt to the whole group, so the program has had it.
        passed_on = _PASSED_ON if self._grouped else _PASSED_ON[:2]
        for number in _PASSED_ON:
            loop.add_signal_handler(
                number, self.send if number in passed_on else _pass_over, number
            )
        try:
            yield
        finally:
            for number in _PASSED_ON:
                loop.remove_signal_handler(number)


def send_signal(process: asyncio.subprocess.Process, number: int) -> None:
    """To a child that may have ended.

    Its own method polls first, which takes the status of one that has just ended away from the loop
    that waits for it: 255 in its place.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _status(returned: int) -> int:
    return returned if returned >= 0 else _SIGNALLED - returned


def _pass_over(_number: int) -> None:
    return None


async def run_while(
    command: Sequence[str],
    more: Mapping[str, str],
    lost: Callable[[], asyncio.Future[str]],
    grace_s: float,
) -> int | None:
    """Run *command* to its end: its exit status; or, if *lost* comes first, stop it: None."""
    try:
        program = await Program.start(command, more)
    except FileNotFoundError:
        sys.stderr.write(f"quorate: {command[0]}: no such command\n")
        return NOT_FOUND
    except OSError as error:
        sys.stderr.write(f"quorate: {command[0]}: {error.strerror}\n")
        return NOT_EXECUTABLE
    running = asyncio.ensure_future(program.wait())
    losing = lost()
    try:
        await asyncio.wait((running, losing), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        return None
    finally:
        losing.cancel()
        if not running.done():
            await program.stop(grace_s)
            running.cancel()
            await asyncio.wait([running])

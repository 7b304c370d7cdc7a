"""One node of a system under test: a process with a directory, a log file, and a name for life.

Nodes are started in sessions of their own, so that an interrupt of the terminal is for the harness
alone, and ended by pid. ``all_ended`` sees to it that none outlives the run, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from jepsen_like.errors import SetupError

END_TIMEOUT_S: Final = 20.0  # for a process that was told to end, or killed
POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 3000  # of a log, in a message

#: Every process that was started here and has not been reaped here.
_alive: list[subprocess.Popen[bytes]] = []


class NodeProcess:
    """Node *number*: the process comes and goes, the rest stays.

    *command*: what to run, asked for at every start. *environment*: on top of the harness's own,
    from which variables that begin with one of *forget* are taken away. *kind*: what its files are
    called after.
    """

    def __init__(
        self,
        number: int,
        directory: Path,
        command: Callable[[], Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        forget: tuple[str, ...] = (),
        kind: str = "node",
    ) -> None:
        self.number = number
        self.data = directory / f"{kind}-{number}"
        self.log = directory / f"{kind}-{number}.log"
        self.started_count = 0
        self.paused = False
        #: A fault has this process in its hands; others leave it alone.
        self.claimed = False
        self._command = command
        self._environment = dict(environment or {})
        self._forget = forget
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0

    @property
    def age_s(self) -> float:
        """Seconds since the last start."""
        return time.monotonic() - self._started_s

    @property
    def pid(self) -> int:
        """Of the process that was started last; 0 before the first."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        """Whether the process exists and has not ended; a paused one does run."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Of the process that was started last; None while it runs, or before the first."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start the process unless it runs; does not wait until it serves."""
        if self.running:
            return
        if self._process is not None:
            _forget(self._process)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not (self._forget and name.startswith(self._forget))
        }
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [kept.get("PYTHONPATH")])]
        kept["PYTHONPATH"] = os.pathsep.join(paths)  # a source tree that nobody installed
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.paused = False
        self.started_count += 1
        self._started_s = time.monotonic()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                list(self._command()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**kept, **self._environment},
                start_new_session=True,
            )
        _alive.append(self._process)

    def kill(self) -> None:
        """SIGKILL, and reap: on return the process is gone. Idempotent."""
        if self._process is not None:
            _kill(self._process)
            self.paused = False

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it does nothing, and its connections stay."""
        if self.running and not self.paused:
            self._signal(signal.SIGSTOP)
            self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        if self.paused:
            self.paused = False
            self._signal(signal.SIGCONT)

    async def wait_ended(self, timeout_s: float = END_TIMEOUT_S) -> int | None:
        """The exit status; None if it still runs after *timeout_s*."""
        end_s = time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() > end_s:
                return None
            await asyncio.sleep(POLL_S)
        if self._process is not None:
            _forget(self._process)
        return self.exit_status

    def log_size(self) -> int:
        """Bytes of its log so far."""
        try:
            return self.log.stat().st_size
        except OSError:
            return 0

    def log_tail(self, since: int = 0) -> str:
        """The end of its log, of what was written after byte *since*."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(since, self.log_size() - LOG_TAIL_BYTES))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"process {process.pid} does not end, although killed") from error
    _forget(process)


def _forget(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ValueError):
        _alive.remove(process)


@contextlib.contextmanager
def all_ended() -> Iterator[None]:
    """No node process started inside outlives the block, however it ends.

    SIGTERM and SIGHUP, which would end this process without a word, raise ``KeyboardInterrupt``
    inside, so that what is on the stack is undone. A second ^C does not interrupt the ending.
    """
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in signals}
    try:
        yield
    finally:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in _alive.copy():
            _kill(process)
        for number, handler in {**before, signal.SIGINT: interrupt}.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")

"""Child processes, ports and directories of a measurement. What starts here is ended by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.measure import file_system

ROOT = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_S = 10.0


#: Every process that was started here and has not been reaped here.
_alive: list[subprocess.Popen[Any]] = []


class BenchError(Exception):
    """The measurement cannot go on; the text says why and what to do."""


@contextlib.contextmanager
def all_ended() -> Iterator[None]:
    """No process started inside outlives the block, however it ends.

    SIGTERM and SIGHUP, which would end this process without a word, raise ``SystemExit`` inside,
    so that what is on the stack is undone. A second ^C does not interrupt the ending.
    """
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _exit_on_signal) for number in signals}
    try:
        yield
    finally:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in _alive.copy():  # `kill` takes it off the list
            kill(process)
        for number, handler in {**before, signal.SIGINT: interrupt}.items():
            signal.signal(number, handler)


def _exit_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def free_ports(count: int) -> list[int]:
    """*count* different loopback ports that nobody listens on now.

    Held open together while they are chosen, so that they differ; another process may take one
    before it is used, which shows as a node that does not start.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(int(listener.getsockname()[1]))
        return ports


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process, its output appended to *log*. Settings of quorate and etcd in this process's
    environment are not passed on: what is measured are the defaults."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QUORATE_", "ETCD_"))
    }
    with log.open("ab") as output:
        return spawn(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )


def spawn(arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:  # noqa: ANN401
    """``Popen`` in a session of its own, so that ^C at a terminal reaches this process alone,
    which then ends the others."""
    process = subprocess.Popen(list(arguments), cwd=ROOT, start_new_session=True, **options)
    _alive.append(process)
    return process


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL one process and reap it. Idempotent."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait(STOP_TIMEOUT_S)
    _forget(process)


def kill_group(process: subprocess.Popen[Any]) -> None:
    """SIGKILL one process with those that it started and that did not leave its group: what runs
    behind a script, or under a master. Idempotent."""
    if process.returncode is None:  # not reaped yet, so its number is nobody else's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    kill(process)


def stop(process: subprocess.Popen[Any]) -> int:
    """SIGTERM, and SIGKILL if that does not end it in time; returns the exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            kill(process)
    _forget(process)
    return process.returncode


def _forget(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ValueError):
        _alive.remove(process)


def wait_until(
    condition: Callable[[], bool], timeout_s: float, what: str, interval_s: float = 0.02
) -> float:
    """Poll *condition*; returns the seconds it took.

    Raises:
        BenchError: it did not become true in time.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise BenchError(f"waited {timeout_s:g} s for {what}")
        time.sleep(interval_s)
    return time.monotonic() - began


def tail(log: Path, lines: int = 10) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


@contextlib.contextmanager
def scratch_directory(parent: Path | None) -> Iterator[Path]:
    """A directory on a real disk, removed afterwards.

    Memory file systems make every fsync free, which would measure nothing: if the system's
    temporary directory is one, the current directory is used instead.
    """
    if parent is None:
        parent = Path(tempfile.gettempdir())
        if file_system(parent) in ("tmpfs", "ramfs"):
            parent = Path.cwd()
    path = Path(tempfile.mkdtemp(prefix="quorate-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)

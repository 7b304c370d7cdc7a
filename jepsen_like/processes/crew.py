"""Workers of tasks as real processes: hired, dismissed, killed and stopped while a run lasts, and
what they wrote down of what they ran."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from jepsen_like.errors import SetupError
from jepsen_like.processes.nodes import NodeProcess
from jepsen_like.processes.worker import Diary, Settings, read_diary
from jepsen_like.systems.base import OutcomeError

#: Workers at a time; interpreters are dear.
CREW_MAX: Final = 4
#: Some are replaced, as often as they are killed; beyond so many nobody is hired.
HIRED_MAX: Final = 200
HIRE_S: Final = 4.5
END_S: Final = 10.0
POLL_S: Final = 0.05


class Diaries(NamedTuple):
    """What all workers wrote down. *acts*: in the order in which it happened; *taken*: completions
    that they were told were taken, *stale*: answers that came too late."""

    acts: list[list[Any]]
    taken: int
    stale: int


class Crew:
    """*app*: what its workers run (``worker.APPS``). *addresses*: of the nodes, as they are now.
    *hasty*: its workers have a bug, on purpose."""

    def __init__(
        self,
        app: str,
        directory: Path,
        addresses: Callable[[], Sequence[str]],
        *,
        timeout_s: float,
        hasty: bool = False,
    ) -> None:
        self.app = app
        self.killed = self.stopped = 0
        self._directory = directory / f"workers-{app}"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._hasty = hasty
        self._workers: dict[int, NodeProcess] = {}
        self._hired = 0

    # --- coming and going -------------------------------------------------------------------------

    def free(self) -> list[NodeProcess]:
        """Those that run and that no fault holds."""
        return [each for each in self._workers.values() if each.running and not each.claimed]

    @property
    def full(self) -> bool:
        """Whether nobody else is hired now."""
        running = sum(each.running for each in self._workers.values())
        return running >= CREW_MAX or self._hired >= HIRED_MAX

    async def hire(self, options: dict[str, Any]) -> int:
        """A further process; the number that its worker is registered under.

        Raises:
            OutcomeError: it has not said so in time; it may still come.
        """
        self._hired += 1
        number = self._hired
        diary = self._diary(number)
        settings = Settings(
            app=self.app,
            nodes=list(self._addresses()),
            diary=str(diary),
            timeout_s=self._timeout_s,
            options=options,
            hasty=self._hasty,
        )
        command = [sys.executable, "-m", "jepsen_like.processes.worker"]
        command.append(msgspec.json.encode(settings).decode())
        process = NodeProcess(
            number, self._directory, lambda: command, forget=("QUORATE_",), kind="worker"
        )
        self._workers[number] = process
        process.start()
        end_s = time.monotonic() + HIRE_S
        while time.monotonic() < end_s and process.running:
            for _, what, *more in read_diary(diary):
                if what == "hired":
                    return int(more[0])
            await asyncio.sleep(POLL_S)
        state = "runs" if process.running else f"ended with {process.exit_status}"
        raise OutcomeError(
            f"worker process {number} {state}, and has not said that it is registered; its log "
            f"ends:\n{process.log_tail()}",
            definite=False,
        )

    def dismiss(self) -> bool:
        """One of them is told to drain and go; False: there is none."""
        for each in self.free():
            each.terminate()
            return True
        return False

    def kill(self, process: NodeProcess) -> None:
        """SIGKILL: what it was at, nobody else knows."""
        process.kill()
        self.killed += 1

    def stop(self, process: NodeProcess) -> None:
        """SIGSTOP, until it is resumed."""
        process.pause()
        self.stopped += 1

    async def end(self) -> None:
        """All drain and go; who does not in time is killed."""
        for each in self._workers.values():
            each.resume()
            each.terminate()
        end_s = time.monotonic() + END_S
        for each in self._workers.values():
            await each.wait_ended(max(end_s - time.monotonic(), 0.0))
        self.close()

    def close(self) -> None:
        """End all processes, now."""
        for each in self._workers.values():
            with contextlib.suppress(SetupError):
                each.kill()

    def mark(self, line: str) -> None:
        """Writes *line* into a diary of the harness's own."""
        diary = Diary(str(self._directory / "harness.diary"))
        diary.tell([line])
        diary.close()

    # --- what they wrote --------------------------------------------------------------------------

    def diaries(self) -> Diaries:
        """Of all workers that ever were."""
        paths = sorted(self._directory.glob("*.diary"))
        lines = [line for path in paths for line in read_diary(path)]
        lines.sort(key=lambda line: int(line[0]))
        acts, taken, stale = [], 0, 0
        for _, *line in lines:
            if line[0] == "taken":
                taken += line[1]
            elif line[0] == "stale":
                stale += line[1]
            elif line[0] != "hired":
                acts.append(line)
        return Diaries(acts, taken, stale)

    def _diary(self, number: int) -> Path:
        return self._directory / f"worker-{number}.diary"


@runtime_checkable
class Staffed(Protocol):
    """A workload whose workers are processes in a run with real ones. *rate*: operations per second
    that leave time to run what was enqueued; *last_timeout_s*: of one final operation."""

    name: str
    rate: float
    last_timeout_s: float

    def staff(self, crew: Crew) -> None:
        """From now on its workers are those of *crew*."""
        ...


def staffed(workload: object) -> list[Staffed]:
    """Those of the workloads, of one or several at once, that have workers."""
    parts = getattr(workload, "parts", [workload])
    return [each for each in parts if isinstance(each, Staffed)]

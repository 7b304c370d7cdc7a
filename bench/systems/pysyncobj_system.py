"""PySyncObj in its fast mode: ``appendEntriesUseBatch=False``, with its journal, never fsynced.

PySyncObj is a library, so the client is one of the three members: the leader. The other two have
longer election timeouts, which decides who leads and changes nothing else. Operations complete by
callback on the library's own thread; the next one is issued there at once, or by a thread of ours;
with one outstanding a synchronous call is tried as well. The fastest counts. Its reads are local
and not linearizable, so there is no read to compare.

Two settings beside those make it faster than its defaults by half, measured here: no compaction of
the log, which would stop every member for 0.2 s each 5,000 entries, and larger socket buffers.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bench import processes
from bench.measure import Sample, versions
from bench.processes import BenchError
from bench.workloads import Window, Workload, payloads

NODES = 3
FOLLOWER_TIMEOUT_S = (2.5, 3.4)  # above the leader's 0.4 to 1.4: the client's node wins
CALL_TIMEOUT_S = 10.0
NO_COMPACTION_ENTRIES = 10**9  # more than any run writes
NO_COMPACTION_S = 10**6
SOCKET_BUFFER_BYTES = 4 << 20


class PySyncObjSystem:
    """Two follower processes; the third member is the client."""

    name = "pysyncobj"

    def __init__(self) -> None:
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._addresses: list[str] = []
        self._directory = Path()

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if versions("pysyncobj")["pysyncobj"] == "absent":
            return "PySyncObj is not installed: pip install 'quorate[bench]'"
        return None

    def version(self) -> str:
        """Of the installed package."""
        return versions("pysyncobj")["pysyncobj"]

    def start(self, directory: Path) -> None:
        """Start the two followers; the cluster stands when the client joins."""
        self._directory = directory
        self._addresses = [f"127.0.0.1:{port}" for port in processes.free_ports(NODES)]
        for number in range(1, NODES):
            arguments = [sys.executable, "-m", "bench.systems.pysyncobj_system", str(directory)]
            arguments += [str(number), *self._addresses]
            log = directory / f"pysyncobj-{number}.log"
            self._nodes.append(processes.start(arguments, log))

    def client_spec(self) -> dict[str, Any]:
        """Where the client's own member stands."""
        return {"directory": str(self._directory), "addresses": self._addresses}

    def stop(self) -> None:
        """End the processes."""
        for process in self._nodes:
            processes.kill(process)
        self._nodes = []


def make_member(directory: Path, number: int, addresses: list[str]) -> Any:  # noqa: ANN401
    """A replicated dictionary as PySyncObj's users write it. Member 0 is the one that leads."""
    import pysyncobj

    class Dictionary(pysyncobj.SyncObj):  # type: ignore[misc]  # the package has no types
        """Keys and values, nothing else."""

        def __init__(self) -> None:
            low, high = (0.4, 1.4) if number == 0 else FOLLOWER_TIMEOUT_S
            settings = pysyncobj.SyncObjConf(
                appendEntriesUseBatch=False,
                journalFile=str(directory / f"pysyncobj-{number}.journal"),
                raftMinTimeout=low,
                raftMaxTimeout=high,
                connectionRetryTime=0.2,
                logCompactionMinEntries=NO_COMPACTION_ENTRIES,
                logCompactionMinTime=NO_COMPACTION_S,
                sendBufferSize=SOCKET_BUFFER_BYTES,
                recvBufferSize=SOCKET_BUFFER_BYTES,
            )
            others = [address for address in addresses if address != addresses[number]]
            super().__init__(addresses[number], others, conf=settings)
            self.data: dict[bytes, bytes] = {}

        @pysyncobj.replicated  # type: ignore[untyped-decorator]
        def put(self, key: bytes, value: bytes) -> None:
            """Set a key."""
            self.data[key] = value

    return Dictionary()


class PySyncObjClient:
    """The leading member, driven from within its process."""

    def __init__(self) -> None:
        self._member: Any = None

    def variants(self, workload: Workload) -> tuple[str, ...]:
        """Only puts, on the one connection that there is: none."""
        if workload.operation != "put" or workload.connections != 1:
            return ()
        ways = ("callbacks", "thread")
        return (*ways, "synchronous") if workload.outstanding == 1 else ways

    async def open(self, spec: dict[str, Any]) -> None:
        """Join as member 0 and wait until it leads."""
        addresses = [str(address) for address in spec["addresses"]]
        self._member = make_member(Path(spec["directory"]), 0, addresses)
        deadline = time.monotonic() + 30
        while not (self._member.isReady() and self._leads()):
            if time.monotonic() > deadline:
                raise BenchError("PySyncObj: the client's member does not lead after 30 s")
            await asyncio.sleep(0.05)

    def _leads(self) -> bool:
        leader = self._member._getLeader()  # noqa: SLF001 - it has no public name for it
        return leader is not None and leader == self._member.selfNode

    async def load(self) -> None:
        """Nothing to do: there are no reads."""

    async def run(self, workload: Workload, variant: str, seconds: float) -> Sample:
        """Drive the replicated method."""
        ways = {
            "callbacks": self._run_callbacks,
            "thread": self._run_thread,
            "synchronous": self._run_synchronous,
        }
        return await asyncio.to_thread(ways[variant], workload.outstanding, seconds)

    async def close(self) -> None:
        """Leave the cluster."""
        self._member.destroy()

    def _run_synchronous(self, _outstanding: int, seconds: float) -> Sample:
        window, supply, put = Window(seconds), payloads(), self._member.put
        began = time.perf_counter()
        while began < window.ends:
            key, value = next(supply)
            put(key, value, sync=True, timeout=CALL_TIMEOUT_S)
            done = time.perf_counter()
            if window.begins <= done < window.ends:
                window.latencies_s.append(done - began)
            began = done
        return window.sample()

    def _run_thread(self, outstanding: int, seconds: float) -> Sample:
        """This thread issues; callbacks only free a place among the outstanding."""
        window, supply, put = Window(seconds), payloads(), self._member.put
        places, failures = threading.Semaphore(outstanding), list[object]()

        def issue(began: float) -> None:
            def completed(_result: object, error: int) -> None:
                done = time.perf_counter()
                if error != 0:  # FAIL_REASON.SUCCESS is 0
                    failures.append(error)
                if window.begins <= done < window.ends:
                    window.latencies_s.append(done - began)
                places.release()

            key, value = next(supply)
            put(key, value, callback=completed)

        while not failures and time.perf_counter() < window.ends:
            if not places.acquire(timeout=CALL_TIMEOUT_S):
                raise BenchError("PySyncObj: operations without an answer")
            issue(time.perf_counter())
        for _ in range(outstanding):
            places.acquire(timeout=CALL_TIMEOUT_S)
        if failures:
            raise BenchError(f"PySyncObj: an operation failed for reason {failures[0]}")
        return window.sample()

    def _run_callbacks(self, outstanding: int, seconds: float) -> Sample:
        window, supply, put = Window(seconds), payloads(), self._member.put
        finished, failures = threading.Event(), list[object]()
        lock = threading.Lock()
        remaining = outstanding

        def launch() -> None:
            nonlocal remaining
            began = time.perf_counter()
            if began >= window.ends or failures:
                with lock:
                    remaining -= 1
                    if remaining == 0:
                        finished.set()
                return

            def completed(_result: object, error: int) -> None:
                done = time.perf_counter()
                if error != 0:  # FAIL_REASON.SUCCESS is 0
                    failures.append(error)
                if window.begins <= done < window.ends:
                    window.latencies_s.append(done - began)
                launch()

            with lock:
                key, value = next(supply)
            put(key, value, callback=completed)

        for _ in range(outstanding):
            launch()
        if not finished.wait(window.seconds + CALL_TIMEOUT_S):
            raise BenchError("PySyncObj: operations without an answer")
        if failures:
            raise BenchError(f"PySyncObj: an operation failed for reason {failures[0]}")
        return window.sample()


def main() -> None:
    """A follower: ``DIRECTORY NUMBER ADDRESS...``; runs until it is killed."""
    directory, number, addresses = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    member = make_member(directory, number, addresses)
    while member.tick_thread_alive():
        time.sleep(1)


if __name__ == "__main__":
    main()

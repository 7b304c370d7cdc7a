"""The client process of one system: obeys JSON lines on stdin, answers with JSON lines on stdout.

``{"do": "open", "spec": {...}}``, ``{"do": "load"}``, ``{"do": "variants", "workload": NAME}``,
``{"do": "run", "workload": NAME, "variant": NAME, "seconds": S}``; end of input ends it.
Every answer is ``{"ok": ...}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec

from bench import access
from bench.measure import Figures, figures
from bench.processes import BenchError, spawn, stop, tail
from bench.systems.base import Client
from bench.workloads import BY_NAME


def make_client(system: str) -> Client:
    """The client of a system by its name."""
    if system == "etcd":
        from bench.systems.etcd import EtcdClient

        return EtcdClient()
    if system == "pysyncobj":
        from bench.systems.pysyncobj_system import PySyncObjClient

        return PySyncObjClient()
    from bench.systems.quorate_system import QuorateClient

    return QuorateClient()


class Worker:
    """The parent's side: a handle on the client process of one system."""

    def __init__(self, system: str, log: Path) -> None:
        self._log = log
        self._stderr = log.open("ab")
        self._process = spawn(
            [sys.executable, "-m", "bench.worker", system],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def ask(self, **order: object) -> Any:  # noqa: ANN401 - JSON
        """Send an order and wait for the answer.

        Raises:
            BenchError: the client failed; the text says how.
        """
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise BenchError("the client process has no pipes")
        try:
            to.write(json.dumps(order) + "\n")
            to.flush()
            answer = json.loads(back.readline() or "null")
        except (OSError, ValueError) as error:
            raise BenchError(f"the client process failed: {error}") from error
        if not isinstance(answer, dict) or "ok" not in answer:
            shown = answer["error"] if isinstance(answer, dict) else tail(self._log)
            raise BenchError(f"the client process failed: {shown}")
        return answer["ok"]

    def run(self, workload: str, variant: str, seconds: float) -> Figures:
        """One measured run."""
        answer = self.ask(do="run", workload=workload, variant=variant, seconds=seconds)
        return msgspec.convert(answer, Figures)

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        stop(self._process)
        self._stderr.close()


async def obey(client: Client, order: dict[str, Any]) -> object:
    """Carry out one order; the answer, as plain JSON."""
    match order["do"]:
        case "open":
            await client.open(order["spec"])
        case "load":
            await client.load()
        case "variants":
            return list(client.variants(BY_NAME[order["workload"]]))
        case "run":
            workload = BY_NAME[order["workload"]]
            sample = await client.run(workload, order["variant"], float(order["seconds"]))
            return msgspec.to_builtins(figures(sample))
        case unknown:
            raise BenchError(f"unknown order {unknown!r}")
    return True


async def serve(client: Client) -> None:
    """Obey until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = {"ok": await obey(client, json.loads(line))}
        except Exception as error:  # noqa: BLE001 - reported to the parent, which decides
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    await client.close()


def main() -> None:
    """``python -m bench.worker SYSTEM``."""
    system = sys.argv[1]
    # grpc.aio was measured to be slower on uvloop, and PySyncObj has no event loop.
    if system == "quorate":
        access.run(serve(make_client(system)))
    else:
        asyncio.run(serve(make_client(system)))


if __name__ == "__main__":
    main()

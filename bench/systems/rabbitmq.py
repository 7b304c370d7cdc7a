"""RabbitMQ: a quorum queue on three nodes of the distribution's package, through aio-pika.

The nodes run as this user, with an epmd, a cookie and directories of their own. Messages are
persistent and confirmed: a majority has each on disk, as with quorate. The consumer is a process of
its own, ``python -m bench.systems.rabbitmq URL QUEUE``, as quorate's worker is; it acknowledges
each message by itself, and everything else that it does is to count. The last message of a run says
so in its body: there is one consumer, and the queue keeps the order.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import access, processes
from bench.measure import Sample, versions
from bench.processes import BenchError
from bench.systems import task_peer
from bench.systems.task_peer import PAYLOAD, TaskRow
from bench.workloads import Window

NODES = 3
OUTSTANDING = 100
PREFETCH = 1000
#: Where Debian and Ubuntu have the scripts that need not run as the service's user.
SCRIPTS = Path("/usr/lib/rabbitmq/bin")
START_S = 90.0
RUN_S = 120.0
LAST = b"last"


class RabbitmqSystem:
    """Three nodes, found by each other through their configuration."""

    name = "rabbitmq"
    promises = "a quorum queue on three nodes: durable and replicated"

    def __init__(self) -> None:
        self._epmd: subprocess.Popen[bytes] | None = None
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []
        self._directory = Path()
        self._rounds = 0

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if not (SCRIPTS / "rabbitmq-server").exists() or shutil.which("epmd") is None:
            return "RabbitMQ is not installed (Debian and Ubuntu: apt-get install rabbitmq-server)"
        if versions("aio-pika")["aio-pika"] == "absent":
            return "aio-pika is not installed: pip install 'quorate[bench]'"
        return None

    def version(self) -> str:
        """Of the newest of the installed ones, and of the client."""
        found = sorted(path.name for path in SCRIPTS.parent.glob("lib/rabbitmq_server-*"))
        number = found[-1].rsplit("-", 1)[-1] if found else "?"
        return f"{number} with aio-pika {versions('aio-pika')['aio-pika']}"

    def start(self, directory: Path) -> None:
        """Start three nodes and wait until they are one cluster."""
        self._directory = directory / self.name
        self._directory.mkdir()
        ports = processes.free_ports(2 * NODES + 1)
        self._ports, distribution, epmd = ports[:NODES], ports[NODES:-1], ports[-1]
        cookie = self._directory / ".erlang.cookie"
        cookie.write_text(directory.name)
        cookie.chmod(0o400)
        formation = ["cluster_formation.peer_discovery_backend = classic_config"]
        formation += [
            f"cluster_formation.classic_config.nodes.{i} = n{i}@localhost" for i in range(NODES)
        ]
        (self._directory / "rabbitmq.conf").write_text("\n".join(formation) + "\n")
        shared = {
            "HOME": str(self._directory),
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self._epmd = self._start(["epmd"], shared, "epmd")
        for i in range(NODES):
            home = self._directory / f"n{i}"
            home.mkdir()
            own = {
                "RABBITMQ_NODENAME": f"n{i}@localhost",
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self._ports[i]),
                "RABBITMQ_DIST_PORT": str(distribution[i]),
                "RABBITMQ_MNESIA_BASE": str(home),
                "RABBITMQ_LOG_BASE": str(home),
                "RABBITMQ_PID_FILE": str(home / "pid"),
                "RABBITMQ_CONFIG_FILE": str(self._directory / "rabbitmq.conf"),
                "RABBITMQ_CONF_ENV_FILE": str(self._directory / "none"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "none"),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                    "-kernel inet_dist_use_interface {127,0,0,1}"
                ),
            }
            server = [str(SCRIPTS / "rabbitmq-server")]
            self._nodes.append(self._start(server, shared | own, f"n{i}"))
        try:
            processes.wait_until(self._stand, START_S, "three nodes of RabbitMQ", 0.2)
            self._check_members(shared)
        except BaseException:
            self.stop()
            raise

    def round(self, seconds: float) -> list[TaskRow]:
        """Publish; consume what was published; and both at once."""
        return access.run(self._round(seconds))

    def stop(self) -> None:
        """End the processes, with what they started."""
        for process in (*self._nodes, *([self._epmd] if self._epmd else [])):
            processes.kill_group(process)
        self._nodes, self._epmd = [], None

    def _start(
        self, command: list[str], environment: dict[str, str], log: str
    ) -> subprocess.Popen[bytes]:
        settings = [f"{name}={value}" for name, value in environment.items()]
        return processes.start(["env", *settings, *command], self._directory / f"{log}.log")

    def _stand(self) -> bool:
        for i, process in enumerate(self._nodes):
            if process.poll() is not None:
                text = processes.tail(self._directory / f"n{i}.log")
                raise BenchError(f"node {i} of RabbitMQ ended; its log ends: {text}")
        return all(
            "completed with" in (self._directory / f"n{i}.log").read_text("utf-8", "replace")
            for i in range(NODES)
        )

    def _check_members(self, environment: dict[str, str]) -> None:
        """Three nodes that do not know each other would be faster than a cluster."""
        command = [str(SCRIPTS / "rabbitmqctl"), "--node", "n0@localhost", "--formatter", "json"]
        shown = subprocess.run(
            [*command, "cluster_status"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        try:
            members = json.loads(shown.stdout)["running_nodes"]
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"rabbitmqctl failed: {shown.stdout}{shown.stderr}") from error
        if len(members) != NODES:
            raise BenchError(f"RabbitMQ's nodes did not find each other: only {members} did")

    # --- a round --------------------------------------------------------------------------------

    async def _round(self, seconds: float) -> list[TaskRow]:
        import aio_pika

        url = f"amqp://guest:guest@127.0.0.1:{self._ports[0]}/"
        queues = [f"{what}-{self._rounds}" for what in ("apart", "together")]
        self._rounds += 1
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            quorum: Any = {"x-queue-type": "quorum"}
            declared = [
                await channel.declare_queue(queue, durable=True, arguments=quorum)
                for queue in queues
            ]
            sample = await _publish(channel, queues[0], seconds)
            consumer = _Consumer(url, queues[0], self._directory)
            await consumer.ready()
            count, took_s = await consumer.end()
            consumed = count / took_s
            consumer = _Consumer(url, queues[1], self._directory)
            await consumer.ready()
            began = time.perf_counter()
            await _publish(channel, queues[1], seconds)
            count, _took_s = await consumer.end()
            lives = count / (time.perf_counter() - began)
            for each in declared:
                await each.delete(if_unused=False, if_empty=False)
        return [
            task_peer.row_of("enqueue", OUTSTANDING, sample, self.name),
            task_peer.rate_row("consume and acknowledge", PREFETCH, consumed, self.name),
            task_peer.rate_row("life, not awaited", OUTSTANDING, lives, self.name),
        ]


async def _publish(channel: Any, queue: str, seconds: float) -> Sample:  # noqa: ANN401
    """Persistent messages, each confirmed, so many at a time; then the last one."""
    import aio_pika

    window = Window(seconds)
    persistent = aio_pika.DeliveryMode.PERSISTENT
    message = aio_pika.Message(PAYLOAD, delivery_mode=persistent)
    publish = channel.default_exchange.publish

    async def lane() -> None:
        began = time.perf_counter()
        while began < window.ends:
            await publish(message, routing_key=queue)
            done = time.perf_counter()
            if window.begins <= done < window.ends:
                window.latencies_s.append(done - began)
            began = done

    await asyncio.gather(*(lane() for _ in range(OUTSTANDING)))
    await publish(aio_pika.Message(LAST, delivery_mode=persistent), routing_key=queue)
    return window.sample()


class _Consumer:
    """The process that consumes one queue until the last message."""

    def __init__(self, url: str, queue: str, directory: Path) -> None:
        self._log = directory / "consumer.log"
        with self._log.open("ab") as errors:
            self._process = processes.spawn(
                [sys.executable, "-m", "bench.systems.rabbitmq", url, queue],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    async def ready(self) -> None:
        """Until it is subscribed."""
        await self._line()

    async def end(self) -> tuple[int, float]:
        """(messages, seconds from the first until all were acknowledged)."""
        found = await self._line()
        processes.stop(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return int(found["count"]), float(found["seconds"])

    async def _line(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise BenchError("the consumer has no output")
        try:
            async with asyncio.timeout(RUN_S):
                text = await asyncio.to_thread(self._process.stdout.readline)
        except TimeoutError:
            processes.kill(self._process)  # which ends the thread that reads, too
            raise BenchError(f"RabbitMQ's consumer did not end within {RUN_S:g} s") from None
        if not text:
            raise BenchError(f"RabbitMQ's consumer failed: {processes.tail(self._log)}")
        found: dict[str, Any] = json.loads(text)
        return found


async def consume(url: str, queue: str) -> None:
    """Acknowledge everything up to the last message, and print how many there were."""
    import aio_pika

    ended = asyncio.Event()
    began = 0.0
    count = 0

    async def take(message: Any) -> None:  # noqa: ANN401
        nonlocal began, count
        began = began or time.perf_counter()
        count += 1
        await message.ack()
        if message.body == LAST:
            ended.set()

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        declared = await channel.get_queue(queue)
        await declared.consume(take)
        print(json.dumps({"ready": True}), flush=True)
        await ended.wait()
        await channel.get_queue(queue)  # answered after all that was said before
        took_s = time.perf_counter() - began
    print(json.dumps({"count": count, "seconds": took_s}), flush=True)


if __name__ == "__main__":
    access.run(consume(sys.argv[1], sys.argv[2]))

"""etcd, three members from PATH with their default settings (fsync on), through its gRPC API.

Two clients are tried for each workload and the faster one counts: ``grpc.aio``, and plain ``grpc``
(a blocking call where one is outstanding, callbacks of futures where more are). Both send bytes
that were encoded by hand, and talk to the leader, so that no request is forwarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench import processes
from bench.measure import Sample
from bench.processes import BenchError
from bench.workloads import Window, Workload, drive, keys, payloads, values
from jepsen_like.systems import etcd_wire as wire

NODES = 3
CALL_TIMEOUT_S = 10.0
#: Each channel has its own TCP connection: by default gRPC shares one among equal channels.
CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class EtcdSystem:
    """Three etcd processes."""

    name = "etcd"

    def __init__(self) -> None:
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.endpoints: list[str] = []
        self._commands: list[list[str]] = []
        self._logs: list[Path] = []

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if shutil.which("etcd") is None:
            return (
                "etcd is not on PATH: install it (Debian and Ubuntu: apt-get install etcd-server)"
            )
        try:
            import grpc  # noqa: F401
        except ImportError:
            return "grpcio is not installed: pip install 'quorate[bench]'"
        return None

    def version(self) -> str:
        """First line of ``etcd --version``, the number alone."""
        shown = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True)
        return shown.stdout.splitlines()[0].rsplit(" ", 1)[-1]

    def start(self, directory: Path) -> None:
        """Start three members and wait for a leader."""
        ports = processes.free_ports(2 * NODES)
        clients, peers = ports[:NODES], ports[NODES:]
        self.endpoints = [f"127.0.0.1:{port}" for port in clients]
        initial = ",".join(f"n{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        for number in range(NODES):
            client, peer = (f"http://127.0.0.1:{ports[number]}" for ports in (clients, peers))
            flags = {
                "name": f"n{number}",
                "data-dir": str(directory / f"etcd-{number}"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": initial,
                "initial-cluster-state": "new",
                "initial-cluster-token": directory.name,
                "logger": "zap",
                "log-level": "error",
            }
            self._commands.append(["etcd", *(f"--{flag}={value}" for flag, value in flags.items())])
            self._logs.append(directory / f"etcd-{number}.log")
            self.nodes.append(processes.start(self._commands[-1], self._logs[-1]))
        try:
            processes.wait_until(lambda: self.leader() is not None, 30, "a leader of etcd", 0.1)
        except BenchError as error:
            self.stop()
            raise BenchError(f"{error}; {processes.tail(self._logs[0])}") from error

    def leader(self) -> int | None:
        """Position of the member that says it leads, or None."""
        import grpc

        for number, endpoint in enumerate(self.endpoints):
            if self.nodes[number].poll() is not None:
                continue
            channel = grpc.insecure_channel(endpoint, CHANNEL_OPTIONS)
            with channel, contextlib.suppress(grpc.RpcError):
                if wire.is_leader(channel.unary_unary(wire.STATUS)(b"", timeout=1)):
                    return number
        return None

    def client_spec(self) -> dict[str, Any]:
        """The leader's endpoint."""
        leader = self.leader()
        if leader is None:
            raise BenchError("etcd has no leader")
        return {"endpoint": self.endpoints[leader]}

    def kill(self, number: int) -> None:
        """SIGKILL one member."""
        processes.kill(self.nodes[number])

    def restart(self, number: int) -> None:
        """Start a killed member again on its data."""
        self.nodes[number] = processes.start(self._commands[number], self._logs[number])

    def stop(self) -> None:
        """End the processes."""
        for process in self.nodes:
            processes.kill(process)
        self.nodes = []


class EtcdClient:
    """Drives the leader over ``connections`` channels."""

    def __init__(self) -> None:
        self._endpoint = ""
        self._aio: list[Any] = []
        self._plain: list[Any] = []

    def variants(self, workload: Workload) -> tuple[str, ...]:
        """Both client libraries, for every workload."""
        single = workload.connections * workload.outstanding == 1
        return ("grpc.aio", "grpc blocking" if single else "grpc futures")

    async def open(self, spec: dict[str, Any]) -> None:
        """Remember the leader; channels open when they are first needed."""
        self._endpoint = str(spec["endpoint"])

    async def load(self) -> None:
        """Every key once, 100 at a time."""
        put = self._aio_channels(1)[0].unary_unary(wire.PUT)
        value = values()[0]
        supply = keys()
        for at in range(0, len(supply), 100):
            batch = supply[at : at + 100]
            await asyncio.gather(*(put(wire.put_request(key, value)) for key in batch))

    async def run(self, workload: Workload, variant: str, seconds: float) -> Sample:
        """Drive through one of the two libraries."""
        if variant == "grpc.aio":
            channels = self._aio_channels(workload.connections)
            calls = [_aio_call(channel, workload) for channel in channels]
            return await drive(calls, workload.outstanding, seconds)
        channels = self._plain_channels(workload.connections)
        if variant == "grpc blocking":
            return await asyncio.to_thread(_run_blocking, channels[0], workload, seconds)
        return await asyncio.to_thread(_run_futures, channels, workload, seconds)

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._aio:
            await channel.close()
        for channel in self._plain:
            channel.close()

    def _aio_channels(self, count: int) -> list[Any]:
        import grpc.aio

        while len(self._aio) < count:
            self._aio.append(grpc.aio.insecure_channel(self._endpoint, options=CHANNEL_OPTIONS))
        return self._aio[:count]

    def _plain_channels(self, count: int) -> list[Any]:
        import grpc

        while len(self._plain) < count:
            self._plain.append(grpc.insecure_channel(self._endpoint, CHANNEL_OPTIONS))
        return self._plain[:count]


def _request(workload: Workload) -> tuple[str, Callable[[bytes, bytes], bytes]]:
    if workload.operation == "put":
        return wire.PUT, wire.put_request
    return wire.RANGE, lambda key, _value: wire.range_request(key)


def _aio_call(channel: Any, workload: Workload) -> Callable[[bytes, bytes], Awaitable[object]]:  # noqa: ANN401
    method, encode = _request(workload)
    send = channel.unary_unary(method)

    def call(key: bytes, value: bytes) -> Awaitable[object]:
        result: Awaitable[object] = send(encode(key, value), timeout=CALL_TIMEOUT_S)
        return result

    return call


def _run_blocking(channel: Any, workload: Workload, seconds: float) -> Sample:  # noqa: ANN401
    method, encode = _request(workload)
    send = channel.unary_unary(method)
    window, supply = Window(seconds), payloads()
    began = time.perf_counter()
    while began < window.ends:
        send(encode(*next(supply)), timeout=CALL_TIMEOUT_S)
        done = time.perf_counter()
        if window.begins <= done < window.ends:
            window.latencies_s.append(done - began)
        began = done
    return window.sample()


def _run_futures(channels: list[Any], workload: Workload, seconds: float) -> Sample:
    """Each completion, on gRPC's own thread, sends the next request of its lane."""
    method, encode = _request(workload)
    window, supply = Window(seconds), payloads()
    lanes = len(channels) * workload.outstanding
    lock, finished, failures = threading.Lock(), threading.Event(), list[BaseException]()
    remaining = lanes

    def launch(send: Any) -> None:  # noqa: ANN401
        nonlocal remaining
        began = time.perf_counter()
        if began >= window.ends or failures:
            with lock:
                remaining -= 1
                if remaining == 0:
                    finished.set()
            return

        def completed(call: Any) -> None:  # noqa: ANN401
            done = time.perf_counter()
            try:
                call.result()
            except Exception as error:  # noqa: BLE001 - carried to the caller's thread
                failures.append(error)
            if window.begins <= done < window.ends:
                window.latencies_s.append(done - began)
            launch(send)

        with lock:
            key, value = next(supply)
        send.future(encode(key, value), timeout=CALL_TIMEOUT_S).add_done_callback(completed)

    for channel in channels:
        send = channel.unary_unary(method)
        for _ in range(workload.outstanding):
            launch(send)
    finished.wait()
    if failures:
        raise failures[0]
    return window.sample()

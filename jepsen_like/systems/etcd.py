"""etcd from PATH as real processes, through its gRPC API: the system that others are held against.

Each client talks to one member. etcd has no increment, so ``add`` is a loop of compare and set.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jepsen_like.systems import etcd_wire as wire
from jepsen_like.systems.base import OutcomeError, Versioned
from jepsen_like.systems.system import System

PROBE_TIMEOUT_S: Final = 1.0
#: Channels that do not share a connection with others of the same address.
OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)
#: Statuses after which a write surely has not happened.
_DEFINITE: Final = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED")


class EtcdSystem(System):
    """Adapter for etcd."""

    name = "etcd"
    ports = ("client", "peer")
    forget = ("ETCD_",)

    @classmethod
    def missing(cls) -> str:
        """Needs etcd on PATH and grpcio."""
        if shutil.which("etcd") is None:
            return (
                "etcd is not on PATH: install it (Debian and Ubuntu: apt-get install etcd-server)"
            )
        if importlib.util.find_spec("grpc") is None:
            return "grpcio is not installed: pip install 'quorate[bench]'"
        return ""

    def command(self, number: int) -> Sequence[str]:
        """A member with etcd's own defaults."""
        founders = range(1, self.count + 1)
        flags = {
            "name": f"n{number}",
            "data-dir": str(self.nodes[number].data),
            "listen-client-urls": f"http://{self.listen(number, 'client')}",
            "advertise-client-urls": f"http://{self.address(number, 'client')}",
            "listen-peer-urls": f"http://{self.listen(number, 'peer')}",
            "initial-advertise-peer-urls": f"http://{self.address(number, 'peer')}",
            "initial-cluster": ",".join(
                f"n{node}=http://{self.address(node, 'peer')}" for node in founders
            ),
            "initial-cluster-token": self.directory.name,
            "logger": "zap",
            "log-level": "error",
        }
        return ["etcd", *(f"--{flag}={value}" for flag, value in flags.items())]

    async def serves(self, number: int) -> bool:
        """Whether it answers a linearizable read."""
        return await self._ask(number, wire.RANGE, wire.range_request(b"?")) is not None

    async def leader(self) -> int:
        """The member that says so of itself."""
        for number, node in self.nodes.items():
            if node.running and not node.paused:
                status = await self._ask(number, wire.STATUS, b"")
                if status is not None and wire.is_leader(status):
                    return number
        return 0

    def client(self, process: int) -> EtcdClient:
        """Talks to one member, whether it leads or not."""
        numbers = list(self.nodes)
        return EtcdClient(self.address(numbers[process % len(numbers)]), self.timeout_s)

    async def _ask(self, number: int, method: str, request: bytes) -> bytes | None:
        grpc = importlib.import_module("grpc")
        async with _channel(self.listen(number)) as channel:
            try:
                answer: bytes = await channel.unary_unary(method)(request, timeout=PROBE_TIMEOUT_S)
            except grpc.RpcError:
                return None
            return answer


class EtcdClient:
    """One gRPC channel; *timeout_s* for each call."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._channel = _channel(address)
        self._timeout_s = timeout_s
        self._grpc = importlib.import_module("grpc")

    async def get(self, key: str) -> Versioned:
        request = wire.range_request(key.encode())
        return Versioned(*wire.range_pair(await self._call(wire.RANGE, request, reads=True)))

    async def put(self, key: str, value: bytes) -> None:
        await self._call(wire.PUT, wire.put_request(key.encode(), value))

    async def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> bool:
        name = key.encode()
        absent = {name: 0} if expected is None else {}
        values = {} if expected is None else {name: expected}
        request = wire.txn_request(absent, [], {name: value}, values)
        return wire.txn_response(await self._call(wire.TXN, request))[0]

    async def add(self, key: str, number: int) -> int:
        while True:
            found = await self.get(key)
            total = int(found.value or b"0") + number
            writes = {key: str(total).encode()}
            succeeded, _ = await self.transact({key: found.version}, [], writes)
            if succeeded:
                return total

    async def transact(
        self, expected: Mapping[str, int], reads: Sequence[str], writes: Mapping[str, bytes]
    ) -> tuple[bool, dict[str, Versioned]]:
        request = wire.txn_request(
            {key.encode(): version for key, version in expected.items()},
            [key.encode() for key in reads],
            {key.encode(): value for key, value in writes.items()},
        )
        answer = await self._call(wire.TXN, request, reads=not writes)
        succeeded, pairs = wire.txn_response(answer)
        if not succeeded:
            return False, {}
        return True, {key: Versioned(*pair) for key, pair in zip(reads, pairs, strict=True)}

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, method: str, request: bytes, *, reads: bool = False) -> bytes:
        try:
            answer: bytes = await self._channel.unary_unary(method)(
                request, timeout=self._timeout_s
            )
        except self._grpc.RpcError as error:
            code = error.code().name
            definite = reads or code in _DEFINITE
            raise OutcomeError(f"{code}: {error.details()}", definite=definite) from error
        return answer


def _channel(address: str) -> Any:  # noqa: ANN401  grpc ships no types
    return importlib.import_module("grpc.aio").insecure_channel(address, options=OPTIONS)

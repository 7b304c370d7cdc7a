"""What monitoring asks of a node over HTTP: ``/metrics``, ``/live`` and ``/ready``.

``/metrics`` is Prometheus's text format. ``/live`` and ``/ready`` are reads by the road that
clients take (see ``health``): 200 if they succeed, 503 with one line of why if not. The listener
speaks just enough HTTP/1.1 for monitoring, and everything about it is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

from quorate.base.invariants import must
from quorate.errors import ConfigError, QuorateError
from quorate.server.config import NodeConfig, parse_listen
from quorate.server.health import Health
from quorate.server.tls import metrics_context

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
except ModuleNotFoundError as missing:
    raise ConfigError(
        "metrics_listen needs prometheus_client; install it with: pip install 'quorate[metrics]'"
    ) from missing

_logger = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 32  # a few monitors, each with one; more are closed at once
REQUEST_BYTES_MAX: Final = 8 * 1024  # a request of monitoring is some hundred bytes
REQUEST_TIMEOUT_S: Final = 10.0  # from connecting to the answer; also ends idle connections
ROLES: Final = ("leader", "candidate", "pre-candidate", "follower")


class Observed(Protocol):
    """The node as metrics see it."""

    def status(self) -> dict[str, Any]: ...

    def statistics(self) -> Any: ...  # noqa: ANN401  # ReplicaStatistics


class Gauge(NamedTuple):
    """One figure of ``Node.status``."""

    field: str
    help: str


#: Metric, by its name without "quorate_".
GAUGES: Final[dict[str, Gauge]] = {
    "term": Gauge("term", "Raft term."),
    "leader": Gauge("leader", "Number of the leader as this node knows it, 0: none."),
    "commit_index": Gauge("commit", "Last log index known to be committed."),
    "applied_index": Gauge("applied", "Last log index applied to the state."),
    "last_index": Gauge("last_index", "Last log index held."),
    "persisted_index": Gauge("persisted", "Last log index on this node's disk."),
    "checkpoint_index": Gauge("checkpoint", "Log index of the last checkpoint."),
    "log_bytes": Gauge("log_bytes", "Size of the write-ahead log."),
    "store_bytes": Gauge("store_bytes", "Size of the state store."),
    "keys": Gauge("keys", "Keys in the key-value store."),
    "revision": Gauge("revision", "Revision of the key-value store."),
    "sessions": Gauge("sessions", "Live client sessions."),
    "clients": Gauge("clients", "Client connections to this node."),
    "resident_bytes": Gauge("resident_bytes", "Memory of the process."),
    "uptime_seconds": Gauge("uptime_s", "Since the node started."),
}

#: Figures of the part "crdt" of ``Node.status``; all names begin with "quorate_crdt_".
CRDT_GAUGES: Final[dict[str, str]] = {
    "records": "Group commits of all lives of members that are joined here.",
    "lives": "Lives of members that are not folded yet.",
    "context_width": "Numbers that the causal context takes.",
    "journal_bytes": "Records kept for members that lack them.",
    "store_bytes": "Size of the element store.",
    "stability_lag": "Records here that some member may lack.",
    "watchers": "Watches of CRDT data at this node.",
}
CRDT_COUNTERS: Final[dict[str, str]] = {
    "bytes_sent": "Bytes of records sent to members.",
    "records_dropped": "Records that came and could not be joined then.",
    "stamps_ahead": "Stamps too far ahead of this node's clock to be followed.",
}

#: Counters of ``Node.statistics``: metric and field are named alike.
COUNTERS: Final[dict[str, str]] = {
    "proposals": "Log entries proposed by this node as leader.",
    "submissions": "Batches of commands that clients handed in.",
    "commands_applied": "Commands applied to the state.",
    "entries_applied": "Log entries applied to the state.",
    "queries": "Batches of reads that clients handed in.",
    "log_writes": "Durable writes of the log: one fsync each.",
    "elections_seen": "Campaigns that this node saw or began.",
    "leader_changes": "Times that the leader changed.",
    "digests_compared": "State hashes compared with other members.",
}


class NodeCollector:
    """Reads a node once per scrape."""

    def __init__(self, node: Observed, tls_cert: str = "") -> None:
        self._node = node
        self._expiry_s = 0.0
        if tls_cert:
            certificates = importlib.import_module("quorate.server.certificates")
            info = certificates.certificate_info(Path(tls_cert))
            self._expiry_s = info.not_after.timestamp()

    def collect(self) -> Iterator[Metric]:
        """All metrics, as ``prometheus_client`` wants them."""
        if self._expiry_s:
            yield GaugeMetricFamily(
                "quorate_certificate_expiry_timestamp_seconds",
                "When the certificate that the node was started with ends, in Unix time.",
                value=self._expiry_s,
            )
        status = self._node.status()
        yield from _gauges(status)
        yield from _converging(status["crdt"])
        yield from _statistics(self._node.statistics())

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known only when there is a node to ask."""
        return iter(())


def _gauges(status: dict[str, Any]) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "quorate_info", "Which node this is.", labels=("node", "cluster", "version")
    )
    info.add_metric([str(status["node"]), status["cluster"], status["version"]], 1)
    yield info
    role = GaugeMetricFamily("quorate_role", "1 for the role in force.", labels=("role",))
    for name in dict.fromkeys((*ROLES, str(status["role"]))):
        role.add_metric([name], float(status["role"] == name))
    yield role
    for metric, gauge in GAUGES.items():
        yield GaugeMetricFamily(f"quorate_{metric}", gauge.help, value=status[gauge.field])
    for metric, text, value in (
        ("read_only", "1 while the node refuses writes that grow.", bool(status["read_only"])),
        ("alarms", "States found to differ between members: must be 0.", len(status["alarms"])),
        ("peers_connected", "Members connected to this node.", len(status["connected"])),
        ("members", "Members of the cluster, learners included.", len(status["members"])),
    ):
        yield GaugeMetricFamily(f"quorate_{metric}", text, value=float(value))


def _converging(crdt: dict[str, Any]) -> Iterator[Metric]:
    for metric, text in CRDT_GAUGES.items():
        yield GaugeMetricFamily(f"quorate_crdt_{metric}", text, value=crdt[metric])
    for metric, text in CRDT_COUNTERS.items():
        yield CounterMetricFamily(f"quorate_crdt_{metric}", text, value=crdt[metric])
    behind = GaugeMetricFamily(
        "quorate_crdt_peer_behind",
        "Records here that a member has not confirmed.",
        labels=("node",),
    )
    for node, records in sorted(crdt["peers_behind"].items()):
        behind.add_metric([str(node)], records)
    yield behind


def _statistics(statistics: Any) -> Iterator[Metric]:  # noqa: ANN401
    for metric, text in COUNTERS.items():
        yield CounterMetricFamily(f"quorate_{metric}", text, value=getattr(statistics, metric))
    yield GaugeMetricFamily(
        "quorate_queued_submissions",
        "Batches that wait for the log.",
        value=statistics.queued_submissions,
    )
    yield GaugeMetricFamily(
        "quorate_loop_lag_seconds_max",
        "Longest delay of the event loop since the last scrape.",
        value=statistics.loop_lag_ms_max / 1000,
    )


class MetricsServer:
    """The listener. *node*: running, on this loop."""

    def __init__(self, node: Observed, config: NodeConfig, health: Health) -> None:
        self._config = config
        self._health = health
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(NodeCollector(node, config.tls_cert))
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""  #: "host:port", once started

    async def start(self) -> None:
        """Listen at ``metrics_listen``.

        Raises:
            ConfigError: the address cannot be used.
        """
        place = parse_listen("metrics_listen", self._config.metrics_listen)
        context = metrics_context(self._config)
        try:
            self._server = await asyncio.start_server(
                self._serve, place.host, place.port, ssl=context, limit=REQUEST_BYTES_MAX
            )
        except OSError as error:
            raise ConfigError(f"metrics_listen: {place} cannot be used: {error}") from error
        port = self._server.sockets[0].getsockname()[1]
        self.address = str(place._replace(port=port))
        _logger.info("metrics at %s", self.address)

    async def stop(self) -> None:
        """Close the listener and all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        must(task is not None, "a connection is served by a task of its own")
        self._tasks.add(cast("asyncio.Task[None]", task))
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                if len(self._tasks) > CONNECTIONS_MAX:
                    return
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    writer.write(await self._answer(reader))
                    await writer.drain()
        finally:
            writer.close()
            self._tasks.discard(cast("asyncio.Task[None]", task))

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return _response(400, f"send one GET request of at most {REQUEST_BYTES_MAX} bytes")
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(405, "only GET is possible")
        response = await self._page(path)
        return response if method == b"GET" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    async def _page(self, path: bytes) -> bytes:
        match path:
            case b"/metrics":
                try:
                    page = generate_latest(self._registry)
                except QuorateError as error:  # the node has just been stopped
                    return _response(503, str(error))
                return _response(200, page, CONTENT_TYPE_LATEST)
            case b"/live":
                return await _probed(self._health.live(), "alive")
            case b"/ready":
                return await _probed(self._health.ready(), "ready")
            case _:
                return _response(404, "there are /metrics, /live and /ready")


async def _probed(probe: Any, good: str) -> bytes:  # noqa: ANN401  # a coroutine
    try:
        await probe
    except QuorateError as error:
        return _response(503, f"{error.code}: {error}")
    return _response(200, good)


_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


def _response(status: int, body: bytes | str, content_type: str = "text/plain") -> bytes:
    content = body if isinstance(body, bytes) else f"{' '.join(body.split())}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + content

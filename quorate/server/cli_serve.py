"""``quorate serve``: one node until a signal ends it. Every setting of ``NodeConfig`` is a flag."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from quorate.base.invariants import must
from quorate.errors import ConfigError, QuorateError
from quorate.server.cli_common import Exit, emit, run, say, set_up_logging
from quorate.server.config import SETTINGS, NodeConfig, load_config
from quorate.server.health import Health
from quorate.server.node import Node

_logger = logging.getLogger(__name__)

#: Setting: (type on the command line, flag, help).
_FLAGS: Final[dict[str, tuple[type, str, str]]] = {
    "node_id": (int, "--id", "Number of this node, unique in the cluster for ever."),
    "data": (str, "--data", "Directory of the log and the store."),
    "cluster": (str, "--cluster", "Name of the cluster. [quorate]"),
    "listen": (str, "--listen", "HOST:PORT to accept members and clients on. [127.0.0.1:7400]"),
    "advertise": (str, "--advertise", "HOST:PORT that others use. [as in --initial, or --listen]"),
    "initial": (str, "--initial", "Founders, as 1=HOST:PORT,2=HOST:PORT; the same on each."),
    "join": (str, "--join", "Nodes of a running cluster to join, as HOST:PORT,HOST:PORT."),
    "insecure": (bool, "--insecure/--no-insecure", "Allow addresses off this machine in clear."),
    "tls_cert": (str, "--tls-cert", "This node's certificate (PEM)."),
    "tls_key": (str, "--tls-key", "Its key (PEM)."),
    "tls_ca": (str, "--tls-ca", "The cluster's authority (PEM)."),
    "election_timeout_ms": (int, "--election-timeout-ms", "Silence before a campaign. [400]"),
    "heartbeat_ms": (int, "--heartbeat-ms", "Between a leader's heartbeats. [50]"),
    "checkpoint_mib": (int, "--checkpoint-mib", "Log between two checkpoints. [32]"),
    "lease_reads": (bool, "--lease-reads/--no-lease-reads", "Read from the leader's lease. [no]"),
    "fast_failover": (
        bool,
        "--fast-failover/--no-fast-failover",
        "Campaign when the leader's connection breaks. [yes]",
    ),
    "metrics_listen": (str, "--metrics-listen", "HOST:PORT of /metrics, /live, /ready. [none]"),
    "disk_reserve_mib": (int, "--disk-reserve-mib", "Free space that turns it read-only. [64]"),
    "snapshot_mib_per_s": (int, "--snapshot-mib-per-s", "Speed of sending snapshots. [16]"),
    "machines": (str, "--machines", "Machines of yours, as MODULE:CLASS,MODULE:CLASS. [none]"),
}
must(tuple(_FLAGS) == SETTINGS, "every setting is a flag", flags=tuple(_FLAGS))


def serve(**given: Any) -> int:  # noqa: ANN401  # the options are added below
    """Run one node until SIGTERM or SIGINT.

    Settings come from flags, then QUORATE_* variables, then the TOML file. Prints one line once
    the node answers linearizable reads. SIGTERM hands over leadership, finishes what is under way
    and exits with status 0; a second signal kills.
    """
    config_file, level = given.pop("config"), given.pop("log_level")
    as_json = given.pop("json")
    set_up_logging(level)
    config = load_config(given, os.environ, Path(config_file) if config_file else None)
    if not config.listen:
        raise ConfigError("listen must be set: nobody could reach a node process without a port")
    if config.metrics_listen:
        importlib.import_module("quorate.server.metrics")  # says at once if its library is missing
    run(_serve(config, as_json=as_json))
    return Exit.OK


def _parameters() -> list[inspect.Parameter]:
    found = []
    for name, (kind, flag, text) in _FLAGS.items():
        option = typer.Option(flag, help=text, show_default=False)
        found.append((name, Annotated[kind | None, option], None))
    config = typer.Option("--config", envvar="QUORATE_CONFIG", help="TOML file of settings.")
    found.append(("config", Annotated[str | None, config], None))
    level = typer.Option("--log-level", envvar="QUORATE_LOG_LEVEL", help="What to log on stderr.")
    found.append(("log_level", Annotated[str, level], "info"))  # type: ignore[arg-type]
    as_json = typer.Option("--json", help="Print the line as JSON.")
    found.append(("json", Annotated[bool, as_json], False))  # type: ignore[arg-type]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in found
    ]


serve.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
serve.__annotations__ = {item.name: item.annotation for item in _parameters()}


# --- one node -------------------------------------------------------------------------------------


async def _serve(config: NodeConfig, *, as_json: bool) -> None:
    """Run the node; returns after a signal ended it.

    Raises:
        QuorateError: it could not start, or had to stop.
    """
    stopping = _stop_on_signal()
    _logger.info("node %d starts, data in %s", config.node_id, config.data)
    node = Node(config)
    waiting = asyncio.ensure_future(stopping.wait())
    starting = asyncio.ensure_future(node.start())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await _until_stopped(node, config, waiting, as_json=as_json)
    except QuorateError:
        raise
    except Exception:
        _logger.critical("node %d is stopped by a bug in quorate", config.node_id, exc_info=True)
        raise
    finally:
        if not starting.done():  # a signal while it waits for the cluster that it joins
            starting.cancel()
            await asyncio.wait((starting,))
        waiting.cancel()
        await node.stop()


async def _until_stopped(
    node: Node, config: NodeConfig, waiting: asyncio.Future[Any], *, as_json: bool
) -> None:
    health = Health(node.local_server)
    async with _metrics(node, config, health):
        _logger.info("node %d listens on %s", config.node_id, node.address)
        announcing = asyncio.ensure_future(_announce(node, config, health, as_json=as_json))
        failing = asyncio.ensure_future(node.wait_stopped())
        try:
            await asyncio.wait((waiting, failing), return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                await failing
        finally:
            announcing.cancel()
            failing.cancel()


async def _announce(node: Node, config: NodeConfig, health: Health, *, as_json: bool) -> None:
    await health.wait_ready()
    if as_json:
        found = {"node": config.node_id, "cluster": config.cluster, "listen": node.address}
        emit({"serving": True, **found, "data": config.data, "pid": os.getpid()})
    else:
        say(
            f"node {config.node_id} of cluster {config.cluster} serves on {node.address}, "
            f"data in {config.data}"
        )


@contextlib.asynccontextmanager
async def _metrics(node: Node, config: NodeConfig, health: Health) -> AsyncIterator[None]:
    """The metrics listener, if the configuration asks for one."""
    if not config.metrics_listen:
        yield
        return
    metrics = importlib.import_module("quorate.server.metrics")
    server = metrics.MetricsServer(node, config, health)
    await server.start()
    try:
        yield
    finally:
        await server.stop()


def _stop_on_signal() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second one kills the process."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def first(received: signal.Signals) -> None:
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        _logger.info("%s: stopping; once more kills", received.name)  # not said before it is so
        stopping.set()

    for each in signals:
        loop.add_signal_handler(each, first, each)
    return stopping

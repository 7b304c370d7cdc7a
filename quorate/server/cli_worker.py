"""``quorate worker``: run the tasks of an app until a signal ends it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from quorate.client.database import connect
from quorate.client.leases import LEASE_TTL_S_DEFAULT
from quorate.client.task_app import App
from quorate.client.task_worker import CONCURRENCY_DEFAULT, GRACE_S_DEFAULT, Worker
from quorate.errors import ConfigError
from quorate.server.cli_common import Exit, Target, client_command, emit, say, set_up_logging

_logger = logging.getLogger(__name__)

#: Signals of which the first one drains, and the second one kills.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def load_app(where: str) -> App:
    """The app that *where* names, as "module:name"; modules of the working directory count.

    Raises:
        ConfigError: there is none, and why.
    """
    module_name, colon, name = where.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"{where!r} is no app: write MODULE:NAME, such as shop.tasks:app")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"module {module_name} has no {name}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise ConfigError(f"{where} is no quorate.App, but of type {type(found).__name__}")
    return found


async def worker(
    target: Target,
    app: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the app is.")],
    *,
    connect_to: Annotated[
        str, typer.Option("--connect", help="Nodes; the same as --endpoints.")
    ] = "",
    queues: Annotated[
        str, typer.Option("--queues", "-q", help="Queues to serve, as A,B [default: all].")
    ] = "",
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", help="Tasks to run at once.")
    ] = CONCURRENCY_DEFAULT,
    prefetch: Annotated[
        int, typer.Option("--prefetch", help="Tasks to have in store besides.")
    ] = 0,
    name: Annotated[str, typer.Option("--name", help="Shown to operators [host:process].")] = "",
    capabilities: Annotated[
        str, typer.Option("--capabilities", help="What it can do, as A,B.")
    ] = "",
    ttl: Annotated[
        float, typer.Option("--ttl", help="Seconds after which its tasks run elsewhere if it dies.")
    ] = LEASE_TTL_S_DEFAULT,
    shutdown_timeout: Annotated[
        float, typer.Option("--shutdown-timeout", help="Seconds for running tasks to end.")
    ] = GRACE_S_DEFAULT,
    burst: Annotated[
        bool, typer.Option("--burst", help="End when there is nothing more to do.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", envvar="QUORATE_LOG_LEVEL", help="What to log on stderr.")
    ] = "info",
) -> int:
    """Run the tasks of an app until SIGTERM or SIGINT.

    Prints one line once it is registered. A signal drains: no more tasks are taken, running ones
    have the time of --shutdown-timeout to end, the rest is stopped and given back, and the exit
    status is 0. A second signal kills.
    """
    logging.getLogger().handlers.clear()
    set_up_logging(log_level)
    found = load_app(app)
    places = connect_to or target.endpoints
    handle = connect(places, tls=target.ssl_context(), timeout=target.timeout)
    async with handle as db:
        made = Worker(
            db, found, name=name, queues=_names(queues), concurrency=concurrency,
            prefetch=prefetch, capabilities=_names(capabilities), ttl=ttl, grace=shutdown_timeout,
        )  # fmt: skip
        _stop_on_signal(made)
        running = asyncio.ensure_future(made.run(burst=burst))
        await asyncio.wait((running, asyncio.ensure_future(made.registered())),
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        if made.id:
            _announce(made, as_json=target.json)
        await running
    _report(made, as_json=target.json)
    _leave_threads(made)
    return Exit.OK


def _names(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _announce(made: Worker, *, as_json: bool) -> None:
    if as_json:
        queues = list(made.queues)
        shown = {"working": True, "worker": made.id, "name": made.name, "app": made.app.name}
        emit({**shown, "queues": queues, "concurrency": made.concurrency, "pid": os.getpid()})
    else:
        served = f"queues {', '.join(made.queues)}" if made.queues else "all queues"
        say(
            f"worker {made.name} runs {len(made.app.functions)} tasks of app {made.app.name}, "
            f"{made.concurrency} at once, from {served}"
        )


def _report(made: Worker, *, as_json: bool) -> None:
    told = made.statistics()
    if as_json:
        emit({"working": False, **{each: getattr(told, each) for each in told.__struct_fields__}})
    else:
        say(f"{told.done} done, {told.failed} failed, {told.given_back} given back")


def _leave_threads(made: Worker) -> None:
    """Code in a thread that does not stop must not keep the process: it is nobody's any more."""
    if made.lingering:
        _logger.warning("%d threads do not stop; they are left behind", len(made.lingering))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(Exit.OK)


def _stop_on_signal(made: Worker) -> None:
    """The first signal drains; the second one kills, whatever goes on."""
    loop = asyncio.get_running_loop()

    def first(received: signal.Signals) -> None:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        _logger.info("%s: draining; once more kills", received.name)
        made.stop()

    if threading.current_thread() is threading.main_thread():
        for each in _SIGNALS:
            loop.add_signal_handler(each, first, each)


worker_command = client_command(worker)

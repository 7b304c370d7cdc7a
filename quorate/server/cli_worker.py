"""``quorate worker``: run the tasks of an app until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from quorate.client.database import connect
from quorate.client.leases import LEASE_TTL_S_DEFAULT
from quorate.client.task_app import App
from quorate.client.task_worker import CONCURRENCY_DEFAULT, GRACE_S_DEFAULT, Worker
from quorate.errors import ConfigError
from quorate.server.cli_common import Exit, Target, client_command, emit, say, set_up_logging
from quorate.server.worker_crew import PROCESSES_MAX, Crew, own_command

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
    context: typer.Context,
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
    processes: Annotated[
        int, typer.Option("--processes", "-p", help="Workers, each a process of its own.")
    ] = 1,
    tasks_max: Annotated[
        int, typer.Option("--tasks-max", help="End after so many; of --processes, begin anew.")
    ] = 0,
    tied: Annotated[
        bool, typer.Option("--tied", help="Drain when standard input ends, too.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", envvar="QUORATE_LOG_LEVEL", help="What to log on stderr.")
    ] = "info",
) -> int:
    """Run the tasks of an app until SIGTERM or SIGINT.

    Prints one line once it is registered. A signal drains: no more tasks are taken, running ones
    have the time of --shutdown-timeout to end, the rest is stopped and given back, and the exit
    status is 0. A second signal kills. With --processes, it is the status of the first worker that
    could not go on; one that dies is begun again.
    """
    logging.getLogger().handlers.clear()
    set_up_logging(log_level)
    found = load_app(app)
    if not 1 <= processes <= PROCESSES_MAX:
        raise ConfigError(f"--processes is a number from 1 to {PROCESSES_MAX}, not {processes}")
    if processes > 1:
        crew = Crew(_single(context), processes, again=tasks_max > 0 and not burst)
        _stop_on_signal(crew.stop, crew.kill)
        return await crew.run()
    places = connect_to or target.endpoints
    handle = connect(places, tls=target.ssl_context(), timeout=target.timeout)
    async with handle as db:
        made = Worker(
            db, found, name=name, queues=_names(queues), concurrency=concurrency,
            prefetch=prefetch, capabilities=_names(capabilities), ttl=ttl, grace=shutdown_timeout,
            tasks_max=tasks_max,
        )  # fmt: skip
        await _work(made, burst=burst, tied=tied, as_json=target.json)
    _report(made, as_json=target.json)
    _leave_threads(made)
    return Exit.OK


async def _work(made: Worker, *, burst: bool, tied: bool, as_json: bool) -> None:
    """Until it is told to stop, or has nothing more to do."""
    _stop_on_signal(made.stop)
    if tied:
        _stop_with_stdin(made)
    running = asyncio.ensure_future(made.run(burst=burst))
    await asyncio.wait((running, asyncio.ensure_future(made.registered())),
                       return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
    if made.id:
        _announce(made, as_json=as_json)
    await running


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


def _stop_on_signal(drain: Callable[[], None], kill: Callable[[], None] | None = None) -> None:
    """The first signal drains; the second one kills, whatever goes on."""
    loop = asyncio.get_running_loop()

    def second(received: signal.Signals) -> None:
        if kill is not None:
            kill()
        signal.signal(received, signal.SIG_DFL)
        os.kill(os.getpid(), received)

    def first(received: signal.Signals) -> None:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
            if kill is None:
                signal.signal(each, signal.SIG_DFL)  # a loop that is blocked hears of none
            else:
                loop.add_signal_handler(each, second, each)
        _logger.info("%s: draining; once more kills", received.name)
        drain()

    if threading.current_thread() is threading.main_thread():
        for each in _SIGNALS:
            loop.add_signal_handler(each, first, each)


def _stop_with_stdin(made: Worker) -> None:
    """Drain when whoever holds the other end of standard input has gone."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(made.stop)

    threading.Thread(target=wait, name="quorate-tied", daemon=True).start()


def _single(context: typer.Context) -> list[str]:
    """The command line of one of several processes: this one's, and tied to it."""
    options: list[str] = []
    arguments: list[str] = []
    for each in context.command.params:
        value = context.params.get(each.name or "")
        if each.param_type_name == "argument":
            arguments.append(str(value))
        elif value is True:
            options.append(each.opts[0])
        elif each.name not in ("processes", "tied") and value not in (None, "", False):
            options.append(f"{each.opts[0]}={value}")
    return own_command(["worker", *options, "--tied", "--", *arguments])


worker_command = client_command(worker)

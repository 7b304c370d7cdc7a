"""``quorate tasks``: look at queues, tasks and workers, and tend them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, cast

import msgspec
import typer

from quorate.base.task_queries import QueueInfo, SystemInfo, TaskInfo, WorkerInfo
from quorate.base.task_specs import STATE_NAMES
from quorate.client.database import Database
from quorate.client.task_payloads import unpack_arguments
from quorate.client.tasks import State
from quorate.errors import (
    InvalidArgumentError,
    NoAvailableWorkerError,
    TaskNotFoundError,
    TaskPayloadError,
    TaskStateError,
)
from quorate.server.cli_common import (
    Exit,
    Target,
    client_command,
    emit,
    json_bytes,
    opened,
    say,
    shown,
    to_bytes,
)

app = typer.Typer(no_args_is_help=True, help="Look at queues, tasks and workers, and tend them.")

#: What a page of ``top`` begins with: clear the screen, go to its corner.
_CLEAR: Final = "\x1b[2J\x1b[H"
_TEXT_MAX: Final = 60  # characters of an error in a list

TasksArgument = Annotated[
    list[int], typer.Argument(metavar="TASK...", min=1, max=2**63 - 1, help="Their ids.")
]
QueueOption = Annotated[str, typer.Option("--queue", "-q", help="Of this queue only.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


# --- enqueueing -----------------------------------------------------------------------------------


async def put(
    target: Target,
    function: Annotated[str, typer.Argument(help="Name under which workers know it.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENT]...", help="As JSON, or text.")
    ] = None,
    *,
    queue: Annotated[str, typer.Option("--queue", "-q", help="Where to.")] = "default",
    priority: Annotated[
        str, typer.Option("--priority", help="low, normal, high, urgent, or 0 to 9.")
    ] = "normal",
    key: Annotated[str, typer.Option("--key", help="Tasks of one key keep their order.")] = "",
    delay: Annotated[float, typer.Option("--delay", help="Not before so many seconds.")] = 0.0,
    at: Annotated[
        str, typer.Option("--at", help="Not before, such as 2030-01-31T07:00+01:00.")
    ] = "",
    unique: Annotated[str, typer.Option("--unique", help="Only one at a time with this.")] = "",
) -> Exit:
    """Enqueue FUNCTION(ARGUMENT...) and print the task's id."""
    given = [given_value(each) for each in arguments or ()]
    level: Any = int(priority) if priority.isdigit() else priority
    settings: dict[str, Any] = {"queue": queue, "priority": level, "delay": delay}
    if at:
        settings["at"] = _moment(at)
    if key:
        settings["key"] = to_bytes(key)
    if unique:
        settings["unique"] = to_bytes(unique)
    async with opened(target) as db:
        task = await db.tasks.enqueue(function, args=given, **settings)
    emit({"task": task}) if target.json else say(str(task))
    return Exit.OK


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgumentError(f"--at is a time in ISO 8601: {error}") from None


def given_value(text: str) -> object:
    """What somebody has typed as JSON; what is no JSON is a text."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


# --- looking --------------------------------------------------------------------------------------


async def list_(
    target: Target,
    *,
    state: Annotated[
        str, typer.Option("--state", help=f"One of {', '.join(STATE_NAMES[1:])}.")
    ] = "",
    queue: QueueOption = "",
    limit: LimitOption = 1_000,
) -> Exit:
    """Print tasks by id: those that have not ended, or those of one state."""
    async with opened(target) as db:
        count = 0
        async for info in db.tasks.list(cast("State", state) if state else None, queue):
            _print_task(info, as_json=target.json)
            count += 1
            if count >= limit:
                break
    return Exit.OK


async def dead(target: Target, *, queue: QueueOption = "", limit: LimitOption = 1_000) -> Exit:
    """Print the dead-letter queue: tasks that gave up, and why."""
    return await list_(target, state="dead", queue=queue, limit=limit)


async def show(target: Target, task: Annotated[int, typer.Argument(min=1, max=2**63 - 1)]) -> Exit:
    """Print all that is known of TASK; exit status 4 if it is not known."""
    async with opened(target) as db:
        try:
            info = await db.tasks.info(task)
        except TaskNotFoundError as error:
            emit({"task": None}) if target.json else sys.stderr.write(f"quorate: {error}\n")
            return Exit.NO
    fields = _task_fields(info)
    if target.json:
        emit(fields)
    else:
        width = max(map(len, fields))
        for name, value in fields.items():
            say(f"{name:<{width}}  {_text(value)}")
    return Exit.OK


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _task_fields(info: TaskInfo) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "task": info.task,
        "state": STATE_NAMES[info.state],
        "function": info.function,
        "queue": info.queue,
        "attempt": info.attempt,
        "worker": info.worker or None,
        "errors": info.errors,
        "crashes": info.crashes,
        "stopping": info.stopping,
    }
    if info.permille is not None or info.note:
        fields["progress"] = (info.permille or 0) / 1000
        fields["note"] = info.note
    if info.kind:
        fields |= {"kind": info.kind, "error": info.error, "failed_on": list(info.workers)}
    if info.result:
        fields |= _decoded("result", info.result)
    if info.spec is not None:
        fields["priority"] = info.spec.priority
        if info.spec.key:
            fields |= json_bytes("key", info.spec.key)
        try:
            args, kwargs = unpack_arguments(info.spec.payload)
            fields |= {"args": _plain(args), "kwargs": _plain(kwargs)}
        except TaskPayloadError:
            fields |= json_bytes("payload", info.spec.payload)
    return fields


def _decoded(name: str, content: bytes) -> dict[str, Any]:
    try:
        return {name: _plain(msgspec.msgpack.decode(content))}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return dict(json_bytes(name, content))


def _plain(value: object) -> Any:  # noqa: ANN401
    """As JSON has it."""
    return msgspec.to_builtins(value, str_keys=True)


def _print_task(info: TaskInfo, *, as_json: bool) -> None:
    if as_json:
        emit(_task_fields(info))
        return
    why = info.error.partition("\n")[0] or info.kind
    text = why if len(why) <= _TEXT_MAX else f"{why[:_TEXT_MAX]}..."
    say(
        f"{info.task}\t{STATE_NAMES[info.state]}\t{shown(info.function.encode())}\t{info.queue}\t"
        f"attempt {info.attempt}\t{shown(text.encode())}".rstrip()
    )


# --- counting -------------------------------------------------------------------------------------


async def stats(target: Target) -> Exit:
    """Print what is in each queue, what has happened in it, and the workers."""
    async with opened(target) as db:
        system, queues, workers = await _look(db)
    if target.json:
        emit(
            {
                "system": msgspec.structs.asdict(system),
                "queues": [msgspec.structs.asdict(each) for each in queues],
                "workers": [msgspec.structs.asdict(each) for each in workers],
            }
        )
    else:
        say(_page(system, queues, workers))
    return Exit.OK


async def top(
    target: Target,
    *,
    interval: Annotated[float, typer.Option("--interval", help="Seconds between pages.")] = 1.0,
    count: Annotated[int, typer.Option("--count", min=0, help="Pages; 0: until stopped.")] = 0,
) -> Exit:
    """As stats, again and again, until interrupted."""
    if not 0 < interval < 3600:
        raise InvalidArgumentError(f"--interval is some seconds, not {interval:g}")
    async with opened(target) as db:
        pages = 0
        while True:
            system, queues, workers = await _look(db)
            if target.json:
                emit({"system": msgspec.structs.asdict(system)})
            else:
                clear = _CLEAR if sys.stdout.isatty() else ""
                say(f"{clear}{_page(system, queues, workers)}")
            pages += 1
            if pages == count:
                return Exit.OK
            await asyncio.sleep(interval)


async def _look(
    db: Database,
) -> tuple[SystemInfo, tuple[QueueInfo, ...], tuple[WorkerInfo, ...]]:
    return await db.tasks.system(), await db.tasks.queues(), await db.tasks.workers()


def _page(
    system: SystemInfo, queues: tuple[QueueInfo, ...], workers: tuple[WorkerInfo, ...]
) -> str:
    head = (
        f"{system.ready} ready, {system.running} running, {system.scheduled} scheduled, "
        f"{system.blocked} blocked, {system.dead} dead; "
        f"{system.load} of {system.capacity} places of {len(workers)} workers taken"
    )
    rows: list[tuple[str, ...]] = [
        ("queue", "ready", "running", "waiting", "done", "dead", "failures", "oldest s")
    ]
    for each in queues:
        oldest = (system.now_ms - each.oldest_ms) / 1000 if each.oldest_ms else 0.0
        name = f"{each.name} (paused)" if each.paused else each.name
        counts = (
            each.ready,
            each.running + each.assigned,
            each.scheduled + each.blocked,
            each.done,
            each.died,
            each.failures + each.timeouts + each.crashes,
        )
        rows.append((shown(name.encode()), *map(str, counts), f"{oldest:.1f}"))
    team: list[tuple[str, ...]] = [
        ("worker", "name", "state", "tasks", "takes", "done", "failed", "mean ms")
    ]
    for worker in workers:
        mean = worker.ran_ms / worker.done if worker.done else 0.0
        team.append(
            (
                str(worker.worker),
                shown(worker.name.encode()),
                worker.state,
                str(worker.tasks),
                str(worker.load + worker.prefetch),
                str(worker.done),
                str(worker.failed),
                f"{mean:.1f}",
            )
        )
    return "\n".join([head, "", *_columns(rows), "", *_columns(team)])


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# --- tending --------------------------------------------------------------------------------------


async def cancel(
    target: Target,
    tasks: TasksArgument,
    *,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds that its worker has to stop.")
    ] = 30.0,
) -> Exit:
    """Cancel tasks; exit status 4 if one of them had ended, or is not known."""
    async with opened(target) as db:
        changed = await db.tasks.cancel(*tasks, grace=grace)
    return _changed(target, tasks, changed, "cancelled")


async def assign(
    target: Target,
    task: Annotated[int, typer.Argument(min=1, max=2**63 - 1)],
    *,
    worker: Annotated[
        int, typer.Option("--worker", "-w", min=0, help="To this one; none: any other.")
    ] = 0,
) -> Exit:
    """Give TASK to a worker out of its turn, or take it from the one that has it and give it to
    another; exit status 4 if no worker may have it, or it is in no state to be given."""
    async with opened(target) as db:
        try:
            given = await db.tasks.assign(task, worker)
            taker = (await db.tasks.info(task)).worker
        except (NoAvailableWorkerError, TaskStateError, TaskNotFoundError) as error:
            emit({"worker": None}) if target.json else sys.stderr.write(f"quorate: {error}\n")
            return Exit.NO
    shown_as = {"task": task, "worker": taker or None, "attempt": given.attempt}
    emit(shown_as) if target.json else say(f"worker {taker}, attempt {given.attempt}")
    return Exit.OK


async def requeue(
    target: Target,
    tasks: TasksArgument,
) -> Exit:
    """Take dead tasks out of the dead-letter queue; exit status 4 if one was not there."""
    async with opened(target) as db:
        changed = await db.tasks.requeue(*tasks)
    return _changed(target, tasks, changed, "requeued")


def _changed(target: Target, tasks: list[int], changed: tuple[int, ...], what: str) -> Exit:
    missing = [each for each in tasks if each not in changed]
    if target.json:
        emit({what: list(changed), "not": missing})
    else:
        if changed:
            say(f"{what}: {', '.join(map(str, changed))}")
        if missing:
            sys.stderr.write(f"quorate: not {what}: {', '.join(map(str, missing))}\n")
    return Exit.NO if missing else Exit.OK


async def _pause(target: Target, queue: str, *, paused: bool) -> Exit:
    async with opened(target) as db:
        await (db.tasks.pause(queue) if paused else db.tasks.resume(queue))
    if target.json:
        emit({"queue": queue, "paused": paused})
    return Exit.OK


async def pause(target: Target, queue: Annotated[str, typer.Argument()]) -> Exit:
    """Hand out nothing of QUEUE until it is resumed."""
    return await _pause(target, queue, paused=True)


async def resume(target: Target, queue: Annotated[str, typer.Argument()]) -> Exit:
    """Hand out tasks of QUEUE again."""
    return await _pause(target, queue, paused=False)


app.command("put")(client_command(put))
app.command("list")(client_command(list_))
app.command("show")(client_command(show))
app.command("stats")(client_command(stats))
app.command("top")(client_command(top))
app.command("dead")(client_command(dead))
app.command("assign")(client_command(assign))
app.command("requeue")(client_command(requeue))
app.command("cancel")(client_command(cancel))
app.command("pause")(client_command(pause))
app.command("resume")(client_command(resume))

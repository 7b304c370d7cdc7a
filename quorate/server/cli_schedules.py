"""``quorate schedules``: what is enqueued again and again, and when."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec
import typer

from quorate.base.schedule_commands import ScheduleInfo
from quorate.client.task_payloads import unpack_arguments
from quorate.errors import ScheduleNotFoundError, TaskPayloadError
from quorate.server.cli_common import (
    Exit,
    Target,
    client_command,
    emit,
    json_bytes,
    opened,
    say,
    shown,
)
from quorate.server.cli_views import columns

app = typer.Typer(no_args_is_help=True, help="Tasks that are enqueued again and again.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the schedule.")]


async def list_(target: Target) -> Exit:
    """Print all schedules, by name."""
    rows: list[tuple[str, ...]] = []
    async with opened(target) as db:
        async for info in db.schedules.list():
            if target.json:
                emit(_fields(info))
            rows.append(
                (
                    shown(info.name.encode()),
                    _rule(info),
                    shown(info.task.function.encode()),
                    "paused" if info.paused else "active",
                    str(info.fired),
                    str(info.skipped),
                )
            )
    if rows and not target.json:
        head = ("schedule", "when", "task", "state", "fired", "skipped")
        say("\n".join(columns([head, *rows])))
    return Exit.OK


def _rule(info: ScheduleInfo) -> str:
    return f"{info.cron} {info.zone}" if info.cron else f"every {info.every_ms / 1000:g} s"


def _fields(info: ScheduleInfo) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.structs.asdict(info)
    task = fields.pop("task")
    fields |= {"function": task.function, "queue": task.queue, "priority": task.priority}
    try:
        args, kwargs = unpack_arguments(task.payload)
        plain: dict[str, Any] = msgspec.to_builtins({"args": args, "kwargs": kwargs}, str_keys=True)
        return fields | plain
    except TaskPayloadError:
        return fields | json_bytes("payload", task.payload)


async def show(target: Target, name: NameArgument) -> Exit:
    """Print all that is known of schedule NAME; exit status 4 if there is none."""
    async with opened(target) as db:
        try:
            fields = _fields(await db.schedules.get(name))
        except ScheduleNotFoundError as error:
            return _none(error, target)
    if target.json:
        emit(fields)
        return Exit.OK
    width = max(map(len, fields))
    for field, value in fields.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        say(f"{field:<{width}}  {shown(text.encode())}".rstrip())
    return Exit.OK


async def add(
    target: Target,
    name: NameArgument,
    function: Annotated[str, typer.Argument(help="Name under which workers know it.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENT]...", help="As JSON, or text.")
    ] = None,
    *,
    cron: Annotated[
        str, typer.Option("--cron", help='Such as "0 7 * * mon-fri"; six fields: a second first.')
    ] = "",
    zone: Annotated[str, typer.Option("--zone", help="Of the clocks that cron means.")] = "UTC",
    every: Annotated[
        float, typer.Option("--every", help="So many seconds; not with --cron.")
    ] = 0.0,
    misfire: Annotated[
        str, typer.Option("--misfire", help="Of ticks that nobody could fire: skip, once, all.")
    ] = "once",
    overlap: Annotated[
        bool, typer.Option(help="Fire while the task of the tick before has not ended.")
    ] = True,
    paused: Annotated[bool, typer.Option("--paused", help="No ticks until it is resumed.")] = False,
    queue: Annotated[str, typer.Option("--queue", "-q", help="Where to.")] = "default",
    priority: Annotated[
        str, typer.Option("--priority", help="low, normal, high, urgent, or 0 to 9.")
    ] = "normal",
) -> Exit:
    """Have FUNCTION(ARGUMENT...) enqueued at each tick, in the place of the schedule NAME if there
    is one."""
    level: Any = int(priority) if priority.isdigit() else priority
    kind: Any = misfire
    async with opened(target) as db:
        await db.schedules.put(
            name, function, args=[_value(each) for each in arguments or ()], cron=cron, zone=zone,
            every=every, misfire=kind, overlap=overlap, paused=paused, queue=queue, priority=level,
        )  # fmt: skip
    if target.json:
        emit({"schedule": name})
    return Exit.OK


def _value(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


async def remove(target: Target, name: NameArgument) -> Exit:
    """No more ticks of NAME; tasks that were enqueued stay. Exit status 4 if there is none."""
    async with opened(target) as db:
        removed = await db.schedules.remove(name)
    if target.json:
        emit({"removed": removed})
    elif not removed:
        sys.stderr.write(f"quorate: there is no schedule {name!a}\n")
    return Exit.OK if removed else Exit.NO


async def _set(target: Target, name: str, *, paused: bool) -> Exit:
    async with opened(target) as db:
        try:
            await (db.schedules.pause(name) if paused else db.schedules.resume(name))
        except ScheduleNotFoundError as error:
            return _none(error, target)
    if target.json:
        emit({"schedule": name, "paused": paused})
    return Exit.OK


async def pause(target: Target, name: NameArgument) -> Exit:
    """No ticks of NAME until it is resumed; exit status 4 if there is none."""
    return await _set(target, name, paused=True)


async def resume(target: Target, name: NameArgument) -> Exit:
    """Ticks of NAME again, from the next one on; exit status 4 if there is none."""
    return await _set(target, name, paused=False)


async def trigger(target: Target, name: NameArgument) -> Exit:
    """Enqueue the task of NAME now, and print its id; exit status 4 if it could not be, or there is
    no such schedule."""
    async with opened(target) as db:
        try:
            task = await db.schedules.trigger(name)
        except ScheduleNotFoundError as error:
            return _none(error, target)
    if target.json:
        emit({"task": task or None})
    elif task:
        say(str(task))
    else:
        text = "the one before has not ended, its unique key is held, or its queue is full"
        sys.stderr.write(f"quorate: nothing was enqueued: {text}\n")
    return Exit.OK if task else Exit.NO


def _none(error: ScheduleNotFoundError, target: Target) -> Exit:
    emit({"schedule": None}) if target.json else sys.stderr.write(f"quorate: {error}\n")
    return Exit.NO


app.command("list")(client_command(list_))
app.command("show")(client_command(show))
app.command("add")(client_command(add))
app.command("remove")(client_command(remove))
app.command("pause")(client_command(pause))
app.command("resume")(client_command(resume))
app.command("trigger")(client_command(trigger))

"""``quorate lock``, ``quorate elect``, ``quorate locks``: run under a lock, or as leader."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Final

import typer

from quorate.base.lock_commands import LockInfo
from quorate.client.database import Database
from quorate.client.granting import as_lock_name
from quorate.client.leases import LEASE_TTL_S_DEFAULT, check_ttl
from quorate.client.locks import Lock
from quorate.errors import InvalidArgumentError, LockTimeoutError, NotHeldError
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
from quorate.server.running import run_while

#: Part of the ttl that a command has between SIGTERM and SIGKILL. A tenth of the ttl lies between
#: the moment at which the loss is noticed and that at which another can have the lock.
_GRACE: Final = 0.05

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]
CommandArgument = Annotated[
    list[str], typer.Argument(metavar="-- COMMAND...", help="What to run, behind '--'.")
]
TtlOption = Annotated[
    float,
    typer.Option("--ttl", help="Seconds after which the lock of a holder that is gone passes on."),
]
KillOption = Annotated[
    float | None,
    typer.Option(
        "--kill-after", help="Seconds from SIGTERM to SIGKILL on a loss [default: ttl / 20]."
    ),
]


async def lock(
    target: Target,
    name: NameArgument,
    command: CommandArgument,
    *,
    ttl: TtlOption = LEASE_TTL_S_DEFAULT,
    wait: Annotated[
        float | None,
        typer.Option("--wait", help="Seconds to wait for the lock; 0: not at all [default: ever]."),
    ] = None,
    kill_after: KillOption = None,
) -> int:
    """Run COMMAND while holding the lock NAME; its exit status is that of COMMAND.

    COMMAND finds QUORATE_LOCK_NAME and QUORATE_LOCK_TOKEN in its environment. Exit status 4: the
    lock was not to be had in the time of --wait. 6: it was lost, and COMMAND was stopped (SIGTERM,
    then SIGKILL). 126, 127: COMMAND could not be started.
    """
    grace_s = _grace(ttl, kill_after)
    wanted = as_lock_name(to_bytes(name))
    async with opened(target) as db:
        handle = db.lock(wanted, ttl=ttl)
        if not await _acquire(handle, wait):
            sys.stderr.write(f"quorate: lock {shown(wanted)} is held by another\n")
            return Exit.NO
        status = await _run_under(handle, command, {}, grace_s)
    return Exit.LOST if status is None else status


async def elect(
    target: Target,
    name: NameArgument,
    command: CommandArgument,
    *,
    value: Annotated[str, typer.Option("--value", help="What the leader proclaims.")] = "",
    ttl: TtlOption = LEASE_TTL_S_DEFAULT,
    once: Annotated[
        bool, typer.Option("--once", help="Exit with status 6 when leadership is lost.")
    ] = False,
    kill_after: KillOption = None,
) -> int:
    """Run COMMAND for as long as this candidate leads the election NAME.

    Waits until it leads, then runs COMMAND with QUORATE_ELECTION and QUORATE_EPOCH in its
    environment. When leadership is lost, COMMAND is stopped (SIGTERM, then SIGKILL), and the
    campaign begins again; with --once, the exit status is 6 then. When COMMAND ends by itself, the
    candidate resigns, and the exit status is that of COMMAND.
    """
    grace_s = _grace(ttl, kill_after)
    wanted = as_lock_name(to_bytes(name))
    async with opened(target) as db:
        while True:
            handle = db.election(wanted, to_bytes(value), ttl=ttl)
            await handle.campaign()
            more = {"QUORATE_ELECTION": name, "QUORATE_EPOCH": str(handle.epoch)}
            status = await _run_under(handle, command, more, grace_s)
            if status is not None:
                return status
            if once:
                return Exit.LOST


async def _acquire(handle: Lock, wait_s: float | None) -> bool:
    if wait_s == 0:
        return await handle.try_acquire()
    try:
        await handle.acquire(timeout=wait_s)
    except LockTimeoutError:
        return False
    return True


async def _run_under(
    handle: Lock, command: list[str], more: dict[str, str], grace_s: float
) -> int | None:
    """The command's exit status; None if the lock was lost."""
    environment = {
        "QUORATE_LOCK_NAME": handle.name.decode("utf-8", "surrogateescape"),
        "QUORATE_LOCK_TOKEN": str(handle.token),
        **more,
    }
    lost = handle.lost
    status = await run_while(
        command, environment, lambda: asyncio.ensure_future(lost.wait()), grace_s
    )
    if status is None:
        sys.stderr.write(f"quorate: {handle.loss_error()}; the command was stopped\n")
        return None
    if not handle.held:
        sys.stderr.write(f"quorate: {handle.loss_error()}; the command had come to its end\n")
        return None
    try:
        await handle.release()
    except NotHeldError:
        return None
    return status


def _grace(ttl: float, kill_after: float | None) -> float:
    check_ttl(ttl)
    if kill_after is None:
        return ttl * _GRACE
    if not 0 <= kill_after <= ttl:
        raise InvalidArgumentError("--kill-after is from 0 to the ttl")
    return kill_after


async def locks(
    target: Target,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this one.")] = "",
) -> Exit:
    """Print the locks, semaphores and elections that are in use, who holds them and who waits.

    With NAME, exit status 4 if it is free. JSON has one line per name.
    """
    async with opened(target) as db:
        if name:
            info = await db.lock_status(to_bytes(name))
            if info.kind:
                _print(info, as_json=target.json)
                return Exit.OK
            if target.json:
                _print(info, as_json=True)
            else:
                sys.stderr.write(f"quorate: {shown(info.name)} is free\n")
            return Exit.NO
        await _print_all(db, as_json=target.json)
    return Exit.OK


async def _print_all(db: Database, *, as_json: bool) -> None:
    after = b""
    while True:
        page = await db.list_locks(after)
        for info in page.locks:
            _print(info, as_json=as_json)
        if not page.locks:
            return
        after = page.locks[-1].name


def _print(info: LockInfo, *, as_json: bool) -> None:
    if as_json:
        holders = [
            {
                "token": each.token,
                "lease": each.lease,
                "permits": each.permits,
                **json_bytes("value", each.value),
            }
            for each in info.holders
        ]
        emit(
            {
                **json_bytes("name", info.name),
                "kind": info.kind,
                "total": info.total,
                "free": info.free,
                "holders": info.holder_count,
                "waiters": info.waiter_count,
                "first_holders": holders,
            }
        )
        return
    held = ", ".join(f"token {each.token} lease {each.lease}" for each in info.holders)
    more = "" if info.holder_count <= len(info.holders) else ", ..."
    waiting = f"; {info.waiter_count} waiting" if info.waiter_count else ""
    say(f"{shown(info.name)}\t{info.kind}\t{held}{more}{waiting}")


lock_command = client_command(lock)
elect_command = client_command(elect)
locks_command = client_command(locks)

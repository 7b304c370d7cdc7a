"""``quorate lease``: grant, renew, revoke, look at leases, and keep one alive."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Final

import typer

from quorate.base.lease_commands import LeaseInfo
from quorate.client.leases import LEASE_TTL_S_DEFAULT, RENEWALS_PER_TTL
from quorate.errors import LeaseExpiredError, QuorateError
from quorate.server.cli_common import Exit, Target, client_command, emit, opened, say

app = typer.Typer(no_args_is_help=True, help="Grant, renew, revoke and look at leases.")

_RETRY: Final = 0.25  # of the time between renewals, after one that failed

LeaseArgument = Annotated[int, typer.Argument(metavar="LEASE", min=1, max=2**63 - 1)]


async def grant(
    target: Target,
    *,
    ttl: Annotated[
        float, typer.Option("--ttl", help="Seconds that it stands.")
    ] = LEASE_TTL_S_DEFAULT,
    name: Annotated[str, typer.Option("--name", help="To show.")] = "",
) -> Exit:
    """Print the id of a new lease, which ends after its ttl unless it is renewed."""
    async with opened(target) as db:
        lease = await db.grant_lease(ttl, name)
    emit({"lease": lease}) if target.json else say(str(lease))
    return Exit.OK


async def renew(target: Target, lease: LeaseArgument) -> Exit:
    """Have LEASE stand for its whole ttl again; exit status 4 if it has ended."""
    async with opened(target) as db:
        renewed = await db.renew_lease(lease)
    return _said(target, lease, done=renewed, what="renewed")


async def revoke(target: Target, lease: LeaseArgument) -> Exit:
    """End LEASE now, with its keys and locks; exit status 4 if it had ended."""
    async with opened(target) as db:
        existed = await db.revoke_lease(lease)
    return _said(target, lease, done=existed, what="revoked")


def _said(target: Target, lease: int, *, done: bool, what: str) -> Exit:
    if target.json:
        emit({"lease": lease, what: done})
    elif done:
        say(f"lease {lease} {what}")
    else:
        _say_gone(lease)
    return Exit.OK if done else Exit.NO


def _say_gone(lease: int) -> None:
    sys.stderr.write(f"quorate: lease {lease} was revoked or has run out\n")


async def show(target: Target, lease: LeaseArgument) -> Exit:
    """Print how long LEASE still stands; exit status 4 if it has ended."""
    async with opened(target) as db:
        try:
            info = await db.lease_status(lease)
        except LeaseExpiredError:
            emit({"lease": None}) if target.json else _say_gone(lease)
            return Exit.NO
    _print(info, as_json=target.json)
    return Exit.OK


async def list_(target: Target) -> Exit:
    """Print all leases. JSON has one line per lease."""
    async with opened(target) as db:
        after = 0
        while (page := await db.list_leases(after, 1000)).leases:
            for info in page.leases:
                _print(info, as_json=target.json)
            after = page.leases[-1].lease
    return Exit.OK


def _print(info: LeaseInfo, *, as_json: bool) -> None:
    ttl, remaining = info.ttl_ms / 1000, info.remaining_ms / 1000
    if as_json:
        emit({"lease": info.lease, "ttl": ttl, "remaining": remaining, "name": info.name})
    else:
        say(f"{info.lease}\tttl {ttl:g} s\t{remaining:.1f} s left\t{info.name}".rstrip())


async def keep(target: Target, lease: LeaseArgument) -> Exit:
    """Keep LEASE alive until interrupted, or until it ends for another reason (exit status 4)."""
    async with opened(target) as db:
        try:
            info = await db.lease_status(lease)
        except LeaseExpiredError:
            _say_gone(lease)
            return Exit.NO
        emit({"lease": lease, "kept": True}) if target.json else say(f"lease {lease} is kept alive")
        pause_s = info.ttl_ms / 1000 / RENEWALS_PER_TTL
        stands = True
        while stands:
            try:
                stands = await db.renew_lease(lease)
            except QuorateError as error:
                sys.stderr.write(f"quorate: not renewed, trying again: {error}\n")
                await asyncio.sleep(pause_s * _RETRY)
            else:
                await asyncio.sleep(pause_s if stands else 0)
    _say_gone(lease)
    return Exit.NO


app.command("grant")(client_command(grant))
app.command("renew")(client_command(renew))
app.command("revoke")(client_command(revoke))
app.command("show")(client_command(show))
app.command("list")(client_command(list_))
app.command("keep")(client_command(keep))

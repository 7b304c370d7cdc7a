"""``quorate crdt rescue``: what a node that was removed alone has, or what to do without it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

import typer

from quorate.client.database import Database
from quorate.errors import ConfigError, InvalidArgumentError
from quorate.server.cli_common import Exit, Target, client_command, emit, opened, say
from quorate.server.cli_crdt import jsonable, to_text
from quorate.server.rescue import (
    Account,
    Call,
    Opened,
    check_spare,
    describe,
    open_stopped,
    plan,
    preview,
    set_aside,
)
from quorate.server.rescue import rescue as rescue_all

#: One piece is one commit, and the last of the calls waits for other members.
CALL_TIMEOUT_S: Final = 30.0

DirectoryArgument = Annotated[
    str, typer.Argument(metavar="DATA_DIR", help="The data directory of a node that is stopped.")
]
IntoOption = Annotated[
    list[str], typer.Option("--into", metavar="HOST:PORT", help="A member; in place of -e.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
DiscardOption = Annotated[
    bool,
    typer.Option("--discard", help="Set the CRDT data aside: the node starts without it."),
]
IncompleteOption = Annotated[
    bool, typer.Option("--incomplete", help="Rescue what there is, even if records are missing.")
]
WaitOption = Annotated[
    float, typer.Option("--wait", min=0, help="Seconds to wait for lives to be folded.")
]


async def rescue(
    target: Target,
    data_dir: DirectoryArgument,
    *,
    into: IntoOption = [],  # noqa: B006  typer makes a new one
    dry_run: DryRunOption = False,
    discard: DiscardOption = False,
    incomplete: IncompleteOption = False,
    wait: WaitOption = 30.0,
) -> Exit:
    """Bring to the cluster what a removed node acknowledged and nobody else has.

    The node is stopped. Nothing in its directory changes, and nothing counts twice, however often
    this is done. With --discard the data is moved to DATA_DIR/aside-1 instead, for a member that
    holds folding up: it takes over from the others when it starts, and what it alone had can be
    rescued from there.
    """
    if dry_run and discard:
        raise InvalidArgumentError("--dry-run and --discard exclude each other")
    if into:
        target = dataclasses.replace(target, endpoints=",".join(into))
    with open_stopped(data_dir) as found:
        async with opened(target, follow_leader=not (dry_run or discard)) as db:
            call = _calls(db)
            await _check_cluster(db, found)
            if discard:
                await check_spare(found.source, call)
            else:
                left = await plan(found.source, call, wait_s=wait, incomplete=incomplete)
                if dry_run:
                    account = preview(found.source, left)
                else:
                    account = await rescue_all(found.source, left, call)
                return _tell(target, account, dry_run=dry_run)
        where = set_aside(found)
    emit({"aside": where}) if target.json else say(
        f"set aside in {where}; start the node, and rescue from there what it alone had"
    )
    return Exit.OK


def _calls(db: Database) -> Call:
    async def call(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return await db._call(method, arguments, None, CALL_TIMEOUT_S)  # noqa: SLF001  not for users

    return call


async def _check_cluster(db: Database, found: Opened) -> None:
    await db.members()
    if db.cluster != found.identity.cluster:
        raise ConfigError(
            f"{found.directory.path} is of cluster {found.identity.cluster!r}, and the nodes that "
            f"were named are of {db.cluster!r}"
        )


def _tell(target: Target, account: Account, *, dry_run: bool) -> Exit:
    status = Exit.NO if account.lacking else Exit.OK
    told = describe(account)
    if target.json:
        emit({"dry_run": dry_run, **{key: jsonable(each) for key, each in told.items()}})
        return status
    if not account.left:
        say("nothing is here that the members do not have")
        return status
    for life in told["lives"]:
        say(
            f"life {life['epoch']} of node {life['member']}: records {life['since'] + 1} to "
            f"{life['upto']}{' would be rescued' if dry_run else ' were rescued'}"
        )
    for each in account.changes:
        parts = [
            f"{amount} {what}"
            for what, amount in (
                ("put in", each.added),
                ("taken out", each.removed),
                ("up", each.raised),
                ("down", each.lowered),
            )
            if amount
        ]
        say(f"{to_text(each.name)}\t{each.kind}\t{', '.join(parts)}")
    if account.left_out:
        say(f"(and {account.left_out} elements under more names)")
    for short in account.lacking:
        why = (
            f"not lowered by {short.amount}: the rights to do so are elsewhere now"
            if short.amount
            else "a removal could not be carried over: what it was of was folded since"
        )
        say(f"{to_text(short.name)}\t{short.kind}\t{why}")
    return status


command = client_command(rescue)

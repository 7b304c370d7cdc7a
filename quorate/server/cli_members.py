"""``quorate members``, ``transfer-leader``, ``snapshot``: who belongs, who leads, what is saved."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from quorate.client.settings import CHANGE_TIMEOUT_S_DEFAULT
from quorate.errors import InvalidArgumentError
from quorate.server.cli_common import Exit, Target, client_command, emit, opened, say

app = typer.Typer(no_args_is_help=True, help="See and change the members of the cluster.")

NodeArgument = Annotated[int, typer.Argument(metavar="ID", min=1, help="The member's number.")]
PlaceArgument = Annotated[
    str, typer.Argument(metavar="ID=HOST:PORT", help="Number and address of the node.")
]


async def list_(target: Target) -> Exit:
    """List the members."""
    async with opened(target) as db:
        return _show(target, await db.members())


async def add(target: Target, place: PlaceArgument) -> Exit:
    """Let a node in, as a learner: it receives everything and has no vote yet.

    Start it with `quorate serve --join`, before or after this. Its number must be new.
    """
    node, address = _place(place)
    async with opened(target) as db:
        return _show(target, await db.add_member(node, address, timeout=_patience(target)))


async def promote(target: Target, node: NodeArgument) -> Exit:
    """Give a learner its vote; waits until it has caught up."""
    async with opened(target) as db:
        return _show(target, await db.promote(node, timeout=_patience(target)))


async def demote(target: Target, node: NodeArgument) -> Exit:
    """Take a voter's vote; it stays as a learner."""
    async with opened(target) as db:
        return _show(target, await db.demote(node, timeout=_patience(target)))


async def remove(target: Target, node: NodeArgument) -> Exit:
    """Remove a member for good; its process may then be stopped."""
    async with opened(target) as db:
        return _show(target, await db.remove_member(node, timeout=_patience(target)))


async def move(target: Target, place: PlaceArgument) -> Exit:
    """Record a new address of a member."""
    node, address = _place(place)
    async with opened(target) as db:
        return _show(target, await db.set_address(node, address, timeout=_patience(target)))


async def _transfer_leader(
    target: Target,
    node: Annotated[
        int, typer.Argument(metavar="[ID]", min=0, help="The new leader; 0: the best one.")
    ] = 0,
) -> Exit:
    """Hand leadership over to another voter, without an interruption that clients see."""
    async with opened(target) as db:
        result = await db.transfer_leader(node, timeout=target.timeout)
    emit(result) if target.json else say(f"node {result['leader']} leads")
    return Exit.OK


async def _snapshot(target: Target) -> Exit:
    """Have a node write its state to its store now, so that its log can be cut.

    With one endpoint: that node; with several: the leader.
    """
    async with opened(target, follow_leader=len(target.places()) > 1) as db:
        result = await db.checkpoint(timeout=_patience(target))
    emit(result) if target.json else say(f"checkpoint at log index {result['index']}")
    return Exit.OK


def _patience(target: Target) -> float:
    """A change may have to wait for a node to catch up, whatever single calls are given."""
    return max(target.timeout, CHANGE_TIMEOUT_S_DEFAULT)


def _place(text: str) -> tuple[int, str]:
    number, equals, address = text.partition("=")
    if not (equals and number.isascii() and number.isdigit() and address):
        raise InvalidArgumentError(f"{text!r} is no member: write ID=HOST:PORT, such as 4=db4:7400")
    return int(number), address


def _show(target: Target, result: dict[str, Any]) -> Exit:
    if target.json:
        emit(result)
        return Exit.OK
    for member in result["members"]:
        say(f"{member['node']}\t{member['address']}\t{member['role']}")
    if result["joint"]:
        say("(a change is under way)")
    return Exit.OK


transfer_leader = client_command(_transfer_leader)
snapshot = client_command(_snapshot)
app.command("list")(client_command(list_))
app.command("add")(client_command(add))
app.command("promote")(client_command(promote))
app.command("demote")(client_command(demote))
app.command("remove")(client_command(remove))
app.command("move")(client_command(move))

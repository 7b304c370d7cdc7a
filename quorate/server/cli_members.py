"""``quorate members``, ``transfer-leader`` and ``snapshot``: who belongs, who leads, what is saved."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from quorate.errors import InvalidArgumentError
from quorate.server.cli_common import Exit, Target, client_command, emit, opened, say

app = typer.Typer(no_args_is_help=True, help="See and change the members of the cluster.")

NodeArgument = Annotated[int, typer.Argument(metavar="ID", min=1, help="The member's number.")]
PlaceArgument = Annotated[
    str, typer.Argument(metavar="ID=HOST:PORT", help="Number and address of the node.")
]


async def list_(target: Target) -> Exit:
    """List the members."""
    return _show(target, await _call(target, "members.list"))


async def add(target: Target, place: PlaceArgument) -> Exit:
    """Let a node in, as a learner: it receives everything and has no vote yet.

    Start it with `quorate serve --join`, before or after this. Its number must be new.
    """
    node, address = _place(place)
    return _show(target, await _call(target, "members.add", node=node, address=address))


async def promote(target: Target, node: NodeArgument) -> Exit:
    """Give a learner its vote; waits until it has caught up."""
    return _show(target, await _call(target, "members.promote", node=node))


async def demote(target: Target, node: NodeArgument) -> Exit:
    """Take a voter's vote; it stays as a learner."""
    return _show(target, await _call(target, "members.demote", node=node))


async def remove(target: Target, node: NodeArgument) -> Exit:
    """Remove a member for good; its process may then be stopped."""
    return _show(target, await _call(target, "members.remove", node=node))


async def move(target: Target, place: PlaceArgument) -> Exit:
    """Record a new address of a member."""
    node, address = _place(place)
    return _show(target, await _call(target, "members.address", node=node, address=address))


async def _transfer_leader(
    target: Target,
    node: Annotated[
        int, typer.Argument(metavar="[ID]", min=0, help="The new leader; 0: the best one.")
    ] = 0,
) -> Exit:
    """Hand leadership over to another voter, without an interruption that clients see."""
    result = await _call(target, "leader.transfer", target=node)
    emit(result) if target.json else say(f"node {result['leader']} leads")
    return Exit.OK


async def _snapshot(target: Target) -> Exit:
    """Have a node write its state to its store now, so that its log can be cut.

    With one endpoint: that node; with several: the leader.
    """
    result = await _call(target, "checkpoint")
    emit(result) if target.json else say(f"checkpoint at log index {result['index']}")
    return Exit.OK


async def _call(target: Target, method: str, **arguments: object) -> dict[str, Any]:
    async with opened(target) as db:
        result = await db.call(method, arguments, timeout=target.timeout)
    return dict(result)


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

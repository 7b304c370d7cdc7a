"""``quorate upgrade``: put a newer version of a machine in force."""

from __future__ import annotations

from typing import Annotated

import typer

from quorate.server.cli_common import Exit, Target, client_command, emit, opened, say


async def _upgrade(
    target: Target,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The machine, as it is registered.")],
) -> Exit:
    """Have machine NAME act as the highest version that the code of all members has.

    First install the new code on every member, one after the other.
    """
    async with opened(target) as db:
        result = await db.upgrade(name, timeout=target.timeout)
    if target.json:
        emit(result)
        return Exit.OK
    before, version = result["before"], result["version"]
    if before == version:
        say(f"machine {name} is at version {version} already")
    else:
        say(f"machine {name} went from version {before} to {version}")
    for node, has in sorted(result["behind"].items()):
        say(f"node {node} has code for version {has} only; upgrade again when it has more")
    return Exit.OK


upgrade = client_command(_upgrade)

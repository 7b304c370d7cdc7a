"""``quorate watch``: what becomes of keys, one line for each event, until it is interrupted."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from quorate.base.kv_watch import KeyEvent
from quorate.client.operations import as_key
from quorate.errors import InvalidArgumentError
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
from quorate.server.cli_txn import item_json


async def watch(
    target: Target,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="What the keys begin with; none: all keys.")
    ] = "",
    *,
    key: Annotated[bool, typer.Option("--key", help="PREFIX is one key, as it stands.")] = False,
    start: Annotated[
        int | None, typer.Option("--from", metavar="REVISION", help="Begin there; none: now.")
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", help="And what was there before.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="End after so many events.")] = 0,
) -> Exit:
    """Print what becomes of the keys that begin with PREFIX: revision, put or delete, key, value.

    Fails over by itself and misses nothing. Exit status 1 if what it is to begin with is no longer
    kept. When it is interrupted it says on stderr with which --from to go on.
    """
    named = to_bytes(prefix)
    one = as_key(named) if key else None
    if start is not None and start < 1:
        raise InvalidArgumentError(f"revisions begin with 1, and --from is {start}")
    left = limit
    async with (
        opened(target) as db,
        db.kv.watch(
            one, prefix=None if key else named, start_revision=start, previous=previous
        ) as found,
    ):
        try:
            async for event in found:
                _print(event, as_json=target.json)
                left -= 1
                if limit and not left:
                    break
        except asyncio.CancelledError:
            sys.stderr.write(f"quorate: go on with --from {found.revision + 1}\n")
            raise
    return Exit.OK


def _print(event: KeyEvent, *, as_json: bool) -> None:
    before = event.previous
    if as_json:
        described: dict[str, object] = {
            "revision": event.mod_revision,
            "type": event.type,
            **json_bytes("key", event.key),
        }
        if event.type == "put":
            described |= {
                **json_bytes("value", event.value),
                "create_revision": event.create_revision,
                "version": event.version,
                "lease": event.lease,
            }
        if before is not None:
            described["previous"] = item_json(before)
        emit(described)
        return
    parts = [str(event.mod_revision), event.type, shown(event.key)]
    if event.type == "put":
        parts.append(shown(event.value))
    if before is not None:
        parts.append(f"(was {shown(before.value)})")
    say("\t".join(parts))


command = client_command(watch)

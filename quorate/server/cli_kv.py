"""``quorate kv``: put, get, delete, read ranges, transactions; bulk loading is in ``cli_bulk``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from quorate.base.fencing import Fence
from quorate.base.kv_commands import GetResult, KeyValue, RangeResult
from quorate.base.limits import RANGE_LIMIT_MAX, VALUE_BYTES_MAX
from quorate.base.lock_commands import LOCK_MACHINE
from quorate.client.granting import as_lock_name
from quorate.client.kv import after_prefix
from quorate.client.operations import as_key, as_value
from quorate.errors import InvalidArgumentError
from quorate.server.cli_bulk import dump, load
from quorate.server.cli_common import (
    Exit,
    Target,
    client_command,
    emit,
    opened,
    say,
    shown,
    to_bytes,
    write_bytes,
)
from quorate.server.cli_txn import item_json, parse_transaction, result_json

app = typer.Typer(no_args_is_help=True, help="Read and write the key-value store.")

TXN_BYTES_MAX = 8 * 1024 * 1024  # of a transaction's JSON: a largest batch, escaped

KeyArgument = Annotated[str, typer.Argument(metavar="KEY")]
PrefixOption = Annotated[bool, typer.Option("--prefix", help="All keys that begin with START.")]
LocalOption = Annotated[
    bool, typer.Option("--local", help="As the connected node has it, which may be old.")
]


FenceOption = Annotated[
    str,
    typer.Option(
        "--fence", metavar="LOCK:TOKEN", help="Only if this grant of a lock is the present one."
    ),
]


def parse_fence(text: str) -> Fence | None:
    """A grant, as ``quorate lock`` tells its command: the lock's name, a colon, the token.

    Raises:
        InvalidArgumentError: it is not of that form.
    """
    if not text:
        return None
    name, _, token = text.rpartition(":")
    if not name or not token.isascii() or not token.isdigit() or not 0 < int(token) < 2**63:
        raise InvalidArgumentError(
            f"--fence is LOCK:TOKEN, as in $QUORATE_LOCK_NAME:$QUORATE_LOCK_TOKEN, not {text!r}"
        )
    return Fence(LOCK_MACHINE, as_lock_name(to_bytes(name)), int(token))


async def put(
    target: Target,
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="'-' reads stdin.")] = "",
    *,
    file: Annotated[Path | None, typer.Option("--file", help="Take the value from FILE.")] = None,
    fence: FenceOption = "",
) -> Exit:
    """Set KEY to VALUE."""
    if file is not None and value:
        raise InvalidArgumentError("give a VALUE or --file, not both")
    if file is not None:
        content = _read_value(file)
    elif value == "-":
        content = sys.stdin.buffer.read(VALUE_BYTES_MAX + 1)
    else:
        content = to_bytes(value)
    wanted, checked = as_key(to_bytes(key)), as_value(content)  # before anything is connected
    grant = parse_fence(fence)
    async with opened(target) as db:
        result = await db.kv.put(wanted, checked, fence=grant)
    if target.json:
        emit({"revision": result.revision})
    else:
        say(f"revision {result.revision}")
    return Exit.OK


def _read_value(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(VALUE_BYTES_MAX + 1)  # one byte too many is refused as too long


async def get(target: Target, key: KeyArgument, *, local: LocalOption = False) -> Exit:
    """Print the value of KEY as it is; exit status 4 if there is no such key."""
    wanted = as_key(to_bytes(key))
    async with opened(target) as db:
        item = await db.kv.get(wanted, level="eventual" if local else "quorum")
    if target.json:
        emit({"item": None if item is None else item_json(item)})
    elif item is None:
        sys.stderr.write(f"quorate: no key {shown(wanted)}\n")
    else:
        write_bytes(item.value)
    return Exit.NO if item is None else Exit.OK


async def delete(
    target: Target,
    start: Annotated[str, typer.Argument(metavar="KEY", help="The key, or where to begin.")],
    end: Annotated[str | None, typer.Argument(metavar="[END]", help="Up to here.")] = None,
    *,
    prefix: PrefixOption = False,
) -> Exit:
    """Remove KEY, or all from KEY up to but not including END; exit status 4 if there was none.

    More than 10,000 keys go in several steps.
    """
    first, last = _bounds(start, end, prefix=prefix)
    count, revision = 0, 0
    alone = end is None and not prefix
    if alone:
        as_key(first)
    async with opened(target) as db:
        if alone:
            result = await db.kv.delete(first)
            count, revision = result.count, result.revision
        else:
            more = True
            while more:
                result = await db.kv.delete_range(first, last, limit=RANGE_LIMIT_MAX)
                count, revision, more = count + result.count, result.revision, result.more
    if target.json:
        emit({"count": count, "revision": revision})
    else:
        say(f"{count} removed, revision {revision}")
    return Exit.OK if count else Exit.NO


async def range_(
    target: Target,
    start: Annotated[str, typer.Argument(metavar="[START]", help="Where to begin.")] = "",
    end: Annotated[str | None, typer.Argument(metavar="[END]", help="Up to here.")] = None,
    *,
    prefix: PrefixOption = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="0: all of them.")] = 0,
    reverse: Annotated[bool, typer.Option("--reverse", help="From the last to the first.")] = False,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="No values.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Only how many there are.")] = False,
    local: LocalOption = False,
) -> Exit:
    """Print the keys from START up to but not including END, and their values.

    JSON has one line per key. Ranges of more than 10,000 keys are read page by page, each page
    from one state of the store.
    """
    first, last = _bounds(start, end, prefix=prefix)
    async with opened(target) as db:
        if count:
            number = await db.kv.count(first, last, level="eventual" if local else "quorum")
            emit({"count": number}) if target.json else say(str(number))
            return Exit.OK
        left = limit
        while True:
            page: RangeResult = await db.kv.range(
                first,
                last,
                limit=min(left, RANGE_LIMIT_MAX) if limit else RANGE_LIMIT_MAX,
                reverse=reverse,
                keys_only=keys_only,
                level="eventual" if local else "quorum",
            )
            for item in page.items:
                _print_item(item, keys_only=keys_only, as_json=target.json)
            left -= len(page.items)
            if not page.more or not page.items or (limit and left <= 0):
                return Exit.OK
            if reverse:
                last = page.items[-1].key
            else:
                first = page.items[-1].key + b"\0"


def _bounds(start: str, end: str | None, *, prefix: bool) -> tuple[bytes, bytes | None]:
    first = to_bytes(start)
    if not prefix:
        return first, None if end is None else to_bytes(end)
    if end is not None:
        raise InvalidArgumentError("a range is named by its END or with --prefix, not both")
    return first, after_prefix(first)


def _print_item(item: KeyValue, *, keys_only: bool, as_json: bool) -> None:
    if as_json:
        described = item_json(item)
        if keys_only:
            described = {name: part for name, part in described.items() if name[:5] != "value"}
        emit(described)
    elif keys_only:
        say(shown(item.key))
    else:
        say(f"{shown(item.key)}\t{shown(item.value)}")


async def txn(
    target: Target,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON; '-' reads stdin.")] = "-",
) -> Exit:
    """Do a transaction; exit status 4 if its conditions did not hold (`otherwise` was done).

    FILE holds, for instance: {"compare": [{"key": "a", "target": "version", "operand": 0}],
    "then": [{"op": "put", "key": "a", "value": "1"}], "otherwise": [{"op": "get", "key": "a"}]}.
    Targets: value, version, create, mod; operators: =, !=, <, >; operations: put, get, delete,
    increment, range, delete-range.
    """
    if file == "-":
        text = sys.stdin.buffer.read(TXN_BYTES_MAX + 1)
    else:
        with Path(file).open("rb") as content:  # noqa: ASYNC230  # nothing else runs yet
            text = content.read(TXN_BYTES_MAX + 1)
    if len(text) > TXN_BYTES_MAX:
        raise InvalidArgumentError(f"{file} is longer than {TXN_BYTES_MAX} bytes")
    given = parse_transaction(text, "stdin" if file == "-" else file)
    async with opened(target) as db:
        result = await db.kv.txn(given.compare, then=given.success, otherwise=given.failure)
    if target.json:
        emit(result_json(result))
    else:
        branch = "then" if result.succeeded else "otherwise"
        say(f"did {branch!r} ({len(result.results)} operations), revision {result.revision}")
        for each in result.results:
            items = each.items if isinstance(each, RangeResult) else ()
            if isinstance(each, GetResult) and each.item is not None:
                items = (each.item,)
            for item in items:
                _print_item(item, keys_only=False, as_json=False)
    return Exit.OK if result.succeeded else Exit.NO


app.command("put")(client_command(put))
app.command("get")(client_command(get))
app.command("del")(client_command(delete))
app.command("range")(client_command(range_))
app.command("txn")(client_command(txn))
app.command("load")(client_command(load))
app.command("dump")(client_command(dump))

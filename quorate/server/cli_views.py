"""``quorate tasks workers``, ``tables`` and ``view``: the tables and views of coordinators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from quorate.client.coordinator_tables import TABLES, VIEWS, readers
from quorate.errors import InvalidArgumentError
from quorate.server.cli_common import Exit, Target, client_command, emit, opened, say, shown

LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most so many rows.")]
_TEXT_MAX = 40  # characters of a cell on a terminal


async def tables(target: Target) -> Exit:
    """Print the names of all tables and views; VIEW prints the rows of one."""
    # Asked of nobody: they are the same everywhere.
    for kind, names in (("table", TABLES), ("view", VIEWS)):
        for name in names:
            emit({"name": name, "kind": kind}) if target.json else say(f"{kind}\t{name}")
    return Exit.OK


async def view(
    target: Target,
    name: Annotated[str, typer.Argument(help="Of a table or view; `tables` prints them.")],
    *,
    limit: LimitOption = 1_000,
) -> Exit:
    """Print the rows of the table or view NAME."""
    if name not in (*TABLES, *VIEWS):
        raise InvalidArgumentError(f"{name!r} is none of {', '.join((*TABLES, *VIEWS))}")
    async with opened(target) as db:
        rows = await readers(db)[name](limit)
    print_rows(rows, as_json=target.json)
    return Exit.OK


async def workers(target: Target, *, limit: LimitOption = 1_000) -> Exit:
    """Print the workers that are there, what they have, and for how long they have been silent."""
    return await view(target, "v_active_workers", limit=limit)


def print_rows(rows: Sequence[msgspec.Struct], *, as_json: bool) -> None:
    """A line of JSON each, or columns under their names."""
    plain: list[dict[str, Any]] = [
        {name: _plain(value) for name, value in msgspec.structs.asdict(row).items()} for row in rows
    ]
    if as_json:
        for each in plain:
            emit(each)
        return
    if not plain:
        return
    cells = [tuple(plain[0]), *(tuple(map(_cell, each.values())) for each in plain)]
    say("\n".join(columns(cells)))


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401
    try:
        return msgspec.to_builtins(value, str_keys=True)
    except (TypeError, ValueError):
        return repr(value)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = shown(text.partition("\n")[0].encode())
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def add_commands(app: typer.Typer) -> None:
    """Put the commands into the group of those on tasks."""
    app.command("workers")(client_command(workers))
    app.command("tables")(client_command(tables))
    app.command("view")(client_command(view))

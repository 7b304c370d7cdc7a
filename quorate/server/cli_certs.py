"""``quorate certs``: the authority of a cluster, and certificates for its nodes and clients."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from quorate.errors import ConfigError
from quorate.server.cli_common import Exit, JsonOption, emit, say

app = typer.Typer(no_args_is_help=True, help="Make the certificates of a cluster's mutual TLS.")

DirOption = Annotated[Path, typer.Option("--dir", help="Where the authority's files stand.")]
DaysOption = Annotated[int, typer.Option("--days", help="Validity.")]
_DIR = Path("certs")


def _certificates() -> Any:  # noqa: ANN401  # a module, loaded when a certificate is made
    return importlib.import_module("quorate.server.certificates")


@app.command("init")
def init(
    *,
    directory: DirOption = _DIR,
    cluster: Annotated[str, typer.Option(help="Name shown in the authority.")] = "quorate",
    days: DaysOption = 3650,
    json: JsonOption = False,
) -> int:
    """Make the authority: ca.crt for everybody, ca.key to be kept where certificates are made."""
    return _show(_certificates().create_authority(directory, cluster, days), json=json)


@app.command("issue")
def issue(
    *,
    kind: Annotated[str, typer.Argument(metavar="node|client", help="Who it is for.")],
    directory: DirOption = _DIR,
    node_id: Annotated[int | None, typer.Option("--id", help="The node's number.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address by which others call the node; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The client's name.")] = None,
    days: DaysOption = 365,
    json: JsonOption = False,
) -> int:
    """Make a certificate: `issue node --id 1 --host db1.example`, `issue client --name billing`."""
    if kind == "node":
        if node_id is None or name is not None:
            raise ConfigError("a node's certificate needs --id (and its --host), and no --name")
        files = _certificates().issue_node(directory, node_id, host or [], days)
    elif kind == "client":
        if name is None or node_id is not None or host:
            raise ConfigError("a client's certificate needs --name, and neither --id nor --host")
        files = _certificates().issue_client(directory, name, days)
    else:
        raise ConfigError(f"certificates are for a node or a client, not for {kind!r}")
    return _show(files, json=json)


def _show(files: Any, *, json: bool) -> int:  # noqa: ANN401  # CertificateFiles
    until = files.not_after.date().isoformat()
    if json:
        emit({"cert": files.cert, "key": files.key, "not_after": until})
    else:
        say(f"{files.cert} and {files.key}, valid until {until}")
    return Exit.OK

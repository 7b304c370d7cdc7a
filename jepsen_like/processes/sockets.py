"""Which process dialled? The kernel knows: it keeps the owner of every socket.

Proxies must know who is at the other end of a connection that comes in, and the address does not
tell: all nodes dial from 127.0.0.1, in a protocol of their own, perhaps encrypted. So the socket
is looked up in ``/proc/net/tcp`` by its ports, and its inode among the open files of the nodes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_TABLE = Path("/proc/net/tcp")


def missing() -> str:
    """Why connections cannot be told apart here; "" if they can."""
    if sys.platform.startswith("linux") and _TABLE.exists():
        return ""
    return "links between processes are told apart by /proc/net/tcp, which only Linux has"


def owner(local_port: int, remote_port: int, pids: Iterable[int]) -> int:
    """The one of *pids* that owns the socket from *local_port* to *remote_port* on this machine;
    0 if none of them does."""
    inode = _inode(local_port, remote_port)
    if inode is None:
        return 0
    wanted = f"socket:[{inode}]"
    for pid in pids:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) == wanted:  # noqa: PTH115  half the time of a Path
                        return pid
    return 0


def _inode(local_port: int, remote_port: int) -> str | None:
    local, remote = f":{local_port:04X}", f":{remote_port:04X}"
    with _TABLE.open("rb") as file:
        for line in file:
            fields = line.split(maxsplit=10)
            if fields[1].decode().endswith(local) and fields[2].decode().endswith(remote):
                return fields[9].decode()
    return None

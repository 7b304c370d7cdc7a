"""``quorate.sync``: the synchronous twins of ``open`` and ``connect``, for code without await."""

from __future__ import annotations

import os
from collections.abc import Sequence

from quorate.client.settings import TIMEOUT_S_DEFAULT
from quorate.client.sync import Database, Handle, Machine, View, connect
from quorate.client.sync_kv import Kv
from quorate.replication import machine
from quorate.server import embedded

__all__ = ["Database", "Handle", "Kv", "Machine", "View", "connect", "open"]


def open(  # noqa: A001  sync.open(path) reads as what it does
    path: str | os.PathLike[str],
    *,
    machines: Sequence[machine.Machine] = (),
    timeout: float = TIMEOUT_S_DEFAULT,
) -> Database:
    """As ``quorate.open``, for ``with``: the node runs on a thread of its own.

    Raises:
        InvalidArgumentError: as ``quorate.open``.
    """
    embedded.open(path, machines=machines, timeout=timeout)  # checks the arguments, here and now
    return Database(lambda: embedded.open(path, machines=machines, timeout=timeout))

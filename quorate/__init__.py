"""quorate: a Raft-replicated log, state machines and key-value store to embed in Python.

``open(path)`` is a database of one node in this process; ``Node(config)`` a member of a cluster in
this process; ``connect(endpoints)`` a handle on a cluster elsewhere. All three give a ``Database``.
``sync`` has the twins of ``open`` and ``connect`` for code that does not await; ``ops`` makes the
conditions and operations of transactions.
"""

from quorate import errors
from quorate.base import version
from quorate.client import operations as ops
from quorate.client.database import Database, connect
from quorate.client.tls import tls_context
from quorate.errors import QuorateError
from quorate.replication.machine import Context, Machine
from quorate.server import sync
from quorate.server.config import NodeConfig
from quorate.server.embedded import open  # noqa: A004  quorate.open(path) reads as what it does
from quorate.server.node import Node

__version__ = version.VERSION

__all__ = [
    "Context",
    "Database",
    "Machine",
    "Node",
    "NodeConfig",
    "QuorateError",
    "__version__",
    "connect",
    "errors",
    "open",
    "ops",
    "sync",
    "tls_context",
]

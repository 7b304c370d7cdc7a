"""quorate: a Raft-replicated log, state machines and key-value store to embed in Python.

``open(path)`` is a database of one node in this process; ``Node(config)`` a member of a cluster in
this process; ``connect(endpoints)`` a handle on a cluster elsewhere. All three give a ``Database``.
``sync`` has the twins of ``open`` and ``connect`` for code that does not await; ``ops`` makes the
conditions and operations of transactions. ``ORSet``, ``GCounter`` and so on are the kinds of CRDT
data that ``Database.crdt`` takes.
"""

from quorate import errors
from quorate.base import version
from quorate.base.declaring import Since as since  # noqa: N813  it reads as a word there
from quorate.base.declaring import command, query
from quorate.base.fencing import Fence
from quorate.base.levels import Accepted, Level
from quorate.base.tables import OrderedTable, Table, table, value
from quorate.client import operations as ops
from quorate.client.crdt import (
    BoundedCounter,
    DisableWinsFlag,
    EnableWinsFlag,
    GCounter,
    GSet,
    LWWRegister,
    MVRegister,
    ORSet,
    PNCounter,
    TwoPSet,
)
from quorate.client.crdt_maps import ORMap
from quorate.client.crdt_text import Text
from quorate.client.database import Database, connect
from quorate.client.executor import QuorateExecutor
from quorate.client.levels import Receipt
from quorate.client.task_app import App, Result
from quorate.client.task_context import Completion, TaskContext
from quorate.client.task_worker import Worker
from quorate.client.tls import tls_context
from quorate.client.workflows import Workflow
from quorate.errors import CommandError, QuorateError
from quorate.replication.batteries import (
    ReplCounter,
    ReplDict,
    ReplList,
    ReplPriorityQueue,
    ReplQueue,
    ReplSet,
)
from quorate.replication.machine import Context, Machine
from quorate.replication.replicated import Replicated, replicated
from quorate.server import sync
from quorate.server.config import NodeConfig
from quorate.server.embedded import open  # noqa: A004  quorate.open(path) reads as what it does
from quorate.server.node import Node

__version__ = version.VERSION

__all__ = [
    "Accepted",
    "App",
    "BoundedCounter",
    "CommandError",
    "Completion",
    "Context",
    "Database",
    "DisableWinsFlag",
    "EnableWinsFlag",
    "Fence",
    "GCounter",
    "GSet",
    "LWWRegister",
    "Level",
    "MVRegister",
    "Machine",
    "Node",
    "NodeConfig",
    "ORMap",
    "ORSet",
    "OrderedTable",
    "PNCounter",
    "QuorateError",
    "QuorateExecutor",
    "Receipt",
    "ReplCounter",
    "ReplDict",
    "ReplList",
    "ReplPriorityQueue",
    "ReplQueue",
    "ReplSet",
    "Replicated",
    "Result",
    "Table",
    "TaskContext",
    "Text",
    "TwoPSet",
    "Worker",
    "Workflow",
    "__version__",
    "command",
    "connect",
    "errors",
    "open",
    "ops",
    "query",
    "replicated",
    "since",
    "sync",
    "table",
    "tls_context",
    "value",
]

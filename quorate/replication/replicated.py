"""Machines in the style of PySyncObj: methods that are ``@replicated``, without annotations.

    class Jobs(quorate.Replicated):
        total: int = quorate.value(0)

        @quorate.replicated
        def add(self, number=1):
            self.total += number
            return self.total

        @quorate.query
        def sum(self):
            return self.total

It is a declared machine (``base.declaring``) whose parameters may be any msgpack values. Unlike
there, state is declared (``quorate.value``, ``quorate.Table``), because it is written to disk
record by record and undone when a method raises; and what reads it is a query, because callers may
be elsewhere.
"""

from __future__ import annotations

from typing import Any

from quorate.base.declaring import command
from quorate.replication.machine import Machine

#: Another word for ``command``, with the same options.
replicated = command


class Replicated(Machine):
    """Base class. *name*: of this object, so that a class may be used for several; the class's own
    name, as ``snake_case``, if "". Nodes are given ``Jobs("night")`` among their machines, and
    handles find it by ``db.machine(Jobs("night"))``."""

    def __init__(self, name: str = "") -> None:
        if name:
            vars(self)["name"] = name

    def __init_subclass__(cls, **rest: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(untyped=True, **rest)

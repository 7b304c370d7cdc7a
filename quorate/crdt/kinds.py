"""All kinds of data, under the names that users know them by."""

from __future__ import annotations

from quorate.base.crdt_operations import KindTag
from quorate.base.invariants import must
from quorate.crdt.bounded import BoundedCounter
from quorate.crdt.counters import GCounter, PNCounter
from quorate.crdt.flags import DisableWinsFlag, EnableWinsFlag
from quorate.crdt.kind import KINDS
from quorate.crdt.maps import ORMap
from quorate.crdt.registers import LWWRegister, MVRegister
from quorate.crdt.sets import GSet, ORSet, TwoPSet
from quorate.crdt.text import Text

__all__ = [
    "BoundedCounter",
    "DisableWinsFlag",
    "EnableWinsFlag",
    "GCounter",
    "GSet",
    "LWWRegister",
    "MVRegister",
    "ORMap",
    "ORSet",
    "PNCounter",
    "Text",
    "TwoPSet",
]

must(sorted(KINDS) == sorted(KindTag), "every tag has its kind", kinds=sorted(KINDS))

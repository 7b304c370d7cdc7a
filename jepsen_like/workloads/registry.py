"""All workloads, by the name that the command line uses. Each value makes one with its defaults, or
with keyword arguments of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from jepsen_like.errors import UsageError
from jepsen_like.workloads.append import AppendWorkload
from jepsen_like.workloads.bank import BankWorkload
from jepsen_like.workloads.barrier import BarrierWorkload
from jepsen_like.workloads.base import Workload
from jepsen_like.workloads.cas_register import CasRegisterWorkload
from jepsen_like.workloads.counter import CounterWorkload
from jepsen_like.workloads.crdt import (
    CrdtCounterWorkload,
    CrdtMapWorkload,
    CrdtSetWorkload,
    CrdtWorkload,
)
from jepsen_like.workloads.election import ElectionWorkload
from jepsen_like.workloads.lease import LeaseWorkload
from jepsen_like.workloads.levels import LevelsWorkload
from jepsen_like.workloads.lock import LockWorkload
from jepsen_like.workloads.mixed import MixedWorkload
from jepsen_like.workloads.proclaim import ProclaimWorkload
from jepsen_like.workloads.queue import QueueWorkload
from jepsen_like.workloads.register import RegisterWorkload
from jepsen_like.workloads.semaphore import SemaphoreWorkload
from jepsen_like.workloads.set_ import SetWorkload
from jepsen_like.workloads.watch import WatchWorkload
from jepsen_like.workloads.workflow import WorkflowWorkload

WORKLOADS: Final[Mapping[str, Callable[..., Workload]]] = {
    "register": RegisterWorkload,
    "cas-register": CasRegisterWorkload,
    "set": SetWorkload,
    "counter": CounterWorkload,
    "bank": BankWorkload,
    "append": AppendWorkload,
    "lock": LockWorkload,
    "semaphore": SemaphoreWorkload,
    "election": ElectionWorkload,
    "proclaim": ProclaimWorkload,
    "barrier": BarrierWorkload,
    "lease": LeaseWorkload,
    "watch": WatchWorkload,
    "levels": LevelsWorkload,
    "crdt": CrdtWorkload,
    "crdt-counter": CrdtCounterWorkload,
    "crdt-set": CrdtSetWorkload,
    "crdt-map": CrdtMapWorkload,
    "queue": QueueWorkload,
    "workflow": WorkflowWorkload,
}


def make(name: str) -> Workload:
    """The workload *name*; "a,b" is both at once. Raises ``UsageError`` if there is none."""
    if "," in name:
        return MixedWorkload([make(each) for each in dict.fromkeys(name.split(","))])
    if name not in WORKLOADS:
        raise UsageError(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]()

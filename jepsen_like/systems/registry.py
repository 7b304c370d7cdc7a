"""Systems under test by the name that ``--system`` takes. Imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final

from jepsen_like.errors import UsageError
from jepsen_like.systems.system import System

#: Name: "module:class".
SYSTEMS: Final[Mapping[str, str]] = {
    "quorate": "jepsen_like.systems.quorate:QuorateSystem",
    "etcd": "jepsen_like.systems.etcd:EtcdSystem",
    "pysyncobj": "jepsen_like.systems.pysyncobj.processes:PySyncObjSystem",
    "pysyncobj-log-reads": "jepsen_like.systems.pysyncobj.processes:PySyncObjWithReadsInTheLog",
}

#: Systems that also run on virtual time: name: module of a command. ``run`` without ``--workload``
#: hands its arguments (seed, seeds, json) to that module's ``run``.
ON_VIRTUAL_TIME: Final[Mapping[str, str]] = {
    "pysyncobj": "jepsen_like.systems.pysyncobj.command",
}


def system_class(name: str) -> type[System]:
    """The class behind *name*.

    Raises:
        UsageError: there is none; the text lists those that there are.
    """
    if name not in SYSTEMS:
        raise UsageError(f"no system {name!r}; there are {', '.join(SYSTEMS)}")
    module, _, attribute = SYSTEMS[name].partition(":")
    found: type[System] = getattr(importlib.import_module(module), attribute)
    return found

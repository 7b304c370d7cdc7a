"""Machines that a configuration names, for nodes that run as processes of their own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from quorate.errors import ConfigError
from quorate.replication.machine import Machine


def load_machines(places: Sequence[str]) -> list[Machine]:
    """One machine for each of *places*, "package.module:Name"; the name may be a class, which is
    called without arguments, or a machine. Modules are found as ``python -m`` finds them, in the
    working directory too.

    Raises:
        ConfigError: there is no such module or name, importing it fails, or it is no machine.
    """
    return [_load(place) for place in places]


def _load(place: str) -> Machine:
    module_name, colon, name = place.partition(":")
    if not (colon and module_name and name):
        raise ConfigError(f"machines: {place!r} names none: write package.module:Name")
    here = os.getcwd()  # noqa: PTH109  as sys.path has it
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        machine = found() if isinstance(found, type) else found
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"machines: {place} cannot be loaded: {error!r}") from error
    if not isinstance(machine, Machine):
        raise ConfigError(f"machines: {place} is no quorate.Machine, but {machine!r}")
    return machine

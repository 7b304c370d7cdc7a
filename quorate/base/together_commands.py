"""One command of each of several machines, all of them or none: shared by node and client.

Wire and disk formats: arrays that begin with the tag; see ``kv_commands`` for the rules of growth.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from quorate.base.limits import MACHINE_NAME_MAX
from quorate.base.results import Failure
from quorate.errors import InvalidArgumentError

TOGETHER_MACHINE: Final = "together"  # the machine's name, for ``Run.machine``
PARTS_MAX: Final = 8
#: Machines whose commands have to stand by themselves: what they do reaches into the others.
ALONE: Final = frozenset({TOGETHER_MACHINE, "sessions", "leases", "versions", "cluster", "lives"})


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One *command* of *machine*, encoded."""

    machine: Annotated[str, msgspec.Meta(min_length=1, max_length=MACHINE_NAME_MAX)]
    command: msgspec.Raw


class Together(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Do *parts*, in order, in one entry; if one of them is refused, or comes to something else
    than it is for (a transaction whose comparisons do not hold, a completion that is stale), none
    of them. Each is for another machine. Result: ``DoneTogether``, or that part's failure, or a
    failure "not-together"."""

    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1, max_length=PARTS_MAX)]

    def __post_init__(self) -> None:
        names = [part.machine for part in self.parts]
        for at, name in enumerate(names):
            if name in names[:at]:
                raise InvalidArgumentError(f"two parts are for machine {name!a}; make them one")
            if name in ALONE:
                raise InvalidArgumentError(f"commands of machine {name!a} have no others with them")


class DoneTogether(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """*results*: of the parts, in order, encoded."""

    results: tuple[msgspec.Raw, ...]


TogetherResult = Failure | DoneTogether

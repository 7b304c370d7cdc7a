"""The machines of a node by name, and the version of each that is in force.

Replicas may run different code for a while, and must do the same all the same. So what a machine
does is decided by a version that the log holds, not by the code alone: a node whose code has
version 3 acts as version 2 until an entry says otherwise (``SetVersion``), and replays what is
older as version 2 again after a restart. The versions are records of the table ``versions.active``,
so that they are in checkpoints and snapshots, undone with a command that fails, and part of the
state hash.

The built-in machines are in force from the beginning, under version 1. A machine of the user's is
not until the log says so: before that, a node that has it answers as one that has not. So a rolling
restart may bring a machine in as well as raise one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from quorate.base.limits import MACHINE_NAME_MAX
from quorate.errors import (
    CommandError,
    ConfigError,
    FormatVersionError,
    OverloadedError,
    UnknownMachineError,
)
from quorate.replication.machine import Context, Machine
from quorate.replication.runs import Slot
from quorate.replication.tables import Table, Tables
from quorate.storage.interfaces import StoreMeta

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
#: Of the machines that are there from the beginning.
FIRST_VERSION: Final = 1
NOT_IN_FORCE: Final = 0
#: When to ask again for a machine that is about to be in force.
RETRY_AFTER_MS: Final = 20


class SetVersion(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """From here on *machine* acts as *version*. Without effect if it does so already, or as a later
    one: versions only grow."""

    machine: str
    version: int


class InForce(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The version in force after a ``SetVersion``, and the one before it."""

    version: int
    before: int


class VersionRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row, under the machine's name."""

    version: int


#: Called with a machine's name, the versions before and after, and the context.
Raised = Callable[[str, int, int, Context], None]


class VersionMachine(Machine):
    """Version history: 1, first release."""

    name: ClassVar[str] = "versions"
    command_type = SetVersion

    def __init__(self, version_of: Callable[[str], int], raised: Raised) -> None:
        self._version_of = version_of
        self._raised = raised
        self.on_rolled_back: Callable[[], None] = _nothing

    def attach(self, tables: Tables) -> None:
        """One table: names to ``VersionRecord``."""
        self.active: Table[VersionRecord] = tables.table("versions.active", VersionRecord)

    def apply(self, command: SetVersion, context: Context) -> InForce:
        """Raise a version."""
        name = command.machine
        if not _is_name(name) or not 0 < command.version < 1 << 31:
            raise CommandError("a machine's name and a version from 1 are needed")
        before = self._version_of(name)
        if command.version <= before:
            return InForce(before, before)
        self.active.put(name.encode(), VersionRecord(command.version))
        self._raised(name, before, command.version, context)
        return InForce(command.version, before)

    def rolled_back(self) -> None:
        """A version that was raised is not."""
        self.on_rolled_back()


class Registry:
    """*first*: in force from the beginning; *later*: once the log says so.

    *missing*: the log asked for a version that this node's code does not have; nothing more may be
    applied. *generation* changes whenever a version does.

    Raises:
        ConfigError: a bad or repeated machine name, or a table outside a machine's own names.
    """

    def __init__(
        self, tables: Tables, first: Sequence[Machine], later: Sequence[Machine] = ()
    ) -> None:
        self._tables = tables
        self._versions = VersionMachine(self.version, self._raised)
        self._versions.on_rolled_back = self.derive
        self._all: dict[str, Slot] = {}
        self._first: dict[str, None] = {}
        for machine in (*first, self._versions):
            self._register(machine)
            self._first[machine.name] = None
        for machine in later:
            self._register(machine)
        #: The machines in force, by name.
        self.in_force: dict[str, Slot] = {}
        self.generation = 0
        self.missing: FormatVersionError | None = None
        self.derive()

    def _register(self, machine: Machine) -> None:
        name = getattr(machine, "name", None)
        if not isinstance(name, str) or not _is_name(name):
            raise ConfigError(
                f"{type(machine).__name__}.name is {name!r}; a machine is named by lower-case "
                f"letters, digits, '-' and '_', {MACHINE_NAME_MAX} at most, a letter first"
            )
        if name in self._all:
            raise ConfigError(f"there are two machines of the name {name!r}")
        if type(machine.version) is not int or machine.version < 1:
            raise ConfigError(f"version {machine.version!r} of machine {name!r} is not 1 or more")
        before = {table.name for table in self._tables}
        machine.attach(self._tables)
        for table in self._tables:
            if table.name not in before and not table.name.startswith(f"{name}."):
                raise ConfigError(
                    f"table {table.name!r} of machine {name!r} must be named {name}.something"
                )
        try:
            self._all[name] = Slot(machine, machine.version)
        except (TypeError, AttributeError) as error:
            raise ConfigError(
                f"machine {name!r} needs a command_type (and may have a query_type) that is a "
                f"tagged, array-like msgspec.Struct, or a union of them: {error}"
            ) from error

    # --- who is there ---------------------------------------------------------------------------

    @property
    def everyone(self) -> list[Machine]:
        """All machines of this node's code, in the order of registration."""
        return [slot.machine for slot in self._all.values()]

    def machine(self, name: str) -> Machine:
        """In force or not. Raises UnknownMachineError."""
        slot = self._all.get(name)
        if slot is None:
            raise UnknownMachineError(f"this cluster has no machine {name[:MACHINE_NAME_MAX]!r}")
        return slot.machine

    def slot(self, name: str) -> Slot:
        """Of a machine in force.

        Raises:
            UnknownMachineError: this node's code does not have it.
            OverloadedError: it is not in force yet.
        """
        slot = self.in_force.get(name)
        if slot is None:
            self.machine(name)
            raise OverloadedError(
                f"machine {name!r} is not in force yet: the leader brings it in once a majority of "
                "the members, and all that are connected, have code for it",
                RETRY_AFTER_MS,
            )
        return slot

    # --- versions -------------------------------------------------------------------------------

    def code_versions(self) -> dict[str, int]:
        """The versions that this node's code has, by name."""
        return {name: slot.machine.version for name, slot in self._all.items()}

    def versions(self) -> dict[str, int]:
        """The versions in force, by name."""
        return {name: slot.version for name, slot in self.in_force.items()}

    def version(self, name: str) -> int:
        """The version of machine *name* in force, ``NOT_IN_FORCE`` if it is not."""
        record = self._versions.active.get(name.encode())
        if record is not None:
            return record.version
        return FIRST_VERSION if name in self._first else NOT_IN_FORCE

    def derive(self) -> None:
        """The table of versions was loaded, or rolled back."""
        self.generation += 1
        self.missing = None
        self.in_force = {}
        for name in self._first:
            self._put_in_force(name, self.version(name))
        for key, record in self._versions.active.items():
            self._put_in_force(key.decode(), record.version)

    def _put_in_force(self, name: str, version: int) -> None:
        slot = self._all.get(name)
        has = NOT_IN_FORCE if slot is None else slot.machine.version
        if slot is None or has < version:
            self.missing = FormatVersionError(
                f"the cluster runs version {version} of machine {name!r}, and this node's code has "
                + (f"version {has}" if has else "no such machine")
                + f": install version {version} or later here, and start the node again"
            )
            return
        if slot.version != version:
            slot = self._all[name] = Slot(slot.machine, version)
        self.in_force[name] = slot

    def _raised(self, name: str, before: int, version: int, context: Context) -> None:
        self.generation += 1
        self._put_in_force(name, version)
        slot = self.in_force.get(name)
        if slot is not None and slot.version == version and before != NOT_IN_FORCE:
            own, context.version = context.version, version
            try:
                slot.machine.upgraded(before, context)
            finally:
                context.version = own

    # --- what a store holds ---------------------------------------------------------------------

    def check_versions(self, meta: StoreMeta) -> None:
        """Whether the state that *meta* belongs to can be restored here.

        Raises:
            FormatVersionError: it is that of a newer version of a machine.
            ConfigError: it belongs to a machine that is not registered.
        """
        for name, version in sorted(meta.machine_versions.items()):
            slot = self._all.get(name)
            if slot is None:
                raise ConfigError(
                    f"the store holds the state of machine {name!r}, which is not registered on "
                    "this node; register it, or its state would be lost"
                )
            if version > slot.machine.version:
                raise FormatVersionError(
                    f"the store was written by version {version} of machine {name!r}, and this "
                    f"node has version {slot.machine.version}; update this node"
                )

    def check_table(self, table: str) -> None:
        """Whether some machine here has *table*. Raises ConfigError."""
        owner = table.partition(".")[0]
        if owner not in self._all:
            raise ConfigError(
                f"the store has a table {table!r} of machine {owner!r}, which is not registered "
                "on this node; register it, or its state would be lost"
            )
        if table not in self._tables:
            raise ConfigError(
                f"the store has a table {table!r} that version "
                f"{self._all[owner].machine.version} of machine {owner!r} does not know"
            )


def _is_name(name: str) -> bool:
    return len(name) <= MACHINE_NAME_MAX and _NAME.fullmatch(name) is not None


def _nothing() -> None:
    """Until the registry says what to do."""


def describe(registry: Registry) -> dict[str, Any]:
    """For ``status``: by machine, the version in force (0: none yet) and that of this node's
    code."""
    return {
        name: {"version": registry.version(name), "code": code}
        for name, code in registry.code_versions().items()
    }

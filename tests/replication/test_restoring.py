"""Registering machines, and giving them back the state that a checkpoint holds."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest

from quorate.base.kv_commands import Put, Status
from quorate.errors import (
    ConfigError,
    FormatVersionError,
    InvariantViolationError,
    StoreCorruptionError,
    UnknownMachineError,
)
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Machine
from quorate.replication.machines import Machines
from quorate.replication.registry import SetVersion
from quorate.replication.tables import Tables
from quorate.storage.interfaces import StoreMeta
from quorate.storage.memory_store import MemoryImage, MemoryStateStore
from tests.replication.support import (
    Do,
    Node,
    Note,
    Teller,
    restored,
    run_of,
    store_checkpoint,
    submit,
)

BUILT_IN = {"sessions": 1, "leases": 1, "together": 1, "versions": 1}


def _fresh() -> list[Machine]:
    return [KvMachine(), Teller()]


def _told(node: Node, *steps: tuple[str, ...]) -> Any:
    (result,) = node.do(Do(steps), machine="teller")
    return result


def _machine(**attributes: Any) -> Machine:
    made: Machine = type("Odd", (Teller,), {"query_type": None, **attributes})()
    return made


@pytest.mark.parametrize(
    ("machines", "says"),
    [
        ([_machine(name="Capital")], "lower-case"),
        ([_machine(name="a" * 65)], "lower-case"),
        ([_machine(name=None)], "lower-case"),
        ([KvMachine(), KvMachine()], "two machines"),
        ([_machine(name="sessions")], "two machines"),
        ([_machine(name="other")], "must be named other"),
        ([_machine(version=0)], "version 0"),
        ([_machine(version="2")], "version '2'"),
        ([_machine(command_type=None)], "command_type"),
        ([_machine(command_type=int | msgspec.Struct | Note)], "command_type"),
    ],
)
def test_bad_machines_are_refused(machines: list[Machine], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Machines(machines)


class Older(Teller):
    version: ClassVar[int] = 1

    def attach(self, tables: Tables) -> None:
        super().attach(tables)


class Newer(Older):
    version = 2

    def attach(self, tables: Tables) -> None:
        super().attach(tables)
        tables.table("teller.more", Note)


def _image(machines: list[Machine]) -> MemoryImage:
    node = Node(machines)
    (version,) = [each.version for each in machines if each.name == "teller"]
    node.do(SetVersion("teller", version), machine="versions")
    _told(node, ("put", "a", ""))
    for table in node.machines.tables:
        if table.name == "teller.more":
            table.put(b"a", Note("", 1))
            node.entry()
    image = MemoryImage()
    store_checkpoint(image, node.machines.take_checkpoint(b""))
    return image


def test_restore_refuses_what_it_would_lose() -> None:
    newer = _image([KvMachine(), Newer()])
    with pytest.raises(FormatVersionError, match=r"version 2 of machine .*update this node"):
        restored(newer, [KvMachine(), Older()])
    newer.opened = False
    with pytest.raises(ConfigError, match="'teller', which is not registered"):
        restored(newer, [KvMachine()])
    newer.opened = False
    image = _image([KvMachine(), Newer()])
    meta = image.checkpoint.meta
    assert meta is not None
    versions = {**meta.machine_versions, "teller": 1}
    image.checkpoint = type(image.checkpoint)(
        msgspec.structs.replace(meta, machine_versions=versions), image.checkpoint.tables
    )
    with pytest.raises(ConfigError, match=r"'teller\.more' that version 1"):
        restored(image, [KvMachine(), Older()])
    image.opened = False
    image.checkpoint = type(image.checkpoint)(
        msgspec.structs.replace(meta, machine_versions={}), image.checkpoint.tables
    )
    with pytest.raises(ConfigError, match="has a table 'teller"):
        restored(image, [KvMachine()])


def test_an_older_state_is_taken_over() -> None:
    machines = restored(_image([KvMachine(), Older()]), [KvMachine(), Newer()])
    # Until the log says otherwise, newer code acts as the old one did.
    assert machines.machine_versions() == {**BUILT_IN, "kv": 1, "teller": 1}
    assert len(machines.tables["teller.notes"]) == 1


def test_restoring_nothing_empties() -> None:
    node = Node(_fresh())
    node.open_session()
    node.do(Put(b"k", b""))
    assert list(node.machines.restore(MemoryStateStore()))
    machines = node.machines
    assert (machines.index, machines.term, machines.time_ms) == (0, 0, 0)
    assert machines.state_hash == bytes(8)
    assert not machines.tables.record_count
    assert machines.next_deadline_ms() is None
    assert node.ask(Status()).revision == 0


def test_a_damaged_record_is_named_and_the_machines_refuse_to_serve() -> None:
    image = _image(_fresh())
    store = MemoryStateStore(image)
    meta = image.checkpoint.meta
    assert meta is not None
    store.checkpoint(meta, {"teller.notes": [(b"a", b"\xc1")]})
    machines = Machines(_fresh())
    with pytest.raises(StoreCorruptionError, match=r"record b'a' of table teller\.notes"):
        list(machines.restore(store))
    with pytest.raises(InvariantViolationError, match="in part"):
        machines.apply(1, 1, None)


def test_a_checkpoint_says_where_it_stands() -> None:
    node = Node(_fresh())
    node.entry(submit(run_of("kv", Put(b"k", b""))), time_ms=77)
    meta = node.machines.take_checkpoint(b"members").meta
    assert isinstance(meta, StoreMeta)
    assert (meta.applied.index, meta.applied.term, meta.time_ms) == (1, 1, 77)
    assert (meta.membership, meta.state_hash) == (b"members", node.machines.state_hash)
    assert meta.machine_versions == {**BUILT_IN, "kv": 1, "teller": 1}
    assert not node.machines.take_checkpoint(b"").dirty


def test_names_of_machines_lead_to_them() -> None:
    machines = Machines(_fresh())
    assert machines.machine("kv").name == "kv"
    with pytest.raises(UnknownMachineError):
        machines.machine("nobody")

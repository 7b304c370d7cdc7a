"""A log in a list, a machine that does as it is told, and what tests ask of both."""

# commands and results are of many types

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import msgspec

from quorate.base.frames import Run, Submit
from quorate.base.kv_commands import KvQuery, KvResult
from quorate.base.results import Failure
from quorate.base.session_commands import OpenSession, SessionResult
from quorate.errors import CommandError
from quorate.replication.batch import Batch, encode_batch
from quorate.replication.kv import KvMachine
from quorate.replication.machine import Context, Machine
from quorate.replication.machines import Applied, Checkpoint, Machines
from quorate.replication.sessions import Outcome
from quorate.replication.tables import Table, Tables
from quorate.storage.memory_store import MemoryImage, MemoryStateStore

encode = msgspec.msgpack.encode

_kv_results = msgspec.msgpack.Decoder(list[list[KvResult]])
_session_results = msgspec.msgpack.Decoder(list[list[SessionResult]])


def run_of(machine: str, *commands: Any) -> Run:
    return Run(machine, msgspec.Raw(encode(list(commands))))


def raw_run(machine: str, items: bytes) -> Run:
    return Run(machine, msgspec.Raw(items))


def submit(*runs: Run, session: int = 0, sequence: int = 0, acknowledged: int = 0) -> Submit:
    return Submit(session, sequence, acknowledged, runs)


def kv(outcome: Outcome) -> list[Any]:
    """All results of a submission of kv commands."""
    assert not outcome.code, outcome
    return [each for run in _kv_results.decode(outcome.results) for each in run]


def plain(outcome: Outcome) -> list[Any]:
    assert not outcome.code, outcome
    return [each for run in msgspec.msgpack.decode(outcome.results) for each in run]


class Node:
    """Machines and the log that they were fed."""

    def __init__(self, machines: Sequence[Machine] = ()) -> None:
        self.machines = Machines(machines or (KvMachine(),))
        self.log: list[bytes] = []
        self.time_ms = 0

    @property
    def wall_ms(self) -> int:
        return 7

    def payload(self, submits: Iterable[Submit], time_ms: int | None = None) -> bytes:
        if time_ms is not None:
            self.time_ms = time_ms
        return encode_batch(Batch(self.time_ms, self.wall_ms, 11, tuple(submits)))

    def entry(self, *submits: Submit, time_ms: int | None = None, leader: bool = False) -> Applied:
        """One entry through the gateway of a leader, or as it comes out of a follower's log."""
        prepared = [self.machines.prepare(each) for each in submits] if leader else None
        return self.feed(self.payload(submits, time_ms), prepared)

    def feed(self, payload: bytes, prepared: Any = None) -> Applied:
        self.log.append(payload)
        return self.machines.apply(self.machines.index + 1, 1, payload, prepared)

    def do(self, *commands: Any, machine: str = "kv") -> list[Any]:
        """Results of commands outside any session."""
        (outcome,) = self.entry(submit(run_of(machine, *commands))).outcomes
        return kv(outcome) if machine == "kv" else plain(outcome)

    def open_session(self, ttl_ms: int = 1000) -> int:
        (outcome,) = self.entry(submit(run_of("sessions", OpenSession(ttl_ms)))).outcomes
        ((result,),) = _session_results.decode(outcome.results)
        assert not isinstance(result, Failure), result
        return result.session

    def ask(self, query: KvQuery) -> Any:
        results = self.machines.query("kv", encode([query]))
        return msgspec.msgpack.decode(results, type=list[KvResult])[0]


def state_of(machines: Machines) -> dict[str, dict[bytes, bytes]]:
    """All records of all tables as they would be stored."""
    return {
        table.name: {key: machines.tables.encode(table.name, each) for key, each in table.items()}
        for table in machines.tables
    }


def store_checkpoint(image: MemoryImage, checkpoint: Checkpoint) -> None:
    store = MemoryStateStore(image)
    store.checkpoint(checkpoint.meta, checkpoint.changes())
    store.close()
    image.opened = False


def restored(image: MemoryImage, machines: Sequence[Machine]) -> Machines:
    found = Machines(machines)
    store = MemoryStateStore(image)
    for _ in found.restore(store):
        pass
    store.close()
    image.opened = False
    return found


# --- a machine that does as it is told ----------------------------------------------------------


class Note(msgspec.Struct, frozen=True, array_like=True, gc=False):
    text: str
    count: int


class Do(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """*steps*: ["put", key, text] | ["delete", key] | ["raise", what] | ["return", what]."""

    steps: tuple[tuple[str, ...], ...]


class Done(msgspec.Struct, frozen=True, array_like=True, tag=1):
    notes: int
    counted: int
    time_ms: int
    seed: int


class Look(msgspec.Struct, frozen=True, array_like=True, tag=1):
    what: str


class RefusedHereError(CommandError):
    code = "refused-here"


class UnreadableError(CommandError):
    def __str__(self) -> str:
        raise ValueError("no text")


class OddCodeError(CommandError):
    code = "\ud800" * 100


def raise_it(what: str) -> None:
    match what:
        case "refused":
            raise RefusedHereError("no " + "x" * 10_000 + "\ud800")
        case "unreadable":
            raise UnreadableError
        case "odd-code":
            raise OddCodeError("odd")
        case "deep":
            raise RecursionError
        case "group":
            raise ExceptionGroup("many", [ValueError()])
        case "stop":
            raise StopIteration
        case "named":
            raise type("N" * 3000, (Exception,), {})
        case _:
            raise RuntimeError(f"{what} at {id(what):x}")


#: Hooks in which it can be told to raise, by a note under the hook's name.
HOOKS = ("expire", "finish", "on_session_end")


class Teller(Machine):
    """Keeps notes, counts them outside its tables, and raises when told to."""

    name = "teller"
    command_type: ClassVar[Any] = Do
    query_type: ClassVar[Any] = Look

    def attach(self, tables: Tables) -> None:
        self.notes: Table[Note] = tables.table("teller.notes", Note, ordered=True)
        self.marks: Table[Note] = tables.table("teller.marks", Note)
        self.counted = 0
        self.rollbacks = 0

    def loaded(self) -> None:
        self.counted = len(self.notes)

    def apply(self, command: Do, context: Context) -> Any:
        for verb, *arguments in command.steps:
            match verb:
                case "put":
                    key = arguments[0].encode()
                    old = self.notes.get(key)
                    self.notes.put(key, Note(arguments[1], 1 if old is None else old.count + 1))
                case "delete":
                    self.notes.delete(arguments[0].encode())
                case "raise":
                    raise_it(arguments[0])
                case "return":
                    return self.answer(arguments[0])
                case "badly":
                    self.notes.put(b"bad", Note(5, "five"))  # type: ignore[arg-type]
            self.counted = len(self.notes)
        return Done(len(self.notes), self.counted, context.time_ms, context.seed)

    def answer(self, what: str) -> Any:
        match what:
            case "failure":
                return Failure("mine", "said politely")
            case "object":
                return object()
            case "huge":
                return b"x" * (9 * 2**20)
            case "integer":
                return 2**70
            case _:
                return {"b", "a", what}

    def query(self, query: Look) -> Any:
        match query.what:
            case "count":
                return Done(len(self.notes), self.counted, 0, 0)
            case "change":
                self.notes.put(b"changed", Note("by a query", 1))
                return None
            case "huge":
                return b"x" * (9 * 2**20)
        return raise_it(query.what)

    def hook(self, name: str) -> None:
        note = self.notes.get(name.encode())
        if note is not None:
            old = self.marks.get(name.encode())
            self.marks.put(name.encode(), Note(name, 1 if old is None else old.count + 1))
            if note.text.startswith("raise "):
                raise_it(note.text.removeprefix("raise "))

    def expire(self, context: Context) -> None:
        self.hook("expire")

    def finish(self, context: Context) -> None:
        self.hook("finish")

    def on_session_end(self, session: int, context: Context) -> None:
        self.hook("on_session_end")

    def next_deadline_ms(self) -> int | None:
        self.hook("next_deadline_ms")
        note = self.notes.get(b"deadline")
        return None if note is None else int(note.text)

    def frees_space(self, command: Do) -> bool:
        if command.steps[0][0] == "raise":
            raise_it("here")
        return all(verb == "delete" for verb, *_ in command.steps)

    def rolled_back(self) -> None:
        self.rollbacks += 1
        self.counted = len(self.notes)
        if self.notes.get(b"rolled_back") is not None:
            self.notes.put(b"never", Note("kept", 1))
            raise_it("here")

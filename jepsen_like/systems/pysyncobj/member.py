"""One member: its process, which may end and begin again, its disk, and the view into both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from pysyncobj import SyncObjConf

from jepsen_like.systems.pysyncobj.lineage import NOTHING, Lineages
from jepsen_like.systems.pysyncobj.network import Network, Port, SimNode
from jepsen_like.systems.pysyncobj.patches import KilledError, VirtualClock, entry_of
from jepsen_like.systems.pysyncobj.store import Callback, Store
from jepsen_like.systems.pysyncobj.watch import Entry, Photo, Watch, photo

SUCCESS: Final = 0  # FAIL_REASON.SUCCESS
CANDIDATE: Final = 1
LEADER: Final = 2
#: Bytes per message of a snapshot that is sent.
SNAPSHOT_CHUNK_BYTES: Final = 512

#: A member that is down, as it was: photo, first index, log, name of its state.
Ghost = tuple[Photo, int, dict[int, Entry], str]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the library is set up: names and units are its own (seconds), the rest is its default.
    *journal*: with its journal and its dump in files, else all in memory."""

    journal: bool = False
    append_entries_use_batch: bool = True
    tick_s: float = 0.05
    log_compaction_min_entries: int = 5000
    leader_fallback_timeout_s: float = 30.0
    connection_retry_s: float = 5.0
    connection_timeout_s: float = 3.5
    lock_timeout_s: float = 10.0


class Member:
    """*founders*: the members that it is told of when it starts for the first time."""

    def __init__(
        self,
        name: str,
        founders: tuple[str, ...],
        settings: Settings,
        directory: Path,
        clock: VirtualClock,
        network: Network,
        watch: Watch,
        lineages: Lineages,
    ) -> None:
        self.name, self.settings = name, settings
        self.running = False
        self.paused = False
        self.wall_offset_s = 0.0
        #: The process dies at so many more writes of the journal's file; None: it does not.
        self.writes_left: int | None = None
        #: A turn of its loop is on the schedule, beside the regular ones.
        self.tick_due = False
        self.errors: dict[str, int] = {}
        self.on_kill: Callable[[], None] = lambda: None
        self.on_message: Callable[[], None] = lambda: None
        self.port: Port | None = None
        self._founders = founders
        self._directory = directory
        self._clock, self._network, self._watch = clock, network, watch
        self._lineages = lineages
        self._object: Any = None
        self._executing = Entry(0, 0, b"", membership=False)
        self._ghost: Ghost | None = None
        self._written_back: dict[str, bytes] = {}
        self._backlog: list[tuple[str, Callable[[], None]]] = []
        self._in_step = False
        self._calling = ""
        self._dead = False

    # --- its process ----------------------------------------------------------------------------

    @property
    def replica(self) -> Any:  # noqa: ANN401  the package has no types
        """The replicated object, while it runs."""
        return self._object

    def start(self, cause: str = "") -> None:
        """Start the process; *cause*: what ended the one before."""
        settings = self.settings
        others = [SimNode(name) for name in self._founders if name != self.name]
        self.port = Port(
            self._network,
            self,
            others,
            settings.connection_retry_s,
            settings.connection_timeout_s,
        )
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=settings.append_entries_use_batch,
            dynamicMembershipChange=True,
            commandsWaitLeader=False,
            useFork=False,
            journalFile=str(self._directory / "journal") if settings.journal else None,
            fullDumpFile=str(self._directory / "dump") if settings.journal else None,
            logCompactionMinEntries=settings.log_compaction_min_entries,
            logCompactionBatchSize=SNAPSHOT_CHUNK_BYTES,
            leaderFallbackTimeout=settings.leader_fallback_timeout_s,
            connectionRetryTime=settings.connection_retry_s,
            connectionTimeout=settings.connection_timeout_s,
            onStateChanged=self._state_changed,
        )
        self._dead, self.writes_left, self._backlog, self.paused = False, None, [], False
        self._clock.enter(self._network.time.now_s, self.wall_offset_s, self)
        node, timeout_s = SimNode(self.name), settings.lock_timeout_s
        self._object = Store(self, node, others, conf, self.port, timeout_s)
        self._part("raftLog").on_vote = self._voted
        self._network.plug(self.port)
        ghost, self._ghost = self._ghost, None
        self.running = True
        self.call("first tick", self._object.doTick)  # loads the dump
        if self.running and ghost is not None and cause:
            before, _first, entries, _head = ghost
            kept = [entry for index, entry in entries.items() if index <= before.commit]
            self._watch.restarted(self, before, kept, cause)

    def _remembered(self) -> Ghost:
        entries = {each[1]: entry_of(each) for each in self._part("raftLog")[:]}
        return photo(self), self.first, entries, self._object.head

    def kill(self, ghost: Ghost | None = None) -> None:
        """The process ends, without a chance to do anything; its files stay as they are. *ghost*:
        what it was before the step in the middle of which it ends."""
        if not self.running:
            return
        journal = self._part("raftLog")
        self._ghost = ghost or self._remembered()
        self.running = False
        self.paused = False
        self._dead = True
        port, self.port = self.port, None
        if port is not None:
            self._network.unplug(port)
        with contextlib.suppress(ValueError):  # its map may be closed
            journal._destroy()  # noqa: SLF001  only gives its descriptors back
        self._object = None
        self.on_kill()

    def lose_cache(self) -> None:
        """The machine lost its power: files are what they were when last written to the disk."""
        for path in self._directory.iterdir():
            path.unlink()
        for name, content in self._written_back.items():
            (self._directory / name).write_bytes(content)

    def synced(self) -> None:
        """The system writes the files to the disk, because it was asked to or by itself."""
        if not self._dead:
            files = sorted(self._directory.iterdir()) if self._directory.is_dir() else []
            self._written_back = {path.name: path.read_bytes() for path in files}

    def before_write(self) -> None:
        """Called by the journal's file."""
        if self._dead:
            raise KilledError
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                self._dead = True
                raise KilledError

    # --- steps ----------------------------------------------------------------------------------

    def call(self, cause: str, action: Callable[[], None]) -> None:
        """Let the process do something, and check what it did. While it is paused, later."""
        if not self.running:
            return
        if self.paused:
            self._backlog.append((cause, action))
            return
        if self._in_step:  # the library calls its transport, which calls back
            action()
            return
        self._in_step, self._calling = True, cause
        network, watch = self._network, self._watch
        self._clock.enter(network.time.now_s, self.wall_offset_s, self)
        watch.now_s = network.time.now_s
        before, journal = photo(self), self._part("raftLog")
        ghost = self._remembered() if self.writes_left is not None else None
        try:
            action()
        except KilledError:
            self._dead = True
        except Exception as error:  # noqa: BLE001  as the library's own thread does, it goes on
            text = f"{type(error).__name__}: {error}"
            self.errors[text] = self.errors.get(text, 0) + 1
            if self.errors[text] == 1:
                watch.note(f"{self.name}: {cause} raises {text}")
        self._in_step = False
        if self._dead:
            watch.note(f"{self.name}: killed within {cause}")
            self.kill(ghost)
            return
        cut, journal.cut = journal.cut, []
        watch.stepped(self, before, cause)
        if cut:
            removed = [entry for entry in cut if self.entry(entry.index) != entry]
            watch.removed(self, removed, before.applied, cause)

    def resume(self) -> None:
        """After a pause: all that came meanwhile, in its order."""
        self.paused = False
        backlog, self._backlog = self._backlog, []
        for cause, action in backlog:
            self.call(cause, action)

    def tick(self) -> None:
        """One turn of the library's loop."""
        if self.port is not None and not self.paused:
            self.port.connect_where_needed()
            self.call("tick", self._object.doTick)

    def deliver(self, sender: SimNode, message: dict[str, Any]) -> None:
        """A message arrived."""
        kind, peer = message["type"], sender.id
        cause = f"{described(message)} from {peer}"
        if kind == "response_vote":
            self._watch.vote_arrived(peer, self.name, message["term"])
        if kind not in {"append_entries", "next_node_idx"} or message.get("entries"):
            self._watch.note(f"{self.name} <- {cause}")
        port = self.port
        if port is not None:
            self.call(cause, lambda: port._onMessageReceived(sender, message))  # noqa: SLF001
            self.on_message()

    # --- what the object tells ------------------------------------------------------------------

    def executes(self, content: bytes) -> None:
        index = self.applied + 1
        entry = self.entry(index)
        term = 0 if entry is None else entry.term
        self._executing = Entry(index, term, content, entry is not None and entry.membership)
        self._watch.executed(self, index, content)
        self._object.head = self._lineages.after(self._object.head, index, content)

    def asked(self, content: bytes) -> None:
        self._watch.words.setdefault(content, self._calling)

    def answered(self, asked: bytes, error: int) -> None:
        if error == SUCCESS:
            self._watch.acknowledged(self, self._executing, asked)

    def sent(self, peer: str, message: dict[str, Any]) -> None:
        self._clock.sent()
        if message["type"] == "response_vote":
            self._watch.note(f"{self.name} -> {peer}: {described(message)}")
            self._watch.vote_sent(self.name, peer, message["term"])

    def _voted(self, term: int, candidate: str) -> None:
        self._watch.voted(self.name, candidate, term)

    def _state_changed(self, _old: int, new: int) -> None:
        if new == CANDIDATE:
            self._watch.note(f"{self.name} stands for election")
        elif new == LEADER:
            self._watch.note(f"{self.name} becomes leader of term {self.term}")

    # --- the view -------------------------------------------------------------------------------

    def _part(self, name: str) -> Any:  # noqa: ANN401  the package has no types
        return self._object.__dict__["_SyncObj__" + name]

    @property
    def term(self) -> int:
        if self._object is not None:
            return int(self._part("raftCurrentTerm"))
        return 0 if self._ghost is None else self._ghost[0].term

    @property
    def leads(self) -> bool:
        return self._object is not None and self._part("raftState") == LEADER

    @property
    def commit(self) -> int:
        if self._object is not None:
            return int(self._part("raftCommitIndex"))
        return 0 if self._ghost is None else self._ghost[0].commit

    @property
    def applied(self) -> int:
        if self._object is not None:
            return int(self._part("raftLastApplied"))
        return 0 if self._ghost is None else self._ghost[0].applied

    @property
    def first(self) -> int:
        if self._object is not None:
            return int(self._part("raftLog")[0][1])
        return 0 if self._ghost is None else self._ghost[1]

    @property
    def last(self) -> int:
        if self._object is not None:
            return int(self._part("raftLog")[-1][1])
        return 0 if self._ghost is None else self._ghost[0].last

    @property
    def members(self) -> tuple[str, ...]:
        if self._object is None:
            return self._founders
        return tuple(sorted([self.name, *(node.id for node in self._part("otherNodes"))]))

    @property
    def members_count(self) -> int:
        if self._object is None:
            return len(self._founders)
        return 1 + len(self._part("otherNodes"))

    @property
    def lineage(self) -> Mapping[int, bytes]:
        ghost_head = NOTHING if self._ghost is None else self._ghost[3]
        head = ghost_head if self._object is None else self._object.head
        return self._lineages.commands(self.name, head)

    def entry(self, index: int) -> Entry | None:
        """See ``View``."""
        if self._object is None:
            return None if self._ghost is None else self._ghost[2].get(index)
        journal = self._part("raftLog")
        place = index - int(journal[0][1])
        return entry_of(journal[place]) if 0 <= place < len(journal) else None

    def submit(self, method: str, arguments: tuple[object, ...], callback: Callback) -> None:
        """Call a replicated method, as its user does from within the process."""
        told = ", ".join(map(repr, arguments[1:]))  # the first is the tag
        self.call(
            f"{method}({told})",
            lambda: getattr(self._object, method)(*arguments, callback=callback),
        )

    def request_membership(self, method: str, name: str) -> None:
        """Ask for a change of the membership, as an operator does."""
        node = SimNode(name)
        self.call(f"{method}({name})", lambda: getattr(self._object, method)(node))


def described(message: Mapping[str, Any]) -> str:
    """A message in a few words."""
    kind, words = message["type"], []
    if "term" in message:
        words.append(f"term {message['term']}")
    if kind == "append_entries":
        words.append(f"commit index {message['commit_index']}")
        if "prevLogIdx" in message:
            words.append(f"after {message['prevLogIdx']}@{message['prevLogTerm']}")
            entries = message.get("entries", [])
            words.append(f"{len(entries)} entries")
        else:
            chunk = message.get("serialized")
            words.append("no piece of a snapshot yet" if chunk is None else "piece of a snapshot")
    elif kind == "next_node_idx":
        words += [f"next {message['next_node_idx']}", f"success {message['success']}"]
    return f"{kind} ({', '.join(words)})" if words else str(kind)

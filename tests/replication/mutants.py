"""Bugs put in on purpose, each of which the quick tests must catch.

A mutant is a text of a source file and what to put in its place. A text that is no longer there is
an error too: then the mutant has to follow the code.
"""

from __future__ import annotations

from tests.mutating import Mutant

MACHINES = "quorate/replication/machines.py"
TABLES = "quorate/replication/tables.py"
SESSIONS = "quorate/replication/sessions.py"
LEASES = "quorate/replication/leases.py"
FEEDS = "quorate/replication/feeds.py"
KV = "quorate/replication/kv.py"
RUNS = "quorate/replication/runs.py"

MUTANTS = (
    Mutant(
        "a block of keys is not sorted again after a key was added",
        "quorate/replication/ordered_keys.py",
        "        block[key] = None\n        self._sorted[at] = False",
        "        block[key] = None",
        ("ordered_keys",),
    ),
    Mutant(
        "a command that raised is not undone",
        MACHINES,
        "                self._undo()\n                encode_into(self._failure(machine",
        "                encode_into(self._failure(machine",
        ("machines",),
    ),
    Mutant(
        "a refusal that a machine returns is not undone",
        MACHINES,
        "                    if journal:\n                        self._undo()",
        "                    pass",
        ("machines",),
    ),
    Mutant(
        "a failed command also takes back what expired before it",
        MACHINES,
        "        self.tables.journal.clear()\n        outcomes = []",
        "        outcomes = []",
        ("sessions",),
    ),
    Mutant(
        "a failed command also takes back the reply kept before it",
        MACHINES,
        "            self.sessions.keep(submit, outcome)\n            self.tables.journal.clear()",
        "            self.sessions.keep(submit, outcome)",
        ("sessions",),
    ),
    Mutant(
        "machines are not told of a rollback",
        MACHINES,
        "self.registry.machine(name).rolled_back()",
        "self.registry.machine(name).name",
        ("machines",),
    ),
    Mutant(
        "an exception's own words get into the log's results",
        "quorate/replication/refusals.py",
        'said = f"machine {machine}: {what} raised {type(error).__name__}"',
        'said = f"machine {machine}: {what} raised {error!r}"',
        ("machines",),
    ),
    Mutant(
        "cluster time goes back with an older leader's clock",
        MACHINES,
        "self._time_ms = max(before_ms, batch.time_ms)",
        "self._time_ms = batch.time_ms",
        ("sessions",),
    ),
    Mutant(
        "the hash leaves out the results",
        MACHINES,
        "rolling.update(outcome.results)",
        "pass",
        ("machines", "sessions"),
    ),
    Mutant(
        "the hash forgets the entries before",
        MACHINES,
        "buffer = bytearray(self._state_hash)",
        "buffer = bytearray(8)",
        ("machines",),
    ),
    Mutant(
        "the hash leaves out one table",
        TABLES,
        "            if table._changed:  # noqa: SLF001\n",
        '            if table._changed and table.name == "kv.records":\n',
        ("tables", "machines"),
    ),
    Mutant(
        "the hash depends on the order of a set",
        TABLES,
        'self._encoder = msgspec.msgpack.Encoder(order="deterministic")',
        "self._encoder = msgspec.msgpack.Encoder()",
        ("tables",),
    ),
    Mutant(
        "results depend on the order of a set",
        MACHINES,
        'self._encoder = msgspec.msgpack.Encoder(order="deterministic")',
        "self._encoder = msgspec.msgpack.Encoder()",
        ("machines",),
    ),
    Mutant(
        "a change of a record that was there is not marked dirty",
        TABLES,
        "        self._records[key] = changed[key] = stored\n",
        "        self._records[key] = stored\n"
        "        if old is None:\n            changed[key] = stored\n",
        ("tables",),
    ),
    Mutant(
        "a deletion is not marked dirty",
        TABLES,
        "        changed[key] = None\n",
        "",
        ("tables",),
    ),
    Mutant(
        "a second capture shares the dict of the first",
        TABLES,
        "        taken = self._dirty\n        self._dirty = {}",
        "        taken = self._dirty",
        ("tables",),
    ),
    Mutant(
        "a failed checkpoint overwrites what changed since",
        TABLES,
        "self._dirty = taken | self._dirty",
        "self._dirty = self._dirty | taken",
        ("tables",),
    ),
    Mutant(
        "a failed checkpoint is forgotten",
        MACHINES,
        "self.tables.restore_dirty(checkpoint.dirty)",
        "pass",
        ("machines",),
    ),
    Mutant(
        "undo leaves the key among the sorted ones",
        TABLES,
        "            del self._records[key]\n            if self._keys is not None:\n"
        "                self._keys.remove(key)",
        "            del self._records[key]",
        ("tables",),
    ),
    Mutant(
        "undo does not restore the mark of an earlier change",
        TABLES,
        "            self._changed[key] = old\n        else:\n            del",
        "            self._changed[key] = None\n        else:\n            del",
        ("tables",),
    ),
    Mutant(
        "a reply is not kept",
        SESSIONS,
        "        if key[:8] not in self._live:\n            return\n",
        "        return\n",
        ("sessions",),
    ),
    Mutant(
        "acknowledged replies are kept for ever",
        SESSIONS,
        "reply = self._replies.delete(_reply_key(session, sequence))",
        "reply = self._replies.get(_reply_key(session, sequence))",
        ("sessions",),
    ),
    Mutant(
        "what was acknowledged is done again",
        SESSIONS,
        "        if sequence <= acknowledged:\n",
        "        if sequence < 1:\n",
        ("sessions",),
    ),
    Mutant(
        "a session expires by the wall clock",
        SESSIONS,
        "self._deadlines.due(context.due_ms)",
        "self._deadlines.due(context.wall_ms)",
        ("sessions",),
    ),
    Mutant(
        "a due session may still act",
        SESSIONS,
        "if record is None or record.expires_ms <= context.due_ms:",
        "if record is None:",
        ("sessions",),
    ),
    Mutant(
        "a submission does not renew its session",
        SESSIONS,
        "SessionRecord(record.client, record.ttl_ms, expires_ms, acknowledged)",
        "SessionRecord(record.client, record.ttl_ms, record.expires_ms, acknowledged)",
        ("sessions",),
    ),
    Mutant(
        "a renewed session ends late",
        "quorate/replication/deadlines.py",
        "                self.add(deadline_ms, item)",
        "                self.add(deadline_ms + 1, item)",
        ("sessions", "leases"),
    ),
    Mutant(
        "a refused command's event is told",
        MACHINES,
        "                if result.__class__ is Failure:\n                    del effects[told:]\n",
        "                if result.__class__ is Failure:\n",
        ("feeds",),
    ),
    Mutant(
        "a new term judges leases at once",
        SESSIONS,
        "self._term.since_ms + TERM_GRACE_MS",
        "self._term.since_ms",
        ("leases",),
    ),
    Mutant(
        "a lease expires by the wall clock",
        LEASES,
        "self._deadlines.due(context.due_ms)",
        "self._deadlines.due(context.wall_ms)",
        ("leases",),
    ),
    Mutant(
        "a due lease is renewed",
        LEASES,
        "return None if record is None or record.expires_ms <= due_ms else record",
        "return record",
        ("leases",),
    ),
    Mutant(
        "a lease's id is given out again",
        LEASES,
        "self._last.put(_LAST_KEY, LastLease(lease))",
        "pass",
        ("leases",),
    ),
    Mutant(
        "a watch of a prefix misses its longer keys",
        FEEDS,
        "            if size <= len(key):\n",
        "            if size == len(key):\n",
        ("feeds",),
    ),
    Mutant(
        "an early frame says that its entry is complete",
        FEEDS,
        "told = index if last else index - 1",
        "told = index",
        ("feeds",),
    ),
    Mutant(
        "a session's replies outlive it",
        SESSIONS,
        "            self._replies.delete(_reply_key(session, sequence))\n        self._live",
        "            pass\n        self._live",
        ("sessions",),
    ),
    Mutant(
        "a put takes two revisions",
        KV,
        "        self._revision = revision\n        return PutResult(revision, previous)",
        "        self._revision = revision + 1\n        return PutResult(revision, previous)",
        ("kv",),
    ),
    Mutant(
        "the revision is not rolled back",
        KV,
        "    def rolled_back(self) -> None:\n        self._revision = self._revision_before",
        "    def rolled_back(self) -> None:\n        pass",
        ("kv", "machines"),
    ),
    Mutant(
        "the revision is not written back at the end of an entry",
        KV,
        "            self._counters.put(_REVISION_KEY, KvCounter(self._revision))\n",
        "",
        ("kv",),
    ),
    Mutant(
        "the branch that was not chosen runs",
        KV,
        "branch = command.success if succeeded else command.failure",
        "branch = command.success or command.failure",
        ("kv",),
    ),
    Mutant(
        "one condition of several is enough",
        KV,
        "succeeded = all(",
        "succeeded = not command.compare or any(",
        ("kv",),
    ),
    Mutant(
        "a deleted key keeps its version",
        KV,
        "            record = KvRecord(command.value, revision, 1, 0)",
        "            record = KvRecord(command.value, revision, 1 + (revision > 3), 0)",
        ("kv",),
    ),
    Mutant(
        "a transaction that only deletes takes no revision",
        KV,
        "        return bool(result.count)\n",
        "        return False\n",
        ("kv",),
    ),
    Mutant(
        "a range with an end includes it",
        "quorate/replication/ordered_keys.py",
        "bisect_left(keys, end) if at == last",
        "bisect_right(keys, end) if at == last",
        ("tables", "kv"),
    ),
    Mutant(
        "what a transaction shows is not counted",
        KV,
        "        self._bytes_left -= len(key) + len(record.value)\n        if",
        "        if",
        ("kv",),
    ),
    Mutant(
        "a bad command spoils its whole run",
        RUNS,
        "return command if command.__class__ is Failure else real(command, context)",
        "return Failure(BadCommandError.code, '')",
        ("runs",),
    ),
    Mutant(
        "nobody looks how deep a command is nested",
        RUNS,
        "    if not slot.bounded:\n        check_nesting(run.items)\n",
        "",
        ("runs",),
    ),
)

"""Bugs of sessions and machines: once, and the same on every replica."""

from __future__ import annotations

from jepsen_like.mutants import profiles
from jepsen_like.mutants.mutant import Mutant, one

_SESSIONS = "quorate.replication.sessions:SessionMachine"
_MACHINES = "quorate.replication.machines:Machines"

MUTANTS = (
    Mutant(
        name="retry-runs-again",
        bug="a submission that comes again runs again, though its reply is kept",
        source="Raft 8 (trap 19); ra 145",
        rewrites=one(f"{_SESSIONS}.admit", "if stored is not None:", "if False:"),
    ),
    Mutant(
        name="reply-forgotten-early",
        bug="a reply is kept only until the session's next submission, acknowledged or not",
        source="thesis 6.3 (trap 20); copycat 140",
        rewrites=one(
            f"{_SESSIONS}.keep",
            "        self._replies.put(key, ReplyRecord(outcome.index, outcome.results))\n",
            "        for earlier in self._kept[session].sequences:\n"
            "            self._replies.delete(_reply_key(session, earlier))\n"
            "        self._replies.put(key, ReplyRecord(outcome.index, outcome.results))\n",
        ),
        profile=profiles.LOST_REPLIES,
        budget=40,
    ),
    Mutant(
        name="expiry-by-local-clock",
        bug="each replica decides by its own clock whether a session has expired",
        source="etcd 15247, PySyncObj defect G (trap 12)",
        rewrites=one(
            f"{_SESSIONS}._alive",
            "record.expires_ms <= context.due_ms",
            "record.expires_ms <= context.due_ms"
            ' + __import__("asyncio").get_running_loop().time() * 1000 % 700',
        ),
        profile=profiles.LOST_REPLIES,
    ),
    Mutant(
        name="apply-reads-a-clock",
        bug="a machine's result depends on the clock of the replica that computes it",
        source="trap 23",
        rewrites=one(
            "quorate.replication.kv:KvMachine.apply",
            "        self._revision = revision\n        return PutResult(revision, previous)",
            '        now_s = __import__("asyncio").get_running_loop().time()\n'
            "        self._revision = revision + int(now_s * 50) % 2\n"
            "        return PutResult(self._revision, previous)",
        ),
    ),
    Mutant(
        name="raising-command-wedges",
        bug="a command that raises is not applied, and stops whoever applies it",
        source="PySyncObj defect B (trap 23)",
        rewrites=one(
            f"{_MACHINES}._apply_run",
            "                del buffer[size:]\n",
            "                if error.__class__ is not ReplyFullError:\n"
            "                    raise\n"
            "                del buffer[size:]\n",
        ),
    ),
    Mutant(
        name="raising-command-half-done",
        bug="what a command did before it raised stays",
        source="PySyncObj defect B (trap 23)",
        rewrites=one(
            f"{_MACHINES}._apply_run",
            "                self._undo()\n                encode_into(self._failure(machine",
            "                encode_into(self._failure(machine",
        ),
    ),
    Mutant(
        name="overwritten-proposal-answered",
        bug="who proposed an entry that was overwritten is told the result of the other one",
        source="PySyncObj defect A",
        rewrites=one(
            "quorate.replication.proposals:Proposals.at",
            "if entry.term == term:",
            "if True:",
        ),
        profile=profiles.OVERTAKEN_LEADERS,
        budget=40,
    ),
    Mutant(
        name="unsettled-called-undone",
        bug="a deposed leader says of entries in its log that they did not happen",
        source="PySyncObj defect I (trap 19)",
        rewrites=one(
            "quorate.replication.replica:Replica._change_role",
            'self._proposals.fail_queued(NotLeaderError.code, "this node stopped leading")',
            'self._proposals.fail_proposed(NotLeaderError("this node stopped leading"))',
        ),
        profile=profiles.DEAF_LEADERS,
        budget=40,
    ),
)

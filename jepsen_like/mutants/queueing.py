"""Bugs of queues of tasks, and of those who work on them."""

from __future__ import annotations

from typing import Any, Final

from jepsen_like.mutants import client
from jepsen_like.mutants.mutant import Mutant, one
from jepsen_like.mutants.profiles import Profile

_MACHINE: Final = "quorate.tasks.machine:TaskMachine"
_LIFE: Final = "quorate.tasks.life:Life"
_POST: Final = "quorate.client.task_post:Post"

_SETTINGS: Final[dict[str, Any]] = {
    "voters": 3,
    "learners": 0,
    "lease_reads": False,
    "clock_rates": (),
    "clients": 5,
    "think_ms": 20.0,
    "timeout_s": 1.0,
    "operations_max": 300,
    "seconds": 5.0,
    "workloads": {"queue": 1.0},
}

#: Workers that freeze and come back late, lose the network, or die.
WORKING: Final = Profile(
    name="working",
    settings=_SETTINGS,
    mix={"client-freeze": 3.0, "client-cut": 2.0, "client-crash": 2.0},
)
#: Leaders come and go under them.
REHANDED: Final = Profile(
    name="rehanded",
    settings={**_SETTINGS, "network_delay_ms": 5.0},
    mix={"crash-leader": 2.0, "isolate-leader": 2.0, "transfer": 2.0, "reset": 3.0},
    rate=4.0,
)
#: Connections break between a command and its answer.
UNANSWERED: Final = Profile(
    name="unanswered-enqueues",
    settings={**_SETTINGS, "timeout_s": 5.0, "think_ms": 5.0},
    mix={"crash-leader": 3.0, "pause-leader": 4.0, "isolate-leader": 2.0, "reset": 1.0},
    rate=4.0,
)

MUTANTS = (
    Mutant(
        name="late-completion-counts",
        bug="a completion is taken whoever says it, though another attempt runs by now",
        source="Kleppmann 2016: tokens must be checked",
        rewrites=one(
            "quorate.tasks.attempts:Attempts.present",
            "live is not None and live.attempt == attempt and live.worker == worker",
            "live is not None and (worker or attempt)",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="dead-workers-keep-tasks",
        bug="what a worker has stays with it when its lease ends",
        source="procrastinate 740, 1408; rabbitmq-server 15473: stalled for ever",
        rewrites=one(
            f"{_MACHINE}.on_lease_end", "for worker in workers:", "for worker in workers[:0]:"
        ),
        profile=WORKING,
    ),
    Mutant(
        name="store-dies-with-its-worker",
        bug="what a worker has in store and has not begun is dropped when it dies",
        source="Jepsen, total-queue: what was acknowledged is lost",
        rewrites=one(
            f"{_LIFE}.crash",
            'self.give_back(task, spec, live, "given-back", context)',
            "self._ledger.move(task, spec, live, None)",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="unfinished-is-done",
        bug="what a worker was at when it died counts as done",
        source="Celery without acks_late: acknowledged before it has run",
        rewrites=one(
            f"{_LIFE}.crash",
            "        if live.stopping:\n",
            "        if live.state != ASSIGNED:\n"
            "            self.end(task, spec, live, DONE, context)\n"
            "            return\n"
            "        if live.stopping:\n",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="unique-for-ever",
        bug="a unique key is not let go of when its task ends",
        source="our own: a key that outlives its task",
        rewrites=one(
            "quorate.tasks.unique:UniqueKeys.free",
            "if record is not None and record.task == task:",
            "if record is not None and record.task == task and started:",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="enqueued-again",
        bug="an enqueueing without an answer is sent again under a new sequence number",
        source="etcd 14890, jetcd (trap 19)",
        rewrites=next(each for each in client.MUTANTS if each.name == "retry-as-new").rewrites,
        profile=UNANSWERED,
    ),
    Mutant(
        name="one-over-the-limit",
        bug="a queue that has as many tasks running as it may hands out one more",
        source="our own: a limit compared with the wrong side",
        rewrites=one(
            "quorate.tasks.queues:Queue.open_at",
            "self.running >= rules.running_max",
            "self.running > rules.running_max",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="store-overtaken",
        bug="a new task begins before what its worker has in store, beyond what it runs at once",
        source="our own: with a store, tasks of one key began out of order",
        rewrites=one(
            "quorate.tasks.dispatching:Dispatcher._give",
            "not worker.stored and worker.running < worker.record.load",
            "worker.running < worker.record.load",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="priority-forgotten",
        bug="who came first is handed out first, however urgent others are",
        source="our own: urgent tasks wait like all others",
        rewrites=one("quorate.tasks.dispatching:Dispatcher._push_head", "(-priority,", "(0,"),
        profile=WORKING,
    ),
    Mutant(
        name="poison-never-dies",
        bug="a task may take as many workers with it as it likes",
        source="RabbitMQ: poison messages, the delivery limit of quorum queues",
        rewrites=one(
            f"{_LIFE}.crash",
            "if crashes > options_of(spec).crashes:",
            "if crashes > options_of(spec).crashes + 1000:",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="one-retry-more",
        bug="a task is tried once more than it may be",
        source="our own: the first attempt is no retry",
        rewrites=one(
            "quorate.tasks.retrying:may_retry",
            "errors <= retry.retries and",
            "errors <= retry.retries + 1 and",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="no-pause-after-failures",
        bug="what failed is tried again after half of the pause",
        source="our own: half of it, as where jitter goes the wrong way",
        rewrites=one(
            "quorate.tasks.retrying:delay_ms", "return int(delay)", "return int(delay / 2)"
        ),
        profile=WORKING,
    ),
    Mutant(
        name="ended-attempt-runs-again",
        bug="a worker that is told again what it has begins what it has just ended",
        source="our own: the answer is on its way when the watch begins anew",
        rewrites=one(f"{_POST}._take", "if key in self.answers.unsettled:", "if not key:"),
        profile=REHANDED,
    ),
    Mutant(
        name="goes-without-a-word",
        bug="a worker that drains gives back what comes, and does not say that it wants no more",
        source="our own: what went back came again, a thousand times a second",
        rewrites=one(
            f"{_POST}.take_no_more",
            'self._attend(Attend(self.worker, "draining"))',
            "asyncio.sleep(0)",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="queue-counts-drift",
        bug="a task that leaves a queue is not taken off the count of its state",
        source="RabbitMQ, rabbit_fifo_prop_SUITE: messages_total is conserved",
        rewrites=one(
            "quorate.tasks.ledger:Ledger._derive",
            "queue.counts[state] -= 1",
            "queue.counts[state] -= state != 5",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="requeued-with-old-errors",
        bug="a task that is taken out of the dead-letter queue has used up its tries already",
        source="our own: a requeued task died of its first failure",
        rewrites=one(
            f"{_LIFE}.revive",
            "dead.attempt, begun=True",
            "dead.attempt, 0, dead.errors, begun=True",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="requeued-from-the-first",
        bug="attempts at a task that is requeued are numbered from 1 again, and fence nothing",
        source="Kleppmann 2016: tokens only grow",
        rewrites=one(f"{_LIFE}.revive", "0, dead.attempt, begun=True", "0, 0, begun=True"),
        profile=WORKING,
    ),
    Mutant(
        name="moved-under-the-same-number",
        bug="a task that is given to another worker stays the attempt that it was",
        source="Kleppmann 2016: tokens must be checked, so each holder needs its own",
        rewrites=one(
            f"{_LIFE}.assign",
            "attempt = live.attempt + 1",
            'attempt = live.attempt + (reason != "moved")',
        ),
        profile=WORKING,
    ),
    Mutant(
        name="moved-to-itself",
        bug="a task that any other worker is to have may stay with the one that has it",
        source="our own: the one that has it has just got room",
        rewrites=one(
            "quorate.tasks.dispatching:Dispatcher._taker", "each.id != live.worker", "each.id"
        ),
        profile=WORKING,
    ),
    Mutant(
        name="beside-is-anywhere",
        bug="a task that is to run beside another one waits for that, and then runs anywhere",
        source="our own: where it is to run is not among what it asks for",
        rewrites=one("quorate.tasks.records:needs_of", "worker=live.pin)", 'worker="")'),
        profile=WORKING,
    ),
    Mutant(
        name="beside-nobody-for-ever",
        bug="a task that is to run beside one that ends without a worker is never let go",
        source="our own: who waits for what will not come",
        rewrites=one(
            f"{_LIFE}._leave",
            '            self.unblock_beside(task, "", context)',
            "            ledger.changed = True",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="late-writes-stay",
        bug="a completion that comes too late is refused, and the keys that go with it are written",
        source="our own: of a transaction of two machines one part is done",
        rewrites=one(
            "quorate.replication.together:TogetherMachine.apply",
            "_UNDONE.get(result.__class__)",
            "_UNDONE.get(result.__class__) if at == 0 else None",
        ),
        profile=WORKING,
    ),
    Mutant(
        name="enqueued-without-its-key",
        bug="tasks are enqueued although the keys that go with them are not as they must be",
        source="our own: of a transaction of two machines one part is done",
        rewrites=one(
            "quorate.replication.together:TogetherMachine.apply", "if why:", "if why and at:"
        ),
        profile=WORKING,
    ),
)

"""Bugs put in on purpose, each of which the quick tests of this room must catch."""

from __future__ import annotations

from tests.mutating import Mutant

ARRIVALS = "quorate/tasks/arrivals.py"
CREW = "quorate/tasks/crew.py"
DISPATCHING = "quorate/tasks/dispatching.py"
LEDGER = "quorate/tasks/ledger.py"
LIFE = "quorate/tasks/life.py"
LINES = "quorate/tasks/lines.py"
ATTEMPTS = "quorate/tasks/attempts.py"
MACHINE = "quorate/tasks/machine.py"
QUEUES = "quorate/tasks/queues.py"
REGISTRY = "quorate/tasks/registry.py"
RETRYING = "quorate/tasks/retrying.py"
STEPS = "quorate/tasks/steps.py"
WORKFLOWS = "quorate/tasks/workflows.py"
SWEEPS = "quorate/tasks/workflow_sweeps.py"
SCHEDULES = "quorate/tasks/schedules.py"
TICKING = "quorate/server/ticking.py"
GROUPS = "quorate/tasks/groups.py"

MUTANTS = (
    Mutant(
        "who is ready begins though its workflow is stopped",
        DISPATCHING,
        """            if self._sweeper.is_stopped(task):
                if self._stop(task, context):
                    self._push_head(heads, number, queue, line)
                continue
            self._give""",
        """            self._give""",
        ("stopping",),
    ),
    Mutant(
        "a node that looks anew stops what no worker would get",
        DISPATCHING,
        """            spec, live = self._records(task)
            pool = pools""",
        """            if self._sweeper.is_stopped(task):
                self._stop(task, context)
                continue
            spec, live = self._records(task)
            pool = pools""",
        ("stopping",),
    ),
    Mutant(
        "what was stopped in an entry that broke off counts in the next",
        DISPATCHING,
        "        if self._stops_index != context.index:\n",
        "        if not self._stops_index:\n",
        ("stopping",),
    ),
    Mutant(
        "what was held back is forgotten until something else changes",
        DISPATCHING,
        "        ledger.changed = self._withheld\n",
        "",
        ("stopping",),
    ),
    Mutant(
        "what is in store begins though its workflow is stopped",
        ATTEMPTS,
        "            if self._sweeper.is_stopped(each.task):\n",
        "            if False:\n",
        ("stopping",),
    ),
    Mutant(
        "who comes goes before those that wait",
        ARRIVALS,
        "if ledger.ready or not crew.free",
        "if not crew.free",
        ("arrivals",),
    ),
    Mutant(
        "who comes begins with a worker that has others in store",
        ARRIVALS,
        "worker.stored or ",
        "",
        ("arrivals",),
    ),
    Mutant(
        "who comes begins though its queue is paused",
        ARRIVALS,
        "queue.rules is not NO_RULES or ",
        "",
        ("arrivals",),
    ),
    Mutant(
        "who comes with another priority begins like the first",
        ARRIVALS,
        " or task.priority != priority",
        "",
        ("arrivals",),
    ),
    Mutant(
        "what is derived stays when a command is taken back",
        LEDGER,
        "            self._derive(task, spec, new, old)\n",
        "            pass\n",
        ("random_logs", "model"),
    ),
    Mutant(
        "the number of an undone task is not given out again",
        LEDGER,
        "        self.last_task = self._last_task_before\n",
        "",
        ("random_logs", "model"),
    ),
    Mutant(
        "a number in a line is taken for a task of it, whatever it is now",
        LEDGER,
        "spec.key != key or spec.priority != line.priority or spec.queue != line.queue",
        "not task",
        ("handing_out",),
    ),
    Mutant(
        "what was due when a hook broke off is forgotten",
        LEDGER,
        "            deadlines.put_back(item)\n",
        "            pass\n",
        ("handing_out", "random_logs"),
    ),
    Mutant(
        "what a command counted is counted again by the next",
        LEDGER,
        "        self._taken.clear()\n        self._totals.clear()\n",
        "        self._taken.clear()\n",
        ("model",),
    ),
    Mutant(
        "what was due, and is put off, is not due again",
        LEDGER,
        "stands and task not in self._overdue",
        "stands",
        ("machine",),
    ),
    Mutant(
        "nobody looks for work when a task has moved",
        LEDGER,
        "        self.changed = True\n        if before is None:\n",
        "        if before is None:\n",
        ("model", "machine"),
    ),
    Mutant(
        "a key that was at its limit never comes back",
        LEDGER,
        "                if queue.rules.key_running_max:\n",
        "                if not queue:\n",
        ("model", "machine"),
    ),
    Mutant(
        "a key comes back under its old turn",
        LINES,
        "            self._ready[key] = Ready(task)\n            self.admit(key)\n",
        "            self._ready[key] = Ready(task)\n"
        "            if key not in self._ringed:\n"
        "                self.admit(key)\n",
        ("handing_out",),
    ),
    Mutant(
        "a limit of a key is one for each line",
        QUEUES,
        "        return bool(self.named or self.rules.key_running_max or self.rules.key_rate)\n",
        "        return False\n",
        ("handing_out", "model"),
    ),
    Mutant(
        "one more than the limit of a queue",
        QUEUES,
        "self.running >= rules.running_max",
        "self.running > rules.running_max",
        ("handing_out", "model"),
    ),
    Mutant(
        "one more than the rate",
        QUEUES,
        "(rate - 1) * self._step_us(rate)",
        "rate * self._step_us(rate)",
        ("model", "machine"),
    ),
    Mutant(
        "a key that was over its rate sleeps for ever",
        QUEUES,
        "            self.admit(heapq.heappop(sleeping)[1])\n",
        "            heapq.heappop(sleeping)\n",
        ("model", "machine"),
    ),
    Mutant(
        "once nothing was to do, time changes nothing",
        DISPATCHING,
        "        self._wake_ms = wake_ms\n",
        "        self._wake_ms = NEVER_MS\n",
        ("model", "machine"),
    ),
    Mutant(
        "who steals first is left to the order of a dict",
        DISPATCHING,
        "sorted(crew.free.values(), key=lambda each: (each.fullness, each.id))",
        "list(crew.free.values())",
        ("random_logs", "model"),
    ),
    Mutant(
        "what is paused is stolen all the same",
        DISPATCHING,
        "                if ledger.queue(spec.queue).rules.paused:\n                    continue\n",
        "",
        ("handing_out", "model"),
    ),
    Mutant(
        "round-robin begins anew each time",
        DISPATCHING,
        "                ledger.chose(worker.id)\n",
        "                pass\n",
        ("model", "machine"),
    ),
    Mutant(
        "the most loaded worker gets it",
        CREW,
        "            return worker.fullness, worker.id\n",
        "            return -worker.fullness, worker.id\n",
        ("model", "machine"),
    ),
    Mutant(
        "a worker in trouble gets more",
        CREW,
        'self.capacity if record.state == "active" else 0',
        'self.capacity if record.state != "draining" else 0',
        ("model", "machine"),
    ),
    Mutant(
        "whoever had a task once may say how it ended",
        ATTEMPTS,
        "live.attempt == attempt and live.worker == worker",
        "attempt",
        ("model", "machine"),
    ),
    Mutant(
        "a fence holds for every attempt",
        MACHINE,
        "live.state == RUNNING and live.attempt == fence.token",
        "live.state == RUNNING",
        ("machine", "handing_out"),
    ),
    Mutant(
        "a task stays with a worker that has died",
        REGISTRY,
        "                self._life.crash(task, spec, live, context)\n",
        "                pass\n",
        ("model", "machine"),
    ),
    Mutant(
        "one retry less",
        RETRYING,
        "errors <= retry.retries",
        "errors < retry.retries",
        ("model", "machine"),
    ),
    Mutant(
        "the wait before an attempt is that before the next",
        RETRYING,
        "range(errors - 1)",
        "range(errors)",
        ("model", "machine"),
    ),
    Mutant(
        "a delayed task is handed out a little early",
        STEPS,
        "    elif after_ms > now_ms:\n",
        "    elif after_ms > now_ms + 300:\n",
        ("model", "machine"),
    ),
    Mutant(
        "a time of day is taken for one of the cluster's clock",
        STEPS,
        "spec.at_ms - context.wall_ms",
        "spec.at_ms - context.time_ms",
        ("model", "machine"),
    ),
    Mutant(
        "a task that died keeps its unique key",
        LIFE,
        "            self.unique.free(spec, task, started=False)\n",
        "            pass\n",
        ("model", "machine"),
    ),
    Mutant(
        "a key that had its turn stays first",
        LIFE,
        "        ledger.give_turn(queue, spec.key, context)\n        if reason",
        "        if reason",
        ("model", "machine"),
    ),
    Mutant(
        "what is stolen counts twice against the rate",
        LIFE,
        "        if reason not in UNCOUNTED:",
        "        if reason:",
        ("model", "handing_out"),
    ),
    Mutant(
        "who had a task that is given to another does not hear of it",
        DISPATCHING,
        '            tell_stop(context, live.worker, task, live.attempt, "moved")\n'
        "            self._life.give_back",
        "            self._life.give_back",
        ("assigning",),
    ),
    Mutant(
        "what was given to a worker by name is stolen from it",
        DISPATCHING,
        "live.reason in _FIRM or not",
        "not",
        ("assigning",),
    ),
    Mutant(
        "whoever asks gets a task, whatever the limits are",
        DISPATCHING,
        'trouble = "" if live.worker else self._barred(spec, context.time_ms)',
        'trouble = ""',
        ("assigning",),
    ),
    Mutant(
        "what is moved counts against the rate once more",
        STEPS,
        "(REASON_STOLEN, REASON_MOVED)",
        "(REASON_STOLEN,)",
        ("assigning",),
    ),
    Mutant(
        "who waits to run beside another one runs anywhere",
        LIFE,
        "            self.unblock_beside(task, worker.record.name, context)\n",
        '            self.unblock_beside(task, "", context)\n',
        ("handing_out", "model"),
    ),
    Mutant(
        "a node begins when the first of those before it has ended",
        WORKFLOWS,
        "        if live.waits == 1:\n",
        "        if live.waits:\n",
        ("workflow_model",),
    ),
    Mutant(
        "what comes after an end of any kind comes after a good one alone",
        WORKFLOWS,
        "            if kind.number == BLOCKING and state != DONE:\n",
        "            if state != DONE:\n",
        ("workflow_model",),
    ),
    Mutant(
        "the first one done is undone first",
        WORKFLOWS,
        "range_prefix(id_key(workflow), reverse=True, limit=1)",
        "range_prefix(id_key(workflow), limit=1)",
        ("workflow_model", "workflows"),
    ),
    Mutant(
        "one more node at once than its workflow says",
        WORKFLOWS,
        "record.active >= record.running_max:\n                tables.gated",
        "record.active > record.running_max:\n                tables.gated",
        ("workflow_model",),
    ),
    Mutant(
        "a node that ends while it waits takes the room of another",
        WORKFLOWS,
        "        if kin.kind == RUN and not blocked:\n",
        "        if kin.kind == RUN:\n",
        ("workflow_model",),
    ),
    Mutant(
        "what undoes a workflow is stopped with it",
        WORKFLOWS,
        "        tables.sweeps.delete(key)  # nothing is left to stop; what follows must not be\n",
        "",
        ("workflow_model", "workflows"),
    ),
    Mutant(
        "who is named twice waits for twice as many",
        WORKFLOWS,
        "        names = dict.fromkeys(command.before)",
        "        names = command.before",
        ("workflow_model", "workflows"),
    ),
    Mutant(
        "nodes may be added that wait for those who wait for them",
        WORKFLOWS,
        "        return self._cycle_in_spawning(command, nodes, workflow)\n",
        '        return ""\n',
        ("workflow_model", "workflows"),
    ),
    Mutant(
        "a workflow that is cancelled is undone, whatever was said",
        WORKFLOWS,
        "undo=command.undo, ",
        "undo=True, ",
        ("workflow_model", "workflows"),
    ),
    Mutant(
        "what runs goes on when its workflow is stopped",
        SWEEPS,
        "                self._life.stop(task, spec, live, STOP_GRACE_MS, context)\n",
        "                pass\n",
        ("workflow_model", "workflows"),
    ),
    Mutant(
        "compensations that nobody asked for stay for ever",
        SWEEPS,
        "            tables.undo.delete(undo[0])\n",
        "            pass\n",
        ("workflow_model", "workflows"),
    ),
    Mutant(
        "a tick counts as often as it is proposed",
        SCHEDULES,
        "(record.revision, record.next_ms) != (command.revision, command.at_ms)",
        "record.revision != command.revision",
        ("schedule_model", "schedules"),
    ),
    Mutant(
        "a tick of other rules counts",
        SCHEDULES,
        "(record.revision, record.next_ms) != (command.revision, command.at_ms)",
        "record.next_ms != command.at_ms",
        ("schedule_model", "schedules"),
    ),
    Mutant(
        "who comes late is late for ever",
        SCHEDULES,
        "            next_ms = last_ms + record.every_ms\n",
        "            next_ms = now_ms + record.every_ms\n",
        ("schedule_model",),
    ),
    Mutant(
        "other rules know nothing of the task of before",
        SCHEDULES,
        "                last_task=before.last_task,\n",
        "",
        ("schedule_model",),
    ),
    Mutant(
        "a task out of turn counts as a tick",
        SCHEDULES,
        "            after = msgspec.structs.replace(record, last_task=task)\n",
        "            after = msgspec.structs.replace(\n"
        "                record, last_task=task, fired=record.fired + 1\n"
        "            )\n",
        ("schedule_model", "schedules"),
    ),
    Mutant(
        "what was missed is made up for, though it was not to be",
        TICKING,
        'run=not late or record.misfire == "once"',
        "run=True",
        ("schedule_model", "ticking"),
    ),
    Mutant(
        "the highest leads",
        GROUPS,
        'range_prefix(scoped(group, b""), limit=1)',
        'range_prefix(scoped(group, b""), reverse=True, limit=1)',
        ("group_model", "groups"),
    ),
    Mutant(
        "an epoch begins with everybody who comes",
        GROUPS,
        "        if leader != record.leader:\n",
        "        if leader != record.leader or leader is not None:\n",
        ("group_model", "groups"),
    ),
    Mutant(
        "of a lease that ends one member leaves",
        GROUPS,
        "        for bound, member in rows:\n",
        "        for bound, member in rows[:1]:\n",
        ("group_model",),
    ),
    Mutant(
        "nobody leads, and the fence holds",
        GROUPS,
        "record is not None and record.leader is not None and record.epoch == token",
        "record is not None and record.epoch == token",
        ("group_model", "groups"),
    ),
)

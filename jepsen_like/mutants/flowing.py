"""Bugs of workflows and schedules."""

from __future__ import annotations

from typing import Any, Final

from jepsen_like.mutants.mutant import Mutant, one
from jepsen_like.mutants.patching import Rewrite
from jepsen_like.mutants.profiles import Profile

_FLOWS: Final = "quorate.tasks.workflows:Workflows"
_TICKS: Final = "quorate.tasks.schedules:Schedules"

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
    "workloads": {"workflow": 1.0},
}

#: Workers that freeze and come back late, lose the network, or die.
FLOWING: Final = Profile(
    name="flowing",
    settings=_SETTINGS,
    mix={"client-freeze": 3.0, "client-cut": 2.0, "client-crash": 2.0},
)
#: Leaders come and go under them, and so do ticks.
TICKING: Final = Profile(
    name="ticking",
    settings={**_SETTINGS, "network_delay_ms": 5.0, "seconds": 8.0, "think_ms": 80.0},
    mix={"crash-leader": 2.0, "isolate-leader": 1.0, "pause-leader": 1.0, "wall-jump": 1.0},
    rate=1.5,
)

MUTANTS = (
    Mutant(
        name="any-parent-lets-go",
        bug="a node begins when the first of those is done that it waits for",
        source="Airflow: trigger rules, one_success where all_success was meant",
        rewrites=one(f"{_FLOWS}._lessen", "if live.waits == 1:", "if live.waits >= 1:"),
        profile=FLOWING,
    ),
    Mutant(
        name="failed-parents-let-go",
        bug="a node begins although one that blocks it was not done",
        source="Airflow: trigger rules, all_done where all_success was meant",
        rewrites=one(
            f"{_FLOWS}._tell_children",
            "kind.number == BLOCKING and state != DONE",
            "kind.number == BLOCKING and state < DONE",
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="fail-fast-goes-on",
        bug="a workflow that is to stop at the first failure goes on with the rest",
        source="our own: one failure is not the end",
        rewrites=one(
            f"{_FLOWS}._note_failure",
            "if record.fail_fast and record.left:",
            "if record.fail_fast and record.left < 0:",
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="parts-not-waited-for",
        bug="a join does not wait for what was added before it",
        source="our own: a join that is counted when it is submitted",
        rewrites=one(f"{_FLOWS}._link_before", "waits=live.waits + len(nodes)", "waits=live.waits"),
        profile=FLOWING,
    ),
    Mutant(
        name="input-left-out",
        bug="a node is not given what the last of those before it came to",
        source="our own: inputs are counted from 1",
        rewrites=one(
            f"{_FLOWS}.inputs",
            "for parent in kin.parents:",
            "for parent in kin.parents[: max(len(kin.parents) - 1, 1)]:",
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="one-more-at-once",
        bug="a workflow has one more of its tasks with workers than it may",
        source="our own: a limit compared with the wrong side",
        rewrites=one(
            f"{_FLOWS}._release",
            "record.active >= record.running_max",
            "record.active > record.running_max",
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="nobody-sleeps",
        bug="a durable sleep is over as soon as it begins",
        source="our own: a time to pass is no time",
        rewrites=one(
            f"{_FLOWS}._release", "if kin.kind == SIGNAL:", "if kin.kind in (SIGNAL, SLEEP):"
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="second-signal-counts",
        bug="a signal takes the place of one that came before",
        source="Temporal: signals are delivered once, in order",
        rewrites=one(
            f"{_FLOWS}.signal",
            "if key in tables.signals or id_key(node.number) not in tables.live:",
            "if id_key(node.number) not in tables.live:",
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="undone-in-order",
        bug="what was done first is undone first",
        source="Garcia-Molina and Salem 1987: sagas are undone in reverse",
        rewrites=one(f"{_FLOWS}._undo_next", "reverse=True", "reverse=False"),
        profile=FLOWING,
    ),
    Mutant(
        name="undoes-what-was-not-done",
        bug="a node that failed is undone, too",
        source="Garcia-Molina and Salem 1987: only what was committed is compensated",
        rewrites=one(
            f"{_FLOWS}._settle",
            "if undo is not None and state == DONE:",
            "if undo is not None:",
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="cancelled-is-not-undone",
        bug="who cancels a workflow and asks to have it undone gets the first of the two only",
        source="our own: a flag that is dropped on the way",
        rewrites=one(f"{_FLOWS}.cancel", "undo=command.undo", "undo=False"),
        profile=FLOWING,
    ),
    Mutant(
        name="never-forgotten",
        bug="the nodes of a workflow that is not kept any more go, and the workflow stays",
        source="our own: what is swept is not what is listed",
        rewrites=one(
            "quorate.tasks.workflow_sweeps:Sweeper._go_on",
            "if sweep.what == FORGET_NODES:",
            "if not sweep.what:",
        ),
        profile=FLOWING,
    ),
    Mutant(
        name="every-missed-tick-comes",
        bug="ticks that were missed are all made up for, whatever the schedule says",
        source="APScheduler: coalescing; Quartz: misfire instructions",
        rewrites=one(
            f"{_TICKS}.expire", 'if record.misfire == "all" else 1', "if record.misfire else 1"
        ),
        profile=TICKING,
    ),
    Mutant(
        name="skipped-ticks-fire",
        bug="a tick that came too late fires although the schedule passes over such",
        source="Quartz: misfire instruction do nothing",
        rewrites=one(
            f"{_TICKS}.expire",
            'record.misfire != "skip" or not missed',
            'record.misfire != "never" or not missed',
        ),
        profile=TICKING,
    ),
    Mutant(
        name="ticks-drift",
        bug="the next tick is counted from when the last one fired, not from when it was due",
        source="our own: intervals that drift",
        rewrites=one(
            f"{_TICKS}.expire",
            "next_ms = last_ms + record.every_ms",
            "next_ms = now_ms + record.every_ms",
        ),
        profile=TICKING,
    ),
    Mutant(
        name="any-proposed-tick-fires",
        bug="a tick by wall clock fires for each node that proposes it, and each time it does",
        source="Celery beat: two schedulers send everything twice",
        rewrites=one(
            f"{_TICKS}.fire",
            "(record.revision, record.next_ms) != (command.revision, command.at_ms)",
            "record.revision != command.revision",
        ),
        profile=TICKING,
        budget=40,
    ),
    Mutant(
        name="ticks-overlap",
        bug="a tick enqueues its task while that of the one before runs",
        source="Kubernetes: CronJob, concurrencyPolicy Forbid",
        rewrites=one(f"{_TICKS}.put", "command.overlap,", "command.overlap or not before,"),
        profile=TICKING,
    ),
    Mutant(
        name="paused-and-ticks",
        bug="a schedule that is paused goes on ticking",
        source="our own: a pause that only new schedules look at",
        rewrites=(
            Rewrite(
                f"{_TICKS}._tick_at", "record.every_ms and not record.paused", "record.every_ms"
            ),
            Rewrite(f"{_TICKS}.put", "elif not record.paused:", "else:"),
        ),
        profile=TICKING,
    ),
    Mutant(
        name="paused-for-good",
        bug="a schedule that is resumed does not tick any more",
        source="our own: a pause that nothing ends",
        rewrites=one(f"{_TICKS}.pause", "            command.paused,\n", "            True,\n"),
        profile=TICKING,
    ),
    Mutant(
        name="triggered-twice",
        bug="a schedule that is triggered by hand enqueues its task twice",
        source="our own: a trigger fires by itself, and as a tick",
        rewrites=one(
            f"{_TICKS}.trigger",
            "task = self._run(record, context)",
            "task = self._run(record, context) and self._run(record, context)",
        ),
        profile=TICKING,
    ),
    Mutant(
        name="trigger-is-a-tick",
        bug="a schedule that is triggered by hand counts that as a tick",
        source="our own: a count of ticks that is one of tasks",
        rewrites=one(
            f"{_TICKS}.trigger",
            "last_task=task)",
            "last_task=task, fired=record.fired + 1)",
        ),
        profile=TICKING,
    ),
    Mutant(
        name="first-part-is-all",
        bug="of a workflow that is stopped, what one entry deals with is all that is stopped",
        source="our own: a part at a time, and only the first",
        rewrites=one(
            "quorate.tasks.workflow_sweeps:Sweeper._go_on",
            "if not whole:",
            "if not whole and sweep.what == FORGET_NODES:",
        ),
        profile=FLOWING,
    ),
)

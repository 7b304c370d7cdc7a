"""What workers of the workflow workload run, and what is written down of it."""

from __future__ import annotations

from typing import Any

from jepsen_like.workloads.queue_work import FailedError, Tell, live
from jepsen_like.workloads.workflow_plans import FUNCTION, Plan, add_nodes
from quorate.base.task_commands import Input
from quorate.base.task_specs import STATE_NAMES
from quorate.client.task_app import App
from quorate.client.task_context import TaskContext
from quorate.client.task_payloads import unpack_result
from quorate.client.workflows import Workflow
from quorate.errors import QuorateError, TaskGiveUpError


def app(tell: Tell, *, hasty: bool = False) -> App:
    """Of one worker. *tell*: takes what code does, as it happens: ["begin", task, attempt, worker,
    value, inputs], or ["end", task, attempt, worker, how]. *hasty*: a bug on purpose, for runs that
    must be found invalid: a task is said to be done, and its code never runs."""
    made = App("workflow")

    @made.task(name=FUNCTION)
    async def work(value: str, course: list[list[Any]], spawn: Plan | None) -> list[Any]:
        context = made.context()
        if hasty:
            return [value, context.attempt]
        who = [context.id, context.attempt, context.worker_id]
        tell(["begin", *who, value, [_input(each) for each in context.assignment.inputs]])
        how = "stopped"
        try:
            if spawn is not None:
                await _spawn(context, value, spawn)
            fate, seconds = course[min(context.attempt, len(course)) - 1]
            await live(fate, seconds)
            how = "ok"
        except (FailedError, TaskGiveUpError):
            how = "failed"
            raise
        except QuorateError:
            how = "refused"
            raise
        finally:
            tell(["end", *who, how])
        return [value, context.attempt]

    return made


def _input(each: Input) -> list[Any]:
    result = unpack_result(each.result) if each.result else None
    return [each.node, STATE_NAMES[each.state], result]


async def _spawn(context: TaskContext, value: str, spawn: Plan) -> None:
    parts = Workflow("parts")
    add_nodes(parts, int(value.partition("/")[0]), spawn["parts"])
    await context.spawn(parts, before=spawn["before"])

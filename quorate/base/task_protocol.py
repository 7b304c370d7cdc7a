"""All that the task machine understands and answers: unions over the modules beside this one."""

from __future__ import annotations

from quorate.base.group_commands import GroupCommand, GroupInfo, GroupQuery, WatchGroup
from quorate.base.schedule_commands import (
    Fired,
    ListSchedules,
    ScheduleCommand,
    ScheduleList,
    ScheduleRemoved,
    ScheduleSet,
)
from quorate.base.task_commands import TaskCommand, TaskResult
from quorate.base.task_queries import (
    Assigned,
    Stop,
    TaskAnswer,
    TaskEvent,
    TaskQueries,
    TaskWatch,
    WorkerEvent,
)
from quorate.base.workflow_commands import (
    NodeList,
    Signalled,
    Submitted,
    WatchWorkflow,
    WorkflowCommand,
    WorkflowEvent,
    WorkflowInfo,
    WorkflowList,
    WorkflowQueries,
)

Commands = TaskCommand | WorkflowCommand | ScheduleCommand | GroupCommand
Results = TaskResult | Submitted | Signalled | ScheduleSet | ScheduleRemoved | Fired | GroupInfo
Queries = TaskQueries | WorkflowQueries | ListSchedules | GroupQuery
Answers = TaskAnswer | WorkflowInfo | WorkflowList | NodeList | ScheduleList | GroupInfo
Watches = TaskWatch | WatchWorkflow | WatchGroup
Events = Assigned | Stop | TaskEvent | WorkerEvent | WorkflowEvent | GroupInfo

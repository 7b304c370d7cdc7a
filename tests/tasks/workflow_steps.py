"""What the model of workflows keeps of a workflow and of each of its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from quorate.base.task_specs import (
    BLOCKED,
    CANCELLED,
    DEAD,
    DONE,
    NO_OPTIONS,
    READY,
    RUNNING,
    SCHEDULED,
    Options,
    Task,
)
from quorate.base.workflow_commands import RUN, WF_RUNNING, Submit, WorkflowInfo

LIVE = (BLOCKED, SCHEDULED, READY, RUNNING)


@dataclass
class Step:
    """A node, and its task."""

    id: int
    name: str
    spec: Task
    kind: int = RUN
    undo: Task | None = None
    beside: int = 0
    parents: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    waits: dict[int, int] = field(default_factory=dict)  # parents that have not ended, and how
    gated: bool = False  # it waits for room in its workflow alone
    payload: bytes | None = None  # of its signal, once that has come
    undoes: int = 0
    enqueued: int = 0
    since: int = 0
    state: int = BLOCKED
    due: int = 0
    after: int = 0
    attempt: int = 0
    worker: int = 0
    errors: int = 0
    crashes: int = 0
    begun: bool = False
    stopping: bool = False
    pin: str = ""
    result: bytes = b""
    why: str = ""
    settled: bool = False

    @property
    def options(self) -> Options:
        return self.spec.options or NO_OPTIONS

    @property
    def expires(self) -> int:
        late = self.options.expires_ms
        return self.enqueued + late if late and not self.begun else 0

    @property
    def active(self) -> bool:
        """It takes up room in its workflow."""
        return self.kind == RUN and not self.undoes and self.state in (SCHEDULED, READY, RUNNING)


@dataclass
class Flow:
    """A workflow."""

    id: int
    spec: Submit
    started: int
    nodes: dict[str, Step] = field(default_factory=dict)
    state: int = WF_RUNNING
    cause: str = ""
    undo: bool = False
    flawed: bool = False
    to_undo: list[Step] = field(default_factory=list)  # the last one done is the last
    ended: int = 0
    sweep: tuple[str, str] | None = None  # "stop" or "forget", and behind which name
    total: int = 0
    gone: dict[int, int] = field(default_factory=dict)  # how many were forgotten, by their state

    @property
    def own(self) -> list[Step]:
        """Without compensations."""
        return [each for each in self.nodes.values() if not each.undoes]

    @property
    def left(self) -> int:
        return sum(not each.settled for each in self.own)

    @property
    def active(self) -> int:
        return sum(each.active for each in self.own)

    def count(self, state: int) -> int:
        return sum(each.state == state for each in self.own) + self.gone.get(state, 0)

    def info(self) -> WorkflowInfo:
        spec = self.spec
        return WorkflowInfo(
            self.id, spec.name, self.state, spec.fail_fast, spec.running_max, self.total,
            self.active, self.count(DONE), self.count(DEAD), self.count(CANCELLED), self.cause,
            self.started, self.ended,
        )  # fmt: skip

"""Commands of several machines as one: all of them or none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from quorate.base.kv_commands import (
    Compare,
    CompareAndSet,
    Get,
    GetResult,
    Put,
    PutResult,
    Txn,
)
from quorate.base.results import Failure
from quorate.base.task_commands import Complete, Configure, Done, Enqueue, Enqueued
from quorate.base.task_specs import DONE, READY, RUNNING, Task
from quorate.base.together_commands import DoneTogether, Part, Together, TogetherResult
from quorate.errors import InvalidArgumentError, QueueFullError
from tests.replication.support import run_of, submit
from tests.tasks.support import TaskNode

_decode = msgspec.msgpack.Decoder(list[list[TogetherResult]]).decode


@pytest.fixture
def node() -> TaskNode:
    return TaskNode()


def together(node: TaskNode, **commands: Any) -> Any:
    parts = tuple(
        Part(name, msgspec.Raw(msgspec.msgpack.encode(command)))
        for name, command in commands.items()
    )
    applied = node.entry(submit(run_of("together", Together(parts))))
    ledger = node.tasks.ledger
    assert ledger.derived() == ledger.recount()
    ((result,),) = _decode(applied.outcomes[0].results)
    return result


def value(node: TaskNode, key: bytes) -> bytes | None:
    raw = node.machines.query("kv", msgspec.msgpack.encode([Get(key)]))
    (found,) = msgspec.msgpack.decode(raw, type=list[GetResult])
    return None if found.item is None else found.item.value


def test_a_key_is_written_and_a_task_enqueued(node: TaskNode) -> None:
    result = together(node, kv=Put(b"k", b"v"), tasks=Enqueue((Task("f"),)))
    assert isinstance(result, DoneTogether)
    put, enqueued = result.results
    assert msgspec.msgpack.decode(put, type=PutResult).revision == 1
    (task,) = msgspec.msgpack.decode(enqueued, type=Enqueued).tasks
    assert (value(node, b"k"), node.state(task)) == (b"v", READY)


def test_if_one_is_refused_none_is_done_whatever_the_order(node: TaskNode) -> None:
    node.one(Configure("full", depth_max=1))
    node.put(queue="full")
    worker = node.worker()
    enqueue, put = Enqueue((Task("f", queue="full"),)), Put(b"k", b"v")
    for commands in ({"kv": put, "tasks": enqueue}, {"tasks": enqueue, "kv": put}):
        result = together(node, **commands)
        assert isinstance(result, Failure)
        assert result.code == "queue-full"
        assert value(node, b"k") is None
    # What was taken back was handed to nobody, and the id is given to the next.
    missing = Txn((Compare(b"k", "version", "=", 1),), ())
    result = together(node, tasks=Enqueue((Task("f", key=b"x"),)), kv=missing)
    assert result == Failure("not-together", "part 1 (kv): its comparisons do not hold")
    node.restart()
    assert node.system().running == 1
    assert worker
    assert node.put() == 2


def test_other_things_than_what_it_is_for_undo_too(node: TaskNode) -> None:
    worker = node.worker()
    task = node.put()
    stale = Complete(worker, (Done(task, 7),))
    result = together(node, kv=Put(b"k", b"v"), tasks=stale)
    assert (result.code, value(node, b"k")) == ("not-together", None)
    other = CompareAndSet(b"k", b"v", b"w")
    result = together(node, tasks=Complete(worker, (Done(task, 1),)), kv=other)
    assert (result.code, node.state(task)) == ("not-together", RUNNING)
    result = together(node, tasks=Complete(worker, (Done(task, 1),)), kv=Put(b"k", b"v"))
    assert isinstance(result, DoneTogether)
    assert (value(node, b"k"), node.state(task)) == (b"v", DONE)


def test_what_cannot_be_a_part_is_refused(node: TaskNode) -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode(Put(b"k", b"v")))
    with pytest.raises(ValueError, match="make them one"):
        Together((Part("kv", raw), Part("kv", raw)))
    with pytest.raises(ValueError, match="no others with them"):
        Together((Part("leases", raw),))
    assert together(node, nobody=Put(b"k", b"v")).code == "unknown-machine"
    assert together(node, kv=Enqueue((Task("f"),))).code == "bad-command"


def test_what_follows_an_attempt_comes_with_its_end_or_not_at_all(node: TaskNode) -> None:
    worker = node.worker(load=1)
    node.one(Configure("next", depth_max=2))
    task = node.put()
    after = (Task("after", queue="next"),) * 2
    late = node.one(Complete(worker, (Done(task, 2),), after))
    assert [each.task for each in late.stale] == [task]
    full = node.one(Complete(worker, (Done(task, 1),), (*after, Task("after", queue="next"))))
    assert isinstance(full, Failure)
    assert full.code == QueueFullError.code
    assert node.state(task) == RUNNING
    assert not node.tasks.ledger.look_at("next").live
    settled = node.one(Complete(worker, (Done(task, 1),), after))
    assert not settled.stale
    assert [node.state(each) for each in settled.followed] == [RUNNING, READY]
    assert node.tasks.frees_space(Complete(worker, (Done(task, 1),)))
    assert not node.tasks.frees_space(Complete(worker, (Done(task, 1),), after))
    with pytest.raises(InvalidArgumentError, match="complete the others apart"):
        Complete(worker, (Done(task, 1), Done(9, 1)), after)

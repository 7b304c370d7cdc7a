"""Locks and elections for threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate import sync
from quorate.client.elections import Leader
from quorate.errors import AlreadyHeldError, LockLostError, LockTimeoutError, NotHeldError


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sync.Database]:
    with sync.open(tmp_path) as made:
        yield made


def test_threads_take_turns(db: sync.Database) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            with db.lock("l") as lock:
                inside.append(number)
                most.append(len(inside))
                db.kv.put("k", str(number), fence=lock.fence)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) == 20


def test_one_thread_cannot_wait_for_itself_and_another_may(db: sync.Database) -> None:
    lock = db.lock("l")
    assert lock.try_acquire()
    assert lock.held
    with pytest.raises(AlreadyHeldError):
        db.lock("l").acquire()
    assert not db.lock("l").try_acquire()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            db.lock("l").acquire(timeout=0.05)
        except LockTimeoutError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert lock.status().holder_count == 1
    assert (lock.name, lock.token) == (b"l", lock.fence.token)
    lock.release()
    with pytest.raises(NotHeldError):
        lock.release()


def test_a_loss_is_heard_and_raised(db: sync.Database) -> None:
    heard = threading.Event()
    with pytest.raises(LockLostError), db.lock("l") as lock:
        lock.on_lost(heard.set)
        lease = lock.status().holders[0].lease
        db._run(lambda twin: twin.revoke_lease(lease))
        assert heard.wait(5)
        assert not lock.held


def test_readers_writers_and_semaphores(db: sync.Database) -> None:
    rwlock = db.rwlock("rw")
    with rwlock.reader():
        assert rwlock.reader().try_acquire()
        assert not rwlock.writer().try_acquire()
    with db.semaphore("s", 2), db.semaphore("s", 2):
        assert not db.semaphore("s", 2).try_acquire()


def test_an_election(db: sync.Database) -> None:
    election = db.election("e", "me")
    changes = election.observe()
    assert next(changes) is None
    epoch = election.campaign()
    assert election.is_leader
    assert election.epoch == epoch
    assert next(changes) == Leader(b"me", epoch) == election.leader()
    election.proclaim("still me")
    assert next(changes) == Leader(b"still me", epoch)
    election.resign()
    assert not election.is_leader


def test_a_lease(db: sync.Database) -> None:
    with db.lease(ttl=5, name="mine") as lease:
        assert lease.alive
        assert lease.id
        assert lease.ttl == 5
        assert 0 < lease.good_for <= 4.5
        assert 0 < lease.time_to_live() <= 5
        lease.on_lost(lambda: None)
        assert lease.revoke()
    assert not lease.alive

"""One suite over every ``LogStore``: the write-ahead log on two disks, and the memory twin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.messages import Entry, EntryId, HardState
from quorate.errors import InvariantViolationError, StorageError
from quorate.storage.interfaces import LogStore
from quorate.storage.memory_files import MemoryFileSystem
from quorate.storage.memory_log import MemoryLogStore
from quorate.storage.wal import WriteAheadLog
from tests import sharing

SMALL_SEGMENT = 2048
READ_ALL = 1 << 30
START = EntryId(LogIndex(0), Term(0))
FRESH = HardState(Term(0), NodeId(0), LogIndex(0))

#: Opens the same storage anew each time it is called.
Opener = Callable[[], LogStore]


def wal_on_real_files(path: Path) -> Opener:
    return lambda: WriteAheadLog(str(path / "deep" / "log"), segment_bytes=SMALL_SEGMENT)


def wal_in_memory(path: Path) -> Opener:
    disk = MemoryFileSystem()
    return lambda: WriteAheadLog("deep/log", files=disk, segment_bytes=SMALL_SEGMENT)


def memory(path: Path) -> Opener:
    log = MemoryLogStore()
    return lambda: log


@pytest.fixture(params=[wal_on_real_files, wal_in_memory, memory])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    make: Callable[[Path], Opener] = request.param
    return make(tmp_path)


@pytest.fixture
def log(opener: Opener) -> Iterator[LogStore]:
    log = opener()
    log.recover()
    yield log
    log.close()


def entry(index: int, term: int = 1, size: int = 10) -> Entry:
    payload = bytes((index + term + i) % 251 for i in range(size))
    return Entry(LogIndex(index), Term(term), 1, payload)


def entries(first: int, last: int, term: int = 1, size: int = 10) -> list[Entry]:
    return [entry(index, term, size) for index in range(first, last + 1)]


def hard(term: int, vote: int = 0, commit: int = 0) -> HardState:
    return HardState(Term(term), NodeId(vote), LogIndex(commit))


def at(index: int, term: int) -> EntryId:
    return EntryId(LogIndex(index), Term(term))


def read(log: LogStore, first: int, last: int, size: int = READ_ALL) -> list[Entry]:
    return log.read(LogIndex(first), LogIndex(last), size)


def test_a_fresh_log_is_empty(opener: Opener) -> None:
    found = opener().recover()
    assert found.hard_state == FRESH
    assert found.floor == START
    assert list(found.metas) == []


def test_what_was_appended_is_read_and_recovered(opener: Opener) -> None:
    log = opener()
    log.recover()
    log.append(entries(1, 3), hard(1, 2))
    log.append(entries(4, 40, size=200), None)
    log.append((), hard(2, 3, 17))
    log.append((), None)
    assert read(log, 1, 40) == entries(1, 3) + entries(4, 40, size=200)
    assert log.size_bytes() == 3 * 10 + 37 * 200
    log.close()
    log = opener()
    found = log.recover()
    assert found.hard_state == hard(2, 3, 17)
    assert [(m.term, m.kind, m.size_bytes) for m in found.metas] == [
        (e.term, e.kind, len(e.payload)) for e in entries(1, 3) + entries(4, 40, size=200)
    ]
    assert read(log, 1, 40) == entries(1, 3) + entries(4, 40, size=200)
    log.close()


@pytest.mark.parametrize("start", [1, 3, 6, 11], ids="truncates at {}".format)
def test_an_append_at_a_held_index_replaces_the_rest(opener: Opener, start: int) -> None:
    log = opener()
    log.recover()
    for index in range(1, 11):
        log.append([entry(index, 1, 300)], None)
    log.append(entries(start, start + 1, term=2), hard(2))
    expected = [entry(index, 1, 300) for index in range(1, start)]
    expected += entries(start, start + 1, term=2)
    assert read(log, 1, start + 1) == expected
    with pytest.raises(KeyError):
        read(log, start + 2, start + 2)
    log.close()
    log = opener()
    assert len(log.recover().metas) == start + 1
    assert read(log, 1, READ_ALL) == expected
    log.close()


@pytest.mark.parametrize(
    ("size_max", "count"), [(0, 1), (99, 1), (199, 1), (200, 2), (1000, 10), (10**9, 12)]
)
def test_a_read_ends_before_its_size_but_gives_one_entry(
    log: LogStore, size_max: int, count: int
) -> None:
    log.append(entries(1, 5, size=100), None)
    log.append(entries(6, 12, size=100), None)
    assert read(log, 1, 12, size_max) == entries(1, count, size=100)
    assert read(log, 1, 4, size_max) == entries(1, min(4, count), size=100)


def test_a_read_ends_in_front_of_a_large_entry(log: LogStore) -> None:
    log.append([entry(1), entry(2, size=5000), entry(3)], None)
    log.append([entry(4)], None)
    assert read(log, 1, 4, 1000) == [entry(1)]
    assert read(log, 2, 4, 1000) == [entry(2, size=5000)]
    assert read(log, 3, 9, 1000) == [entry(3), entry(4)]


def test_reads_outside_the_log_are_key_errors(log: LogStore) -> None:
    for first in (0, 1, 5):
        with pytest.raises(KeyError):
            read(log, first, 9)
    log.append(entries(1, 30, size=300), None)
    log.append(entries(31, 32), None)
    floor = log.cut(at(31, 1))
    assert 0 <= floor.index <= 31
    with pytest.raises(KeyError):
        read(log, floor.index, 32)
    with pytest.raises(KeyError):
        read(log, 33, 33)
    assert read(log, 32, 99) == [entry(32)]


def test_a_cut_never_forgets_more_than_asked(opener: Opener) -> None:
    log = opener()
    log.recover()
    for index in range(1, 31):
        log.append([entry(index, 1 + index // 10, 300)], hard(1 + index // 10, index % 3))
    floor = START
    for index in (1, 7, 7, 3, 15, 29, 30):
        floor = log.cut(at(index, 1 + index // 10))
        assert floor.index <= max(index, floor.index)
        kept = [entry(i, 1 + i // 10, 300) for i in range(floor.index + 1, 31)]
        if kept:
            assert read(log, floor.index + 1, 30) == kept
        assert log.size_bytes() == 300 * len(kept)
    log.close()
    log = opener()
    found = log.recover()
    assert found.hard_state == hard(4, 0), "the hard state outlives its segment"
    assert found.floor == floor
    assert found.floor.index + len(found.metas) == 30
    log.append(entries(31, 32, term=4), None)
    assert read(log, 31, 32) == entries(31, 32, term=4)
    log.close()


@pytest.mark.parametrize("floor", [at(3, 1), at(10, 1), at(500, 9)], ids=str)
def test_a_reset_drops_everything(opener: Opener, floor: EntryId) -> None:
    log = opener()
    log.recover()
    for index in range(1, 11):
        log.append([entry(index, 1, 300)], hard(1, 1))
    log.reset(floor, hard(9, 2, floor.index))
    assert log.size_bytes() == 0
    with pytest.raises(KeyError):
        read(log, floor.index, floor.index)
    log.append(entries(floor.index + 1, floor.index + 2, term=9), None)
    log.close()
    log = opener()
    found = log.recover()
    assert (found.hard_state, found.floor) == (hard(9, 2, floor.index), floor)
    assert len(found.metas) == 2
    assert read(log, floor.index + 1, READ_ALL) == entries(floor.index + 1, floor.index + 2, 9)
    log.close()


def test_unlawful_calls_are_bugs_and_change_nothing(log: LogStore) -> None:
    log.append(entries(1, 5), hard(2, 1, 3))
    unlawful: dict[str, Callable[[], object]] = {
        "gap": lambda: log.append(entries(7, 7), None),
        "not contiguous": lambda: log.append([entry(6), entry(8)], None),
        "below the first": lambda: log.append([entry(0)], None),
        "term goes back": lambda: log.append((), hard(1)),
        "commit beyond the log": lambda: log.append((), hard(2, 1, 6)),
        "commit truncated away": lambda: log.append(entries(2, 2), None),
        "kind is no byte": lambda: log.append([Entry(LogIndex(6), Term(2), 256, b"")], None),
        "cut beyond the log": lambda: log.cut(at(6, 2)),
        "cut at another term": lambda: log.cut(at(5, 2)),
        "reset below the commit": lambda: log.reset(at(2, 2), hard(2, 1, 3)),
        "recover twice": log.recover,
        "read backwards": lambda: read(log, 3, 2),
    }
    for name, call in unlawful.items():
        with pytest.raises(InvariantViolationError):
            call()
            pytest.fail(name)
    log.append(entries(6, 6), None)
    assert read(log, 1, 6) == entries(1, 6)


def test_a_log_that_is_not_open_refuses(opener: Opener) -> None:
    log = opener()
    with pytest.raises(StorageError):
        log.append(entries(1, 1), None)
    log.recover()
    log.append(entries(1, 1), None)
    log.close()
    log.close()
    calls: list[Callable[[], object]] = [
        lambda: log.append(entries(2, 2), None),
        lambda: read(log, 1, 1),
        lambda: log.cut(at(1, 1)),
        lambda: log.reset(at(1, 1), hard(1)),
        log.size_bytes,
    ]
    for call in calls:
        with pytest.raises(StorageError):
            call()


# --- any lawful history, against a list ---


class LogMachine(RuleBasedStateMachine):
    """A log beside a list: whatever is done to both, they agree."""

    def __init__(self) -> None:
        super().__init__()
        self.opener = self.make()
        self.log = self.opener()
        self.log.recover()
        self.floor, self.kept_floor = START, START
        self.held: list[Entry] = []
        self.state = FRESH

    def make(self) -> Opener:
        raise NotImplementedError

    @property
    def last(self) -> int:
        return self.floor.index + len(self.held)

    @rule(
        back=st.integers(0, 4),
        sizes=st.lists(st.sampled_from([0, 1, 60, 450, 1100]), min_size=1, max_size=4),
        term_up=st.integers(0, 1),
        commit_up=st.integers(0, 3),
        keep_state=st.booleans(),
        fill=st.sampled_from([None, 0, 1]),
    )
    def append(
        self,
        back: int,
        sizes: list[int],
        term_up: int,
        commit_up: int,
        keep_state: bool,
        fill: int | None,
    ) -> None:
        first = max(self.last + 1 - back, max(self.state.commit, self.floor.index) + 1)
        term = self.state.term + (0 if keep_state else term_up)
        new = [entry(first + i, term, size) for i, size in enumerate(sizes)]
        if fill is not None:
            new = [Entry(e.index, e.term, e.kind, bytes([fill]) * len(e.payload)) for e in new]
        state = None
        if not keep_state:
            commit = min(new[-1].index, self.state.commit + commit_up)
            state = HardState(Term(term), NodeId(back), LogIndex(commit))
        self.log.append(new, state)
        self.held = [*self.held[: first - self.floor.index - 1], *new]
        self.state = state or self.state

    @rule(vote=st.integers(0, 3))
    def vote(self, vote: int) -> None:
        self.state = HardState(Term(self.state.term + 1), NodeId(vote), self.state.commit)
        self.log.append((), self.state)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.held))
        floor = EntryId(chosen.index, chosen.term)
        kept = self.log.cut(floor)
        assert self.kept_floor.index <= kept.index <= max(floor.index, self.kept_floor.index)
        self.kept_floor = kept
        self.held = [e for e in self.held if e.index > floor.index]
        self.floor = floor

    @rule(distance=st.integers(-3, 30))
    def reset(self, distance: int) -> None:
        index = max(self.last + distance, self.state.commit, self.floor.index)
        self.floor = self.kept_floor = at(index, self.state.term)
        self.state = HardState(self.state.term, self.state.vote, LogIndex(index))
        self.held = []
        self.log.reset(self.floor, self.state)

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = self.opener()
        found = self.log.recover()
        assert found.hard_state == self.state
        assert found.floor == self.kept_floor
        assert found.floor.index + len(found.metas) == self.last
        held = found.metas[len(found.metas) - len(self.held) :] if self.held else []
        assert [(m.term, m.kind, m.size_bytes) for m in held] == [
            (e.term, e.kind, len(e.payload)) for e in self.held
        ]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=st.sampled_from([0, 500, 3000, READ_ALL]))
    def read(self, data: st.DataObject, size: int) -> None:
        start = data.draw(st.integers(0, len(self.held) - 1))
        end = data.draw(st.integers(start, len(self.held) - 1))
        wanted = self.held[start : end + 1]
        sizes = itertools.accumulate(len(e.payload) for e in wanted)
        count = max(1, sum(total <= size for total in sizes))
        found = read(self.log, wanted[0].index, wanted[-1].index, size)
        assert found == wanted[:count]

    @invariant()
    def agree(self) -> None:
        if self.held:
            assert read(self.log, self.floor.index + 1, self.last) == self.held
        assert self.log.size_bytes() >= sum(len(e.payload) for e in self.held)

    def teardown(self) -> None:
        self.log.close()


class MemoryLogMachine(LogMachine):
    def make(self) -> Opener:
        return memory(Path())


class WalMachine(LogMachine):
    """Also crashes: each call has returned, so no outcome of a crash may lose anything."""

    def make(self) -> Opener:
        self.disk = MemoryFileSystem()
        return lambda: WriteAheadLog("log", files=self.disk, segment_bytes=SMALL_SEGMENT)

    @rule(data=st.data())
    def lose_power(self, data: st.DataObject) -> None:
        picks = [data.draw(st.integers(0, count - 1)) for count in self.disk.uncertain()]
        self.disk = self.disk.after_crash(picks)
        self.reopen()

    @rule()
    def die(self) -> None:
        self.disk = self.disk.after_kill()
        self.reopen()

    @rule()
    def prepare(self) -> None:
        assert isinstance(self.log, WriteAheadLog)
        self.log.prepare()


PROFILE = settings(
    max_examples=sharing.examples(150),
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
MemoryLogMachine.TestCase.settings = PROFILE
WalMachine.TestCase.settings = PROFILE
TestMemoryLogAgainstList = MemoryLogMachine.TestCase
TestWalAgainstList = WalMachine.TestCase

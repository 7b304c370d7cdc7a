"""One suite over the state store on disk and its twin in memory."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quorate.base.types import LogIndex, Term
from quorate.consensus.messages import EntryId
from quorate.errors import (
    ClosedError,
    DirectoryInUseError,
    InvalidArgumentError,
    InvariantViolationError,
    LimitExceededError,
    StoreCorruptionError,
)
from quorate.storage import store_format as form
from quorate.storage.interfaces import (
    SnapshotChunk,
    SnapshotInstaller,
    SnapshotReader,
    StateStore,
    StoreMeta,
)
from quorate.storage.memory_store import MemoryImage, MemoryStateStore
from quorate.storage.store import LmdbStateStore
from tests import sharing

Model = dict[str, dict[bytes, bytes]]
Opener = Callable[[], StateStore]


def meta_at(index: int, **rest: object) -> StoreMeta:
    fields = {"time_ms": index * 10, "membership": b"m", "state_hash": b"12345678", **rest}
    return StoreMeta(applied=EntryId(LogIndex(index), Term(1)), **fields)  # type: ignore[arg-type]


def openers(folder: Path) -> dict[str, Opener]:
    image = MemoryImage()
    return {
        "lmdb": lambda: LmdbStateStore(folder / "state"),
        "memory": lambda: MemoryStateStore(image),
    }


@pytest.fixture(params=["lmdb", "memory"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return openers(tmp_path)[request.param]


@pytest.fixture
def store(opener: Opener) -> Iterator[StateStore]:
    opened = opener()
    yield opened
    opened.close()


def contents(store: StateStore) -> Model:
    return {name: dict(store.load(name)) for name in store.tables()}


def drain(reader: SnapshotReader, size_bytes: int = 64) -> list[SnapshotChunk]:
    try:
        return list(reader.chunks(b"", size_bytes))
    finally:
        reader.close()


def of_chunks(chunks: list[SnapshotChunk]) -> Model:
    model: Model = {}
    for chunk in chunks:
        model.setdefault(chunk.table, {}).update(chunk.records)
    return model


def fill(installer: SnapshotInstaller, model: Model) -> int:
    """Adds *model* one record a chunk; returns the count."""
    pairs = [(name, pair) for name in sorted(model) for pair in sorted(model[name].items())]
    for name, pair in pairs:
        installer.add(SnapshotChunk(name, (pair,), b""))
    return len(pairs)


LONG = b"L" * 600
SAMPLE: Model = {
    "a": {
        b"": b"empty key",
        b"\0": b"zero",
        b"k": b"",
        b"L": b"short",
        b"L" * 511: b"the longest regular key",
        b"L" * 512: b"the shortest irregular key",
        **{LONG + bytes([n]): b"long %d" % n for n in (200, 3, 77, 150, 9)},
        b"M": b"after the long ones",
        b"\xff" * 4096: b"last",
    },
    "b": {b"%05d" % n: b"v" * n for n in range(300)},
    "ünïcode": {b"x": b"y"},
}


def sample_changes(model: Model = SAMPLE) -> dict[str, list[tuple[bytes, bytes | None]]]:
    return {name: list(records.items()) for name, records in model.items()}


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_fresh_store_is_empty(store: StateStore) -> None:
    assert store.meta() is None
    assert store.tables() == []
    assert list(store.load("none")) == []


def test_what_was_checkpointed_is_loaded_in_byte_order_also_after_reopening(
    opener: Opener,
) -> None:
    store = opener()
    meta = meta_at(7, machine_versions={"kv": 3}, installed=EntryId(LogIndex(2), Term(1)))
    store.checkpoint(meta, sample_changes())
    for _ in range(2):
        assert store.tables() == sorted(SAMPLE)
        assert store.meta() == meta
        for name, records in SAMPLE.items():
            assert list(store.load(name)) == sorted(records.items())
        store.close()
        store = opener()
    store.close()


def test_deletes_overwrites_and_repeats_in_one_checkpoint(store: StateStore) -> None:
    store.checkpoint(meta_at(1), sample_changes())
    store.checkpoint(
        meta_at(2),
        {
            "a": [
                (b"", None),
                (b"", b"again"),
                (b"k", b"1"),
                (b"k", b"2"),
                (LONG + b"\x03", None),
                (LONG + b"\x09", b"new"),
                (b"was never there", None),
                (LONG + b"nor this", None),
            ],
            "ünïcode": [(b"x", None)],
            "never written": [(b"gone", b"1"), (b"gone", None)],
        },
    )
    expected = {name: dict(records) for name, records in SAMPLE.items()}
    del expected["ünïcode"], expected["a"][LONG + b"\x03"]
    expected["a"].update({b"": b"again", b"k": b"2", LONG + b"\x09": b"new"})
    assert contents(store) == expected
    assert store.tables() == ["a", "b"]


def test_changes_are_consumed_lazily_once_and_in_order(store: StateStore) -> None:
    seen = []

    def changes() -> Iterator[tuple[bytes, bytes | None]]:
        for number in (3, 1, 2):
            seen.append(number)
            yield b"%d" % number, b"v"

    store.checkpoint(meta_at(1), {"t": changes()})
    assert seen == [3, 1, 2]
    assert [key for key, _ in store.load("t")] == [b"1", b"2", b"3"]


def test_a_raising_source_of_changes_changes_nothing(store: StateStore) -> None:
    store.checkpoint(meta_at(1), sample_changes())

    def changes() -> Iterator[tuple[bytes, bytes | None]]:
        yield b"k", b"changed"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.checkpoint(meta_at(2), {"a": changes(), "new": [(b"n", b"n")]})
    assert contents(store) == SAMPLE
    assert store.meta() == meta_at(1)
    store.checkpoint(meta_at(3), {"b": [(b"00000", None)]})
    assert b"00000" not in dict(store.load("b"))


def test_limits_are_refused_and_change_nothing(store: StateStore) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"k", b"v")]})
    too_long = b"x" * (form.STORED_KEY_BYTES_MAX + 1)
    for changes in ({"t": [(b"k2", b""), (too_long, b"")]}, {"t" * 201: [(b"k", b"")]}):
        with pytest.raises(LimitExceededError):
            store.checkpoint(meta_at(2), changes)
    for name in ("", "a\0b"):
        with pytest.raises(InvalidArgumentError):
            store.checkpoint(meta_at(2), {name: [(b"k", b"")]})
    with pytest.raises(LimitExceededError):
        store.checkpoint(meta_at(2), {f"t{n}": [(b"k", b"")] for n in range(form.TABLES_MAX + 1)})
    assert contents(store) == {"t": {b"k": b"v"}}
    assert store.meta() == meta_at(1)


def test_checkpoints_never_go_back(store: StateStore) -> None:
    store.checkpoint(meta_at(5), {})
    store.checkpoint(meta_at(5), {})
    with pytest.raises(InvariantViolationError):
        store.checkpoint(meta_at(4), {})


def test_a_closed_store_refuses_everything(opener: Opener) -> None:
    store = opener()
    store.checkpoint(meta_at(1), sample_changes())
    reader = store.snapshot()
    chunks = reader.chunks(b"", 10)
    next(chunks)
    installer = store.installer()
    store.close()
    store.close()
    for use in (
        lambda: store.checkpoint(meta_at(2), {}),
        store.tables,
        lambda: list(store.load("a")),
        store.snapshot,
        store.installer,
        store.size_bytes,
        store.release_pages,
        lambda: next(chunks),
        lambda: installer.add(SnapshotChunk("a", ((b"k", b"v"),), b"")),
    ):
        with pytest.raises(ClosedError):
            use()
    reader.close()
    installer.abort()


def test_a_store_is_opened_once_at_a_time(opener: Opener) -> None:
    store = opener()
    with pytest.raises(DirectoryInUseError):
        opener()
    store.close()
    opener().close()


def test_release_pages_changes_nothing_that_can_be_seen(store: StateStore) -> None:
    store.checkpoint(meta_at(1), sample_changes())
    reader = store.snapshot()
    assert not store.release_pages()
    reader.close()
    assert store.release_pages()
    assert contents(store) == SAMPLE
    store.checkpoint(meta_at(2), {"b": [(b"00001", None)]})
    assert len(dict(store.load("b"))) == len(SAMPLE["b"]) - 1


# --- snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_resumes_after_every_position(store: StateStore) -> None:
    store.checkpoint(meta_at(3), sample_changes())
    reader = store.snapshot()
    for size_bytes in (1, 100, 5_000, 10**9):
        chunks = list(reader.chunks(b"", size_bytes))
        assert of_chunks(chunks) == SAMPLE
        assert [chunk.table for chunk in chunks] == sorted(chunk.table for chunk in chunks)
        for number, chunk in enumerate(chunks):
            assert list(reader.chunks(chunk.position, size_bytes)) == chunks[number + 1 :]
    assert reader.record_count == sum(map(len, SAMPLE.values()))
    assert reader.meta == meta_at(3)
    reader.close()
    reader.close()


def test_chunks_are_about_as_large_as_asked_for(store: StateStore) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"%06d" % n, b"v" * 94) for n in range(1000)]})
    sizes = [len(chunk.records) * 100 for chunk in drain(store.snapshot(), 10_000)]
    assert max(sizes) <= 10_000
    assert min(sizes[:-1]) >= 9_000


def test_a_position_of_another_checkpoint_is_refused(store: StateStore) -> None:
    store.checkpoint(meta_at(1), sample_changes())
    position = drain(store.snapshot())[3].position
    store.checkpoint(meta_at(2), {"b": [(b"00000", None)]})
    reader = store.snapshot()
    for wrong in (position, b"nonsense", b"\xc0"):
        with pytest.raises(InvalidArgumentError):
            next(reader.chunks(wrong, 100))
    reader.close()


def test_a_snapshot_needs_a_checkpoint(store: StateStore) -> None:
    with pytest.raises(InvariantViolationError):
        store.snapshot()


def test_a_snapshot_keeps_its_view_while_checkpoints_and_an_install_go_on(
    store: StateStore,
) -> None:
    store.checkpoint(meta_at(1), sample_changes())
    reader = store.snapshot()
    chunks = reader.chunks(b"", 100)
    got = [next(chunks)]
    for index in range(2, 12):
        store.checkpoint(
            meta_at(index), {"b": [(b"%05d" % n, b"other" * index) for n in range(300)]}
        )
        got.append(next(chunks))
    installer = store.installer()
    installer.finish(meta_at(20), fill(installer, {"z": {b"only": b"this"}}))
    got.extend(chunks)
    assert of_chunks(got) == SAMPLE
    assert reader.meta == meta_at(1)
    reader.close()
    assert contents(store) == {"z": {b"only": b"this"}}


def test_several_snapshots_each_see_their_own_checkpoint(store: StateStore) -> None:
    readers = []
    for index in range(1, 6):
        store.checkpoint(meta_at(index), {"t": [(b"k%d" % index, b"v"), (b"same", b"%d" % index)]})
        readers.append(store.snapshot())
    for index, reader in enumerate(readers, 1):
        found = of_chunks(drain(reader))["t"]
        assert found.pop(b"same") == b"%d" % index
        assert sorted(found) == [b"k%d" % n for n in range(1, index + 1)]


# --- installing -----------------------------------------------------------------------------------


def test_an_installed_snapshot_replaces_everything(opener: Opener) -> None:
    store = opener()
    store.checkpoint(meta_at(1), {"old": [(b"k", b"v")], "a": [(b"stale", b"v")]})
    installer = store.installer()
    count = fill(installer, SAMPLE)
    assert contents(store) == {"old": {b"k": b"v"}, "a": {b"stale": b"v"}}
    meta = meta_at(9, installed=EntryId(LogIndex(9), Term(1)))
    installer.finish(meta, count)
    for _ in range(2):
        assert contents(store) == SAMPLE
        assert store.meta() == meta
        store.close()
        store = opener()
    store.checkpoint(meta_at(10), {"a": [(b"k", None)]})
    assert b"k" not in dict(store.load("a"))
    store.close()


def test_an_empty_snapshot_can_be_installed(store: StateStore) -> None:
    store.checkpoint(meta_at(1), sample_changes())
    store.installer().finish(meta_at(2), 0)
    assert contents(store) == {}
    assert store.meta() == meta_at(2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(("b", [b"1"]), ("a", [b"1"]), id="an earlier table"),
        pytest.param(("a", [b"2"]), ("a", [b"1"]), id="an earlier key"),
        pytest.param(("a", [b"1"]), ("a", [b"1"]), id="the same chunk again"),
        pytest.param(("a", [b"1", b"5"]), ("a", [b"4", b"6"]), id="an overlap"),
        pytest.param(("a", [b"1"]), ("a", [b"3", b"2"]), id="descending keys"),
        pytest.param(("a", [b"1"]), ("b", [b"3", b"3"]), id="equal keys"),
        pytest.param(("a", [LONG]), ("a", [b"L"]), id="a short key after a longer one"),
        pytest.param(("a", [b"1"]), ("a", []), id="no records"),
    ],
)
def test_chunks_out_of_order_are_refused_and_the_right_one_still_fits(
    store: StateStore, first: tuple[str, list[bytes]], second: tuple[str, list[bytes]]
) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"k", b"v")]})
    installer = store.installer()

    def chunk(table: str, keys: list[bytes]) -> SnapshotChunk:
        return SnapshotChunk(table, tuple((key, b"v") for key in keys), b"")

    installer.add(chunk(*first))
    with pytest.raises(StoreCorruptionError):
        installer.add(chunk(*second))
    installer.add(chunk("z", [b"last"]))
    assert contents(store) == {"t": {b"k": b"v"}}
    installer.finish(meta_at(2), len(first[1]) + 1)
    assert contents(store) == {first[0]: dict.fromkeys(first[1], b"v"), "z": {b"last": b"v"}}


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_snapshot_with_another_count_is_refused(store: StateStore, wrong: int) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"k", b"v")]})
    installer = store.installer()
    count = fill(installer, SAMPLE)
    with pytest.raises(StoreCorruptionError):
        installer.finish(meta_at(2), count + wrong)
    assert contents(store) == {"t": {b"k": b"v"}}
    assert store.meta() == meta_at(1)
    installer.finish(meta_at(2), count)
    assert contents(store) == SAMPLE


def test_an_older_snapshot_is_not_installed_over_newer_state(store: StateStore) -> None:
    store.checkpoint(meta_at(5), {"t": [(b"k", b"v")]})
    installer = store.installer()
    count = fill(installer, SAMPLE)
    with pytest.raises(InvalidArgumentError):
        installer.finish(meta_at(4), count)
    assert contents(store) == {"t": {b"k": b"v"}}


def test_a_second_installer_ends_the_first(store: StateStore) -> None:
    first = store.installer()
    fill(first, {"a": {b"1": b"1"}})
    second = store.installer()
    with pytest.raises(ClosedError):
        first.add(SnapshotChunk("b", ((b"k", b"v"),), b""))
    with pytest.raises(ClosedError):
        first.finish(meta_at(1), 1)
    first.abort()
    second.finish(meta_at(1), fill(second, {"b": {b"2": b"2"}}))
    assert contents(store) == {"b": {b"2": b"2"}}
    second.abort()
    with pytest.raises(ClosedError):
        second.finish(meta_at(2), 1)


def test_an_aborted_install_changes_nothing(store: StateStore) -> None:
    store.checkpoint(meta_at(1), {"t": [(b"k", b"v")]})
    installer = store.installer()
    fill(installer, SAMPLE)
    installer.abort()
    installer.abort()
    assert contents(store) == {"t": {b"k": b"v"}}
    store.checkpoint(meta_at(2), {"t": [(b"k", None)]})
    assert contents(store) == {}


# --- any history ----------------------------------------------------------------------------------

_PREFIX = b"p" * 505
KEYS = st.one_of(
    st.sampled_from([b"", b"a", b"b", b"\xff", _PREFIX]),
    st.binary(max_size=3),
    st.binary(max_size=8).map(lambda end: _PREFIX + end),
)
VALUES = st.binary(max_size=40)
TABLES = st.sampled_from(["a", "b", "c"])
CHANGES = st.dictionaries(
    TABLES, st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=12), max_size=3
)


class StoreMachine(RuleBasedStateMachine):
    """The store against a dict, with reopening, open snapshots and installs."""

    kind = ""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.opener = openers(self.folder)[self.kind]
        self.store = self.opener()
        self.model: Model = {}
        self.index = 0
        self.readers: list[tuple[SnapshotReader, list[SnapshotChunk], Model]] = []

    @rule(changes=CHANGES)
    def checkpoint(self, changes: dict[str, list[tuple[bytes, bytes | None]]]) -> None:
        self.index += 1
        self.store.checkpoint(meta_at(self.index), changes)
        model = {name: dict(records) for name, records in self.model.items()}
        for name, of_table in changes.items():
            for key, value in of_table:
                if value is None:
                    model.get(name, {}).pop(key, None)
                else:
                    model.setdefault(name, {})[key] = value
        self.model = {name: records for name, records in model.items() if records}

    @rule()
    def reopen(self) -> None:
        self.store.close()
        for reader, _, _ in self.readers:
            reader.close()
        self.readers = []
        self.store = self.opener()

    @rule()
    def release_pages(self) -> None:
        assert self.store.release_pages() == (not self.readers)

    @precondition(lambda self: self.index > 0 and len(self.readers) < 3)
    @rule()
    def open_snapshot(self) -> None:
        self.readers.append((self.store.snapshot(), [], self.model))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), size_bytes=st.integers(1, 200), count=st.integers(1, 4))
    def read_on(self, data: st.DataObject, size_bytes: int, count: int) -> None:
        reader, got, _ = data.draw(st.sampled_from(self.readers))
        after = got[-1].position if got else b""
        got.extend(itertools.islice(reader.chunks(after, size_bytes), count))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def finish_snapshot(self, data: st.DataObject) -> None:
        reader, got, model = self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1)))
        after = got[-1].position if got else b""
        got.extend(reader.chunks(after, 50))
        reader.close()
        assert of_chunks(got) == model
        assert reader.record_count == sum(map(len, model.values()))

    @rule(
        model=st.dictionaries(TABLES, st.dictionaries(KEYS, VALUES, min_size=1), max_size=3),
        finish=st.booleans(),
    )
    def install(self, model: Model, *, finish: bool) -> None:
        installer = self.store.installer()
        count = fill(installer, model)
        if finish:
            self.index += 1
            installer.finish(meta_at(self.index), count)
            self.model = model
        else:
            installer.abort()

    @invariant()
    def equals_the_model(self) -> None:
        if hasattr(self, "store"):
            assert self.store.tables() == sorted(self.model)
            for name, records in self.model.items():
                assert list(self.store.load(name)) == sorted(records.items())
            meta = self.store.meta()
            assert (0 if meta is None else meta.applied.index) == self.index

    def teardown(self) -> None:
        if hasattr(self, "store"):
            for reader, _, _ in self.readers:
                reader.close()
            self.store.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_any_history_equals_a_dict(kind: str) -> None:
    machine = type("Machine", (StoreMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=sharing.examples(30),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_any_long_history_equals_a_dict(kind: str) -> None:
    machine = type("Machine", (StoreMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=400,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

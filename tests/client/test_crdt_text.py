"""Shared text: drafts, what is sent of them, and that all read the same in the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pycrdt
import pytest

from quorate.base.crdt_frames import CrdtWrite
from quorate.base.crdt_operations import Clear, Edit, Update
from quorate.client import crdt_yjs, sync
from quorate.client.crdt_draft import Draft
from quorate.client.crdt_yjs import Author, compose, shown
from quorate.client.database import Database, connect
from quorate.crdt.codec import decode_delta, encode_delta
from quorate.crdt.delta import Delta
from quorate.crdt.dots import make_actor
from quorate.crdt.kinds import Text
from quorate.crdt.replica import MemoryReplica
from quorate.crdt.text import updates
from quorate.errors import (
    ConfigError,
    CrdtFormatError,
    InvalidArgumentError,
    LimitExceededError,
    NotObservedError,
    QuorateError,
    UnconfirmedError,
)
from tests.client.fake_cluster import FakeCluster, fake_cluster

LETTERS = "abcdé\u4e16😀\n"


@pytest.fixture
async def lone() -> AsyncIterator[FakeCluster]:
    async with fake_cluster() as cluster:
        yield cluster


@pytest.fixture
async def db(lone: FakeCluster) -> AsyncIterator[Database]:
    async with connect(lone.endpoints, timeout=2) as made:
        yield made


def _edits(cluster: FakeCluster) -> list[Edit]:
    return [
        operation.operation
        for frame in cluster.requests
        if isinstance(frame, CrdtWrite)
        for operation in frame.operations
        if isinstance(operation, Update) and isinstance(operation.operation, Edit)
    ]


def _clients(edit: Edit) -> set[int]:
    numbers = crdt_yjs._Numbers(edit.update)  # so many clients; of the first, so many runs; its id
    assert numbers.next() == 1
    numbers.next()
    return {numbers.next()}


# --- drafts ---------------------------------------------------------------------------------------


def test_a_draft_changes_as_a_list_of_characters_does() -> None:
    random = Random(7)
    draft, model = Draft("é😀"), list("é😀")
    for _ in range(200):
        start, stop = sorted(random.randint(0, len(model)) for _ in range(2))
        new = "".join(random.choices(LETTERS, k=random.randint(0, 2)))
        match random.randrange(5):
            case 0:
                draft[start:stop] = new
                model[start:stop] = new
            case 1:
                del draft[start:stop]
                del model[start:stop]
            case 2 if model:
                draft[-1] = new
                model[-1:] = new
            case 3:
                draft.replace(start, stop - start, new)
                model[start:stop] = new
            case _:
                draft.append(new)
                model += new
        assert str(draft) == "".join(model)
    assert (len(draft), draft[1:3]) == (len(model), "".join(model[1:3]))
    start = Draft("")
    start.append("é😀")
    read = {b"1": compose({}, start, None, "t").update}
    read[b"2"] = compose(read, draft, None, "t").update
    assert shown(read.values(), "t") == str(draft)


@pytest.mark.parametrize(
    "change",
    [
        lambda draft: draft.insert(4, "x"),
        lambda draft: draft.insert(-1, "x"),
        lambda draft: draft.insert(True, "x"),
        lambda draft: draft.delete(2, 2),
        lambda draft: draft.append(b"x"),
        lambda draft: draft.append("\ud800"),
        lambda draft: draft.append("x" * (crdt_yjs.TEXT_BYTES_MAX + 1)),
        lambda draft: draft.__setitem__(3, "x"),
        lambda draft: draft.__delitem__(slice(0, 3, 2)),
    ],
)
def test_a_draft_refuses_what_cannot_be(change: Any) -> None:
    draft = Draft("abc")
    with pytest.raises(InvalidArgumentError):
        change(draft)
    assert (str(draft), draft.changes) == ("abc", ())


# --- what all come to -----------------------------------------------------------------------------


class Writer:
    """A handle without a network: edits at one replica."""

    def __init__(self, number: int) -> None:
        self.replica = MemoryReplica(Text, make_actor(number, 1))
        self.author: Author | None = None

    def read(self) -> dict[bytes, bytes]:
        return dict(updates(self.replica.state, ()))

    def change(self, random: Random) -> tuple[Delta, bytes]:
        """One random change; returns its delta, and its update as nobody merged it."""
        read = self.read()
        draft = Draft(shown(read.values(), "t"))
        start, stop = sorted(random.randint(0, len(draft)) for _ in range(2))
        if random.random() < 0.1:
            start, stop = 0, len(draft)
        text = "".join(random.choices(LETTERS, k=random.randint(0, 4)))
        draft.replace(start, min(stop - start, 3) if start else stop, text)
        if not draft.changes:
            draft.append("x")
        made = compose(read, draft, self.author if random.random() < 0.8 else None, "t")
        self.author = made.author
        edit = Edit(made.merged, made.names) if made.merged else Edit(made.update)
        delta = self.replica.apply(edit)
        assert shown(self.read().values(), "t") == str(draft)
        return delta, made.update


@pytest.mark.parametrize(
    "seeds", [range(25), pytest.param(range(2_000), marks=pytest.mark.deep)], ids=["quick", "deep"]
)
def test_all_come_to_the_same_text_with_every_edit_in_it(
    seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deltas come in any order, twice, or late; updates wait for one another; several merge at
    once. The text is that of all updates that were ever made, none of them merged."""
    monkeypatch.setattr(crdt_yjs, "MERGE_AFTER", 4)
    merged_count = waiting_count = 0
    for seed in seeds:
        random = Random(seed)
        writers = [Writer(number) for number in (1, 2, 3)]
        deltas: list[bytes] = []
        everything: list[bytes] = []
        for _ in range(30):
            writer = random.choice(writers)
            if random.random() < 0.5 or not deltas:
                delta, update = writer.change(random)
                deltas.append(encode_delta(delta))
                everything.append(update)
                merged_count += len(delta.elements) > 1
            elif random.random() < 0.8:
                writer.replica.join(decode_delta(random.choice(deltas[-8:])))
            else:
                writer.replica.join(random.choice(writers).replica)
            held = writer.read().values()
            if held:
                document = crdt_yjs._document(held, None, "t")
                waiting_count += not crdt_yjs._is_whole(document, pycrdt.merge_updates(*held))
        for writer in writers:
            random.shuffle(deltas)
            for encoded in deltas:
                writer.replica.join(decode_delta(encoded))
        random.shuffle(everything)
        expected = shown(everything, "t")
        assert [shown(each.read().values(), "t") for each in writers] == [expected] * 3, seed
    assert min(merged_count, waiting_count) > len(seeds)


def test_what_was_deleted_is_not_kept_and_what_is_too_large_is_merged_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Writer(1)
    for number in range(crdt_yjs.MERGE_AFTER + 1):
        draft = Draft(shown(writer.read().values(), "t"))
        draft.clear()
        draft.append(f"{number} " * 40)
        made = compose(writer.read(), draft, writer.author, "t")
        writer.author = made.author
        writer.replica.apply(Edit(made.merged or made.update, made.names))
    (merged,) = writer.read().values()
    assert len(merged) < 1_000
    read = {b"%03d" % number: made.update for number in range(100)}
    monkeypatch.setattr(crdt_yjs, "VALUE_BYTES_MAX", len(made.update) * 50)
    monkeypatch.setattr(crdt_yjs, "_is_whole", lambda _document, _everything: False)
    draft = Draft(shown(read.values(), "t"))
    draft.append("x")
    some = compose(read, draft, None, "t")
    assert 40 < len(some.names) < 50
    monkeypatch.setattr(crdt_yjs, "VALUE_BYTES_MAX", len(made.update) * 10)
    assert compose(read, draft, None, "t").names == ()


def test_nothing_is_inserted_into_a_text_that_is_full_but_it_can_be_deleted_from() -> None:
    half = Draft("")
    half.append("h" * 600_000)
    read = {b"1": compose({}, half, None, "t").update}
    more = Draft(str(half))
    more.append("m" * 600_000)
    with pytest.raises(LimitExceededError, match="another name"):
        compose(read, more, None, "t")
    read[b"2"] = compose({}, half, None, "t").update  # on the other side, at the same time
    less = Draft(shown(read.values(), "t"))
    less.delete(0, 1)
    assert compose(read, less, None, "t").update


# --- handles --------------------------------------------------------------------------------------


async def test_text(lone: FakeCluster, db: Database) -> None:
    notes = db.text("notes")
    assert (await notes.value(), await notes.length()) == ("", 0)
    await notes.append("Hello world 😀")
    await notes.insert(5, ",")
    await notes.replace(7, 5, "all of you")
    await notes.delete(0, 1)
    async with notes.edit() as draft:
        draft.insert(0, "C")
        draft[-1] = "!"
        assert str(draft) == "Cello, all of you !"
    assert await notes.value() == "Cello, all of you !"
    lone.requests.clear()
    with pytest.raises(InvalidArgumentError, match="19 characters"):
        await notes.insert(20, "x")
    with pytest.raises(ZeroDivisionError):
        async with notes.edit() as draft:
            draft.append(str(1 // 0))
    async with notes.edit():
        pass
    once = notes.edit()
    async with once:
        with pytest.raises(InvalidArgumentError, match="once"):
            await once.__aenter__()
    assert _edits(lone) == []
    await notes.clear()
    assert await notes.value() == ""
    body = db.map("doc").text("body")
    await body.append("x")
    assert await db.map("doc").value() == {"body": "x"}
    async with body.watch(pause=0) as values:
        assert await anext(values) == "x"
        await body.append("y")
        assert await anext(values) == "xy"


async def test_two_who_are_cut_apart_both_keep_what_they_wrote() -> None:
    async with fake_cluster(2) as cluster:
        one, two = (cluster.nodes[number] for number in (1, 2))
        mine, theirs = (connect(node.endpoint, timeout=2) for node in (one, two))
        async with mine, theirs:
            await mine.text("t").append("red green blue")
            two.data.join(one.data)
            await mine.text("t").insert(4, "or ")
            await theirs.text("t").replace(6, 3, "ey")
            assert await mine.text("t").value() == "red or green blue"
            assert await theirs.text("t").value() == "red grey blue"
            one.data.join(two.data)
            two.data.join(one.data)
            assert await mine.text("t").value() == "red or grey blue"
            assert await theirs.text("t").value() == "red or grey blue"


def test_what_is_written_into_a_text_while_it_is_removed_is_not_shown() -> None:
    one, two = Writer(1), Writer(2)

    def append(writer: Writer, text: str) -> None:
        draft = Draft(shown(writer.read().values(), "t"))
        draft.append(text)
        writer.replica.apply(Edit(compose(writer.read(), draft, None, "t").update))

    append(one, "old")
    two.replica.join(one.replica)
    one.replica.apply(Clear())
    append(two, " late")
    one.replica.join(two.replica)
    assert (shown(one.read().values(), "t"), len(one.read())) == ("", 1)
    append(one, "new")
    two.replica.join(one.replica)
    assert shown(two.read().values(), "t") == shown(one.read().values(), "t") == "new"


async def test_a_handle_goes_on_as_one_author_while_it_knows_what_it_did(
    lone: FakeCluster, db: Database
) -> None:
    notes = db.text("t")
    await notes.append("a")
    await notes.append("b")
    assert len(set.union(*map(_clients, _edits(lone)))) == 1
    author = notes._author
    assert author is not None
    assert author.clock == 2
    lone.requests.clear()
    await asyncio.gather(*(notes.append(letter) for letter in "cdef"))
    assert sorted(await notes.value()) == list("abcdef")
    clients = [_clients(each) for each in _edits(lone)]
    assert len(set.union(*clients)) == 4, "changes at once are made by several authors"
    lone.nodes[1].data.unconfirmed = (2,)
    with pytest.raises(UnconfirmedError):
        await notes.append("g", level="strong")
    assert notes._author is None, "who knows what became of that"
    lone.nodes[1].data.unconfirmed = ()
    notes._author = Author(author.client, author.clock - 1)  # as if the disk were an older one
    await notes.append("h")
    assert notes._author is not None
    assert notes._author.client != author.client
    assert len(await notes.value()) == 8


async def test_updates_are_merged_and_a_change_that_comes_too_late_to_goes_alone(
    lone: FakeCluster, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crdt_yjs, "MERGE_AFTER", 4)
    notes = db.text("t")
    for letter in "abcdef":
        await notes.append(letter)
    assert len(await notes._read(None, None, None)) == 2
    for letter in "gh":
        await notes.append(letter)
    async with notes.edit() as draft:
        await db.text("t").insert(0, "z")  # merges
        draft.append("!")
    assert [bool(each.replaces) for each in _edits(lone)][-3:] == [True, True, False]
    assert await notes.value() == "zabcdefgh!"


async def test_what_is_no_update_is_told(lone: FakeCluster, db: Database) -> None:
    lone.nodes[1].data.replica.apply(Update("t", Text.tag, Edit(b"garbage")))
    with pytest.raises(CrdtFormatError, match="'t'"):
        await db.text("t").value()
    await db.remove_crdt("t")
    assert await db.text("t").value() == ""


async def test_without_pycrdt_it_says_what_to_install(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycrdt", None)
    with pytest.raises(ConfigError, match=r"pip install 'quorate\[text\]'"):
        await db.text("t").append("x")
    with pytest.raises(ConfigError):
        await db.text("t").value()
    await db.counter("c").increment()


async def test_without_await(lone: FakeCluster) -> None:
    def use() -> None:
        with sync.connect(lone.endpoints, timeout=2) as db:
            notes = db.text("t")
            notes.append("bc")
            notes.insert(0, "a")
            with notes.edit() as draft:
                draft[1:] = "dé"
                draft.append("!")
            with pytest.raises(QuorateError), notes.edit() as draft:
                draft.insert(9, "x")
            assert (notes.value(), notes.length()) == ("adé!", 4)
            notes.delete(0, 1)
            notes.replace(0, 1, "D")
            assert notes.value() == "Dé!"
            notes.clear()
            db.map("m").text("k").append("v")
            assert db.map("m").value() == {"k": "v"}

    await asyncio.to_thread(use)


def test_what_was_merged_elsewhere_is_refused_by_the_node() -> None:
    writer = Writer(1)
    writer.replica.apply(Edit(b"\x00\x00"))
    (name,) = writer.read()
    writer.replica.apply(Edit(b"\x00\x00", (name,)))
    with pytest.raises(NotObservedError):
        writer.replica.apply(Edit(b"\x00\x00", (name,)))

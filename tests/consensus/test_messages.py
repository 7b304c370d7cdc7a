"""The wire form of members' messages, and what the gateway refuses before the core sees it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.limits import ENTRY_BYTES_MAX
from quorate.base.types import LogIndex, NodeId, Term
from quorate.consensus.membership import encode_membership
from quorate.consensus.messages import (
    APPEND_ENTRIES_MAX,
    NUMBER_MAX,
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    validate,
)
from tests.consensus.chaos import Chaos
from tests.consensus.harness import plain
from tests.consensus.solo import ME, PEER, THIRD, append_request

encoder = msgspec.msgpack.Encoder()
decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
T2, I5, I7 = Term(2), LogIndex(5), LogIndex(7)


def entry(index: int, term: int, kind: int = 1, payload: bytes = b"x") -> Entry:
    return Entry(LogIndex(index), Term(term), kind, payload)


def append(**changes: Any) -> AppendRequest:
    fields: dict[str, Any] = {
        "term": T2, "sender": PEER, "target": ME, "prev_index": I5, "prev_term": T2,
        "entries": (entry(6, 2), entry(7, 2)), "commit": I5, "round": 3, **changes,
    }  # fmt: skip
    return AppendRequest(**fields)


def reply(**changes: Any) -> AppendReply:
    fields: dict[str, Any] = {
        "term": T2, "sender": PEER, "target": ME, "ok": False, "index": I7, "hint_index": I5,
        "hint_term": T2, "round": 3, **changes,
    }  # fmt: skip
    return AppendReply(**fields)


WELL_FORMED: list[Message] = [
    append(),
    append(entries=()),
    append(prev_index=LogIndex(0), prev_term=Term(0), entries=(entry(1, 1), entry(2, 2, 0, b""))),
    append(entries=(entry(6, 2, 2, encode_membership(plain((1, 2, 3)))),)),
    reply(),
    reply(ok=True, hint_index=LogIndex(0), hint_term=Term(0)),
    VoteRequest(T2, PEER, ME, I5, Term(1), pre=True),
    VoteReply(T2, PEER, ME, granted=True),
    Heartbeat(T2, PEER, ME, I5, 9),
    HeartbeatReply(T2, PEER, ME, 9, I7, sticky=True, durable=I5, promise_ms=400),
    ReadIndexRequest(T2, PEER, ME, 1 << 52),
    ReadIndexReply(T2, PEER, ME, 1, LogIndex(0)),
    TimeoutNow(T2, PEER, ME),
]


@pytest.mark.parametrize("message", WELL_FORMED, ids=lambda message: type(message).__name__)
def test_what_members_say_passes_and_survives_the_wire(message: Message) -> None:
    assert validate(message, sender=PEER, target=ME) is None
    assert decoder.decode(encoder.encode(message)) == message


def test_an_older_member_that_knows_no_later_field_is_understood() -> None:
    shown = msgspec.msgpack.decode(encoder.encode(HeartbeatReply(T2, PEER, ME, 9, I7, sticky=True)))
    old = decoder.decode(msgspec.msgpack.encode(shown[:-2]))
    assert isinstance(old, HeartbeatReply)
    assert (old.durable, old.promise_ms) == (0, 0)


REFUSED: list[tuple[Message, str]] = [
    (append(sender=THIRD), "connection of node"),
    (append(target=THIRD), "this is node 1"),
    (append(term=Term(0)), "term 0"),
    (append(term=Term(-1)), "term -1"),
    (append(term=Term(NUMBER_MAX + 1)), "term"),
    (append(prev_index=LogIndex(-1)), "prev_index"),
    (append(prev_term=Term(3)), "prev_term"),
    (append(prev_term=Term(-3)), "prev_term"),
    (append(prev_term=Term(0)), "before the first"),
    (append(prev_index=LogIndex(0), entries=()), "before the first"),
    (append(commit=LogIndex(-1)), "commit"),
    (append(round=-1), "round"),
    (append(entries=(entry(7, 2),)), "entry 7 stands where entry 6"),
    (append(entries=(entry(5, 2),)), "entry 5 stands where entry 6"),
    (append(entries=(entry(6, 2), entry(8, 2))), "entry 8 stands"),
    (append(entries=(entry(6, 1),)), "terms never fall"),
    (append(entries=(entry(6, 3),)), "nor pass the leader's"),
    (append(entries=(entry(6, 2, 9),)), "unknown kind 9"),
    (append(entries=(entry(6, 2, -1),)), "unknown kind"),
    (append(entries=(entry(6, 2, 2, b"junk"),)), "not a membership"),
    (append(entries=(entry(6, 2, 1, bytes(ENTRY_BYTES_MAX + 1)),)), "bytes, the limit is"),
    (
        append(entries=tuple(entry(6 + i, 2, 1, b"") for i in range(APPEND_ENTRIES_MAX + 1))),
        "over the limit",
    ),
    (reply(index=LogIndex(-1)), "hint_index"),
    (reply(ok=True, index=LogIndex(-1)), "index"),
    (reply(hint_index=LogIndex(8)), "hint_index 8 is after"),
    (reply(hint_index=LogIndex(-1)), "hint_index"),
    (reply(hint_term=Term(3)), "hint_term"),
    (reply(round=-1), "round"),
    (VoteRequest(T2, PEER, ME, LogIndex(-1), Term(1)), "last_index"),
    (VoteRequest(T2, PEER, ME, I5, Term(3)), "last_term"),
    (Heartbeat(T2, PEER, ME, LogIndex(-5), 9), "commit"),
    (Heartbeat(T2, PEER, ME, I5, -9), "round"),
    (HeartbeatReply(T2, PEER, ME, -9, I7, sticky=True), "round"),
    (HeartbeatReply(T2, PEER, ME, 9, LogIndex(-7), sticky=True, durable=LogIndex(-8)), "verified"),
    (HeartbeatReply(T2, PEER, ME, 9, I7, sticky=True, durable=LogIndex(-1)), "durable"),
    (HeartbeatReply(T2, PEER, ME, 9, I5, sticky=True, durable=I7), "durable 7 is after"),
    (HeartbeatReply(T2, PEER, ME, 9, I7, sticky=True, promise_ms=-1), "promise_ms"),
    (ReadIndexRequest(T2, PEER, ME, -1), "context"),
    (ReadIndexReply(T2, PEER, ME, -1, I5), "context"),
    (ReadIndexReply(T2, PEER, ME, 1, LogIndex(-1)), "index"),
]


@pytest.mark.parametrize(("message", "why"), REFUSED)
def test_what_no_member_says_is_refused_with_a_sentence(message: Message, why: str) -> None:
    complaint = validate(message, sender=PEER, target=ME)
    assert complaint is not None
    assert why in complaint


def test_oneself_is_no_peer() -> None:
    complaint = validate(TimeoutNow(T2, ME, ME), sender=ME, target=ME)
    assert complaint == "node 1 sends to itself"


@given(seed=st.integers(0, 10_000))
@settings(max_examples=3, deadline=None)
def test_everything_a_cluster_says_survives_the_wire(seed: int) -> None:
    chaos = Chaos(seed)
    post = chaos.cluster.post

    def through_the_wire(message: Message) -> None:
        again = decoder.decode(encoder.encode(message))
        assert again == message
        assert validate(again, sender=message.sender, target=message.target) is None
        post(again)

    chaos.cluster.post = through_the_wire  # type: ignore[method-assign]
    chaos.safety(200)


def test_a_founder_can_be_any_positive_id() -> None:
    request = append_request((1, 1), 2, term=2, sender=999)
    assert validate(request, sender=NodeId(999), target=ME) is None
    assert EntryKind(request.entries[0].kind) is EntryKind.BATCH

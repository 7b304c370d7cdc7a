"""Configurations: what a change leads to, what is refused, and the history of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from quorate.base.limits import INCARNATION_LENGTH_MAX, MEMBERS_MAX
from quorate.base.types import LogIndex, NodeId
from quorate.consensus.membership import (
    ChangeKind,
    MemberChange,
    Membership,
    MembershipHistory,
    changed,
    decode_membership,
    encode_membership,
    invalid_membership,
)
from quorate.errors import InvariantViolationError, MembershipError, WireFormatError
from tests import sharing
from tests.consensus.harness import plain

KINDS = {"add": ChangeKind.ADD_LEARNER, "promote": ChangeKind.PROMOTE, "demote": ChangeKind.DEMOTE,
         "remove": ChangeKind.REMOVE, "address": ChangeKind.ADDRESS,
         "name": ChangeKind.INCARNATION}  # fmt: skip


def wishes(text: str) -> tuple[MemberChange, ...]:
    """``add 4, remove 2``; addresses are n<id>:1, or n<id>:2 for ``address``; names i<id>."""
    found = []
    for wish in text.split(","):
        kind, node = wish.split()
        address = f"n{node}:{2 if kind == 'address' else 1}"
        incarnation = f"i{node}" if kind == "name" else ""
        found.append(MemberChange(KINDS[kind], NodeId(int(node)), address, incarnation))
    return tuple(found)


@pytest.mark.parametrize(
    ("text", "voters", "old", "learners", "following"),
    [
        ("add 4", (1, 2, 3), (), (4, 9), ()),
        ("remove 9", (1, 2, 3), (), (), ()),
        ("address 2", (1, 2, 3), (), (9,), ()),
        ("promote 9", (1, 2, 3, 9), (1, 2, 3), (), ()),
        ("remove 3", (1, 2), (1, 2, 3), (9,), ()),
        ("demote 3", (1, 2), (1, 2, 3), (9,), (3,)),
        ("promote 9, remove 1", (2, 3, 9), (1, 2, 3), (), ()),
        ("promote 9, demote 1, add 5", (2, 3, 9), (1, 2, 3), (5,), (1,)),
        ("promote 9, remove 1, remove 2, remove 3", (9,), (1, 2, 3), (), ()),
    ],
)
def test_change(
    text: str,
    voters: tuple[int, ...],
    old: tuple[int, ...],
    learners: tuple[int, ...],
    following: tuple[int, ...],
) -> None:
    now = plain((1, 2, 3), (9,))
    new = changed(now, wishes(text))
    assert (new.voters, new.voters_old, new.learners, new.learners_next) == (
        voters, old, learners, following,
    )  # fmt: skip
    assert {node for node, _ in new.addresses} == set(new.members())
    assert invalid_membership(encode_membership(new)) is None
    final = new.without_old() if new.joint else new
    assert final.learners == tuple(sorted({*learners, *following}))
    assert {node for node, _ in final.addresses} == set(final.members())
    assert invalid_membership(encode_membership(final)) is None


def test_new_address() -> None:
    new = changed(plain((1, 2)), wishes("address 2"))
    assert (new.address(NodeId(1)), new.address(NodeId(2))) == ("n1:1", "n2:2")
    assert new.address(NodeId(7)) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("add 1", "already"),
        ("add 9", "already"),
        ("add 0", "1 or more"),
        ("promote 1", "voter already"),
        ("promote 5", "not a member"),
        ("demote 9", "learner already"),
        ("remove 5", "not a member"),
        ("address 5", "not a member"),
        ("remove 1, remove 2, remove 3", "no voter"),
        ("demote 1, demote 2, demote 3", "no voter"),
        ("add 5, promote 5", "once"),
        ("remove 1, add 1", "once"),
        ("name 5", "not a member"),
    ],
)
def test_refused_changes(text: str, why: str) -> None:
    with pytest.raises(MembershipError, match=why):
        changed(plain((1, 2, 3), (9,)), wishes(text))


def test_refused_addresses_and_sizes() -> None:
    now = plain((1, 2))
    with pytest.raises(MembershipError, match="address of node 1"):
        changed(now, (MemberChange(ChangeKind.ADD_LEARNER, NodeId(3), "n1:1"),))
    with pytest.raises(MembershipError, match="address of node 1"):
        changed(now, (MemberChange(ChangeKind.ADDRESS, NodeId(2), "n1:1"),))
    with pytest.raises(MembershipError, match="no change"):
        changed(now, ())
    full = plain(range(1, MEMBERS_MAX + 1))
    with pytest.raises(MembershipError, match="at most"):
        changed(full, wishes(f"add {MEMBERS_MAX + 1}"))


def test_incarnations_are_named_once_and_go_with_their_member() -> None:
    founders = replace(plain((1, 2)), incarnations=((NodeId(1), ""), (NodeId(2), "")))
    assert founders.unmet() == (1, 2)
    named = changed(founders, wishes("name 1, name 2"))
    assert (named.unmet(), named.incarnation(NodeId(2))) == ((), "i2")
    with pytest.raises(MembershipError, match="already"):
        changed(named, wishes("name 2"))
    for text in ("", "x" * (INCARNATION_LENGTH_MAX + 1)):
        change = MemberChange(ChangeKind.INCARNATION, NodeId(1), incarnation=text)
        with pytest.raises(MembershipError, match="characters"):
            changed(founders, (change,))
    grown = changed(named, wishes("add 3"))
    assert (grown.unmet(), grown.incarnation(NodeId(3))) == ((), "")
    assert changed(grown, wishes("promote 3")).unmet() == (3,)
    less = changed(named, wishes("remove 2"))
    assert dict(less.incarnations) == {1: "i1", 2: "i2"}, "as long as it votes"
    assert less.without_old().incarnations == ((1, "i1"),)


def test_account_of_incarnations_may_begin_later() -> None:
    now = plain((1, 2), (9,))
    assert now.unmet() == ()
    new = changed(now, wishes("name 1, name 2"))
    assert new.incarnations == ((1, "i1"), (2, "i2"), (9, ""))


def test_account_that_begins_with_a_removal_is_of_who_leaves_too() -> None:
    new = changed(plain((1, 2, 3)), wishes("name 1, remove 2"))
    assert new.incarnations == ((1, "i1"), (2, ""), (3, ""))
    assert new.without_old().incarnations == ((1, "i1"), (3, ""))


def test_a_joint_configuration_is_no_place_to_start() -> None:
    joint = changed(plain((1, 2, 3)), wishes("remove 3"))
    with pytest.raises(InvariantViolationError):
        changed(joint, wishes("add 7"))
    with pytest.raises(InvariantViolationError):
        plain((1, 2)).without_old()


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 9)),
        min_size=1,
        max_size=5,
        unique_by=lambda wish: wish[1],
    )
)
@settings(max_examples=sharing.examples(200))
def test_whatever_is_taken_is_well_formed(wanted: list[tuple[str, int]]) -> None:
    now = plain((1, 2, 3), (4, 5))
    if len(wanted) % 2:
        now = replace(now, incarnations=tuple((node, "") for node in now.members()))
    try:
        new = changed(now, wishes(", ".join(f"{kind} {node}" for kind, node in wanted)))
    except MembershipError:
        return
    assert invalid_membership(encode_membership(new)) is None
    assert decode_membership(encode_membership(new)) == new
    assert new.joint == (new.voters != now.voters)
    if new.joint:
        assert new.voters_old == now.voters
        assert set(now.voters) <= set(new.members()), "who votes gets the log"
        assert invalid_membership(encode_membership(new.without_old())) is None


@pytest.mark.parametrize(
    "bad",
    [
        Membership(voters=()),
        Membership(voters=(NodeId(2), NodeId(1))),
        Membership(voters=(NodeId(1), NodeId(1))),
        Membership(voters=(NodeId(0),)),
        Membership(voters=(NodeId(1),), learners=(NodeId(1),)),
        Membership(voters=(NodeId(1),), voters_old=(NodeId(2),), learners=(NodeId(2),)),
        Membership(voters=(NodeId(1),), learners_next=(NodeId(2),)),
        Membership(voters=(NodeId(1),), voters_old=(NodeId(1),), learners_next=(NodeId(1),)),
        Membership(voters=(NodeId(1),), addresses=((NodeId(7), "n7:1"),)),
        Membership(voters=(NodeId(1),), incarnations=((NodeId(7), "i7"),)),
        Membership(voters=(NodeId(1), NodeId(2)), incarnations=((NodeId(2), "i2"),)),
        Membership(voters=(NodeId(1),), incarnations=((NodeId(1), "x" * 65),)),
        Membership(voters=tuple(map(NodeId, range(1, MEMBERS_MAX + 2)))),
        Membership(voters=(NodeId(1),), voters_old=tuple(map(NodeId, range(1, MEMBERS_MAX + 2)))),
    ],
)
def test_malformed_configurations_are_refused(bad: Membership) -> None:
    assert invalid_membership(encode_membership(bad)) is not None


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93", b"\x91\x91\xa1x", b"\x80"])
def test_bytes_that_are_no_configuration(payload: bytes) -> None:
    assert invalid_membership(payload) is not None
    with pytest.raises(WireFormatError):
        decode_membership(payload)


# --- history --------------------------------------------------------------------------------------


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 3)),
            st.tuples(st.just("truncate"), st.integers(0, 30)),
            st.tuples(st.just("compact"), st.integers(0, 30)),
        ),
        max_size=25,
    )
)
@settings(max_examples=sharing.examples(150))
def test_history_against_a_list_per_index(steps: list[tuple[str, int]]) -> None:
    """The model: the configuration at every index, written out."""
    base = plain((1,))
    history = MembershipHistory(base, LogIndex(0))
    model: list[tuple[int, Membership]] = [(0, base)]  # at each index: (made at, which)
    floor = 0
    for kind, number in steps:
        if kind == "append":  # some other entries, then a configuration
            model += [model[-1]] * (number - 1)
            new = plain((1, 2, 2 + len(model)))
            model.append((len(model), new))
            history.append(LogIndex(len(model) - 1), new)
        elif kind == "truncate":
            last = max(number, floor)
            changed_now = len(model) > last + 1 and model[last] != model[-1]
            del model[last + 1 :]
            assert history.truncate(LogIndex(last)) == changed_now
        else:
            floor = max(floor, min(number, len(model) - 1))
            history.compact(LogIndex(floor))
        assert (history.index, history.current) == model[-1]
        for index in range(floor, len(model)):
            assert history.step_at(LogIndex(index)) == model[index]
            assert history.at(LogIndex(index)) == model[index][1]


def test_history_after_a_snapshot() -> None:
    history = MembershipHistory(plain((1,)), LogIndex(0))
    history.append(LogIndex(4), plain((1, 2)))
    history.reset(plain((3,)), LogIndex(7))
    assert (history.index, history.current) == (7, plain((3,)))
    assert history.at(LogIndex(2)) == plain((3,)), "nothing older is known"
    with pytest.raises(InvariantViolationError):
        history.append(LogIndex(7), plain((4,)))


def test_votes_since() -> None:
    history = MembershipHistory(plain((1, 2)), LogIndex(0))
    history.append(LogIndex(4), plain((2,)))
    history.append(LogIndex(6), plain((2,), (3,)))
    one, two, three = map(NodeId, (1, 2, 3))
    assert history.votes_since(LogIndex(3), one)
    assert not history.votes_since(LogIndex(4), one)
    assert history.votes_since(LogIndex(9), two)
    assert not history.votes_since(LogIndex(0), three)
    assert not MembershipHistory(plain((1,)), LogIndex(5)).votes_since(LogIndex(2), two)

"""Majorities against brute force: every subset of voters, every value, plain and joint."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.base.types import NodeId
from quorate.consensus.quorum import (
    VoteResult,
    has_quorum,
    quorum_index,
    quorum_size,
    quorum_value,
    tally,
)
from tests import sharing

IDS = tuple(map(NodeId, range(1, 8)))
voter_sets = st.lists(st.sampled_from(IDS), min_size=1, unique=True).map(lambda v: tuple(sorted(v)))
old_sets = st.one_of(st.just(()), voter_sets)
values = st.dictionaries(st.sampled_from(IDS), st.integers(0, 9))


@pytest.mark.parametrize(
    ("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)]
)
def test_quorum_size(voters: int, needed: int) -> None:
    assert quorum_size(voters) == needed


@pytest.mark.parametrize("count", range(1, 8))
def test_any_two_quorums_meet_and_no_smaller_ones_need(count: int) -> None:
    size = quorum_size(count)
    quorums = [set(group) for group in combinations(range(count), size)]
    assert all(one & other for one, other in product(quorums, quorums))
    assert 2 * (size - 1) <= count


def brute_value(voters: tuple[NodeId, ...], reached: dict[NodeId, int]) -> int:
    """The largest value that more than half have: by trying all."""
    return max(
        value
        for value in range(10)
        if 2 * sum(reached.get(voter, 0) >= value for voter in voters) > len(voters)
    )


@pytest.mark.parametrize("count", range(1, 5))
def test_value_of_all_combinations(count: int) -> None:
    voters = IDS[:count]
    for combination in product(range(4), repeat=count):
        reached = dict(zip(voters, combination, strict=True))
        assert quorum_value(voters, (), reached) == brute_value(voters, reached)


@given(voters=voter_sets, old=old_sets, reached=values)
@settings(max_examples=sharing.examples(150))
def test_value_against_brute_force(
    voters: tuple[NodeId, ...], old: tuple[NodeId, ...], reached: dict[NodeId, int]
) -> None:
    expected = brute_value(voters, reached)
    if old:
        expected = min(expected, brute_value(old, reached))
    assert quorum_value(voters, old, reached) == expected
    assert quorum_index(voters, old, reached) == expected


@given(voters=voter_sets, old=old_sets, votes=st.dictionaries(st.sampled_from(IDS), st.booleans()))
@settings(max_examples=sharing.examples(150))
def test_tally_against_all_ways_the_election_can_end(
    voters: tuple[NodeId, ...], old: tuple[NodeId, ...], votes: dict[NodeId, bool]
) -> None:
    """Won: won however the others vote. Lost: lost however they vote. Else pending."""
    silent = [voter for voter in sorted({*voters, *old}) if voter not in votes]

    def wins(final: dict[NodeId, bool]) -> bool:
        return all(
            2 * sum(final[voter] for voter in group) > len(group)
            for group in (voters, old)
            if group
        )

    ends = {
        wins({**votes, **dict(zip(silent, more, strict=True))})
        for more in product((True, False), repeat=len(silent))
    }
    expected = {
        frozenset({True}): VoteResult.WON,
        frozenset({False}): VoteResult.LOST,
        frozenset({True, False}): VoteResult.PENDING,
    }
    assert tally(voters, old, votes) is expected[frozenset(ends)]
    assert has_quorum(voters, old, votes) == (tally(voters, old, votes) is VoteResult.WON)


def test_without_voters_nothing_is_decided() -> None:
    assert quorum_index((), (), {NodeId(1): 9}) == 0
    assert quorum_value((), (), {NodeId(1): 9}) == 0
    assert tally((), (), {NodeId(1): True}) is VoteResult.LOST
    assert not has_quorum((), (), {})

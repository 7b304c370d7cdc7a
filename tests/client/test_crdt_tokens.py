"""Tokens of both tiers: what they carry, what is refused, and that they do not grow for ever."""

from __future__ import annotations

import re

import pytest

from quorate.base.crdt_frames import NOWHERE, Mark, Position
from quorate.client.levels import TOKEN_LENGTH_MAX, Seen, format_token, parse_token
from quorate.errors import LimitExceededError, TokenError

HERE = Position(7, (Mark(1, 2, 3), Mark(1, 3, 1), Mark(2, 1, 2**63 - 1)))


@pytest.mark.parametrize("position", [Position(7), HERE, Position(0, HERE.marks), NOWHERE])
def test_a_token_carries_a_position(position: Position) -> None:
    token = format_token("a.b-c_1", position)
    assert parse_token(token)[1] == position
    # What RFC 9110 allows in a header, and RFC 6265 in a cookie.
    assert re.fullmatch(r"[!#$%&'()*+\-./0-9:<=>?@A-Z\[\]^_`a-z{|}~]*", token)


def test_a_token_of_the_log_alone_is_as_it_was() -> None:
    assert format_token("c", Position(7)) == "q1:c:7"
    assert format_token("c", HERE) == f"q2:c:7:1.2.3:1.3.1:2.1.{2**63 - 1}"
    assert format_token("", HERE) == format_token("c", NOWHERE) == ""


@pytest.mark.parametrize(
    "token",
    [
        "q1:c:7:1.2.3",  # marks under the version that has none
        "q2:c:7",
        "q2:c:7:",
        "q2:c:7:1.2",
        "q2:c:7:1.2.3:",
        "q2:c:7:1.2.3,2.1.1",
        "q2:c:7:2.1.1:1.2.3",  # out of order
        "q2:c:7:1.2.3:1.2.4",  # a life twice
        f"q2:c:7:1.2.{2**63}",
        f"q2:c:{2**63}:1.2.3",
        "q2:c:-7:1.2.3",
        "q2:c:7:1.2.3 ",
        "q2:c:7:\u0661.2.3",
        "q3:c:7:1.2.3",
        "q2:" + "c" * 200 + ":7:1.2.3",
        "q2:c:7" + ":1.2.3" * 5000,
        None,
        7,
    ],
)
def test_what_is_no_token_is_refused(token: object) -> None:
    with pytest.raises(TokenError) as refused:
        parse_token(token)
    assert len(str(refused.value)) < 400


def test_a_token_that_would_not_fit_into_a_header_says_why() -> None:
    marks = [Mark(1, epoch, 1000 + epoch) for epoch in range(1, 450)]
    assert len(format_token("c", Position(1, tuple(marks)))) <= TOKEN_LENGTH_MAX
    marks += [Mark(2, epoch, 10**9) for epoch in range(1, 450)]
    with pytest.raises(LimitExceededError, match="898 lives"):
        format_token("c", Position(1, tuple(marks)))


def test_a_session_takes_the_most_of_everything() -> None:
    seen = Seen()
    seen.merge("q2:c:5:1.1.9:2.1.1", "")
    seen.merge("q2:c:3:1.1.4:2.1.6:3.1.1", "c")
    seen.merge("q1:c:8", "c")
    assert seen.position == Position(8, (Mark(1, 1, 9), Mark(2, 1, 6), Mark(3, 1, 1)))
    assert seen.token == "q2:c:8:1.1.9:2.1.6:3.1.1"  # noqa: S105
    with pytest.raises(TokenError):
        seen.merge("q2:other:5:1.1.9", "")
    seen.reach("c", 2)
    assert seen.position.index == 8


def test_lives_that_were_folded_away_are_forgotten() -> None:
    """A node that has waited for a mark and does not name it has it: from before a fold."""
    seen = Seen()
    for epoch in range(1, 2000):
        waited_for = seen.position
        answer = Position(epoch, (Mark(1, epoch, 5), Mark(2, 1, epoch)))
        seen.reach_position("c", answer, waited_for)
        assert len(seen.position.marks) <= 2
    assert seen.position.marks == (Mark(1, 1999, 5), Mark(2, 1, 1999))


def test_what_was_not_waited_for_is_not_forgotten() -> None:
    seen = Seen()
    seen.reach_position("c", Position(1, (Mark(1, 1, 5),)), NOWHERE)
    waited_for = seen.position
    seen.reach_position("c", Position(1, (Mark(2, 1, 1),)), NOWHERE)  # eventual, of another node
    assert seen.position.marks == (Mark(1, 1, 5), Mark(2, 1, 1))
    seen.reach_position("c", Position(1, (Mark(1, 1, 7),)), NOWHERE)  # meanwhile
    seen.reach_position("c", Position(1, (Mark(2, 1, 2),)), waited_for)
    assert seen.position.marks == (Mark(1, 1, 7), Mark(2, 1, 2)), "more than was waited for"
